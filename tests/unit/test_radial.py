"""Radial bases: smooth ends, sizes of order one, and the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import grad

from mlip.models.radial import BesselBasis, BSplineBasis, polynomial_envelope

BASES = [BesselBasis, BSplineBasis]


@pytest.mark.parametrize("power", [3, 6, 9])
def test_the_envelope_is_one_at_zero_and_flat_to_second_order_at_one(power):
    """At 1 − d the envelope is p(p+1)(p+2)/6 d³ + O(d⁴): value, slope and curvature vanish."""
    d = torch.tensor([1e-2, 1e-3], dtype=torch.float64)
    x = (1 - d).requires_grad_(True)
    u = polynomial_envelope(x, power)
    lead = power * (power + 1) * (power + 2) / 6
    torch.testing.assert_close(u / (lead * d**3), torch.ones(2).double(), rtol=0.2, atol=0)
    (d1,) = grad(u.sum(), x, create_graph=True)
    (d2,) = grad(d1.sum(), x)
    assert (d1.abs() < 10 * lead * d**2).all()
    assert (d2.abs() < 10 * lead * d).all()
    ends = polynomial_envelope(torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64), power)
    assert ends.tolist() == [1.0, 0.0, 0.0]
    inside = polynomial_envelope(torch.linspace(0, 1, 101, dtype=torch.float64), power)
    assert (inside.diff() <= 1e-12).all(), "it falls and never rises"


@pytest.mark.parametrize("power", [2, 3, 6, 9])
def test_the_envelope_is_its_papers_formula_and_ends_as_well_in_single_precision(power):
    """Terms that cancel at the end would leave noise, in front of the cutoff even below zero."""
    x = torch.linspace(0.0, 1.0, 10_001)[:-1]
    exact = polynomial_envelope(x.double(), power)
    a, b, c = -(power + 1) * (power + 2) / 2, power * (power + 2), -power * (power + 1) / 2
    paper = 1 + a * x.double() ** power + b * x.double() ** (power + 1)
    torch.testing.assert_close(exact, paper + c * x.double() ** (power + 2), rtol=0, atol=1e-13)
    # a few roundings of 6e-8 for each of p sums and products
    single = polynomial_envelope(x, power).double()
    torch.testing.assert_close(single, exact, rtol=4 * power * 6e-8, atol=0)
    assert (single > 0).all()


@pytest.mark.parametrize("basis", BASES)
def test_value_slope_and_curvature_vanish_at_the_cutoff(basis):
    module = basis(5.0).double()
    gap = torch.tensor([1e-1, 1e-2, 1e-3], dtype=torch.float64)
    r = (5.0 - gap).requires_grad_(True)
    values = module(r)
    assert values[0].abs().max() > 1e-5
    for order in (0, 1, 2):
        size = values.abs().reshape(3, -1).amax(1)
        fall = torch.log10(size[1] / size[2]).item()
        assert fall > 2.7 - order, f"derivative {order} falls like gap^{fall:.1f}"
        (values,) = grad(values.sum(), r, create_graph=True)
    beyond = torch.tensor([5.0, 5.0 + 1e-12, 7.0], dtype=torch.float64)
    assert not module(beyond).any()


@pytest.mark.parametrize("basis", BASES)
def test_two_continuous_derivatives_inside(basis):
    """Second differences of the second derivative: a kink of the first two would stand out."""
    module = basis(5.0).double()
    r = torch.linspace(0.5, 5.2, 2001, dtype=torch.float64).requires_grad_(True)
    mix = torch.randn(module(r).shape[1], dtype=torch.float64, generator=_generator())
    (d1,) = grad((module(r) @ mix).sum(), r, create_graph=True)
    (d2,) = grad(d1.sum(), r)
    for values in (module(r).detach() @ mix, d1.detach(), d2):
        step = values.diff().abs()
        assert step.max() < 60 * step.median() + 1e-9, "a jump"


@pytest.mark.parametrize("basis", BASES)
def test_derivatives_match_finite_differences(basis):
    r = torch.tensor([0.8, 1.9, 3.3, 4.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(basis(5.0).double(), (r,))
    assert torch.autograd.gradcheck(basis(5.0).double(), (r,))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("cutoff", [3.0, 6.0, 12.0])
def test_features_are_of_order_one_whatever_the_cutoff(basis, cutoff):
    r = torch.linspace(0.2, 0.7, 50, dtype=torch.float64) * cutoff
    rms = basis(cutoff).double()(r).square().mean().sqrt()
    assert 0.2 < rms < 3.0


def test_bessel_functions_are_those_of_the_paper_up_to_a_factor():
    r = torch.tensor([0.7, 2.0, 3.1], dtype=torch.float64)
    module = BesselBasis(5.0, num_basis=4).double()
    n = torch.arange(1, 5, dtype=torch.float64)
    paper = np.sqrt(2 / 5.0) * torch.sin(n * np.pi * r[:, None] / 5.0) / r[:, None]
    paper = paper * polynomial_envelope(r / 5.0, 6)[:, None]
    ratio = module(r) / paper
    # the frequencies are kept in single precision
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.5 * 5.0**1.5), rtol=1e-5, atol=0)


def test_splines_reproduce_straight_lines():
    """Uniform cubic B-splines add up to one, and weighted by their centres to r itself."""
    module = BSplineBasis(5.0, num_basis=9).double()
    r = torch.linspace(0.7, 4.3, 30, dtype=torch.float64)  # away from the missing outer splines
    spline = module(r) / polynomial_envelope(r / 5.0, 6)[:, None] / np.sqrt(2.0 * 9 / 3.0)
    centres = torch.arange(9, dtype=torch.float64) * module.spacing
    torch.testing.assert_close(spline.sum(1), torch.ones_like(r), rtol=1e-6, atol=0)
    torch.testing.assert_close(spline @ centres, r, rtol=1e-6, atol=0)
    assert (spline > 0).sum(1).max() <= 4, "local support"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
