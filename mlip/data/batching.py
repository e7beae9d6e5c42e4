"""Batches straight from the store, in an order that is a pure function of seed, epoch and rank.

The number of loader workers and how they are started change nothing but speed. A loader knows its
epoch and how many batches it has given, so a run can continue in the middle of an epoch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlip.data.plan import Budget, Plan, draw_order, pack, share_evenly
from mlip.data.processes import StartMethod
from mlip.data.sources import AnyStore
from mlip.errors import DataError, MLIPError
from mlip.graph import AtomGraph, add_edges

__all__ = ["Budget", "GraphLoader", "auto_workers", "collate_indices"]

log = logging.getLogger("mlip")


def collate_indices(store: AnyStore, indices: np.ndarray, cutoff: float) -> AtomGraph:
    """Build a batch straight from the store."""
    return AtomGraph.from_arrays([add_edges(store.arrays(int(i)), cutoff) for i in indices])


class GraphLoader:
    """Iterate over batches of `indices`; each pass is the next epoch."""

    def __init__(
        self,
        store: AnyStore,
        indices: np.ndarray,
        cutoff: float,
        budget: Budget,
        *,
        seed: int = 0,
        shuffle: bool = False,
        num_workers: int = 0,
        repeats: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_method: StartMethod = "fork",
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        """Measure the structures against the budget.

        Args:
            store: where the structures are.
            indices: (n,) those to iterate over.
            cutoff: of the graphs, Å.
            budget: of one batch.
            seed: of the order.
            shuffle: draw a new order for every epoch.
            num_workers: processes that make batches, and count edges before; 0 does it here.
            repeats: (n,) how often each structure comes in an epoch, on average over epochs;
                fractions are drawn with the seed. Default: once.
            rank: which of the processes that train together this is.
            world_size: their number. All give the same number of batches and together every
                structure; see `share_evenly` for what does not divide.
            start_method: of the workers.
            prefetch: batches that each worker makes ahead.
            pin_memory: put batches into page-locked memory; default: if there is a GPU.

        Raises:
            DataError: a structure alone is larger than the budget, and is not to be skipped.
            ValueError: `repeats` or `rank` cannot be used.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}; expected 0 to {world_size - 1}")
        self.store, self.cutoff, self.budget = store, cutoff, budget
        self.seed, self.shuffle, self.num_workers = seed, shuffle, num_workers
        self.rank, self.world_size = rank, world_size
        self.start_method, self.prefetch = start_method, prefetch
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.epoch = 0
        self.done = 0  # batches of this epoch already given
        self._skip = 0  # batches to leave out of the next pass, after `load_state_dict`
        self.regrouped: int | None = None  # `done` after another number of processes, if so
        self._begun = False  # whether this epoch's pass has begun
        self._planned: tuple[int, Plan] | None = None
        repeats = None if repeats is None else _checked(repeats, len(indices))
        self._sizes = {"max_atoms": store.num_atoms[indices], "max_edges": None}
        if budget.max_edges:
            counts = store.edge_counts(cutoff, max(1, num_workers), start_method)
            self._sizes["max_edges"] = counts[indices]
        fits = self._fitting(indices)
        self.skipped = int((~fits).sum())
        if self.skipped:
            indices = indices[fits]
            repeats = None if repeats is None else repeats[fits]
            self._sizes = {k: None if v is None else v[fits] for k, v in self._sizes.items()}
        self.indices, self.repeats = indices, repeats

    def plan(self, epoch: int) -> Plan:
        """Return the batches of an epoch: positions in `indices`."""
        if self._planned and self._planned[0] == epoch:
            return self._planned[1]
        rng = np.random.default_rng((self.seed, epoch))
        order = draw_order(len(self.indices), rng, shuffle=self.shuffle, repeats=self.repeats)
        limits = [(v, getattr(self.budget, k)) for k, v in self._sizes.items() if v is not None]
        bounds = pack(order, self.budget.batch_size, [x for x in limits if x[1] is not None])
        order, bounds = share_evenly(order, bounds, self.world_size)
        self._planned = (epoch, Plan(order, bounds, self.rank, self.world_size))
        return self._planned[1]

    def __len__(self) -> int:
        """Batches of the current epoch, finished ones included."""
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[AtomGraph]:
        if self._begun or self._skip >= len(self.plan(self.epoch)):
            self.start_epoch(self.epoch + 1)
        self._begun = True
        self.done, self._skip = self._skip, 0
        plan = self.plan(self.epoch)
        loader = DataLoader(
            _Batches(self.store, self.cutoff),
            sampler=(self.indices[plan[k]] for k in range(self.done, len(plan))),
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method if self.num_workers else None,
            prefetch_factor=self.prefetch if self.num_workers else None,
            pin_memory=self.pin_memory,
        )
        for batch in loader:
            if isinstance(batch, MLIPError):
                raise batch
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands."""
        return {
            "epoch": self.epoch,
            "done": self.done,
            "batches": len(self),
            "world_size": self.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the next pass leaves out what was already given.

        With another number of processes up to one batch of each is given again.
        """
        self.start_epoch(int(state["epoch"]))
        done, before = int(state["done"]), int(state.get("world_size", self.world_size))
        if before != self.world_size:
            finished = done >= state["batches"]
            done = len(self) if finished else min(done * before // self.world_size, len(self) - 1)
            self.regrouped = done
        self._skip = self.done = done

    def start_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`, from its beginning."""
        self.epoch, self.done, self._skip, self._begun = epoch, 0, 0, False

    def _fitting(self, indices: np.ndarray) -> np.ndarray:
        """Return which structures are within the budget; name the worst of the others."""
        fits = np.ones(len(indices), dtype=bool)
        for key, size in self._sizes.items():
            limit = getattr(self.budget, key)
            if limit is None or size is None or not len(size) or size.max() <= limit:
                continue
            worst, large = int(size.argmax()), size > limit
            found = (
                f"{self.store.where(int(indices[worst]))} has {int(size[worst])} {key[4:]}, more "
                f"than data.{key}={limit}"
            )
            if self.budget.oversized == "error":
                raise DataError(
                    f"{found} ({int(large.sum())} of {len(size)} structures have more); raise it, "
                    "drop the structures or leave them out by data.oversized=skip"
                )
            log.warning("%s: left out, with %d others", found, int(large.sum()) - 1)
            fits &= ~large
        if not fits.any() and len(fits):
            raise DataError("every structure is larger than the budget of a batch; raise it")
        return fits


class _Batches(Dataset[AtomGraph | MLIPError]):
    """One item per batch, so that a worker makes whole batches.

    What is wrong with the data is handed over as an item: raised in a worker, it would reach the
    user as a traceback.
    """

    def __init__(self, store: AnyStore, cutoff: float) -> None:
        self.store, self.cutoff = store, cutoff

    def __getitem__(self, index: np.ndarray) -> AtomGraph | MLIPError:
        try:
            return collate_indices(self.store, index, self.cutoff)
        except MLIPError as error:
            return error


def _checked(repeats: np.ndarray, n: int) -> np.ndarray:
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.shape != (n,) or not np.isfinite(repeats).all() or (repeats < 0).any():
        raise ValueError(f"repeats must be {n} finite numbers of zero or more, one a structure")
    return repeats


def auto_workers(setting: Any, num_structures: int, beside: int = 1) -> int:
    """Return the number of loader processes: none for small sets or machines."""
    if setting != "auto":
        return int(setting)
    cores = len(os.sched_getaffinity(0)) // beside
    return 0 if cores <= 2 or num_structures < 2000 else min(8, cores - 1)
