"""Frames of whatever holds structures: files of any format, and packed stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from mlip.data.readers import Inspected, expand_paths, inspect_frames
from mlip.data.readers.frames import RawFrame
from mlip.data.store import Store, open_store
from mlip.data.store.layout import is_store


def expand(path: str | os.PathLike[str], format: str = "auto") -> list[Path]:
    """Return the files that a path means, or the store that it is.

    Raises:
        DataError: nothing readable is there.
        ConfigError: the format is unknown.
    """
    given = Path(path).expanduser()
    return [given] if is_store(given) else expand_paths(path, format)


def frames_in(path: Path, format: str = "auto", **options: Any) -> Iterator[Inspected]:
    """Yield the frames of a file or store, those included that training would refuse.

    A store has labels, states, weights and groups (numbers instead of names), no other info.

    Raises:
        DataError: it cannot be read any further.
        ConfigError: an option is unknown, or was another one when the store was made.
    """
    if not is_store(path):
        yield from inspect_frames(path, format, **options)
        return
    reading = {name: value for name, value in options.items() if name != "keep_info"}
    store = open_store(path, format=format, options=reading)
    yield from stored_frames(store, 0, len(store))


def stored_frames(store: Store, begin: int, end: int) -> Iterator[Inspected]:
    """Yield the frames of a store from one number up to another."""
    for index in range(begin, end):
        atoms = _stored(store, index)
        yield Inspected(RawFrame.from_atoms(atoms), atoms)


def _stored(store: Store, index: int) -> Atoms:
    row = {name: np.array(values) for name, values in store.arrays(index).items()}
    atoms = Atoms(row["atomic_numbers"], row["positions"], cell=row["cell"][0], pbc=row["pbc"][0])
    atoms.info = {
        "charge": int(row["charge"][0]),
        "spin": int(row["spin"][0]),
        "group": str(store.column("group")[index]),
    }
    if row["weight"][0] != 1.0:
        atoms.info["weight"] = float(row["weight"][0])
    labels = {
        "energy": float(row["energy"][0]),
        "forces": row["forces"],
        "stress": full_3x3_to_voigt_6_stress(row["stress"][0]),
        "magmoms": row["magmoms"],
    }
    present = {name: value for name, value in labels.items() if not np.isnan(value).all()}
    if present:
        atoms.calc = SinglePointCalculator(atoms, **present)
    return atoms
