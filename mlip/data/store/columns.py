"""Columns that are no single array: of many shards or stores, or in the rows of other files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class JoinedColumn:
    """Arrays behind one another along their first axis, without copying them together."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = [p for p in parts if len(p)] or list(parts[:1])
        self._starts = np.concatenate([[0], np.cumsum([len(p) for p in self._parts])])
        self.shape = (int(self._starts[-1]), *self._parts[0].shape[1:])
        self.dtype = self._parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self._parts).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, slice):
            value = self._range(*rows.indices(len(self)))
        else:
            value = self._rows(np.asarray(rows))
        if not rest:
            return value
        whole = [] if isinstance(rows, int | np.integer) else [slice(None)]
        return value[(*whole, *rest)]

    def _range(self, start: int, stop: int, step: int) -> np.ndarray:
        first = max(bisect_right(self._starts, start) - 1, 0)
        if step == 1 and first < len(self._parts) and stop <= self._starts[first + 1]:
            return self._parts[first][start - self._starts[first] : stop - self._starts[first]]
        return self._rows(np.arange(start, stop, step))

    def _rows(self, rows: np.ndarray) -> Any:
        if rows.dtype == bool:
            if rows.shape != self.shape[:1]:
                raise IndexError(f"a mask of {len(rows)} for {len(self)} rows")
            rows = np.flatnonzero(rows)
        if not rows.size:
            rows = rows.astype(np.int64)
        flat = rows.reshape(-1)
        owner = np.searchsorted(self._starts, flat, side="right") - 1
        if len(flat) and not (flat.min() >= 0 and owner.max() < len(self._parts)):
            raise IndexError(f"row {flat.max()} of {len(self)}")
        out = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for k in np.unique(owner):
            chosen = owner == k
            out[chosen] = self._parts[k][flat[chosen] - self._starts[k]]
        return out.reshape(rows.shape + self.shape[1:])[()]


class ReadColumn:
    """A column per atom whose values are read when they are asked for, a structure at a time.

    It takes the indices that `JoinedColumn` gives to its parts. However many atoms of a structure
    are asked for at once, the structure is read once.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], starts: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        """Say where its values come from.

        Args:
            read: returns those of a structure, (atoms, *shape).
            starts: (structures + 1,) where the atoms of each begin, and the end.
            shape: of the value of an atom.
        """
        self._read, self._starts = read, starts
        self.shape = (int(starts[-1]), *shape)
        self.dtype = np.dtype("<f8")

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(len(self))[key] if isinstance(key, slice) else np.asarray(key)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for k, chosen in _runs(owner, order):
            out[chosen] = self._read(k)[rows[chosen] - self._starts[k]]
        return out


def _runs(owner: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each owner and the places that it owns."""
    borders = np.flatnonzero(np.diff(owner[order])) + 1
    for chosen in np.split(order, borders):
        if len(chosen):
            yield int(owner[chosen[0]]), chosen
