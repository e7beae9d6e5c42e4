"""Real spherical harmonics and couplings against exact properties and e3nn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mlip.models.harmonics import (
    MAX_DEGREE,
    coupling,
    even_paths,
    sphere_quadrature,
    spherical_harmonics,
)

DEGREES = range(MAX_DEGREE + 1)
PATHS = even_paths(tuple(DEGREES), MAX_DEGREE, tuple(DEGREES))
ROTATION = Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix()


def block(degree: int) -> slice:
    return slice(degree**2, (degree + 1) ** 2)


def unit_vectors(n: int, seed: int = 0) -> torch.Tensor:
    v = np.random.default_rng(seed).normal(size=(n, 3))
    return torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True))


def wigner(degree: int, q: np.ndarray) -> np.ndarray:
    """D with Y(q v) = D Y(v), by solving for it at many points."""
    v = unit_vectors(60)
    y = spherical_harmonics(degree, v)[:, block(degree)].numpy()
    turned = spherical_harmonics(degree, v @ torch.from_numpy(q.T))[:, block(degree)].numpy()
    return np.linalg.lstsq(y, turned, rcond=None)[0].T


def test_orthonormal():
    points, weights = sphere_quadrature(2 * MAX_DEGREE)
    y = spherical_harmonics(MAX_DEGREE, torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(np.einsum("g,ga,gb->ab", weights, y, y), np.eye(25), atol=1e-14)


def test_component_normalised():
    y = spherical_harmonics(MAX_DEGREE, unit_vectors(20)).square()
    for degree in DEGREES:
        sums = y[:, block(degree)].sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, 2 * degree + 1))


def test_degree_one_is_y_z_x():
    """The order that e3nn and Facet's weights assume."""
    v = unit_vectors(5)
    torch.testing.assert_close(
        spherical_harmonics(1, v)[:, 1:], 3**0.5 * v[:, [1, 2, 0]], rtol=1e-15, atol=1e-15
    )


@pytest.mark.parametrize("degree", DEGREES)
def test_e3nn_has_the_same_numbers(degree):
    """Its polar axis is y where ours is z, and nothing else differs."""
    o3 = pytest.importorskip("e3nn.o3")
    v = unit_vectors(20)
    ours = spherical_harmonics(MAX_DEGREE, v)[:, block(degree)]
    theirs = o3.spherical_harmonics(degree, v[:, [1, 2, 0]], True, "component")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("degree", DEGREES)
def test_rotations_act_orthogonally_and_inversion_by_parity(degree):
    d = wigner(degree, ROTATION)
    np.testing.assert_allclose(d @ d.T, np.eye(2 * degree + 1), atol=1e-12)
    v = unit_vectors(10, seed=1)
    y = spherical_harmonics(degree, v)[:, block(degree)]
    turned = spherical_harmonics(degree, v @ torch.from_numpy(ROTATION.T))[:, block(degree)]
    torch.testing.assert_close(turned, y @ torch.from_numpy(d.T), rtol=0, atol=1e-12)
    inverted = spherical_harmonics(degree, -v)[:, block(degree)]
    torch.testing.assert_close(inverted, (-1) ** degree * y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
def test_couplings_are_equivariant_and_normalised(path):
    """C (D1 a ⊗ D2 b) = D3 C (a ⊗ b), checked on the tensor itself."""
    l1, l2, l3 = path
    c = coupling(*path)
    d1, d2, d3 = (wigner(degree, ROTATION) for degree in path)
    turned = np.einsum("abc,aA,bB,cC->ABC", c, d1, d2, d3)
    assert not np.allclose(np.einsum("abc,aA->Abc", c, d1), c, atol=1e-3) or l1 == 0
    np.testing.assert_allclose(turned, c, atol=1e-11)
    assert np.square(c).sum() == pytest.approx(2 * l3 + 1, rel=1e-13)
    assert c.shape == (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)


@pytest.mark.parametrize("path", PATHS)
def test_couplings_are_e3nns_up_to_sign(path):
    """The space of couplings has one dimension: equality up to sign is all there is."""
    o3 = pytest.importorskip("e3nn.o3")
    theirs = o3.wigner_3j(*path, dtype=torch.float64).numpy() * np.sqrt(2 * path[2] + 1)
    ours = coupling(*path)
    sign = np.sign((ours * theirs).sum())
    np.testing.assert_allclose(ours, sign * theirs, atol=1e-7)


def test_only_parity_conserving_paths_that_fit_a_triangle():
    assert len(even_paths((0, 1, 2), 2, (0, 1, 2))) == 11  # of 15
    assert len(even_paths((0, 1, 2, 3), 3, (0, 1, 2, 3))) == 23  # of 34
    for l1, l2, l3 in PATHS:
        assert (l1 + l2 + l3) % 2 == 0
        assert abs(l1 - l2) <= l3 <= l1 + l2


@pytest.mark.parametrize("path", [(1, 1, 1), (0, 1, 2), (2, 2, 5), (2, 1, 2)])
def test_other_couplings_are_refused(path):
    with pytest.raises(ValueError, match="do not couple"):
        coupling(*path)


def test_degrees_beyond_the_written_ones_are_refused():
    with pytest.raises(ValueError, match="up to degree 4"):
        spherical_harmonics(5, unit_vectors(1))


def test_second_derivatives_of_the_harmonics():
    v = unit_vectors(3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: spherical_harmonics(MAX_DEGREE, x), (v,))
    assert torch.autograd.gradgradcheck(lambda x: spherical_harmonics(MAX_DEGREE, x), (v,))
