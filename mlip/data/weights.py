"""Weights of configurations: how much structures of a `config_type` count in the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.data.readers import read_structures
from mlip.data.store.layout import hash_of
from mlip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlip.data.pools import Pool

LOOK_AT = 2000  # frames of a file, to say which names there are


def parse_weights(given: Any, place: str = "data.weights") -> dict[str, float]:
    """Check what a configuration says.

    Raises:
        ConfigError: it is no table of numbers of zero or more.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{place}={given!r} must be a table such as {{surface: 2.0, bulk: 0.5}}")
    out = {}
    for name, value in given.items():
        try:
            out[str(name)] = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            out[str(name)] = math.nan
        if not (math.isfinite(out[str(name)]) and out[str(name)] >= 0):
            raise ConfigError(f"{place}.{name}={value!r} must be a number of zero or more")
    return out


def weigh(pools: Iterable[Pool]) -> dict[str, int]:
    """Set the weights of structures by their `config_type`; return how many each name has.

    Raises:
        DataError: a name that no structure has.
    """
    counts: dict[str, int] = {}
    pools = list(pools)
    for pool in pools:
        table = pool.source.weights
        if not table:
            continue
        kinds = pool.store.column("config_type")
        pool.weights = np.full(len(kinds), pool.source.weight)
        for name, weight in table.items():
            chosen = kinds == np.uint64(hash_of(name.encode()))
            pool.weights[chosen] *= weight
            counts[name] = counts.get(name, 0) + int(chosen.sum())
    for name, count in counts.items():
        if not count:
            there = sorted({n for pool in pools if pool.source.weights for n in _names(pool)})
            raise DataError(
                f"data.weights.{name}: no structure has config_type={name!r}; the first frames "
                f"have {', '.join(there) if there else 'none at all'}"
            )
    return counts


def _names(pool: Pool) -> set[str]:
    source = pool.source
    frames = read_structures(source.paths[pool.part], source.format, **source.reading)
    found = (atoms.info.get("config_type") for atoms in islice(frames, LOOK_AT))
    return {str(name) for name in found if name is not None}
