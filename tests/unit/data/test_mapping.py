"""Arrays that are files: as numpy maps them, but not at the cost of an open file each."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mlip.data.store import COLUMNS, build, jobs, open_store
from mlip.data.store.mapping import map_file
from mlip.errors import CorruptDataError

OPEN = Path("/proc/self/fd")
linux = pytest.mark.skipif(not OPEN.exists(), reason="counts open files as Linux shows them")


def test_it_is_the_file(tmp_path):
    values = np.arange(24.0).reshape(4, 3, 2)
    values.tofile(tmp_path / "x.bin")
    found = map_file(tmp_path / "x.bin", "<f8", (4, 3, 2))
    np.testing.assert_array_equal(found, values)
    assert type(found) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0
    first = map_file(tmp_path / "x.bin", "<f8", (2,))
    np.testing.assert_array_equal(first, [0.0, 1.0])


@linux
def test_memory_is_given_back_with_the_last_view(tmp_path):
    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    np.zeros(1000).tofile(tmp_path / "x.bin")
    part = map_file(tmp_path / "x.bin", "<f8", (1000,))[500:]
    assert mapped()
    assert not part.any()
    del part
    gc.collect()
    assert not mapped()


@pytest.mark.parametrize(("size", "message"), [(7, "shorter than 8 bytes"), (None, "No such file")])
def test_what_cannot_be_mapped_is_named(tmp_path, size, message):
    path = tmp_path / "x.bin"
    if size is not None:
        path.write_bytes(b"0" * size)
    with pytest.raises(CorruptDataError, match=rf"x\.bin: cannot be mapped.*{message}"):
        map_file(path, "<f8", (1,))


@linux
def test_a_store_of_many_shards_needs_no_open_files(tmp_path, monkeypatch):
    """The usual limit is 1024, and OMol25 comes in some hundred files."""
    monkeypatch.setattr(jobs, "SHARD_ROWS", 1)
    write(tmp_path / "x.extxyz", [bulk("Cu")] * 12)
    build(tmp_path / "s", [tmp_path / "x.extxyz"])
    before = len(os.listdir(OPEN))
    store = open_store(tmp_path / "s")
    assert len(store.manifest["shards"]) == 12
    for name in COLUMNS:
        assert len(np.asarray(store.column(name)[:]))
    for k in range(12):
        store.arrays(k)
    assert len(os.listdir(OPEN)) == before
