"""Make `data/emt-mini/`: strained, rattled metals and an alloy, labelled by ASE's EMT potential.

Not first-principles data: EMT is a fast empirical potential, so that the demo can be checked
against its own teacher anywhere in seconds. Run: python scripts/make_emt_mini.py
"""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

OUT = Path(__file__).resolve().parents[1] / "data" / "emt-mini"


def make_cells() -> dict[str, ase.Atoms]:
    """Cubic cells of copper, aluminium and ordered Cu3Al, near EMT's equilibrium."""
    alloy = bulk("Cu", "fcc", a=3.66, cubic=True)
    alloy.numbers[0] = 13
    return {
        "Cu": bulk("Cu", "fcc", a=3.59, cubic=True),
        "Al": bulk("Al", "fcc", a=3.99, cubic=True),
        "Cu3Al": alloy,
    }


def main() -> None:
    """Write 240 labelled frames and one distorted CIF."""
    rng = np.random.default_rng(20261124)
    frames = []
    for name, cell in make_cells().items():
        for k in range(80):
            atoms = cell.copy()
            scale = 1.0 + rng.uniform(-0.04, 0.05)
            strain = rng.normal(scale=0.02, size=(3, 3))
            atoms.set_cell(
                atoms.cell.array @ (scale * np.eye(3) + 0.5 * (strain + strain.T)),
                scale_atoms=True,
            )
            if k >= 10:  # the first ten stay on their sites: an equation of state
                atoms.positions += rng.normal(scale=rng.uniform(0.02, 0.25), size=(len(atoms), 3))
            atoms.calc = EMT()
            results = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            labelled = ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
            labelled.calc = SinglePointCalculator(labelled, **results)
            labelled.info["material_id"] = f"{name}-{k // 2}"
            frames.append(labelled)
    OUT.mkdir(parents=True, exist_ok=True)
    write(OUT / "emt-mini.extxyz", frames, format="extxyz")
    distorted = bulk("Cu", "fcc", a=3.75, cubic=True)
    distorted.rattle(0.1, seed=1)
    write(OUT / "cu-distorted.cif", distorted, format="cif")
    print(f"{len(frames)} frames in {OUT / 'emt-mini.extxyz'}")


if __name__ == "__main__":
    main()
