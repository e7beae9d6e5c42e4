"""Radial functions: the basis a distance is expanded in, and the envelope that ends it.

Every basis here goes to zero at the cutoff with at least two continuous derivatives, so energies,
forces and force constants are smooth when a neighbour enters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class BesselBasis(nn.Module):
    """Spherical Bessel functions sqrt(2/r_c) sin(b π r/r_c)/r, b = 1..K, times an envelope.

    Source: Gasteiger, Groß, Günnemann, "Directional message passing for molecular graphs",
    ICLR 2020, eqs. 7-8 (arXiv:2003.03123).
    """

    def __init__(self, cutoff: float, num_basis: int = 8, envelope_power: int = 6) -> None:
        super().__init__()
        self.cutoff, self.envelope_power = cutoff, envelope_power
        self.register_buffer("frequencies", math.pi * torch.arange(1, num_basis + 1) / cutoff)
        self.frequencies: Tensor

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances r (E,), Å, into features (E, K) of order one."""
        envelope = polynomial_envelope(r / self.cutoff, self.envelope_power)
        # Of order one at typical distances, whatever the cutoff (sqrt(2/r_c) is in 1/Å^(3/2)).
        radial = math.sqrt(2.0) * torch.sin(self.frequencies * r[:, None])
        return radial * (envelope * (0.5 * self.cutoff / r))[:, None]


class BSplineBasis(nn.Module):
    """Uniform cubic B-splines on [0, r_c], times an envelope: C2, each with local support.

    A linear map of these K functions is a cubic spline with free coefficients, the literal reading
    of Facet's "spline" messages (arXiv:2509.08418).
    """

    def __init__(self, cutoff: float, num_basis: int = 8, envelope_power: int = 6) -> None:
        super().__init__()
        self.cutoff, self.envelope_power = cutoff, envelope_power
        # K centres, one spacing apart, from 0 to r_c; the envelope takes care of the far end.
        self.spacing = cutoff / (num_basis - 1)
        self.register_buffer("centres", torch.arange(num_basis) * self.spacing)
        self.centres: Tensor

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances r (E,), Å, into features (E, K) of order one."""
        t = ((r[:, None] - self.centres) / self.spacing).abs()
        inner = 2.0 / 3.0 - t.square() + 0.5 * t**3
        outer = (2.0 - t).clamp(min=0.0) ** 3 / 6.0
        spline = torch.where(t < 1.0, inner, outer)
        envelope = polynomial_envelope(r / self.cutoff, self.envelope_power)
        return math.sqrt(2.0 * self.centres.shape[0] / 3.0) * spline * envelope[:, None]


def polynomial_envelope(x: Tensor, p: int) -> Tensor:
    """Fall from 1 at x = 0 to 0 at x = 1 with zero first and second derivatives at x = 1.

    Args:
        x: (E,) distance over cutoff.
        p: order; larger falls later and steeper.

    Source: Gasteiger et al. 2020, eq. 8, 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2),
    with its threefold zero taken out: (1 − x)³ Σ_k (k+1)(k+2)/2 x^k, k < p. As written there, terms
    of order p² cancel, and in single precision the sum is below zero in front of the cutoff.
    """
    total = torch.full_like(x, p * (p + 1) / 2)
    for k in reversed(range(p - 1)):
        total = total * x + (k + 1) * (k + 2) / 2
    return torch.where(x < 1, (1 - x) ** 3 * total, 0.0)
