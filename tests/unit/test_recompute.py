"""Recomputed functions: the same values and derivatives, and nothing kept in between."""

from __future__ import annotations

import pytest
import torch
from saved import saved_tensors
from torch import Tensor

from mlip.models.recompute import recomputed

CALLS = []


def product(x: Tensor, y: Tensor, index: Tensor, unused: Tensor) -> Tensor:
    """Not linear, not symmetric, of some rows only."""
    CALLS.append(torch.is_grad_enabled())
    return torch.sin(x.index_select(0, index)) * torch.exp(0.3 * y).mean() * x.square().mean()


def arguments() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y, unused = (
        torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(3)
    )
    return [x, y, torch.tensor([2, 0, 2]), unused]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_derivative_is_that_of_the_function(order):
    found = []
    for call in (product, lambda *args: recomputed(product, *args)):
        x, y, index, unused = arguments()
        value = call(x, y, index, unused).square().sum()
        grads: tuple[Tensor, ...] = ()
        for _ in range(order):
            grads = torch.autograd.grad(
                value, [x, y, unused], create_graph=True, materialize_grads=True
            )
            value = sum((g.sin().sum() for g in grads), torch.zeros((), dtype=x.dtype))
        found.append([value, *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_in_the_weights_alone():
    """As training takes it: forces are derivatives in one argument, the loss in another."""
    found = []
    for call in (product, lambda *args: recomputed(product, *args)):
        x, y, index, unused = arguments()
        (forces,) = torch.autograd.grad(call(x, y, index, unused).sum(), x, create_graph=True)
        forces.square().sum().backward()
        assert unused.grad is None or not unused.grad.any()
        found.append((x.grad, y.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_needs_no_gradient_gets_none():
    x, y, index, unused = arguments()
    out = recomputed(product, x, y.detach(), index, unused.detach())
    (grad,) = torch.autograd.grad(out.sum(), x)
    want = torch.autograd.grad(product(x, y.detach(), index, unused).sum(), x)[0]
    torch.testing.assert_close(grad, want)


def test_only_arguments_are_kept():
    """Neither the value nor its derivative saves an intermediate result."""
    args = arguments()
    ones = torch.ones(3, 3, dtype=torch.float64)
    with saved_tensors() as saved:
        out = recomputed(product, *args)
        (grad,) = torch.autograd.grad(out, args[0], ones, create_graph=True)
    assert grad.requires_grad
    assert {x.data_ptr() for x in saved()} == {x.data_ptr() for x in (*args, ones)}


def test_the_value_is_computed_without_a_graph():
    CALLS.clear()
    recomputed(product, *arguments())
    assert CALLS == [False]
