"""Pair potentials with known answers: the reference for tests, and the short-range prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.radial import polynomial_envelope

COULOMB = 14.399645478425668  # e²/(4πε0), eV Å


class LennardJones(nn.Module):
    """4ε[(σ/r)¹² − (σ/r)⁶] times a smooth envelope, split evenly between the two atoms."""

    symmetry = "O(3)"
    is_local = True

    def __init__(
        self,
        *,
        cutoff: float,
        species: Sequence[int],
        epsilon: float = 0.0104,
        sigma: float = 3.4,
        readouts: int = 1,
        **_: object,
    ) -> None:
        """Build it.

        Args:
            cutoff: Å.
            species: atomic numbers; all pairs share the parameters.
            epsilon: well depth, eV (default: argon).
            sigma: distance of zero energy, Å.
            readouts: ignored: heads share the interaction and differ by reference energies only.
            **_: statistics that other architectures need.
        """
        super().__init__()
        self.cutoff, self.species = float(cutoff), tuple(int(z) for z in species)
        self.epsilon = nn.Parameter(torch.tensor(float(epsilon)))
        self.sigma = nn.Parameter(torch.tensor(float(sigma)))

    def forward(self, geometry: Geometry) -> NodeOutput:
        """See `EnergyModel`."""
        r = geometry.edge_lengths
        s6 = (self.sigma / r) ** 6
        pair = 4 * self.epsilon * (s6 * s6 - s6) * polynomial_envelope(r / self.cutoff, 6)
        return NodeOutput(_per_atom(0.5 * pair, geometry))


class ZBL(nn.Module):
    """Screened nuclear repulsion: what keeps atoms apart where no training data reaches.

    V(r) = (e²/4πε0) Z_i Z_j φ(r/a)/r with the universal screening function, switched off smoothly
    at the sum of covalent radii: zero at single bonds and beyond, but not at multiple ones (3.7 eV
    for N2 at 1.10 Å), where the architecture learns the difference to the labels. An `EnergyModel`
    without parameters.
    Source: Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Solids" (1985).
    """

    symmetry = "O(3)"
    is_local = True

    def __init__(self, *, species: Sequence[int], envelope_power: int = 6) -> None:
        super().__init__()
        self.species = tuple(int(z) for z in species)
        self.envelope_power = envelope_power
        radii = torch.tensor(covalent_radii, dtype=torch.float64)
        self.cutoff = 2.0 * float(radii[list(self.species)].max())
        self.register_buffer("radii", radii, persistent=False)
        self.radii: Tensor
        coefficients = [[0.1818, 0.5099, 0.2802, 0.02817], [3.2, 0.9423, 0.4029, 0.2016]]
        self.register_buffer("screening", torch.tensor(coefficients), persistent=False)
        self.screening: Tensor

    def forward(self, geometry: Geometry) -> NodeOutput:
        """See `EnergyModel`."""
        j, i = geometry.edge_index
        r = geometry.edge_lengths
        radii = self.radii.to(r.dtype)[geometry.atomic_numbers]
        x = r / (radii[i] + radii[j])
        z = geometry.atomic_numbers.to(r.dtype)
        length = 0.46850 / (z[i] ** 0.23 + z[j] ** 0.23)  # 0.8854 Bohr radii
        weights, rates = self.screening.to(r.dtype)
        screening = (weights * torch.exp(-rates * (r / length)[:, None])).sum(-1)
        pair = COULOMB * z[i] * z[j] / r * screening
        return NodeOutput(
            _per_atom(0.5 * pair * polynomial_envelope(x, self.envelope_power), geometry)
        )


def _per_atom(pair: Tensor, geometry: Geometry) -> Tensor:
    out = pair.new_zeros(geometry.atomic_numbers.shape[0])
    return out.index_add(0, geometry.edge_index[1], pair)
