"""Which structures are left out of training, by rules that the user gave, and how many by each.

Nothing is left out unless `data.filter` says so. A structure without the label that a rule looks at
is kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers

from mlip.errors import ConfigError

if TYPE_CHECKING:
    from mlip.data.sources import AnyStore

BLOCK = 50_000  # structures whose atoms are looked at together


@dataclass(frozen=True)
class Filter:
    """Rules, each off where it is None.

    Attributes:
        max_force: largest length of the force on an atom, eV/Å.
        max_stress: largest component of the stress, eV/Å³.
        max_energy_above_fit: energy above the composition fit of all structures of its head, eV
            per atom.
        elements: symbols; structures with any other element are left out.
    """

    max_force: float | None = None
    max_stress: float | None = None
    max_energy_above_fit: float | None = None
    elements: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, options: Any, place: str = "data.filter") -> Filter:
        """Check what a configuration says.

        Raises:
            ConfigError: an unknown rule, or a value that is none.
        """
        if options is None:
            return cls()
        known = [f.name for f in fields(cls)]
        if not isinstance(options, Mapping):
            raise ConfigError(f"{place}={options!r} must be a table of {', '.join(known)}")
        values: dict[str, Any] = {}
        for key, value in options.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise ConfigError(f"{place} has no rule {key!r}; {hint}")
            if value is not None:
                values[key] = (_elements if key == "elements" else _limit)(value, f"{place}.{key}")
        return cls(**values)

    def by_structure(self, store: AnyStore, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return, by rule, which of `rows` break it and no rule before it: all but the fit's.

        Args:
            store: where the structures are.
            rows: their indices, rising.
        """
        out: dict[str, np.ndarray] = {}
        for rule, broken in (
            ("elements", _foreign),
            ("max_force", _pulled),
            ("max_stress", _stressed),
        ):
            limit = getattr(self, rule)
            if limit is not None and len(rows):
                blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
                bad = np.concatenate([broken(store, block, limit) for block in blocks])
                out[rule], rows = rows[bad], rows[~bad]
        return out

    def above_fit(self, residual: np.ndarray) -> np.ndarray:
        """Return which structures break the rule of the fit.

        Args:
            residual: (n,) energies above the fit, eV per atom; NaN where unknown.
        """
        limit = self.max_energy_above_fit
        return np.zeros(len(residual), dtype=bool) if limit is None else residual > limit


def _foreign(store: AnyStore, rows: np.ndarray, allowed: tuple[str, ...]) -> np.ndarray:
    unwanted = np.ones(256, dtype=bool)
    unwanted[[atomic_numbers[symbol] for symbol in allowed]] = False
    return _largest(store, rows, lambda atoms: unwanted[store.column("atomic_numbers")[atoms]])


def _pulled(store: AnyStore, rows: np.ndarray, limit: float) -> np.ndarray:
    squares = store.summary("force_square", rows)
    return squares > limit**2  # a NaN, which is no label, is not above


def _stressed(store: AnyStore, rows: np.ndarray, limit: float) -> np.ndarray:
    return np.abs(store.column("stress")[rows]).max(axis=(1, 2)) > limit


def _largest(
    store: AnyStore, rows: np.ndarray, of_atoms: Callable[[slice], np.ndarray]
) -> np.ndarray:
    """Return the largest value among the atoms of each structure; `rows` rise."""
    first, last = int(rows[0]), int(rows[-1])
    starts = store.atom_starts[first : last + 2]
    values = of_atoms(slice(int(starts[0]), int(starts[-1])))
    return np.maximum.reduceat(values, starts[:-1] - starts[0])[rows - first]


def _limit(value: Any, place: str) -> float:
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number > 0):
        raise ConfigError(f"{place}={value!r} must be a positive number or null")
    return number


def _elements(value: Any, place: str) -> tuple[str, ...]:
    symbols = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(symbols, list) or not symbols or set(symbols) - set(atomic_numbers):
        raise ConfigError(f"{place}={value!r} must list symbols of elements, such as [H, C, O]")
    return tuple(symbols)
