"""Which structures make which batch of an epoch: a pure function of its arguments, in numpy arrays.

Twenty million structures are an ordinary data set, so nothing here is a Python object per
structure: an epoch is one array of positions and one array of the places where batches begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from mlip.errors import ConfigError

BLOCK: Final = 1 << 20  # structures packed at a time, so that cumulative sums stay small


@dataclass(frozen=True)
class Budget:
    """Limits of one batch; None = no limit.

    Attributes:
        batch_size: structures.
        max_atoms: atoms of all of them.
        max_edges: directed edges of all of them.
        oversized: what to do with a structure that is too large for any batch.
    """

    batch_size: int | None = 16
    max_atoms: int | None = None
    max_edges: int | None = None
    oversized: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if self.oversized not in ("error", "skip"):
            raise ConfigError(f"data.oversized={self.oversized}; expected error or skip")


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch for one process of several.

    Attributes:
        order: (n,) positions of structures, in the order in which the epoch meets them.
        bounds: (batches + 1,) where batches of all processes begin and end in `order`.
        rank: this process; it takes every `world_size`-th batch.
        world_size: how many processes share the epoch.
    """

    order: np.ndarray
    bounds: np.ndarray
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        """Batches of this process, as many as of any other."""
        return (len(self.bounds) - 1) // self.world_size

    def __getitem__(self, batch: int) -> np.ndarray:
        """Return the positions of the structures of a batch of this process."""
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} of {len(self)}")
        k = batch * self.world_size + self.rank
        return self.order[self.bounds[k] : self.bounds[k + 1]]


def draw_order(
    n: int,
    rng: np.random.Generator,
    *,
    shuffle: bool = False,
    repeats: np.ndarray | None = None,
) -> np.ndarray:
    """Return the positions 0 to n-1 in the order of one epoch.

    Args:
        n: number of structures.
        rng: of this epoch.
        shuffle: draw a random order; else they come as they are.
        repeats: (n,) how often each comes on average over epochs; default once. Whole parts are
            kept in every epoch, fractions are drawn by systematic sampling in random order: the
            mean is exact and the length of an epoch varies by at most one.
    """
    order = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    if shuffle:
        rng.shuffle(order)
    if repeats is None:
        return order
    drawn = rng.permutation(order) if shuffle else order
    passed = np.floor(np.cumsum(repeats[drawn]) + rng.random())
    order = np.repeat(drawn, np.diff(passed, prepend=0.0).astype(np.int64))
    if shuffle:
        rng.shuffle(order)
    return order


def pack(
    order: np.ndarray,
    batch_size: int | None,
    limits: Sequence[tuple[np.ndarray, int]] = (),
) -> np.ndarray:
    """Cut an order into batches, each as long as its limits allow.

    Args:
        order: (n,) positions.
        batch_size: structures of a batch at most; None = no limit.
        limits: pairs of sizes (by position) and the largest sum of them that a batch may have;
            no single size is larger than that.

    Returns:
        (batches + 1,) where batches begin and end in `order`.
    """
    n = len(order)
    if not limits:
        return np.append(np.arange(0, n, batch_size or max(n, 1)), n)
    bounds, start, block = [0], 0, BLOCK
    while start < n:
        part = order[start : start + block]
        ends = np.arange(len(part)) + (batch_size or len(part))
        for sizes, limit in limits:
            total = np.concatenate([[0], np.cumsum(sizes[part], dtype=np.int64)])
            ends = np.minimum(ends, np.searchsorted(total, total[:-1] + limit, "right") - 1)
        at, last = 0, start + len(part) == n
        while at < len(part):
            end = int(ends[at])
            if end >= len(part) and not last:
                break  # this batch may go on in the next block
            at = min(end, len(part))
            bounds.append(start + at)
        block = BLOCK if at else 2 * block
        start += at
    return np.array(bounds)


def share_evenly(
    order: np.ndarray, bounds: np.ndarray, world_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split batches until their number is a multiple of `world_size`.

    The largest batches of the last round are halved, so nothing is dropped and no batch outgrows
    its budget. Only where there is nothing left to halve (every batch is one structure) do the
    first structures of the epoch come once more.

    Returns:
        The order, longer only in that case, and the bounds.
    """
    extra = -(len(bounds) - 1) % world_size
    first = max(0, len(bounds) - 1 - world_size)
    if len(order) - bounds[first] < len(bounds) - 1 - first + extra:
        first = 0
    cuts = bounds[first:].tolist()
    for _ in range(extra):
        sizes = np.diff(cuts)
        k = int(sizes.argmax())
        if sizes[k] > 1:
            cuts.insert(k + 1, (cuts[k] + cuts[k + 1]) // 2)
        else:
            cuts.append(cuts[-1] + 1)
    if cuts[-1] > len(order):
        order = np.resize(order, cuts[-1])
    return order, np.concatenate([bounds[:first], cuts])
