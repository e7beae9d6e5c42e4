"""Files that may not be read: one named error at the start, whatever the format (D14)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlip.data.readers import read_structures
from mlip.errors import DataError

NOBODY = 65534


@contextmanager
def as_a_stranger() -> Iterator[None]:
    """Root reads everything: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that strangers may enter, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("form", ["extxyz", "traj", "db", "json db", "aselmdb", "npz", "mptrj"])
def test_a_file_without_permission(form, forms, molecules, crystals, open_folder):
    source = forms[form](crystals if form == "mptrj" else molecules)
    assert list(read_structures(source))  # what readers import late is imported now
    path = open_folder / source.name
    path.write_bytes(source.read_bytes())
    path.chmod(0)
    with as_a_stranger(), pytest.raises(DataError) as caught:
        read_structures(path)
    assert str(caught.value).startswith(f"{path}: cannot be opened (Permission denied)")
