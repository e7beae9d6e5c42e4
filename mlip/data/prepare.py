"""From `data.*` options to everything a run needs: stores, splits, statistics, loaders.

Knows neither Hydra nor Lightning, so a script can use it as the trainer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.data.batching import Budget, GraphLoader, auto_workers, collate_indices
from mlip.data.check import Coverage, coverage, require_labels
from mlip.data.splits import Splits, make_splits
from mlip.data.stats import DatasetStats, compute_stats
from mlip.data.store import Store, open_store
from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph
from mlip.neighbors import neighbor_list

PARTS = ("train", "val", "test")
READER_OPTIONS = (
    "energy", "energy_unit", "force_unit", "stress_unit", "stress_sign", "stress_voigt", "group",
)  # fmt: skip


@dataclass
class PreparedData:
    """Stores and the indices of each part, with what is known about them."""

    parts: dict[str, tuple[Store, np.ndarray]]
    stats: DatasetStats
    coverage: Coverage
    splits: Splits
    cutoff: float
    budget: Budget
    num_workers: Any
    notes: list[str] = field(default_factory=list)

    def size(self, part: str) -> int:
        """Structures of a part."""
        return len(self.parts[part][1])

    def loader(self, part: str, *, seed: int = 0) -> GraphLoader | None:
        """Return the loader of a part (shuffled for train), or None if the part is empty."""
        store, indices = self.parts[part]
        if len(indices) == 0:
            return None
        return GraphLoader(
            store,
            indices,
            self.cutoff,
            self.budget,
            seed=seed,
            shuffle=part == "train",
            num_workers=auto_workers(self.num_workers, len(indices)),
        )

    def split_record(self) -> dict[str, Any]:
        """Return which frame of which file went where, as plain values."""
        out: dict[str, Any] = {"seed": self.splits.seed}
        for part, (store, indices) in self.parts.items():
            rows = store.column("sample_id")[indices]
            source = store.column("source")[indices]
            out[part] = {
                name: rows[source == k].tolist()
                for k, name in enumerate(store.sources)
                if (source == k).any()
            }
        return out

    def summary(self) -> list[str]:
        """Return the lines to print before training."""
        stats = self.stats
        elements = " ".join(chemical_symbols[z] for z in stats.species)
        lines = [
            f"Data     {', '.join(self.parts['train'][0].sources)}",
            f"         train {stats.num_structures} structures, {stats.num_atoms} atoms, "
            f"elements {elements}",
            *(f"         {line}" for line in self.coverage.lines()),
        ]
        e0 = stats.e0
        table = "  ".join(f"{chemical_symbols[z]} {e:.3f}" for z, e in e0.table.items())
        lines += [
            f"E0       {table} eV",
            f"         {e0.method}, rank {e0.rank} of {len(e0.table)}; |E - E0| mean "
            f"{e0.residual_mean:.3f}, max {e0.residual_max:.3f} eV/atom",
            f"Graph    cutoff {self.cutoff:g} A, neighbours mean {stats.avg_num_neighbors:.1f} max "
            f"{stats.max_num_neighbors}; typical |F| {stats.force_scale:.3f} eV/A",
        ]
        if e0.residual_mean > 10:
            lines.append(
                "         WARNING: energies are more than 10 eV/atom from E0: check data.e0"
            )
        lines += [f"Note     {note}" for note in self.notes]
        return lines


def prepare_data(
    options: Mapping[str, Any],
    *,
    cutoff: float,
    seed: int,
    required_labels: Iterable[str] = ("energy", "forces"),
    baseline: Callable[[tuple[int, ...]], Callable[[AtomGraph], np.ndarray] | None] | None = None,
) -> PreparedData:
    """Read, split, check and measure.

    Args:
        options: the `data` group of the configuration.
        cutoff: of the graphs, Å.
        seed: of the split.
        required_labels: labels that must exist (those with a loss weight).
        baseline: given the species, returns a function from a batch to the energies (B,) of the
            priors, which are subtracted before E0 is fitted; or None if there are no priors.

    Raises:
        DataError: a file, a structure, a label or the split cannot be used.
        ConfigError: `data.train` is missing.
    """
    if not options.get("train"):
        raise ConfigError("data.train is missing: mlip train data.train=FILE")
    store = _open(options, "train")
    everything, none = np.arange(len(store)), np.zeros(0, dtype=np.int64)
    isolated = _isolated_atoms(store, cutoff) if options["e0"] in ("auto", "isolated") else none
    usable = np.setdiff1d(everything, isolated)
    if len(usable) == 0:
        raise DataError(f"{store.sources[0]} has isolated atoms only: nothing to learn")
    notes = []
    if len(isolated):
        notes.append(
            f"{len(isolated)} neutral one-atom frame(s) of data.train define E0 and are not "
            "trained on"
        )
    elements = [
        frozenset(store.column("atomic_numbers")[store.atoms_of(int(i))].tolist()) for i in usable
    ]
    splits = make_splits(
        store.column("group")[usable],
        elements,
        val_fraction=0.0 if options.get("val") else float(options["val_fraction"]),
        test_fraction=0.0 if options.get("test") else float(options["test_fraction"]),
        seed=seed,
    )
    parts = {p: (store, usable[getattr(splits, p)]) for p in PARTS}
    for part in ("val", "test"):
        if options.get(part):
            other = _open(options, part)
            parts[part] = (other, np.arange(len(other)))
    _refuse_new_elements(parts)
    found = coverage(parts)
    require_labels(found, required_labels, parts, options["format"])
    train = parts["train"][1]
    energies = None
    if baseline is not None:
        species = tuple(int(z) for z in store.compositions(train)[1])
        energies = _baseline(store, train, cutoff, baseline(species))
    stats = compute_stats(
        store,
        train,
        cutoff=cutoff,
        e0=options["e0"],
        isolated=isolated,
        baseline=energies,
        reading=_reading(options),
        format=options["format"],
    )
    budget = Budget(options["batch_size"], options["max_atoms"], options["max_edges"])
    notes += splits.notes
    return PreparedData(parts, stats, found, splits, cutoff, budget, options["num_workers"], notes)


def _reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the reader."""
    reader = {k: options[k] for k in READER_OPTIONS if options.get(k) is not None}
    keys = {k: v for k, v in (options.get("keys") or {}).items() if v not in (None, "auto")}
    return {**reader, "keys": keys} if keys else reader


def _open(options: Mapping[str, Any], part: str) -> Store:
    return open_store(
        options[part],
        format=options["format"],
        options=_reading(options),
        cache_dir=options.get("cache_dir"),
    )


def _isolated_atoms(store: Store, cutoff: float) -> np.ndarray:
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


def _refuse_new_elements(parts: dict[str, tuple[Store, np.ndarray]]) -> None:
    def species(part: str) -> set[int]:
        store, indices = parts[part]
        return set(store.compositions(indices)[1].tolist()) if len(indices) else set()

    known = species("train")
    for part in ("val", "test"):
        if new := sorted(species(part) - known):
            names = ", ".join(chemical_symbols[z] for z in new)
            raise DataError(
                f"{part} ({parts[part][0].sources[0]}) has {names}, which no training structure "
                f"has; add such structures to data.train or remove them from data.{part}"
            )


def _baseline(
    store: Store,
    indices: np.ndarray,
    cutoff: float,
    energies: Callable[[AtomGraph], np.ndarray] | None,
) -> np.ndarray | None:
    if energies is None:
        return None
    chunks = np.array_split(indices, max(1, len(indices) // 64))
    return np.concatenate([energies(collate_indices(store, c, cutoff)) for c in chunks])
