"""One row of an ASE database in its JSON form, decoded without trusting it.

OMol25 shards and ASE's `.json` databases hold the same rows. ASE's own decoder fills an array of
any announced shape from a single number (45 bytes become 800 MB) and rebuilds objects by name; here
an array must bring every number it announces, and nothing but numbers, text and lists is built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import orjson
from ase.calculators.calculator import all_properties
from ase.constraints import dict2constraint
from numpy.typing import NDArray

from mlip.data.readers.collector import no_collector
from mlip.data.readers.frames import RawFrame
from mlip.errors import CorruptDataError, DataError

MAX_ELEMENTS: Final = 50_000_000
_DTYPES: Final = frozenset(
    ("int64", "int32", "int16", "int8", "uint8", "float64", "float32", "bool")
)
_CONSTRAINTS: Final = frozenset(("FixAtoms", "FixCartesian"))
_OWN: Final = frozenset(
    ("numbers", "positions", "cell", "pbc", "data", "key_value_pairs", "constraints", "unique_id")
)


def parse_json(text: bytes | memoryview, place: str) -> Any:
    """Parse JSON; `NaN` and `Infinity`, which are no JSON but common, are read as numbers.

    Raises:
        CorruptDataError: it is not JSON.
    """
    try:
        with no_collector():
            return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(
            f"{place}: is not valid JSON ({error}); the file is damaged, copy or download it again"
        ) from None


def decode_array(value: Any, name: str, place: str) -> NDArray[Any]:
    """Decode `{"__ndarray__": [shape, dtype, flat]}` or a plain list.

    Raises:
        DataError: the shape disagrees with the numbers, or the type is not allowed.
    """
    if not (isinstance(value, dict) and "__ndarray__" in value):
        try:
            array = np.array(value)
        except ValueError as error:
            raise DataError(f"{place}: {name!r} is ragged ({error}); correct the row") from None
        if array.dtype.kind not in "iufb":
            raise DataError(f"{place}: {name!r} is no array of numbers; correct the row")
        return array
    try:
        shape, dtype, flat = value["__ndarray__"]
        size = math.prod(shape)
        length = len(flat)
        sane = all(isinstance(n, int) and n >= 0 for n in shape) and len(shape) <= 8
    except (TypeError, ValueError):
        raise DataError(f"{place}: {name!r} is no array; expected [shape, type, numbers]") from None
    if dtype not in _DTYPES:
        allowed = ", ".join(sorted(_DTYPES))
        raise DataError(f"{place}: {name!r} has type {str(dtype)[:40]!r}; allowed are {allowed}")
    if not sane or size != length or size > MAX_ELEMENTS:
        raise DataError(
            f"{place}: {name!r} announces shape {shape} but brings {length} numbers; "
            "the row is damaged or hostile and is not read"
        )
    try:
        return np.array(flat, dtype=dtype).reshape(shape)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: {name!r} is no array of {dtype} ({error})") from None


def decode_row(row: Any, place: str, *, keep_all: bool = False) -> RawFrame:
    """Turn a parsed row into a raw frame.

    Args:
        row: the parsed JSON object.
        place: file and row, for messages.
        keep_all: decode the arrays in `data` too (populations, orbital energies); they make up
            most of an OMol25 row and no label is among them.

    Raises:
        DataError: required entries are missing or an entry cannot be decoded.
    """
    if not isinstance(row, dict) or "numbers" not in row or "positions" not in row:
        raise DataError(
            f"{place}: is no structure (it needs 'numbers' and 'positions'); "
            "is this an ASE or OMol25 database?"
        )
    numbers = decode_array(row["numbers"], "numbers", place)
    cell = row.get("cell")
    if isinstance(cell, dict) and "array" in cell:  # ASE's Cell object
        cell = cell["array"]
    pbc = row.get("pbc")
    frame = RawFrame(
        numbers=numbers,
        positions=decode_array(row["positions"], "positions", place),
        cell=None if cell is None else decode_array(cell, "cell", place),
        pbc=(False,) * 3 if pbc is None else decode_array(pbc, "pbc", place),
    )
    if isinstance(pairs := row.get("key_value_pairs"), dict):
        frame.info.update(_entries(pairs, place, keep_all=keep_all))
    if isinstance(data := row.get("data"), dict):
        frame.info.update(_entries(data, place, keep_all=keep_all))
    for name, value in row.items():
        if value is None or name in _OWN:
            continue
        if name in all_properties:
            is_array = isinstance(value, (list, dict, np.ndarray))
            frame.results[name] = decode_array(value, name, place) if is_array else value
        elif keep_all and name in ("tags", "momenta", "initial_magmoms", "initial_charges"):
            frame.arrays[name] = decode_array(value, name, place)
    frame.where = ", ".join(str(frame.info[k]) for k in ("data_id", "source") if k in frame.info)
    if keep_all:
        frame.constraints = _constraints(row.get("constraints"), place)
    return frame


def _entries(data: Mapping[str, Any], place: str, *, keep_all: bool) -> dict[str, Any]:
    """Return what may be an id, a charge, a weight or a user's own label."""
    entries: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, (str, int, float)):
            entries[name] = value
        elif not (keep_all or _may_be_label(name)):
            continue
        elif isinstance(value, dict) and "__ndarray__" in value:
            entries[name] = decode_array(value, name, place)
        elif isinstance(value, (list, np.ndarray)):
            entries[name] = value
    return entries


@lru_cache(maxsize=1024)
def _may_be_label(name: str) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in ("force", "stress", "virial", "magmom"))


def _constraints(value: Any, place: str) -> list[Any]:
    """Rebuild fixed atoms; other constraints are named by the file and not rebuilt."""
    if isinstance(value, str):
        value = parse_json(value.encode(), place)
    kept = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict) and item.get("name") in _CONSTRAINTS:
            plain = {
                k: decode_array(v, k, place) if isinstance(v, dict) and "__ndarray__" in v else v
                for k, v in item.get("kwargs", {}).items()
            }
            kept.append(dict2constraint({"name": item["name"], "kwargs": plain}))
    return kept
