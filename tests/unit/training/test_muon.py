"""Muon against what it is made of: singular values, and PyTorch's optimiser of the same name."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from mlip.training import muon
from mlip.training.muon import COEFFICIENTS, STEPS, Muon, orthogonalised
from mlip.training.products import float32_products

SHAPES = [(8, 8), (8, 8), (12, 8), (8, 40), (40, 8), (8, 17), (1, 5), (30, 31), (3, 2), (264, 270)]


def matrices(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES
    ]


def from_singular_values(x: Tensor) -> Tensor:
    """The polynomial of Newton and Schulz, applied to nothing but the singular values."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    assert s.max() < 1.3
    return u * s @ v


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_only_singular_values_change():
    """Of matrices that are multiplied in stacks, as squares, or alone."""
    given = matrices()
    for x, found in zip(given, orthogonalised(given), strict=True):
        torch.testing.assert_close(found, from_singular_values(x), rtol=0, atol=1e-9)


def test_single_precision_is_near_and_half_is_for_large_matrices_only():
    given = matrices(torch.float32)
    for x, found in zip(given, orthogonalised(given), strict=True):
        assert found.dtype == torch.float32
        error = (found - from_singular_values(x.double())).abs().max()
        halved = min(x.shape) > muon.LARGE
        assert (1e-5 < error < 2e-2) if halved else error < 1e-5


def spread(shape: tuple[int, int], rank: int, smallest: float) -> Tensor:
    """A matrix of few directions, whose sizes go down evenly: what one batch has to teach."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in shape)
    sizes = torch.logspace(0, math.log10(smallest), rank, dtype=torch.float64)
    return torch.linalg.qr(a)[0] * sizes @ torch.linalg.qr(b)[0].T


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("shape", [(64, 256), (128, 512), (96, 96)])
def test_directions_without_a_gradient_are_not_blown_up(shape, precision):
    """Also where training multiplies in fewer digits: rounding of x xᵀ to those would grow."""
    for x in (spread(shape, 8, 1e-1), spread(shape, min(shape), 1e-6)):
        with float32_products(precision):
            (found,) = orthogonalised([x.float()])
            assert torch.get_float32_matmul_precision() == precision
        assert torch.linalg.svdvals(found).max() < 1.25
        torch.testing.assert_close(found.double(), from_singular_values(x), rtol=0, atol=2e-3)


def test_a_gradient_of_zero_moves_nothing():
    (found,) = orthogonalised([torch.zeros(4, 9)])
    assert not found.any()


def test_steps_are_those_of_pytorch():
    """Up to bfloat16, in which PyTorch multiplies; a state of one goes on in the other."""
    ours = [torch.nn.Parameter(x) for x in matrices(torch.float32)]
    theirs = copy.deepcopy(ours)
    a = Muon(ours, lr=0.1, weight_decay=0.01)
    b = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        before = [p.detach().clone() for p in theirs]
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        with torch.no_grad():
            for p, q in zip(ours, theirs, strict=True):
                p.copy_(q)
        a.step()
        b.step()
        for p, q, old in zip(ours, theirs, before, strict=True):
            assert cosine(p - old, q - old) > 0.999
            torch.testing.assert_close((p - old).norm(), (q - old).norm(), rtol=0.05, atol=0)

    for _ in range(3):
        step()
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    step()


def test_matrices_without_a_gradient_stay():
    moved, left = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([moved, left], lr=0.1, weight_decay=0.0)
    moved.grad = torch.eye(3, 4)
    optimizer.step()
    assert (left == 1).all()
    assert (moved.diagonal() != 1).all()
