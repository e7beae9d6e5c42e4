"""The refusal to train on a label that no frame has."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip.data.check import coverage, require_labels
from mlip.data.store import open_store
from mlip.errors import DataError


def test_what_a_file_has_instead_is_named(tmp_path):
    """Also what is in the calculator, and where the file's name does not tell its format."""
    path = tmp_path / "frames.dat"
    frames = [bulk("Cu", cubic=True) for _ in range(4)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((4, 3)))
        atoms.info["dft_total"] = -1.0
    write(path, frames, format="extxyz")
    store = open_store(
        path, format="extxyz", options={"keys": {"energy": "dft"}}, cache_dir=tmp_path / "cache"
    )
    parts = {"train": (store, np.arange(4))}
    found = coverage(parts)
    require_labels(found, ["forces"], parts, "extxyz")
    expected = r"no energy found in the 4 train .*'dft_total'.*results \['energy', 'forces'\]"
    with pytest.raises(DataError, match=expected):
        require_labels(found, ["energy"], parts, "extxyz")
