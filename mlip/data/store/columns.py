"""One column of many arrays: of the shards of a store, or of several stores."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
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
