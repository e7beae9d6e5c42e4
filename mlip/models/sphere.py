"""Functions on the sphere: quadrature, and grids that carry a nonlinearity.

A feature with degrees 0..L is a function on the sphere; multiplying two such functions point by
point and projecting back is an equivariant operation as long as the quadrature is exact. The
product has degree 2L and the projection integrates degree 3L: (3L + 1)/2 Gauss-Legendre latitudes
and 3L + 1 longitudes suffice (5 x 10 for L = 3). With an even number of longitudes the grid is its
own antipode, so a point-wise function also commutes with inversion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlip.models.harmonics import sphere_grid, spherical_harmonics


def grid_matrices(max_degree: int, latitudes: int, longitudes: int) -> tuple[Tensor, Tensor]:
    """Matrices from coefficients to grid values and back, float64.

    Args:
        max_degree: L of the coefficients, component-normalised.
        latitudes: n_β.
        longitudes: n_α; even, or inversion is lost.

    Returns:
        to_grid (G, (L+1)²) and from_grid ((L+1)², G), with from_grid @ to_grid = identity.

    Raises:
        ValueError: the grid is not antipodal.
    """
    if longitudes % 2:
        raise ValueError(f"{longitudes} longitudes are not antipodal; use an even number")
    points, weights = sphere_grid(latitudes, longitudes)
    values = spherical_harmonics(max_degree, torch.from_numpy(points))
    # Unit-variance coefficients give unit-variance function values: Σ_m Y_lm² = 2l + 1 per degree.
    scale = (max_degree + 1) ** -1.0
    to_grid = values * scale
    from_grid = (values * torch.from_numpy(weights)[:, None]).T / scale
    return to_grid, from_grid
