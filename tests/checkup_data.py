"""Copies of shipped data, to make one thing wrong in."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip.data.readers import read_structures

DATA = Path(__file__).resolve().parents[1] / "data"
SETS = {
    "crystals": DATA / "mptrj-mini" / "mptrj-mini.json.gz",
    "molecules": DATA / "omol-mini",
    "metals": DATA / "emt-mini" / "emt-mini.extxyz",
}


@cache
def _read(name: str) -> tuple[Atoms, ...]:
    return tuple(read_structures(SETS[name]))


def frames_of(name: str) -> list[Atoms]:
    """Fresh copies of a shipped set, labels included."""
    out = []
    for atoms in _read(name):
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(
            copy, **{k: np.copy(v) if np.ndim(v) else v for k, v in atoms.calc.results.items()}
        )
        out.append(copy)
    return out


def save(path: Path, frames: Iterable[Atoms]) -> Path:
    write(path, list(frames), format="extxyz")
    return path
