"""Relax structures: atoms and, for crystals, the cell."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.optimize import BFGS, FIRE, LBFGS

from mlip.calculator import MLIPCalculator, carry_state
from mlip.cell_filter import CellFilter
from mlip.errors import ConfigError, DataError
from mlip.models.potential import Potential
from mlip.together import together
from mlip.units import GPA

log = logging.getLogger("mlip")
OPTIMIZERS = {"FIRE": FIRE, "BFGS": BFGS, "LBFGS": LBFGS}


@dataclass
class RelaxResult:
    """What a relaxation gives, as attributes and as keys."""

    final_structure: Any  # of the type that was given
    energy: float  # eV
    forces: np.ndarray  # (N, 3) eV/Å
    stress: np.ndarray | None  # (6,) eV/Å³; None without a 3-D cell
    converged: bool
    n_steps: int
    trajectory: list[ase.Atoms] = field(default_factory=list)

    def keys(self) -> list[str]:
        """Return the names, so that `dict(result)` works."""
        return list(self.__dataclass_fields__)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: str) -> Any:
        """Return the attribute `key`."""
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)


class Relaxer:
    """Relax pymatgen or ASE structures with one potential."""

    def __init__(
        self,
        potential: str | Path | Potential | MLIPCalculator,
        *,
        fmax: float = 0.05,
        steps: int = 500,
        optimizer: str = "FIRE",
        relax_cell: bool = True,
        pressure_gpa: float = 0.0,
        head: str | None = None,
        device: str = "auto",
        dtype: str | None = "float64",
        allow_nonconservative: bool = False,
        keep_trajectory: bool = True,
    ) -> None:
        """Load the potential.

        Args:
            potential: a potential file, a loaded potential, or a calculator.
            fmax: largest force (and, with the cell, stress times volume) at the end, eV/Å.
            steps: most optimiser steps.
            optimizer: FIRE, BFGS or LBFGS.
            relax_cell: also relax the cell of 3-D periodic structures.
            pressure_gpa: external pressure, GPa.
            head: which level of theory, for a potential that knows several.
            device: "auto", "cpu", "cuda", ...
            dtype: float64 by default: tight relaxations stall in float32.
            allow_nonconservative: relax with forces that are not a gradient.
            keep_trajectory: whether results have every step, which takes memory where many
                structures are relaxed; without, `trajectory` is empty.

        Raises:
            ConfigError: an unknown optimiser, or a potential whose forces are not a gradient.
        """
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer={optimizer!r} must be one of {', '.join(OPTIMIZERS)}")
        if not (fmax > 0 and steps >= 0):
            raise ConfigError(f"fmax={fmax} must be above 0 eV/Å and steps={steps} at least 0")
        if isinstance(potential, MLIPCalculator):
            self.calculator = potential
        else:
            self.calculator = MLIPCalculator(potential, head=head, device=device, dtype=dtype)
        if not self.calculator.conservative and not allow_nonconservative:
            raise ConfigError(
                "this potential predicts forces that are not the gradient of its energy; pass "
                "allow_nonconservative=True to relax with it all the same"
            )
        self.fmax, self.steps, self.optimizer = fmax, steps, OPTIMIZERS[optimizer]
        self.relax_cell, self.pressure_gpa = relax_cell, pressure_gpa
        self.keep_trajectory = keep_trajectory

    def relax(self, structure: Any, trajectory: Path | str | None = None) -> RelaxResult:
        """Relax an `ase.Atoms`, or a pymatgen structure or molecule; the input is not changed.

        Args:
            structure: constraints (selective dynamics), charge and spin are honoured.
            trajectory: also write every step to this `.traj` file as it happens.

        Raises:
            DataError: forces are not finite, or the element is unknown.
        """
        return self._relax(structure, self.calculator, trajectory)

    def relax_many(
        self, structures: Sequence[Any], *, at_once: int = 16
    ) -> list[RelaxResult | DataError]:
        """Relax structures side by side, their forces predicted in batches.

        Each takes the steps that it would take alone, to rounding. On one CPU thread sixteen
        crystals of 2 to 16 atoms take 0.5 to 0.7 of the time (data/results/relaxations.json).

        Args:
            structures: as `relax` takes them.
            at_once: how many are relaxed at a time; memory grows with it.

        Returns:
            A result for each, in order; in its place the error of one that could not be relaxed.
        """
        if at_once < 1:
            raise ConfigError(f"at_once={at_once} must be 1 or more")
        tasks = [partial(self._relax, structure) for structure in structures]
        return together(self.calculator, tasks, at_once)

    def _relax(
        self, structure: Any, calculator: MLIPCalculator, trajectory: Path | str | None = None
    ) -> RelaxResult:
        atoms = _to_atoms(structure)
        atoms.calc = calculator
        periodic = bool(atoms.pbc.all())
        if self.relax_cell and not periodic:
            log.info("no 3-D cell (pbc=%s): positions only", atoms.pbc.tolist())
        target: Any = atoms
        if self.relax_cell and periodic:
            target = CellFilter(atoms, scalar_pressure=self.pressure_gpa * GPA)
        frames: list[ase.Atoms] = []

        def record() -> None:
            if not np.isfinite(atoms.get_forces()).all():
                raise DataError(
                    "forces are not finite: two atoms are too close, or the structure is far from "
                    "anything the potential was trained on"
                )
            if self.keep_trajectory:
                frames.append(_snapshot(atoms))

        path = None if trajectory is None else str(trajectory)
        with self.optimizer(target, logfile=None, trajectory=path) as optimizer:
            optimizer.attach(record)
            converged = bool(optimizer.run(fmax=self.fmax, steps=self.steps))
            n_steps = optimizer.nsteps
        return RelaxResult(
            final_structure=_like(structure, atoms),
            energy=float(atoms.get_potential_energy()),
            forces=atoms.get_forces(),
            stress=atoms.get_stress() if periodic else None,
            converged=converged,
            n_steps=n_steps,
            trajectory=frames,
        )


def _snapshot(atoms: ase.Atoms) -> ase.Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    out = atoms.copy()
    found = {} if atoms.calc is None else atoms.calc.results
    results = {k: found[k] for k in ("energy", "forces", "stress") if k in found}
    out.calc = SinglePointCalculator(out, **results)
    return out


def _to_atoms(structure: Any) -> ase.Atoms:
    if isinstance(structure, ase.Atoms):
        return carry_state(structure, structure.copy())
    if hasattr(structure, "to_ase_atoms"):  # pymatgen, without importing it for those who do not
        atoms = structure.to_ase_atoms()
        out = ase.Atoms(
            atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc,
            constraint=atoms.constraints,
        )  # fmt: skip
        out.info.update({k: v for k, v in atoms.info.items() if k in ("charge", "spin")})
        # a charge that was set; `Structure.charge` would sum oxidation states where there is none
        if getattr(structure, "_charge", None) is not None:
            out.info.setdefault("charge", structure._charge)
        return carry_state(atoms, out)
    raise DataError(
        f"cannot relax a {type(structure).__name__}; give ase.Atoms or a pymatgen structure"
    )


def _like(original: Any, atoms: ase.Atoms) -> Any:
    if isinstance(original, ase.Atoms):
        return _snapshot(atoms)
    state: dict[str, Any] = {"charge": getattr(original, "_charge", None)}
    if hasattr(original, "lattice"):
        from pymatgen.core import Lattice

        x, y, z = (bool(axis) for axis in atoms.pbc)
        lattice = Lattice(atoms.cell.array, pbc=(x, y, z))
        place = {"lattice": lattice, "coords_are_cartesian": True}
    else:
        place = {}
        state |= {"charge": original.charge, "spin_multiplicity": original.spin_multiplicity}
    return type(original)(
        species=original.species_and_occu,
        coords=atoms.positions,
        site_properties=original.site_properties or None,
        labels=original.labels,
        properties=dict(original.properties),
        **place,
        **state,
    )
