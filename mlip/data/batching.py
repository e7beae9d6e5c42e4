"""Batches by count or by budget, in an order that is a pure function of (seed, epoch).

The number of loader workers changes nothing but speed. A loader knows its epoch and how many
batches it has given, so a run can continue in the middle of an epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mlip.data.store import Store
from mlip.errors import DataError
from mlip.graph import AtomGraph, add_edges
from mlip.neighbors import neighbor_list


@dataclass(frozen=True)
class Budget:
    """Limits of one batch; None = no limit."""

    batch_size: int | None = 16
    max_atoms: int | None = None
    max_edges: int | None = None


def collate_indices(store: Store, indices: np.ndarray, cutoff: float) -> AtomGraph:
    """Build a batch straight from the store."""
    return AtomGraph.from_arrays([add_edges(store.arrays(int(i)), cutoff) for i in indices])


class GraphLoader:
    """Iterate over batches of `indices`; each pass is the next epoch."""

    def __init__(
        self,
        store: Store,
        indices: np.ndarray,
        cutoff: float,
        budget: Budget,
        *,
        seed: int = 0,
        shuffle: bool = False,
        num_workers: int = 0,
    ) -> None:
        """Plan the batches.

        Raises:
            DataError: a structure alone is larger than the budget.
        """
        self.store, self.indices, self.cutoff, self.budget = store, indices, cutoff, budget
        self.seed, self.shuffle, self.num_workers = seed, shuffle, num_workers
        self.epoch = 0
        self.done = 0  # batches of this epoch already given
        self._skip = 0  # batches to leave out of the next pass, after `load_state_dict`
        self._begun = False  # whether this epoch's pass has begun
        self._atoms = store.num_atoms[indices]
        self._edges = self._count_edges() if budget.max_edges else None
        self._check()
        self._planned: tuple[int, list[np.ndarray]] | None = None

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch: positions in `indices`, all of them, each once."""
        if self._planned and self._planned[0] == epoch:
            return self._planned[1]
        n = len(self.indices)
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(n) if self.shuffle else np.arange(n)
        batches, current, atoms, edges = [], [], 0, 0
        limit = self.budget
        for k in order:
            a = int(self._atoms[k])
            e = int(self._edges[k]) if self._edges is not None else 0
            full = (
                (limit.batch_size is not None and len(current) >= limit.batch_size)
                or (limit.max_atoms is not None and atoms + a > limit.max_atoms)
                or (limit.max_edges is not None and edges + e > limit.max_edges)
            )
            if current and full:
                batches.append(np.array(current))
                current, atoms, edges = [], 0, 0
            current.append(int(k))
            atoms, edges = atoms + a, edges + e
        if current:
            batches.append(np.array(current))
        self._planned = (epoch, batches)
        return batches

    def __len__(self) -> int:
        """Batches of the current epoch, finished ones included."""
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[AtomGraph]:
        if self._begun or self._skip >= len(self.plan(self.epoch)):
            self.start_epoch(self.epoch + 1)
        self._begun = True
        self.done, self._skip = self._skip, 0
        batches = self.plan(self.epoch)[self.done :]
        data = _Batches(self.store, [self.indices[b] for b in batches], self.cutoff)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context="fork" if self.num_workers else None,
        )
        for batch in loader:
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the next pass leaves out what was already given."""
        self.start_epoch(int(state["epoch"]))
        self._skip = self.done = int(state["done"])

    def start_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`, from its beginning."""
        self.epoch, self.done, self._skip, self._begun = epoch, 0, 0, False

    def _count_edges(self) -> np.ndarray:
        out = np.zeros(len(self.indices), dtype=np.int64)
        for k, i in enumerate(self.indices):
            s = self.store.arrays(int(i))
            out[k] = neighbor_list(s["positions"], s["cell"][0], s["pbc"][0], self.cutoff)[0].shape[
                1
            ]
        return out

    def _check(self) -> None:
        sizes = {"max_atoms": self._atoms, "max_edges": self._edges}
        for key, size in sizes.items():
            limit = getattr(self.budget, key)
            if limit is not None and size is not None and len(size) and size.max() > limit:
                worst = int(size.argmax())
                raise DataError(
                    f"{self.store.where(int(self.indices[worst]))} has {int(size[worst])} "
                    f"{key[4:]}, more than data.{key}={limit}; raise it or drop the structure"
                )


class _Batches(Dataset[AtomGraph]):
    """One item per batch, so that a worker makes whole batches."""

    def __init__(self, store: Store, batches: list[np.ndarray], cutoff: float) -> None:
        self.store, self.batches, self.cutoff = store, batches, cutoff

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> AtomGraph:
        return collate_indices(self.store, self.batches[index], self.cutoff)


def auto_workers(setting: Any, num_structures: int) -> int:
    """Return the number of loader processes: none for small sets or machines."""
    if setting != "auto":
        return int(setting)
    cores = len(os.sched_getaffinity(0))
    return 0 if cores <= 2 or num_structures < 2000 else min(8, cores - 1)
