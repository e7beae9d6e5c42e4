"""The sums over neighbours as operators, which a tracer writes into its graph as they are.

A graph names a kernel by the hash of its source, so that it means the same in every process; who
traces it makes the kernel first. Derivatives are those of `neighbor_sum`, two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlip.models.kernels.neighbor_sum import Kernel, second_derivatives
from mlip.models.tracing import traced

_TENSORS = "Tensor first, Tensor source, Tensor h, Tensor harmonics, Tensor radial, Tensor weights"
_KERNELS: dict[str, Kernel] = {}

torch.library.define("mlip::neighbor_sum", f"(str kernel, {_TENSORS}) -> Tensor")
torch.library.define(
    "mlip::neighbor_sum_backward",
    f"(str kernel, bool with_weights, {_TENSORS}, Tensor g) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mlip::neighbor_sum_backward_twice",
    f"(str kernel, {_TENSORS}, Tensor g, Tensor u_h, Tensor u_harmonics, Tensor u_radial) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def operator(kernel: Kernel) -> Callable[..., Tensor]:
    """Return `kernel.forward` as an operator that can be traced and differentiated."""
    _KERNELS[kernel.name] = kernel
    return partial(torch.ops.mlip.neighbor_sum, kernel.name)


class _Operators:
    """Stands for a kernel where its derivatives are traced."""

    def __init__(self, name: str) -> None:
        self.backward = partial(torch.ops.mlip.neighbor_sum_backward, name)
        self.backward_twice = partial(torch.ops.mlip.neighbor_sum_backward_twice, name)


# -- what they compute -----------------------------------------------------------------------------


@torch.library.impl("mlip::neighbor_sum", "CPU")
def _forward(kernel: str, *tensors: Tensor) -> Tensor:
    return _KERNELS[kernel].forward(*_contiguous(tensors))


@torch.library.impl("mlip::neighbor_sum_backward", "CPU")
def _backward(kernel: str, with_weights: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    *d, d_weights = _KERNELS[kernel].backward(with_weights, *_contiguous(tensors))
    return *d, tensors[5].new_empty(0) if d_weights is None else d_weights


@torch.library.impl("mlip::neighbor_sum_backward_twice", "CPU")
def _backward_twice(kernel: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _KERNELS[kernel].backward_twice(*_contiguous(tensors))


def _contiguous(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


# -- shapes ----------------------------------------------------------------------------------------


@torch.library.register_fake("mlip::neighbor_sum")
def _(kernel: str, first: Tensor, source: Tensor, h: Tensor, *others: Tensor) -> Tensor:
    return h.new_empty(h.shape[0] * _KERNELS[kernel].out_size)


@torch.library.register_fake("mlip::neighbor_sum_backward")
def _(
    kernel: str, with_weights: bool, first: Tensor, source: Tensor, *tensors: Tensor
) -> tuple[Tensor, ...]:
    *d, d_weights, _ = map(_like, tensors)
    return *d, d_weights if with_weights else d_weights.new_empty(0)


@torch.library.register_fake("mlip::neighbor_sum_backward_twice")
def _(kernel: str, first: Tensor, source: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(_like, tensors[:5]))


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# -- derivatives -----------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.kernel = inputs[0]
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))


def _sum_backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 7
    # Forces are derivatives with respect to vectors alone; those that training takes come later.
    with_weights = ctx.needs_input_grad[-1] and not traced()
    *d, d_weights = _Operators(ctx.kernel).backward(with_weights, *ctx.saved_tensors, g)
    return None, None, None, *d, d_weights if with_weights else None


def _gradient_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    stand_in: Any = _Operators(ctx.kernel)
    return None, None, None, None, *second_derivatives(stand_in, ctx.saved_tensors, cotangents)


torch.library.register_autograd("mlip::neighbor_sum", _sum_backward, setup_context=_setup)
torch.library.register_autograd(
    "mlip::neighbor_sum_backward", _gradient_backward, setup_context=_setup
)
