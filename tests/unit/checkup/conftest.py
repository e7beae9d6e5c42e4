"""A shipped data set with one thing made wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from checkup_data import frames_of, save

Change = Callable[[Atoms, dict], None]


@pytest.fixture
def poisoned(tmp_path) -> Callable[..., Path]:
    """`poisoned(set, change, which)` writes a set after `change(atoms, results)` of some frames."""

    def make(name: str, change: Change | None = None, which: slice = slice(None)) -> Path:
        frames = frames_of(name)
        for atoms in frames[which]:
            if change is not None:
                change(atoms, atoms.calc.results)
        return save(tmp_path / f"{name}.extxyz", frames)

    return make
