"""Real spherical harmonics and the couplings between them.

One convention: components of degree l in the order m = −l..l with the polar axis z, so degree 1 is
(y, z, x); component normalisation, |Y_l|² = 2l + 1 on the unit sphere. Only couplings with an even
sum of degrees appear: those are the parity-conserving ones, and they are proportional to Gaunt
integrals ∫ Y_l1 Y_l2 Y_l3, so no Clebsch-Gordan machinery is needed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_DEGREE = 4


def spherical_harmonics(max_degree: int, unit_vectors: Tensor) -> Tensor:
    """Evaluate all real spherical harmonics up to `max_degree` (at most 4).

    Args:
        max_degree: L.
        unit_vectors: (E, 3), of length one.

    Returns:
        (E, (L+1)²), degrees in order, each degree in the order m = −l..l.
    """
    x, y, z = unit_vectors.unbind(-1)
    x2, y2, z2 = x * x, y * y, z * z
    out = [torch.ones_like(x)]
    if max_degree >= 1:
        s3 = 3.0**0.5
        out += [s3 * y, s3 * z, s3 * x]
    if max_degree >= 2:
        s5, s15 = 5.0**0.5, 15.0**0.5
        out += [
            s15 * x * y,
            s15 * y * z,
            0.5 * s5 * (2.0 * z2 - x2 - y2),
            s15 * x * z,
            0.5 * s15 * (x2 - y2),
        ]
    if max_degree >= 3:
        a, b, c, d = (35.0 / 8) ** 0.5, 105.0**0.5, (21.0 / 8) ** 0.5, 0.5 * 7.0**0.5
        out += [
            a * y * (3.0 * x2 - y2),
            b * x * y * z,
            c * y * (4.0 * z2 - x2 - y2),
            d * z * (2.0 * z2 - 3.0 * x2 - 3.0 * y2),
            c * x * (4.0 * z2 - x2 - y2),
            0.5 * b * z * (x2 - y2),
            a * x * (x2 - 3.0 * y2),
        ]
    if max_degree >= 4:
        out += _degree_four(x, y, z)
    if max_degree > MAX_DEGREE:
        raise ValueError(f"spherical harmonics are written up to degree {MAX_DEGREE}")
    return torch.stack(out, dim=-1)


def _degree_four(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    x2, y2, z2 = x * x, y * y, z * z
    a, b = 1.5 * 35.0**0.5, 1.5 * 17.5**0.5
    c, d = 1.5 * 5.0**0.5, 1.5 * 2.5**0.5
    return [
        a * x * y * (x2 - y2),
        b * y * z * (3.0 * x2 - y2),
        c * x * y * (7.0 * z2 - 1.0),
        d * y * z * (7.0 * z2 - 3.0),
        0.375 * (35.0 * z2 * z2 - 30.0 * z2 + 3.0),
        d * x * z * (7.0 * z2 - 3.0),
        0.5 * c * (x2 - y2) * (7.0 * z2 - 1.0),
        b * x * z * (x2 - 3.0 * y2),
        0.25 * a * (x2 * (x2 - 3.0 * y2) - y2 * (3.0 * x2 - y2)),
    ]


def even_paths(
    degrees_in: tuple[int, ...], max_degree_edge: int, degrees_out: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """List the parity-conserving couplings (l1, l2, l3) that the triangle rule allows."""
    return [
        (l1, l2, l3)
        for l1 in degrees_in
        for l2 in range(max_degree_edge + 1)
        for l3 in degrees_out
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ]


@cache
def coupling(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    """Couple degrees l1 and l2 to l3 (even sum): (2l1+1, 2l2+1, 2l3+1).

    Normalised like e3nn's path weights, Σ C² = 2l3 + 1, so unit-variance inputs give unit-variance
    outputs.

    Raises:
        ValueError: the triangle rule or parity forbids the coupling.
    """
    if (l1 + l2 + l3) % 2 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1} and {l2} do not couple to {l3} with even parity")
    points, weights = sphere_quadrature(l1 + l2 + l3)
    top = max(l1, l2, l3)
    values = spherical_harmonics(top, torch.from_numpy(points)).numpy()
    y1, y2, y3 = (values[:, degree**2 : (degree + 1) ** 2] for degree in (l1, l2, l3))
    gaunt = np.einsum("g,ga,gb,gc->abc", weights, y1, y2, y3)
    gaunt[np.abs(gaunt) < 1e-12] = 0.0
    return gaunt * np.sqrt((2 * l3 + 1) / np.square(gaunt).sum())


def sphere_quadrature(degree: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (G, 3) and weights (G,), summing to one, exact for polynomials up to `degree`."""
    return sphere_grid(degree // 2 + 1, degree + 1)


def sphere_grid(latitudes: int, longitudes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre latitudes times equispaced longitudes.

    Args:
        latitudes: n_β; exact up to degree 2 n_β − 1.
        longitudes: n_α; exact up to degree n_α − 1.

    Returns:
        Unit vectors (n_β n_α, 3) and weights (n_β n_α,) that sum to one.
    """
    cos_beta, w = np.polynomial.legendre.leggauss(latitudes)
    sin_beta = np.sqrt(1.0 - cos_beta**2)
    alpha = 2.0 * np.pi * np.arange(longitudes) / longitudes
    points = np.stack(
        [
            np.outer(sin_beta, np.cos(alpha)),
            np.outer(sin_beta, np.sin(alpha)),
            np.outer(cos_beta, np.ones_like(alpha)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    return points, np.repeat(w / (2.0 * longitudes), longitudes)
