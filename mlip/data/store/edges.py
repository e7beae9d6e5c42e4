"""How many edges each structure has at a cutoff: counted once, kept beside the store."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mlip.atomic import atomic_write
from mlip.data.processes import StartMethod, workers
from mlip.data.progress import counted
from mlip.data.store.lock import exclusive
from mlip.errors import DataError
from mlip.neighbors import neighbor_list

if TYPE_CHECKING:
    from mlip.data.store.reader import Store

log = logging.getLogger("mlip")
STRETCH: Final = 4000  # structures that a worker counts at a time; it opens the store for them


def edge_counts(
    store: Store, cutoff: float, processes: int = 1, start_method: StartMethod = "spawn"
) -> np.ndarray:
    """Return the edges of every structure, (structures,) int32.

    The first call for a cutoff (Å) finds all neighbours and keeps the counts in the store's folder,
    if that can be written; the store itself knows of no cutoff. Of processes that call at the same
    time (the ranks of a run) one counts and the others wait.

    Args:
        store: of the structures.
        cutoff: of the edges, Å.
        processes: how many count at the same time.
        start_method: of these.

    Raises:
        DataError: a structure has no neighbour list, or a process was killed.
    """
    path = store.folder / f"edges-{cutoff:g}-{store.manifest['blake2b'][:12]}.bin"
    if (kept := _kept(path, len(store))) is not None:
        return kept
    lock = path.with_name(f".{path.stem}.lock")
    writable = os.access(store.folder, os.W_OK)
    with exclusive(lock, f"the edge counts of {store.folder}") if writable else nullcontext():
        if (kept := _kept(path, len(store))) is not None:
            return kept  # by whoever had the lock
        numbers = _numbers(store, cutoff, processes, start_method)
        numbers = counted(numbers, f"edges within {cutoff:g} A", "structures")
        out = np.fromiter(numbers, "<i4", len(store))
        try:
            with atomic_write(path) as temporary:
                out.tofile(temporary)
        except OSError as error:
            log.warning("%s cannot be written (%s): edges are counted again next time", path, error)
    return out


def _kept(path: Path, structures: int) -> np.ndarray | None:
    """Return counts that were kept, None if there are none."""
    if path.exists() and path.stat().st_size == 4 * structures:
        return np.fromfile(path, "<i4")
    return None


def _numbers(
    store: Store, cutoff: float, processes: int, start_method: StartMethod
) -> Iterator[int]:
    """Yield the edges of each structure in turn."""
    begins = range(0, len(store), STRETCH)
    stretches = ((store, cutoff, begin, min(begin + STRETCH, len(store))) for begin in begins)
    if (number := min(processes, len(begins))) < 2:
        for stretch in stretches:
            yield from _count(*stretch)
        return
    killed = (
        f"{store.folder}: a process that counted edges was killed (out of memory?); try again with "
        "fewer data.num_workers"
    )
    with workers(number, killed, start_method) as pool:
        for part in pool.in_turn(_count_all, stretches, ahead=2 * number):
            yield from part


def _count_all(store: Store, cutoff: float, begin: int, end: int) -> list[int]:
    """Do what `_count` does, in a worker."""
    return list(_count(store, cutoff, begin, end))


def _count(store: Store, cutoff: float, begin: int, end: int) -> Iterator[int]:
    for k in range(begin, end):
        s = store.arrays(k)
        try:
            edges, _ = neighbor_list(s["positions"], s["cell"][0], s["pbc"][0], cutoff)
        except DataError as error:
            raise DataError(f"{store.where(k)}: {error}") from None
        yield edges.shape[1]
