"""What an atom is before it has neighbours: its element, and the charge and spin of the whole.

Total charge and spin multiplicity enter as learned shifts relative to the neutral singlet, added to
every atom, so that the reference state is exactly that of a potential without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlip.errors import DataError
from mlip.models.geometry import Geometry
from mlip.models.potential import MAX_Z
from mlip.models.tracing import traced

MAX_CHARGE, MAX_SPIN = 20, 30


class AtomEmbedding(nn.Module):
    """Learned scalars (N, C) of every atom."""

    def __init__(self, species: Sequence[int], channels: int, charge_spin: bool) -> None:
        """Make the tables.

        Args:
            species: atomic numbers to know.
            channels: C.
            charge_spin: whether total charge and spin multiplicity change the result.
        """
        super().__init__()
        index = torch.zeros(MAX_Z + 1, dtype=torch.int64)
        index[list(species)] = torch.arange(len(species))
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        self.charge_spin = charge_spin
        self.species = nn.Embedding(len(species), channels)
        if charge_spin:
            self.charge = nn.Embedding(2 * MAX_CHARGE + 1, channels)
            self.spin = nn.Embedding(MAX_SPIN + 1, channels)
            for table in (self.charge, self.spin):  # an unseen state changes nothing
                nn.init.zeros_(table.weight)

    def forward(self, geometry: Geometry) -> Tensor:
        """Return (N, C).

        Raises:
            DataError: charge and spin are embedded, and there is no row for those of a structure.
        """
        h = self.species(self.index[geometry.atomic_numbers])
        if not self.charge_spin:
            return h
        charge, spin = geometry.charge, geometry.spin
        if not traced():
            check_state(charge, spin)
        state = (
            self.charge(charge + MAX_CHARGE)
            - self.charge.weight[MAX_CHARGE]
            + self.spin(spin.clamp(min=1))  # 0 = unknown: assume 1
            - self.spin.weight[1]
        )
        return h + state[geometry.batch]


def check_state(charge: Tensor, spin: Tensor) -> None:
    """Expect charges and multiplicities that there is a row for.

    Raises:
        DataError: one is outside; the message names it.
    """
    outside = (charge.abs() > MAX_CHARGE) | (spin < 0) | (spin > MAX_SPIN)
    if outside.any():
        first = int(outside.nonzero()[0, 0])
        raise DataError(
            f"charge {int(charge[first])} and spin multiplicity {int(spin[first])}: charges from "
            f"{-MAX_CHARGE} to {MAX_CHARGE} and multiplicities up to {MAX_SPIN} are known "
            "(0 = unknown); correct or leave out that structure"
        )
