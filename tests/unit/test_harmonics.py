"""Spherical harmonics, couplings and grids against exact properties and e3nn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlip.models.harmonics import coupling, even_paths, sphere_quadrature, spherical_harmonics
from mlip.models.sphere import grid_matrices


def test_orthonormal():
    points, weights = sphere_quadrature(8)
    y = spherical_harmonics(4, torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(np.einsum("g,ga,gb->ab", weights, y, y), np.eye(25), atol=1e-14)


@pytest.mark.parametrize("path", even_paths((0, 1, 2, 3), 3, (0, 1, 2, 3)))
def test_couplings_are_e3nns_up_to_sign_and_basis(path):
    """Compare what does not depend on the basis: the coupled vector's length."""
    o3 = pytest.importorskip("e3nn.o3")
    rng = np.random.default_rng(0)
    vectors = torch.tensor(rng.normal(size=(2, 3)))
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    l1, l2, l3 = path
    ours = spherical_harmonics(3, unit).numpy()
    theirs = [
        o3.spherical_harmonics(degree, unit, True, "component").numpy() for degree in (l1, l2)
    ]
    a = np.einsum("abc,a,b->c", coupling(*path), ours[0, l1**2 : (l1 + 1) ** 2],
                  ours[1, l2**2 : (l2 + 1) ** 2])  # fmt: skip
    w = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy() * np.sqrt(2 * l3 + 1)
    b = np.einsum("abc,a,b->c", w, theirs[0][0], theirs[1][1])
    assert np.linalg.norm(a) > 1e-3
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-10)


def test_odd_couplings_are_refused():
    with pytest.raises(ValueError, match="parity"):
        coupling(1, 1, 1)


@pytest.mark.parametrize(("degree", "latitudes", "longitudes"), [(2, 4, 8), (3, 5, 10)])
def test_product_grids_are_exact(degree, latitudes, longitudes):
    """Projecting a product of two functions on this grid and on a far finer one agrees."""
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.normal(size=(degree + 1) ** 2)) for _ in range(2))

    def project(n, m):
        to_grid, from_grid = grid_matrices(degree, n, m)
        return from_grid @ ((to_grid @ a) * (to_grid @ b))

    torch.testing.assert_close(project(latitudes, longitudes), project(20, 40), atol=1e-13, rtol=0)
    coarse = project(latitudes - 1, longitudes)
    assert (coarse - project(20, 40)).abs().max() > 1e-3, "one latitude fewer must not do"


def test_odd_longitudes_are_refused():
    with pytest.raises(ValueError, match="antipodal"):
        grid_matrices(2, 5, 9)
