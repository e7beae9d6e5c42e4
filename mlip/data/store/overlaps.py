"""Atoms that sit on one another, found in hundreds of structures at a time.

A neighbour list per structure would take longer than reading it. Here the atoms of all structures
are sorted along the longest axes of their cells, and only those close along these are compared.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mlip.data.readers import Block
from mlip.errors import DataError
from mlip.neighbors import neighbor_list

MIN_DISTANCE: Final = 0.3  # Å; closer atoms are a mistake in the file
Pair = tuple[int, int, int, float]  # structure, its two atoms, their distance


def find_overlaps(block: Block) -> dict[int, str]:
    """Return which structures have atoms closer than `MIN_DISTANCE`, in order, and which these are.

    A structure whose neighbours cannot be found at all is among them, with the reason.
    """
    periodic = np.asarray(block.pbc.all(axis=1))
    cells = np.where(periodic[:, None, None], block.cell, np.eye(3))
    inverse = np.linalg.inv(cells)
    heights = 1.0 / np.linalg.norm(inverse, axis=1)
    found = _sorted_search(block, cells, inverse, heights, periodic)
    faults: dict[int, str] = {}
    # In slabs, wires and very thin cells the nearest image is not the one that rounding finds.
    thin = periodic & (heights.min(axis=1) < 3.0 * MIN_DISTANCE)
    for k in np.flatnonzero(thin | (block.pbc.any(axis=1) & ~periodic)).tolist():
        try:
            found += _by_neighbor_list(k, block)
        except DataError as error:  # two atoms at one point, a cell without volume
            faults[k] = str(error)
    for k, i, j, distance in sorted(found, key=lambda pair: (pair[0], -pair[3])):  # closest last
        faults[k] = f"atoms {i} and {j} are {distance:.3f} A apart, closer than {MIN_DISTANCE} A"
    return dict(sorted(faults.items()))


def _sorted_search(
    block: Block,
    cells: np.ndarray,
    inverse: np.ndarray,
    heights: np.ndarray,
    periodic: np.ndarray,
) -> list[Pair]:
    first = block.first
    owner = np.repeat(np.arange(len(block)), block.counts)
    scaled = np.einsum("ni,nij->nj", block.positions, inverse.take(owner, axis=0))
    scaled -= np.floor(scaled) * periodic[owner, None]
    low = np.minimum.reduceat(scaled, first) * ~periodic[:, None]
    extents = np.where(periodic[:, None], heights, np.maximum.reduceat(scaled, first) - low)
    axis = extents.argmax(axis=1)
    height = np.take_along_axis(heights, axis[:, None], axis=1)[:, 0]
    length = np.take_along_axis(extents, axis[:, None], axis=1)[:, 0]
    along = np.take_along_axis(scaled - low[owner], axis[owner, None], axis=1)[:, 0] * height[owner]
    # Structures lie one behind the other, periodic ones with their beginning once more at the end.
    again = np.flatnonzero(periodic[owner] & (along < MIN_DISTANCE))
    along += (np.cumsum(length + 1.0) - length)[owner]
    along = np.concatenate([along, along[again] + length[owner[again]]])
    atom = np.concatenate([np.arange(len(owner)), again])
    order = np.argsort(along)
    along, atom = along[order], atom[order]
    found: list[Pair] = []
    left, step = np.arange(len(atom)), 0
    while len(left):
        step += 1
        left = left[: left.searchsorted(len(atom) - step)]
        left = left[along[left + step] - along[left] < MIN_DISTANCE]
        i, j = atom[left], atom[left + step]
        apart = scaled.take(j, axis=0) - scaled.take(i, axis=0)
        apart -= np.rint(apart) * periodic[owner[i], None]
        x, y, z = (np.abs(apart) * heights.take(owner[i], axis=0) < MIN_DISTANCE).T
        near = x & y & z
        i, j, apart = i[near], j[near], apart[near]
        square = np.square(np.einsum("ni,nij->nj", apart, cells[owner[i]])).sum(axis=1)
        for e in np.flatnonzero((square < MIN_DISTANCE**2) & (i != j)):
            k = int(owner[i[e]])
            a, b = sorted((int(i[e] - first[k]), int(j[e] - first[k])))
            found.append((k, a, b, float(np.sqrt(square[e]))))
    return found


def _by_neighbor_list(k: int, block: Block) -> list[Pair]:
    frame = block.part(k, k + 1)
    positions, cell = frame.positions, frame.cell[0]
    (j, i), shift = neighbor_list(positions, cell, frame.pbc[0], MIN_DISTANCE)
    apart = positions[j] + shift @ cell - positions[i]
    distance = np.linalg.norm(apart, axis=1)
    pairs = np.sort([i, j], axis=0).T.tolist()
    return [(k, a, b, d) for (a, b), d in zip(pairs, distance.tolist(), strict=True)]
