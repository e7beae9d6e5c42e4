"""Numbers from files, checked one by one.

A file may hold anything; what leaves here has the promised type and shape and is finite, and every
refusal names the place, the value, what was expected and what to do.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlip.errors import DataError

MAX_Z: Final = 118


def as_numbers(value: Any, place: str) -> NDArray[np.int64]:
    """Return atomic numbers as (N,) int64, all real elements."""
    numbers = np.asarray(value)
    if numbers.size == 0:
        raise DataError(f"{place}: it has no atoms; remove this frame")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{place}: atomic numbers have shape {numbers.shape} and type {numbers.dtype}; "
            "expected one integer per atom"
        )
    numbers = numbers.astype(np.int64)
    if (numbers - 1).view(np.uint64).max() >= MAX_Z:  # below 1 wraps around to very large
        bad = np.flatnonzero((numbers < 1) | (numbers > MAX_Z))
        raise DataError(
            f"{place}: atom {bad[0]} has atomic number {numbers[bad[0]]} (a dummy or ghost "
            f"atom?); expected 1 to {MAX_Z}; remove or replace such atoms"
        )
    return numbers


def as_floats(
    value: Any,
    shape: tuple[int, ...] | None,
    name: str,
    place: str,
    *,
    nan_ok: bool = False,
) -> NDArray[np.float64]:
    """Return `value` as float64 of `shape`, finite, or say what is wrong with it."""
    try:
        if isinstance(value, (bool, np.bool_)):  # a key without a value, as ASE writes None
            raise TypeError
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: {name!r} is {_short(value)}, which is not numbers; correct or remove it"
        ) from None
    if shape is not None and array.shape != shape:
        raise DataError(
            f"{place}: {name!r} has shape {array.shape}, expected {shape}; "
            "correct the file, or name another key with data.keys"
        )
    if not math.isfinite(np.vdot(array, array)):  # a third of the time of looking at each number
        _require_finite(array, name, place, nan_ok=nan_ok)
    return array


def _require_finite(array: NDArray[np.float64], name: str, place: str, *, nan_ok: bool) -> None:
    finite = np.isfinite(array)
    bad = np.argwhere(~finite & ~np.isnan(array) if nan_ok else ~finite)
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        entry = f"{name}{list(at)}" if at else name
        raise DataError(
            f"{place}: {entry} is {array[at]}; expected a finite number; remove the frame, "
            "or leave the key out where the value is unknown"
        )


def as_integer(value: Any, key: str, low: int | None, place: str) -> int:
    """Return a charge (`low` is None) or a multiplicity (`low` is 0) as an int."""
    try:
        number = math.nan if isinstance(value, (bool, np.bool_)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer() or (low is not None and number < low):
        meaning = "the multiplicity 2S+1, or 0 if unknown" if low is not None else "in units of e"
        raise DataError(
            f"{place}: {key!r} is {_short(value)}; expected a whole number, {meaning}; correct it"
        )
    return int(number)


def check_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_], place: str) -> None:
    """Refuse periodic axes whose lattice vectors are zero or linearly dependent."""
    axes = [axis for axis, periodic in enumerate(pbc.tolist()) if periodic]
    if not axes:
        return
    rows = cell.tolist()
    vectors = [rows[axis] for axis in axes]
    lengths = [math.hypot(*vector) for vector in vectors]
    if min(lengths) < 1e-6:
        zero = [axis for axis, length in zip(axes, lengths, strict=True) if length < 1e-6]
        raise DataError(
            f"{place}: axes {zero} are periodic but their lattice vectors are zero; "
            "give the cell, or set pbc to F there"
        )
    if _spanned(vectors) < 1e-5 * math.prod(lengths):
        raise DataError(
            f"{place}: the cell is flat, its periodic lattice vectors {vectors} are linearly "
            "dependent; correct the cell"
        )


def _spanned(vectors: list[list[float]]) -> float:
    """Return the length, area or volume that one, two or three vectors span."""
    if len(vectors) == 1:
        return math.hypot(*vectors[0])
    (ax, ay, az), (bx, by, bz) = vectors[:2]
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    if len(vectors) == 2:
        return math.hypot(*normal)
    return abs(sum(n * c for n, c in zip(normal, vectors[2], strict=True)))


def hill_formula(numbers: NDArray[np.int64]) -> str:
    """Return the composition in Hill order: C, H, then alphabetical, e.g. `C2H6O`."""
    return _hill_formula(numbers.astype(np.int64).tobytes())


@lru_cache(maxsize=1024)  # rows of a file often have the composition of one just before
def _hill_formula(numbers: bytes) -> str:
    counts = np.bincount(np.frombuffer(numbers, dtype=np.int64))
    by_symbol = {chemical_symbols[z]: int(counts[z]) for z in np.flatnonzero(counts)}
    first = [s for s in ("C", "H") if s in by_symbol] if "C" in by_symbol else []
    order = first + sorted(set(by_symbol) - set(first))
    return "".join(f"{s}{by_symbol[s] if by_symbol[s] > 1 else ''}" for s in order)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
