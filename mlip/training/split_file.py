"""Which frames a run trains on and which it holds out, in its folder: `splits.json`.

Frames are listed in it. Where they are more than a text should hold, they are arrays in
`splits.npz` beside it, and the text says how many, and the name of each array.

A record is a table of tables: the seed; for each part, and for each rule by which frames were left
out, frames by file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mlip.atomic import atomic_write

LISTED = 200_000  # frames in all that are listed in the text


def listed(record: Any) -> Any:
    """Return a record with lists for arrays, as the text has it."""
    return _replaced(record, np.ndarray.tolist)


def write_splits(folder: Path, record: dict[str, Any]) -> None:
    """Write a record: the text last, so that what it names is there."""
    arrays: dict[str, np.ndarray] = {}

    def named(frames: np.ndarray) -> dict[str, Any]:
        name = f"{len(arrays)}"  # paths as names of members could be taken for one another
        arrays[name] = frames
        return {"frames": len(frames), "array": name}

    text = _replaced(record, named)
    if sum(map(len, arrays.values())) <= LISTED:
        text, arrays = listed(record), {}
    with ExitStack() as stack:
        path = stack.enter_context(atomic_write(folder / "splits.json"))
        if arrays:
            values = stack.enter_context(atomic_write(folder / "splits.npz"))
            with values.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        path.write_text(json.dumps(text))


def read_splits(folder: Path) -> dict[str, Any]:
    """Return the record that `write_splits` wrote, frames as arrays."""
    record = json.loads((folder / "splits.json").read_text())
    with ExitStack() as stack:
        file = folder / "splits.npz"
        arrays = stack.enter_context(np.load(file, allow_pickle=False)) if file.exists() else {}

        def found(value: Any) -> Any:
            if isinstance(value, list):
                return np.array(value, dtype=np.int64)
            if isinstance(value, dict):
                named = isinstance(value.get("array"), str)  # a file of this name has a list
                return arrays[value["array"]] if named else {k: found(v) for k, v in value.items()}
            return value

        return found(record)


def _replaced(value: Any, new: Callable[[np.ndarray], Any]) -> Any:
    """Return a record with its arrays replaced."""
    if isinstance(value, dict):
        return {key: _replaced(one, new) for key, one in value.items()}
    return new(value) if isinstance(value, np.ndarray) else value
