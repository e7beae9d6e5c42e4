"""What compare_peers.py has every model do, and on which structures.

Everything is made here, from lattices and seeds; molecules of the size of 3BPA and aspirin are read
from the public data sets where there are any (environment variable MLIP_REAL_DATA).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.build import bulk
from ase.spacegroup import crystal

from mlip.data import read_structures
from mlip.errors import DataError

SILICON = (1, 2, 3, 4)  # repeats of the cubic cell: 8, 64, 216, 512 atoms
SIZES = (4, 6, 8, 11)  # 512, 1728, 4096, 10648 atoms
STRAIN, RATTLE = 0.03, 0.08  # of crystals that are relaxed; Å


@dataclass(frozen=True)
class Task:
    """One thing to time.

    Attributes:
        name: `group` or `group-structure`.
        kind: what peer_worker.py calls it, or "start-up".
        structures: what it is done on: one for a call, all of them as a batch for training.
        unit: what the time is of.
        steps: of each relaxation.
        turns: how often at most; None is as often as asked.
        fresh: whether every model gets a process of its own, for its memory.
        peers: whether other packages do it too.
    """

    name: str
    kind: str
    structures: Sequence[ase.Atoms]
    unit: str = "call"
    steps: int = 1
    turns: int | None = None
    fresh: bool = False
    peers: bool = True

    @property
    def group(self) -> str:
        """What kind of task it is, for the command line."""
        return self.name.split(":")[0]

    @property
    def atoms(self) -> int:
        """How many atoms in all."""
        return sum(map(len, self.structures))

    @property
    def per_run(self) -> int:
        """How many of its units one run is."""
        return self.steps * len(self.structures) if self.kind == "relaxation" else 1


def tasks() -> tuple[list[Task], list[str]]:
    """Return all tasks, and what is left out for want of data, in words."""
    batch, cells = training_crystals(), [strained(a, seed=k) for k, a in enumerate(small_cells())]
    molecules, missing = real_molecules()
    single = {f"si{8 * n**3}": silicon(n) for n in SILICON} | {"oxide40": oxide()}
    single |= {name: frames[0] for name, frames in molecules.items()}
    out = [Task(f"calls:{name}", "calls", [atoms]) for name, atoms in single.items()]
    batches = {"crystals": batch}
    if "3bpa27" in molecules:
        batches["molecules"] = molecules["3bpa27"]
    for name, frames in batches.items():
        out.append(Task(f"training:{name}", "training", frames, "step"))
    larger = [strained(a, seed=k) for k, a in enumerate(batch)]
    out.append(Task("relaxation:cells", "relaxation", cells, "step", steps=4))
    out.append(Task("relaxation:crystals", "relaxation", larger, "step", steps=2))
    for n in SIZES:
        out.append(Task(f"sizes:si{8 * n**3}", "calls", [silicon(n)], turns=3, peers=False))
    out.append(Task("memory:training-crystals", "training", batch, turns=1, fresh=True))
    out.append(Task("memory:calls-si216", "calls", [silicon(3)], turns=1, fresh=True))
    out.append(Task("start-up", "start-up", [silicon(1)], "process", turns=3))
    return out, missing


def silicon(repeats: int) -> ase.Atoms:
    """Rattled diamond structure of 8 n³ atoms."""
    return rattled(bulk("Si", "diamond", a=5.43, cubic=True).repeat(repeats), 0.05, seed=1)


def oxide() -> ase.Atoms:
    """A perovskite of 40 atoms with three elements on each kind of site."""
    atoms = perovskite("Sr", "Ti", 3.93) * (2, 2, 2)
    kinds = {"Sr": ["Sr", "Ca", "La"], "Ti": ["Ti", "Mn", "Fe"]}
    counts = dict.fromkeys(kinds, 0)
    for atom in atoms:
        if (site := atom.symbol) in kinds:
            atom.symbol = kinds[site][counts[site] % 3]
            counts[site] += 1
    return rattled(atoms, 0.05, seed=2)


def training_crystals() -> list[ase.Atoms]:
    """Four crystals of 8 to 48 atoms, 112 in all."""
    salt, _, rutile, layered, arsenide = small_cells()
    cells = [salt, rutile * (2, 2, 2), layered * (2, 1, 1), arsenide * (2, 2, 1)]
    return [rattled(atoms, 0.05, seed=k) for k, atoms in enumerate(cells)]


def small_cells() -> list[ase.Atoms]:
    """Five crystals of 5 to 12 atoms."""
    return [
        bulk("NaCl", "rocksalt", a=5.64, cubic=True),
        perovskite("Sr", "Ti", 3.91),
        _plain(
            crystal(
                ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136,
                cellpar=[4.59, 4.59, 2.96, 90, 90, 90],
            )
        ),
        _plain(
            crystal(
                ["Li", "Co", "O"], [(0, 0, 0.5), (0, 0, 0), (0, 0, 0.24)], spacegroup=166,
                cellpar=[2.82, 2.82, 14.05, 90, 90, 120],
            )
        ),
        bulk("GaAs", "zincblende", a=5.65, cubic=True),
    ]  # fmt: skip


def perovskite(large: str, small: str, a: float) -> ase.Atoms:
    """The cubic cell of five atoms, an oxide."""
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return ase.Atoms([large, small, "O", "O", "O"], scaled_positions=sites, cell=[a] * 3, pbc=True)


def rattled(atoms: ase.Atoms, by: float, seed: int) -> ase.Atoms:
    """A copy with atoms moved at random, Å."""
    out = atoms.copy()
    out.rattle(by, seed=seed)
    return out


def strained(atoms: ase.Atoms, seed: int) -> ase.Atoms:
    """A copy in a larger and slightly sheared cell, with atoms moved."""
    out = atoms.copy()
    shear = np.random.default_rng(seed).normal(0.0, STRAIN / 3, (3, 3))
    out.set_cell(out.cell.array @ ((1.0 + STRAIN) * np.eye(3) + shear), scale_atoms=True)
    return rattled(out, RATTLE, seed)


def real_molecules() -> tuple[dict[str, list[ase.Atoms]], list[str]]:
    """Eight conformers of 3BPA and one of aspirin; or in words why not."""
    root = os.environ.get("MLIP_REAL_DATA")
    if not root:
        return {}, ["3bpa27, aspirin21: set MLIP_REAL_DATA to a folder with 3bpa/ and rmd17/"]
    out: dict[str, list[ase.Atoms]] = {}
    missing = []
    try:
        frames = read_structures(Path(root, "3bpa", "train_300K.extxyz"))
        out["3bpa27"] = [ase.Atoms(a.numbers, a.positions) for a in islice(frames, 8)]  # no cell
    except DataError as error:
        missing.append(f"3bpa27: {error}")
    try:
        with np.load(Path(root, "rmd17", "rmd17_aspirin_train_01.npz")) as data:
            out["aspirin21"] = [ase.Atoms(data["nuclear_charges"], data["coords"][0])]
    except OSError as error:
        missing.append(f"aspirin21: {error}")
    return out, missing


def as_fields(atoms: ase.Atoms) -> dict[str, Any]:
    """What peer_worker.py makes a structure of."""
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def _plain(atoms: ase.Atoms) -> ase.Atoms:
    """Without what `crystal` notes on the atoms."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
