"""Four-point finite differences, shared by the tests of derivatives."""

from __future__ import annotations

import ase
import numpy as np

# Fourth-order stencil without reference energies: rounding 1e-15 eV/h = 1e-11 eV/Å, truncation
# h⁴E⁽⁵⁾/30 = 1e-12, and h²/12 per jump of E⁽³⁾ = 1e-8 where a spline knot is crossed.
STEP = 2e-4
RELATIVE = 1e-7
STENCIL = (-2, -1, 1, 2)


def slope(energies: np.ndarray) -> np.ndarray:
    """Derivative from E(−2h), E(−h), E(h), E(2h), per row of four."""
    m2, m1, p1, p2 = np.moveaxis(energies.reshape(-1, 4), 1, 0)
    return (8 * (p1 - m1) - (p2 - m2)) / (12 * STEP)


def strained(atoms: ase.Atoms, a: int, b: int, size: float) -> ase.Atoms:
    """Strain atoms and cell together; also defined where there is no cell."""
    strain = np.eye(3)
    strain[a, b] += 0.5 * size
    strain[b, a] += 0.5 * size
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ strain, scale_atoms=False)
    out.positions = atoms.positions @ strain
    return out
