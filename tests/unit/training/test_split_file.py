"""The record of a split, as text and, where it is large, as arrays beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlip.training import split_file
from mlip.training.split_file import listed, read_splits, write_splits

RECORD = {
    "seed": 3,
    "train": {"a.extxyz": np.array([0, 2, 5]), "b/c.extxyz": np.array([1])},
    "val": {"a.extxyz": np.array([1, 3])},
    "test": {"frames": np.array([6]), "array": np.array([7])},  # names of files
    "dropped": {"max_force": {"a.extxyz": np.array([4])}},
}


@pytest.mark.parametrize("limit", [9, 8])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(split_file, "LISTED", limit)
    write_splits(tmp_path, RECORD)
    assert listed(read_splits(tmp_path)) == listed(RECORD)
    text = json.loads((tmp_path / "splits.json").read_text())
    assert (tmp_path / "splits.npz").exists() is (limit < 9)
    if limit == 9:
        assert text == listed(RECORD)
    else:
        assert text["val"] == {"a.extxyz": {"frames": 2, "array": "2"}}


def test_arrays_hold_no_objects(tmp_path, monkeypatch):
    """Nothing in the folder of a run may be a pickle."""
    monkeypatch.setattr(split_file, "LISTED", 0)
    write_splits(tmp_path, RECORD)
    np.savez(tmp_path / "splits.npz", **{"0": np.array([object()])})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allow_pickle"):
        read_splits(tmp_path)
