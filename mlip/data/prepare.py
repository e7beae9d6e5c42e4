"""From `data.*` options to everything a run needs: stores, splits, statistics, loaders.

Knows neither Hydra nor Lightning, so a script can use it as the trainer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.data.batching import Budget, GraphLoader, auto_workers, collate_indices
from mlip.data.check import Coverage, coverage, require_labels
from mlip.data.pools import (
    Pool,
    describe_rule,
    drop_filtered,
    join,
    open_pools,
    rows_by_file,
    unusable_by_file,
)
from mlip.data.sources import AnyStore, JoinedStore, Source, head_names, parse_sources
from mlip.data.splits import Splits, make_splits, trained_on
from mlip.data.stats import (
    BLOCK,
    DatasetStats,
    ReferenceEnergies,
    compute_stats,
    element_sets,
    energies_of_atoms,
    reference_energies,
)
from mlip.data.weights import weigh
from mlip.errors import DataError
from mlip.graph import AtomGraph

PARTS = ("train", "val", "test")
Baseline = Callable[[tuple[int, ...]], Callable[[AtomGraph], np.ndarray] | None]
Chosen = dict[str, list[tuple[Pool, np.ndarray]]]  # part -> pools and the rows of their stores


@dataclass
class PreparedData:
    """Stores and the indices of each part, with what is known about them."""

    parts: dict[str, tuple[AnyStore, np.ndarray]]
    stats: DatasetStats
    coverage: Coverage
    coverage_by_source: list[Coverage]
    splits: Splits
    cutoff: float
    budget: Budget
    num_workers: Any
    sources: list[Source]
    chosen: Chosen
    dropped: list[Pool]  # those of which something was left out
    weighed: dict[str, int]  # structures of each config_type that has a weight
    notes: list[str] = field(default_factory=list)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the levels of theory."""
        return head_names(self.sources)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources where there are several: batches say by number which one."""
        return tuple(s.name for s in self.sources) if len(self.sources) > 1 else ()

    def size(self, part: str) -> int:
        """Structures of a part."""
        return len(self.parts[part][1])

    def loader(
        self, part: str, *, seed: int = 0, rank: int = 0, world_size: int = 1, beside: int = 1
    ) -> GraphLoader | None:
        """Return the loader of a part (shuffled for train), or None if the part is empty.

        Processes `beside` one another on this machine share its cores.
        """
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
            num_workers=auto_workers(self.num_workers, len(indices), beside),
            repeats=_repeats(self.sources, store, indices) if part == "train" else None,
            rank=rank,
            world_size=world_size,
        )

    def split_record(self) -> dict[str, Any]:
        """Return which frames of which file went where, and which rule left out which."""
        named = len(self.sources) > 1
        out: dict[str, Any] = {"seed": self.splits.seed}
        out |= {part: rows_by_file(pieces, named) for part, pieces in self.chosen.items()}
        rules = sorted({rule for pool in self.dropped for rule in pool.dropped})
        dropped = {
            rule: rows_by_file(
                [(p, p.dropped[rule]) for p in self.dropped if rule in p.dropped], named
            )
            for rule in rules
        }
        if bad := unusable_by_file(self.dropped, named):
            dropped["bad"] = bad
        return {**out, "dropped": dropped} if dropped else out

    def summary(self) -> list[str]:
        """Return the lines to print before training."""
        stats = self.stats
        elements = " ".join(chemical_symbols[z] for z in stats.species)
        lines = [
            *self._source_lines(),
            f"         train {stats.num_structures} structures, {stats.num_atoms} atoms, "
            f"elements {elements}",
            *(f"         {line}" for line in self.coverage.lines()),
            *self._dropped_lines(),
            *(f"Weights  {n} structures of config_type {k}" for k, n in self.weighed.items()),
            *self._energy_lines(),
            f"Graph    cutoff {self.cutoff:g} A, neighbours mean {stats.avg_num_neighbors:.1f} max "
            f"{stats.max_num_neighbors}; typical |F| {stats.force_scale:.3f} eV/A",
        ]
        for head, e0 in stats.references.items():
            if e0.residual_mean > 10:
                of = f" of head {head}" if len(self.heads) > 1 else ""
                lines.append(
                    f"         WARNING: energies{of} are more than 10 eV/atom from E0: "
                    "check data.e0"
                )
        return lines + [f"Note     {note}" for note in self.notes]

    def _source_lines(self) -> list[str]:
        if len(self.sources) == 1:
            return [f"Data     {', '.join(self.parts['train'][0].sources)}"]
        lines = []
        for k, source in enumerate(self.sources):
            own = {part: [x for x in self.chosen[part] if x[0].number == k] for part in PARTS}
            counts = {part: sum(len(rows) for _, rows in own[part]) for part in PARTS}
            sizes = ", ".join(f"{part} {count}" for part, count in counts.items() if count)
            files = [file for pool, _ in own["train"] for file in pool.store.sources]
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            lines.append(
                f"{'Data' if k == 0 else '':8} {source.name}: head {source.head}, {sizes}, "
                f"sampling {source.sampling:g}, weight {source.weight:g}; {files[0]}{more}"
            )
            found = self.coverage_by_source[k]
            shares = [
                f"{x} {n / found.sizes['train']:.0%}" for x, n in found.counts["train"].items()
            ]
            lines.append(f"{'':10} training labels: {', '.join(shares)}")
        return lines

    def _energy_lines(self) -> list[str]:
        lines = []
        for head, e0 in self.stats.references.items():
            of = f"{head}: " if len(self.heads) > 1 else ""
            table = "  ".join(f"{chemical_symbols[z]} {e:.3f}" for z, e in e0.table.items())
            lines += [
                f"E0       {of}{table} eV",
                f"         {e0.method}, rank {e0.rank} of {len(e0.table)}; |E - E0| mean "
                f"{e0.residual_mean:.3f}, max {e0.residual_max:.3f} eV/atom",
            ]
        return lines

    def _dropped_lines(self) -> list[str]:
        skipped = []
        for pool in self.dropped:
            if found := [why for own in pool.store.refused.values() for why in own.values()]:
                skipped.append(
                    f"Dropped  {len(found)} of {len(pool.store) + len(found)} frames of "
                    f"{pool.label} that cannot be used; the first: {found[0]}"
                )
        return skipped + [
            f"Dropped  {len(rows)} of {len(pool.store)} structures of {pool.label}: "
            f"{describe_rule(rule, pool.source.filter)}"
            for pool in self.dropped
            for rule, rows in pool.dropped.items()
        ]


def prepare_data(
    options: Mapping[str, Any],
    *,
    cutoff: float,
    seed: int,
    required_labels: Iterable[str] = ("energy", "forces"),
    baseline: Baseline | None = None,
) -> PreparedData:
    """Read, filter, split, check and measure.

    Args:
        options: the `data` group of the configuration.
        cutoff: of the graphs, Å.
        seed: of the split.
        required_labels: labels that must exist (those with a loss weight).
        baseline: given the species, returns a function from a batch to the energies (B,) of the
            priors, which are subtracted before E0 is fitted; or None if there are no priors.

    Raises:
        DataError: a file, a structure, a label or the split cannot be used.
        ConfigError: `data.train` is missing, or `data.sources` or a filter is not understood.
    """
    sources = parse_sources(options)
    pools = open_pools(sources, cutoff, options.get("cache_dir"))
    notes = _isolated_notes(pools, len(sources))
    dropped = drop_filtered(pools)
    weighed = weigh(pools)
    splits = _split(pools, seed)
    chosen = _choose(pools, splits)
    _refuse_new_elements(chosen, head_names(sources))
    parts = {part: join(pieces, len(sources)) for part, pieces in chosen.items()}
    by_source = []
    for number, source in enumerate(sources):
        own = {
            part: join([piece for piece in pieces if piece[0].number == number])
            for part, pieces in chosen.items()
            if any(piece[0].number == number for piece in pieces)
        }
        wanted = [label for label in required_labels if label in source.labels]
        if "train" not in own:
            raise DataError(
                f"nothing of {source.name} is left to train on: its materials are held out for "
                "other sources; hold out less (val_fraction), or give each source its val"
            )
        by_source.append(coverage(own))
        require_labels(by_source[-1], wanted, own, source.format)
    references = _reference_energies(sources, pools, *parts["train"], cutoff, baseline)
    store, train = parts["train"]
    stats = compute_stats(
        store,
        train,
        cutoff=cutoff,
        references=references,
        repeats=_repeats(sources, store, train),
        dropped=dropped,
    )
    return PreparedData(
        parts=parts,
        stats=stats,
        coverage=coverage(parts),
        coverage_by_source=by_source,
        splits=splits,
        cutoff=cutoff,
        budget=Budget(
            options["batch_size"],
            options["max_atoms"],
            options["max_edges"],
            options.get("oversized", "error"),
        ),
        num_workers=options["num_workers"],
        sources=sources,
        chosen=chosen,
        dropped=[pool for pool in pools if pool.dropped or pool.store.refused],
        weighed=weighed,
        notes=[*notes, *splits.notes, *_leak_notes(chosen)],
    )


def _isolated_notes(pools: Sequence[Pool], sources: int) -> list[str]:
    return [
        f"{len(pool.isolated)} neutral one-atom frame(s) of "
        f"{'data.train' if sources == 1 else pool.source.name} define E0 and are not trained on"
        for pool in pools
        if len(pool.isolated)
    ]


def _leak_notes(chosen: Chosen) -> list[str]:
    """Say which files that were given to validate on or to test share something with training."""
    notes = []
    for part in ("val", "test"):
        for pool, rows in chosen[part]:
            if pool.part == "train" or not len(rows):
                continue  # a split never cuts a group
            trained = (
                p.store.column("group")[some]
                for p, own in chosen["train"]
                for some in np.array_split(own, max(1, len(own) // BLOCK))
            )
            shared = int(trained_on(pool.store.column("group")[rows], trained).sum())
            if shared:
                notes.append(
                    f"{shared} of {len(rows)} structures of {pool.label} are copies of training "
                    "structures or share their material, molecule or composition (data.group): "
                    "their errors say little of new ones"
                )
    return notes


def _split(pools: Sequence[Pool], seed: int) -> Splits:
    """Split the structures of all sources at once, so that no material is on both sides.

    The result counts through the rows of the pools that are to be split.
    """
    pools = [pool for pool in pools if pool.part == "train"]
    fractions = [(pool.source.val_fraction, pool.source.test_fraction) for pool in pools]
    which = [np.zeros(len(pool.rows), dtype=np.int32) for pool in pools]
    sets: list[frozenset[int]] = [frozenset()]
    if any(val or test for val, test in fractions):
        for k, pool in enumerate(pools):
            of_row, found = element_sets(pool.store, pool.rows)
            which[k] = of_row + np.int32(len(sets))
            # an element must be in the training part of every head that has it
            sets += [frozenset(z + 1000 * pool.head for z in one) for one in found]
    return make_splits(
        np.concatenate([pool.store.column("group")[pool.rows] for pool in pools]),
        (np.concatenate(which), sets),
        val_fraction=[val for val, _ in fractions],
        test_fraction=[test for _, test in fractions],
        seed=seed,
        sources=np.repeat(np.arange(len(pools)), [len(pool.rows) for pool in pools]),
    )


def _choose(pools: Sequence[Pool], splits: Splits) -> Chosen:
    """Return the rows of each pool that each part has, in the order of sources."""
    to_split = [pool for pool in pools if pool.part == "train"]
    starts = np.concatenate([[0], np.cumsum([len(pool.rows) for pool in to_split])])
    chosen: Chosen = {}
    for part in PARTS:
        indices = getattr(splits, part)
        pieces = []
        for k, pool in enumerate(to_split):
            own = indices[(indices >= starts[k]) & (indices < starts[k + 1])] - starts[k]
            pieces.append((pool, pool.rows[own]))
            pieces += [(p, p.rows) for p in pools if p.part == part and p.number == pool.number
                       and part != "train"]  # fmt: skip
        filled = [piece for piece in pieces if len(piece[1])]
        chosen[part] = filled or pieces[:1]
    return chosen


def _refuse_new_elements(chosen: Chosen, heads: Sequence[str]) -> None:
    """Refuse elements of held-out structures that no training structure of their head has."""

    def species(pieces: Sequence[tuple[Pool, np.ndarray]], head: int) -> set[int]:
        own = [(pool, rows) for pool, rows in pieces if pool.head == head and len(rows)]
        return {z for pool, rows in own for z in pool.store.species(rows).tolist()}

    for head, name in enumerate(heads):
        known = species(chosen["train"], head)
        for part in ("val", "test"):
            for pool, rows in chosen[part]:
                if new := sorted(species([(pool, rows)], head) - known):
                    names = ", ".join(chemical_symbols[z] for z in new)
                    of = f" of head {name!r}" if len(heads) > 1 else ""
                    raise DataError(
                        f"{part} ({pool.store.sources[0]}) has {names}, which no training structure"
                        f"{of} has; add such structures to data.train or remove them from "
                        f"data.{part}"
                    )


def _reference_energies(
    sources: Sequence[Source],
    pools: Sequence[Pool],
    store: AnyStore,
    train: np.ndarray,
    cutoff: float,
    baseline: Baseline | None,
) -> dict[str, ReferenceEnergies]:
    """Fit E0 of each head to all of its training structures."""
    energies = None
    if baseline is not None:
        energies = _baseline(store, train, cutoff, baseline(tuple(store.species(train).tolist())))
    names = head_names(sources)
    number = store.source_of(train) if isinstance(store, JoinedStore) else np.zeros(len(train), int)
    head_of = np.array([names.index(source.head) for source in sources])[number]
    out = {}
    for head, name in enumerate(names):
        own = head_of == head
        first = next(source for source in sources if source.head == name)
        isolated: dict[int, float] = {}
        for pool in pools:
            if pool.head == head:
                for z, energy in energies_of_atoms(pool.store, pool.isolated).items():
                    isolated[z] = min(energy, isolated.get(z, np.inf))
        out[name] = reference_energies(
            store,
            train[own],
            first.e0,
            isolated=isolated,
            baseline=None if energies is None else energies[own],
            reading=first.reading,
            format=first.format,
        )
    return out


def _repeats(sources: Sequence[Source], store: AnyStore, indices: np.ndarray) -> np.ndarray | None:
    """Return how often each structure comes in an epoch, or None if each comes once."""
    if all(source.sampling == 1.0 for source in sources):
        return None
    sampling = np.array([source.sampling for source in sources])
    if isinstance(store, JoinedStore):
        return sampling[store.source_of(indices)]
    return np.full(len(indices), sampling[0])


def _baseline(
    store: AnyStore,
    indices: np.ndarray,
    cutoff: float,
    energies: Callable[[AtomGraph], np.ndarray] | None,
) -> np.ndarray | None:
    if energies is None:
        return None
    chunks = np.array_split(indices, max(1, len(indices) // 64))
    return np.concatenate([energies(collate_indices(store, c, cutoff)) for c in chunks])
