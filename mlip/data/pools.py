"""The structures of each source on their way into the parts of a run.

A pool is one store of one source, and which of its structures are still in the game: one-atom
frames that define reference energies are set aside, and `data.filter` takes out what it names.
What is left is split, and `join` puts pools of all sources behind one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlip.data.filters import Filter
from mlip.data.sources import AnyStore, JoinedStore, Piece, Source, head_names
from mlip.data.stats import BLOCK, reference_energies
from mlip.data.store import Store
from mlip.errors import DataError
from mlip.neighbors import neighbor_list


@dataclass
class Pool:
    """One part of one source."""

    source: Source
    number: int  # of the source
    head: int  # of the source's
    part: str  # train (to be split), val or test
    store: Store
    rows: np.ndarray  # of the store: what is used
    isolated: np.ndarray  # of the store: one-atom frames that define E0
    dropped: dict[str, np.ndarray] = field(default_factory=dict)  # of the store, by rule
    weights: np.ndarray | None = (
        None  # of the store's structures in the loss, the source's included
    )

    @property
    def label(self) -> str:
        """Which one it is, for tables: the source, and the part if it came with one."""
        return self.source.name + ("" if self.part == "train" else f" ({self.part})")

    def drop(self, rule: str, rows: np.ndarray) -> None:
        """Leave out `rows`, because of `rule`."""
        if len(rows):
            self.dropped[rule] = rows
            self.rows = np.setdiff1d(self.rows, rows)


def open_pools(
    sources: Sequence[Source], cutoff: float, cache_dir: Path | str | None = None
) -> list[Pool]:
    """Open every file of every source, building stores on first use.

    Args:
        sources: of the run.
        cutoff: within which an isolated atom has no neighbours, Å.
        cache_dir: of the stores.

    Raises:
        DataError: a file cannot be used, or a source has isolated atoms only.
    """
    heads, none = head_names(sources), np.zeros(0, dtype=np.int64)
    pools = []
    for number, source in enumerate(sources):
        for part in source.paths:
            store = source.open(part, cache_dir)
            defines_e0 = part == "train" and source.e0 in ("auto", "isolated")
            isolated = isolated_atoms(store, cutoff) if defines_e0 else none
            rows = np.setdiff1d(np.arange(len(store)), isolated)
            if len(rows) == 0:
                raise DataError(f"{store.sources[0]} has isolated atoms only: nothing to learn")
            head = heads.index(source.head)
            pools.append(Pool(source, number, head, part, store, rows, isolated))
    return pools


def isolated_atoms(store: Store, cutoff: float) -> np.ndarray:
    """Return the frames that can define E0: one neutral atom with an energy, no neighbours.

    Nothing but E0 can be learned from them; ions and frames without an energy stay where they are.
    """
    out = []
    usable = np.isfinite(store.column("energy")) & (store.column("charge") == 0)
    for i in np.flatnonzero((store.num_atoms == 1) & usable):
        s = store.arrays(int(i))
        edges, _ = neighbor_list(s["positions"], s["cell"][0], s["pbc"][0], cutoff)
        if edges.shape[1] == 0:
            out.append(int(i))
    return np.array(out, dtype=np.int64)


def drop_filtered(pools: Sequence[Pool]) -> dict[str, dict[str, int]]:
    """Take out what the filters of the sources name; return how many are out, by pool and rule.

    Raises:
        DataError: nothing is left of a pool.
    """
    for pool in pools:
        for rule, rows in pool.source.filter.by_structure(pool.store, pool.rows).items():
            pool.drop(rule, rows)
    for head in sorted({pool.head for pool in pools}):
        _drop_above_fit([pool for pool in pools if pool.head == head])
    for pool in pools:
        if len(pool.rows) == 0:
            counts = ", ".join(f"{rule} {len(rows)}" for rule, rows in pool.dropped.items())
            raise DataError(
                f"{pool.store.sources[0]}: data.filter leaves nothing ({counts}); relax its rules"
            )
    counts = {pool.label: _counts(pool) for pool in pools}
    return {label: own for label, own in counts.items() if own}


def _counts(pool: Pool) -> dict[str, int]:
    """Return how many frames of a pool were left out, by rule; `bad` are no rows of its store."""
    counts = {rule: len(rows) for rule, rows in pool.dropped.items()}
    bad = sum(map(len, pool.store.refused.values()))
    return {**counts, "bad": bad} if bad else counts


def describe_rule(rule: str, limits: Filter) -> str:
    """Say what a rule takes out."""
    return {
        "elements": f"elements other than {' '.join(limits.elements or ())}",
        "max_force": f"|F| above {limits.max_force} eV/A",
        "max_stress": f"|stress| above {limits.max_stress} eV/A^3",
        "max_energy_above_fit": f"more than {limits.max_energy_above_fit} eV/atom above the "
        "composition fit",
    }[rule]


def join(
    chosen: Sequence[tuple[Pool, np.ndarray]], sources: int = 2
) -> tuple[AnyStore, np.ndarray]:
    """Put structures of pools behind one another.

    Args:
        chosen: pools, and rows of their stores.
        sources: how many the run has; one is its store itself, unless it weighs its structures.

    Returns:
        A store and the numbers of the structures in it.
    """
    weighed = any(p.weights is not None or p.source.weight != 1.0 for p, _ in chosen)
    plain = sources == 1 and not weighed
    if plain and len(chosen) == 1:
        pool, rows = chosen[0]
        return pool.store, rows
    pieces = [
        Piece(
            pool.store,
            pool.number,
            pool.head,
            pool.source.name,
            pool.source.weight if pool.weights is None else pool.weights,
        )
        for pool, _ in chosen
    ]
    store = JoinedStore(pieces)
    moved = [rows + start for (_, rows), start in zip(chosen, store.starts, strict=False)]
    return store, np.concatenate(moved)


def rows_by_file(chosen: Iterable[tuple[Pool, np.ndarray]], named: bool) -> dict[str, np.ndarray]:
    """Return the frames of each file that are among the rows of each pool.

    Args:
        chosen: pools, and rows of their stores.
        named: put the source's name before the file's: two sources may read one file.
    """
    out: dict[str, list[np.ndarray]] = {}
    for pool, rows in chosen:
        frames, files = (pool.store.column(name)[rows] for name in ("sample_id", "source"))
        order = np.argsort(files, kind="stable")  # does next to nothing if they rise already
        present, begin = np.unique(files[order], return_index=True)
        for k, own in zip(present.tolist(), np.split(frames[order], begin[1:]), strict=False):
            file = pool.store.sources[k]
            out.setdefault(f"{pool.source.name}: {file}" if named else file, []).append(own)
    return {key: np.concatenate(frames) for key, frames in out.items()}


def unusable_by_file(pools: Iterable[Pool], named: bool) -> dict[str, np.ndarray]:
    """Return the frames of each file that could not be used; `named` as of `rows_by_file`."""
    return {
        f"{pool.source.name}: {file}" if named else file: np.array(sorted(frames))
        for pool in pools
        for file, frames in pool.store.refused.items()
    }


def _drop_above_fit(pools: Sequence[Pool]) -> None:
    """Fit energies by composition to what is left of a head's pools, and apply the rule."""
    if all(pool.source.filter.max_energy_above_fit is None for pool in pools):
        return
    store, rows = join([(p, p.rows) for p in pools if p.part == "train"])
    table = reference_energies(store, rows, "auto").table
    for pool in pools:
        blocks = np.array_split(pool.rows, max(1, len(pool.rows) // BLOCK))
        above = np.concatenate([_above_fit(pool.store, rows, table) for rows in blocks])
        pool.drop("max_energy_above_fit", pool.rows[pool.source.filter.above_fit(above)])


def _above_fit(store: Store, rows: np.ndarray, table: Mapping[int, float]) -> np.ndarray:
    """Energies of structures above a table's, eV per atom; NaN where either is unknown."""
    counts, species = store.compositions(rows)
    unknown = np.array([int(z) not in table for z in species], dtype=bool)
    energies = np.array([table.get(int(z), 0.0) for z in species])
    above = (store.column("energy")[rows] - counts @ energies) / counts.sum(1)
    return np.where((counts[:, unknown] > 0).any(1), np.nan, above)
