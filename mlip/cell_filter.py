"""ASE's FrechetCellFilter at a fraction of its cost: the same steps, forces and stress.

Coordinates are the positions in the undeformed cell and X = log(F) of the deformation gradient F
(some versions of ASE add a constant to X, which changes nothing).
ASE takes nine Fréchet derivatives of the matrix exponential for every force call and a matrix
logarithm for every look at the positions, several times a step; for small crystals that is more
than a fast potential takes. But the cell was set from X, so X is known; and the gradient needs the
adjoint of the derivative alone, which is one exponential of a matrix of twice the size:

    exp [[Xᵀ, G], [0, Xᵀ]] = [[·, L], [0, ·]]  with  ∂E/∂X = L  for  ∂E/∂F = G.

Source: Mathias, SIAM J. Matrix Anal. Appl. 17, 610 (1996), theorem 2.1 (the block exponential);
the adjoint of the Fréchet derivative at X is the derivative at Xᵀ.
"""

from __future__ import annotations

from typing import Any

import ase
import numpy as np
from ase.filters import FrechetCellFilter
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from scipy.linalg import expm, logm

Array = NDArray[np.float64]


class CellFilter(FrechetCellFilter):
    """Positions and cell of a crystal as coordinates of an optimiser, all strains free.

    >>> from ase.optimize import FIRE
    >>> FIRE(CellFilter(atoms)).run(fmax=0.02)  # doctest: +SKIP
    """

    def __init__(self, atoms: ase.Atoms, *, scalar_pressure: float = 0.0) -> None:
        """Wrap a crystal.

        Args:
            atoms: with a calculator that has stress.
            scalar_pressure: eV/Å³.
        """
        super().__init__(atoms, scalar_pressure=scalar_pressure)
        self._reference = np.array(self.orig_cell)
        self._known: Any = None  # a cell and X there, if known

    def get_positions(self) -> Array:
        """Return undeformed positions and scaled X: (N + 3, 3)."""
        undeformed = np.linalg.solve(self._deformation(), self.atoms.positions.T).T
        return np.concatenate([undeformed, self._log() * self.exp_cell_factor])

    def set_positions(self, new: Array, **kwargs: Any) -> None:
        """Set positions and cell from what `get_positions` returns."""
        n = len(self.atoms)
        x = np.array(new[n:]) / self.exp_cell_factor
        deformation = expm(x)
        cell = self._reference @ deformation.T
        self.atoms.set_cell(cell, scale_atoms=True)
        self.atoms.set_positions(new[:n] @ deformation.T, **kwargs)
        # unless a constraint (FixSymmetry) has changed the cell that was asked for
        self._known = (cell, x)

    def get_forces(self, **kwargs: Any) -> Any:
        """Return forces on the coordinates (N + 3, 3), eV/Å and eV; sets `stress` (6,), eV/Å³."""
        stress = self.atoms.get_stress(voigt=False, **kwargs) + self.scalar_pressure * np.eye(3)
        deformation = self._deformation()
        virial = -self.atoms.get_volume() * stress
        gradient = virial @ np.linalg.inv(deformation.T)
        x = self._log().T
        block = np.zeros((6, 6))
        block[:3, :3] = block[3:, 3:] = x
        block[:3, 3:] = gradient
        on_cell = expm(block)[:3, 3:] / self.exp_cell_factor
        self.stress = full_3x3_to_voigt_6_stress(stress)
        return np.concatenate([self.atoms.get_forces(**kwargs) @ deformation, on_cell])

    def _deformation(self) -> Any:
        return np.linalg.solve(self._reference, self.atoms.cell.array).T.astype(
            np.float64, copy=False
        )

    def _log(self) -> Any:
        cell = self.atoms.cell.array
        if self._known is None or not np.array_equal(self._known[0], cell):
            self._known = (cell.copy(), np.real(logm(self._deformation())))
        return self._known[1]
