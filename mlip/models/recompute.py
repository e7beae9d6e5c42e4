"""Functions that keep nothing but their arguments for the backward pass, to any order.

`torch.utils.checkpoint` recomputes what the first derivative needs, but what that derivative
itself needs for the second is kept after all: training on forces, which are derivatives, saves
nothing. Here the derivative of a recomputed function is again a recomputed function, so only the
intermediate results of one of them exist at a time, whichever derivative is being taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Return `function(*arguments)`, computed anew for each derivative.

    Args:
        function: gives the same result every time; tensors that it holds besides its arguments get
            no gradient. To be differentiated twice it must not be linear in all of them together.
        arguments: tensors, differentiated where they require it.
    """
    (out,) = _Recomputed.apply(lambda *tensors: (function(*tensors),), *arguments)
    return out


class _Recomputed(torch.autograd.Function):
    """Its backward is itself, applied to the vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, function: Function, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        given = [k for k, gradient in enumerate(gradients) if gradient is not None]
        if not given or not any(needed):
            return (None, *(None for _ in needed))
        product = _product(ctx.function, given, needed)
        found = iter(_Recomputed.apply(product, *(gradients[k] for k in given), *ctx.saved_tensors))
        return (None, *(next(found) if need else None for need in needed))


def _product(function: Function, given: list[int], needed: tuple[bool, ...]) -> Function:
    """Return what maps gradients of the `given` outputs, and arguments, to those of arguments."""

    def product(*tensors: Tensor) -> tuple[Tensor, ...]:
        gradients, arguments = tensors[: len(given)], tensors[len(given) :]
        again = torch.is_grad_enabled()  # a product of this product wants to go through it
        if not again:
            arguments = tuple(
                x.detach().requires_grad_(need) for x, need in zip(arguments, needed, strict=True)
            )
        with torch.enable_grad():
            outputs = function(*arguments)
        return torch.autograd.grad(
            [outputs[k] for k in given],
            [x for x, need in zip(arguments, needed, strict=True) if need],
            gradients,
            create_graph=again,
            allow_unused=True,
            materialize_grads=True,
        )

    return product
