"""What the large columns come to, structure by structure: which labels there are, how large forces.

Statistics, filters and ranges go by these numbers. A store in place keeps them, so that nothing has
to pass over its rows again; another computes them of the columns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

Summary = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def atoms_of(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rows of the atoms of structures, one after the other.

    Args:
        begin: (n,) the first atom of each.
        counts: (n,) atoms of each.
    """
    own = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(begin - own, counts)


def _has_vectors(values: Any, begin: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.isfinite(values[begin, 0])


def _has_numbers(values: Any, begin: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.isfinite(values[begin])


def _sum(values: Any, begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    # numpy's own order of summation, which is not that of reduceat: the same to the last bit
    pairs = zip(begin.tolist(), counts.tolist(), strict=True)
    return np.array([np.abs(values[k : k + n]).sum() for k, n in pairs])


def _over_atoms(of_atoms: Callable[[np.ndarray], np.ndarray], join: np.ufunc) -> Summary:
    def summary(values: Any, begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if not len(begin):
            return np.zeros(0)
        found = of_atoms(values[atoms_of(begin, counts)])
        return join.reduceat(found, np.cumsum(counts) - counts)

    return summary


# name -> the column, and the summary of it: (n,) of the structures whose atoms begin at (n,) places
COMPUTED: Final[Mapping[str, tuple[str, Summary]]] = {
    "has_forces": ("forces", _has_vectors),
    "has_magmoms": ("magmoms", _has_numbers),
    "force_min": ("forces", _over_atoms(lambda f: f.min(axis=1), np.minimum)),
    "force_max": ("forces", _over_atoms(lambda f: f.max(axis=1), np.maximum)),
    "force_sum": ("forces", _sum),
    "force_square": ("forces", _over_atoms(lambda f: (f**2).sum(axis=1), np.maximum)),
}
