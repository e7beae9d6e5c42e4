"""Grids on the sphere: exact where exactness is promised, antipodal, invertible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mlip.models.harmonics import sphere_grid, spherical_harmonics
from mlip.models.sphere import grid_matrices


def product_grid(degree: int) -> tuple[int, int]:
    """The smallest exact grid: (3L + 1)/2 latitudes and 3L + 1 longitudes, made even."""
    longitudes = 3 * degree + 1
    return (3 * degree + 2) // 2, longitudes + longitudes % 2


def random_coefficients(degree: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(degree + 1) ** 2))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_there_and_back_is_the_identity(degree):
    to_grid, from_grid = grid_matrices(degree, *product_grid(degree))
    assert to_grid.dtype == torch.float64
    eye = torch.eye((degree + 1) ** 2, dtype=torch.float64)
    torch.testing.assert_close(from_grid @ to_grid, eye, atol=1e-13, rtol=0)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_values_of_unit_variance_coefficients_have_unit_variance(degree):
    to_grid, _ = grid_matrices(degree, *product_grid(degree))
    np.testing.assert_allclose(to_grid.square().sum(1), np.ones(len(to_grid)), atol=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_product_grids_are_exact(degree):
    """Projecting a product of two functions on this grid and on a far finer one agrees."""
    a, b = random_coefficients(degree, 0), random_coefficients(degree, 1)

    def project(n, m):
        to_grid, from_grid = grid_matrices(degree, n, m)
        return from_grid @ ((to_grid @ a) * (to_grid @ b))

    latitudes, longitudes = product_grid(degree)
    exact = project(20, 40)
    torch.testing.assert_close(project(latitudes, longitudes), exact, atol=1e-13, rtol=0)
    assert (project(latitudes - 1, longitudes) - exact).abs().max() > 1e-3, "one latitude fewer"
    assert (project(latitudes, longitudes - 2) - exact).abs().max() > 1e-3, "two longitudes fewer"


@pytest.mark.parametrize("degree", [2, 3])
def test_the_product_of_two_functions_turns_with_them(degree):
    q = torch.from_numpy(Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix())
    points = torch.from_numpy(sphere_grid(20, 40)[0])
    y, turned = spherical_harmonics(degree, points), spherical_harmonics(degree, points @ q.T)
    d = torch.linalg.lstsq(y, turned).solution.T  # Y(q v) = d Y(v)
    to_grid, from_grid = grid_matrices(degree, *product_grid(degree))
    a, b = random_coefficients(degree, 0), random_coefficients(degree, 1)

    def multiply(a, b):
        return from_grid @ ((to_grid @ a) * (to_grid @ b))

    out = multiply(d @ a, d @ b)
    assert (out - multiply(a, b)).abs().max() > 1e-2
    torch.testing.assert_close(out, d @ multiply(a, b), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("latitudes", "longitudes"), [(5, 10), (4, 8), (16, 18)])
def test_grids_are_their_own_antipodes(latitudes, longitudes):
    """Then any point-wise function commutes with inversion, not only products."""
    points = sphere_grid(latitudes, longitudes)[0]
    distance = np.linalg.norm(points[:, None] + points[None], axis=-1)
    assert distance.min(axis=1).max() < 1e-12
    to_grid, from_grid = grid_matrices(2, latitudes, longitudes)
    parity = torch.tensor([1.0] + [-1.0] * 3 + [1.0] * 5, dtype=torch.float64)
    a = random_coefficients(2, 0)
    inverted = from_grid @ torch.tanh(to_grid @ (parity * a))
    torch.testing.assert_close(
        inverted, parity * (from_grid @ torch.tanh(to_grid @ a)), atol=1e-14, rtol=0
    )


def test_odd_longitudes_are_refused():
    with pytest.raises(ValueError, match="9 longitudes are not antipodal"):
        grid_matrices(2, 5, 9)
