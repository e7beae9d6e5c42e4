"""Checks of many frames at once, their arrays behind one another.

Calling numpy costs more than the thirty numbers of a frame do. Nothing is said here about what is
wrong: whatever is not plainly right is `Doubtful`, and `checks` looks at it frame by frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.canonical import ASYMMETRY, VOIGT_I, VOIGT_J
from mlip.data.readers.checks import MAX_Z

_SHORT: Final = 1.01e-6  # Å; and ...
_FLAT: Final = 1.01e-5  # ... a little above the limits of `check_cell`, whatever the rounding


class Doubtful(Exception):  # noqa: N818, it is no error
    """Something among these frames has to be looked at closely."""


def stacked_numbers(values: Sequence[Any]) -> NDArray[np.int64]:
    """Return atomic numbers behind one another.

    Raises:
        Doubtful: not all are arrays of int64 with an atom at least.
    """
    for value in values:
        if not _is_array(value) or value.dtype != np.int64 or value.ndim != 1 or not value.size:
            raise Doubtful
    return np.concatenate(values)


def stacked_floats(values: Any, shapes: Iterable[tuple[int, ...]]) -> NDArray[np.float64]:
    """Return arrays of these shapes behind one another; one array of all is what it is.

    Raises:
        Doubtful: not all are arrays of floats of these shapes.
    """
    if _is_array(values):
        return values
    for value, shape in zip(values, shapes, strict=True):
        if not _is_array(value) or value.shape != shape or value.dtype.kind != "f":
            raise Doubtful
    return np.concatenate(values, dtype=np.float64)


def check_numbers(numbers: NDArray[np.int64]) -> None:
    """Do what `as_numbers` does.

    Raises:
        Doubtful: not all are those of real elements.
    """
    if numbers.min() < 1 or numbers.max() > MAX_Z:
        raise Doubtful


def check_finite(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the array.

    Raises:
        Doubtful: not all of it is finite.
    """
    if not math.isfinite(np.vdot(numbers, numbers)):
        raise Doubtful
    return numbers


def stacked_pbc(values: Sequence[Any]) -> NDArray[np.bool_]:
    """Return which axes repeat, (F, 3).

    Raises:
        Doubtful: not all have three entries.
    """
    try:
        pbc = np.array(values, dtype=bool)
    except (TypeError, ValueError):
        raise Doubtful from None
    if pbc.shape != (len(values), 3):
        raise Doubtful
    return pbc


def check_cells(cells: NDArray[np.float64], pbc: NDArray[np.bool_]) -> None:
    """Do what `check_cell` does for cells (F, 3, 3) and axes (F, 3).

    Raises:
        Doubtful: periodic lattice vectors are, or nearly are, zero or linearly dependent.
    """
    lengths = np.where(pbc, np.sqrt(np.square(cells).sum(axis=2)), 1.0)
    if lengths.min() < _SHORT:
        raise Doubtful
    # The Gram matrix of the directions of the periodic axes: its determinant is (volume / edges)^2.
    directions = np.where(pbc[:, :, None], cells, 0.0) / lengths[:, :, None]
    gram = directions @ directions.transpose(0, 2, 1)
    gram[:, [0, 1, 2], [0, 1, 2]] = 1.0
    if np.linalg.det(gram).min() < _FLAT**2:
        raise Doubtful


def voigt_of(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return tensors (F, 3, 3) in eV/Å³ in ASE's Voigt order, (F, 6).

    Raises:
        Doubtful: one of them may not be symmetric.
    """
    if np.abs(stress - stress.transpose(0, 2, 1)).max() > ASYMMETRY[1]:
        raise Doubtful
    mean = 0.5 * (stress + stress.transpose(0, 2, 1))
    return mean[:, VOIGT_I, VOIGT_J]


def _is_array(value: Any) -> bool:
    return type(value) is np.ndarray
