"""Generated loops for what PyTorch can only do by writing large temporaries to memory.

`neighbor_sum` is C for CPUs, `fused_sum` Triton for accelerators. Each has a plain PyTorch
counterpart that gives the same numbers to rounding and is used where there is no C compiler, on
other devices, and when the environment variable MLIP_KERNELS is `torch`.
"""
