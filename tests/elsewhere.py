"""A device that is none: what an accelerator would compute is computed by the CPU, but apart.

A tensor that is `ELSEWHERE` says that it is on another device, and an operation that mixes it with
tensors of the CPU fails as it would on a GPU. So code that has not met one yet is at least seen to
make all its tensors where they are needed, and to give the numbers of the CPU. What a GPU's own
kernels do is not seen. `elsewhere()` is a context: only within is there such a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("lazy")  # a name that autograd accepts without a driver
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
# What a GPU's caller has to wait for, because sizes or values of Python depend on numbers.
WAITS = (
    aten._local_scalar_dense.default, aten._unique2.default, aten.equal.default,
    aten.masked_select.default, aten.nonzero.default, aten.repeat_interleave.Tensor,
    aten.unique_dim.default,
)  # fmt: skip
waits: Counter[str] = Counter()  # what was, and how often


class There(Tensor):
    """A tensor of the other device; `numbers` has what is in it."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, numbers.size(), strides=numbers.stride(),
            storage_offset=numbers.storage_offset(), dtype=numbers.dtype, device=ELSEWHERE,
        )  # fmt: skip
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be saved as a tensor."""
        return self.numbers.clone().__reduce_ex__(protocol)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor([...], device=...)`, of which no operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], There):
            waits["tolist"] += 1
            return args[0].numbers.tolist()
        if func is Tensor.new_tensor and isinstance(args[0], There):
            return args[0].numbers.new_tensor(*args[1:], **kwargs).to(ELSEWHERE)
        if func in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            del kwargs["device"]
            return func(*args, **kwargs).to(ELSEWHERE)
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[Counter[str]]:
    """Let there be the device; yields what had to wait for it, and how often."""
    waits.clear()
    with _Literals(), _Operations():
        yield waits


class ElsewhereAccelerator(Accelerator):
    """The device for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to do."""

    def teardown(self) -> None:
        """Nothing to do."""

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [ELSEWHERE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "elsewhere"


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, There)]
    to_there = bool(there)
    if kwargs.get("device") is not None:
        to_there = _is_there(kwargs["device"])
        if to_there:
            kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is aten.copy_.default:
        to_there = isinstance(args[0], There)
    if there and func not in MOVES and any(x.dim() and not isinstance(x, There) for x in given):
        where = [f"{type(x).__name__}{tuple(x.shape)}" for x in given]
        raise AssertionError(f"expected all tensors on one device: {func} of {', '.join(where)}")
    if there and (func in WAITS or (func is aten.index.Tensor and _by_truth(args[1]))):
        waits[func.overloadpacket.__name__] += 1
    if there and func is aten._to_copy.default and not to_there:
        waits["to_cpu"] += 1
    known = {id(x.numbers): x for x in there}
    if func is aten._efficientzerotensor.default:  # has no memory, and is added as if it had
        func = aten.zeros.default
    out = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in known:  # changed in place
            return known[id(x)]
        return There(x) if to_there else x

    return tree_map(placed, out)


def _by_truth(indices: Any) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)


def _numbers(x: Any) -> Any:
    return x.numbers if isinstance(x, There) else x
