"""A frame as its file has it, and in canonical form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray


@dataclass(slots=True)
class RawFrame:
    """One frame as its file has it: nothing converted, nothing checked.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3), Å.
        cell: (3, 3) lattice vectors as rows, Å.
        pbc: (3,) which axes repeat.
        results: calculator results, units as in the file, 6-vectors in ASE's Voigt order.
        info: everything else that belongs to the frame.
        arrays: everything else that belongs to its atoms.
        constraints: ASE constraints; only kept with `keep_info`.
        where: the source's own name for the frame, for messages.
    """

    numbers: Any
    positions: Any
    cell: Any = None
    pbc: Any = (False, False, False)
    results: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    constraints: list[Any] = field(default_factory=list)
    where: str = ""

    @classmethod
    def from_atoms(cls, atoms: Atoms) -> RawFrame:
        """Take an ASE frame apart; results are the raw ones, which constraints cannot zero."""
        arrays = dict(atoms.arrays)
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        return cls(
            numbers=arrays.pop("numbers"),
            positions=arrays.pop("positions"),
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            results=results,
            info=dict(atoms.info),
            arrays=arrays,
            constraints=list(atoms.constraints),
        )

    def get(self, name: str) -> Any:
        """Return the entry called `name` ("calc:NAME" for a result), or None."""
        if name.startswith("calc:"):
            return self.results.get(name[5:])
        value = self.info.get(name)
        return self.arrays.get(name) if value is None else value


@dataclass(slots=True)
class Frame:
    """One canonical frame as arrays: what an `ase.Atoms` would hold, at a tenth of its cost.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        positions: (N, 3), Å.
        cell: (3, 3) lattice vectors as rows, Å.
        pbc: (3,) which axes repeat.
        results: those of energy (eV), forces (N, 3) eV/Å, stress (6,) eV/Å³ in ASE's order and
            sign, and magmoms (N,) that the source has.
        info: those of charge, spin, group, id, data_id, source, config_type and weights that the
            source has.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    results: dict[str, Any]
    info: dict[str, Any]
