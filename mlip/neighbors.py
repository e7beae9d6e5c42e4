"""Neighbour lists: one contract for periodic images, and how they are found on the CPU.

`vesin` finds the neighbours; where atoms are so sparse that its grid of cells is mostly vacuum a
k-d tree does, because vesin 0.6 then takes minutes (one atom that left a wire) or ends the process
by a division by zero (one that left a slab by micrometres). `device_neighbors` finds the same edges
on an accelerator; nothing else looks for images. What structures must be is checked here for both,
and the brute-force oracle that checks all lives with the tests.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from vesin import NeighborList

from mlip.errors import DataError

FARTHEST = 1e8  # Å from the origin; beyond, differences in float64 have no digit below 1e-8 Å
THINNEST = 0.05  # Å between lattice planes; thinner cells are mistakes, and have too many images


def neighbor_list(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find every directed pair of atoms closer than `cutoff`, however many there are.

    Args:
        positions: (N, 3) Cartesian coordinates, Å. Need not be wrapped.
        cell: (3, 3) lattice vectors as rows, Å. Rows of non-periodic axes are ignored.
        pbc: (3,) which axes repeat.
        cutoff: distance below which a pair is kept, Å.

    Returns:
        edge_index: (2, E) row 0 the neighbour j, row 1 the centre i, sorted by i.
        edge_shift: (E, 3) whole lattice vectors n that bring j to its image, so that the edge
            vector is `positions[j] + n @ cell - positions[i]`.

    Raises:
        DataError: a periodic axis has no lattice vector, two have parallel ones, positions or
            cell are not finite or absurd, or two atoms sit on the same point.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    check_positions(positions)
    if len(positions) == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int32)
    box = complete_cell(cell, pbc)
    # One list per call: it is cheap, holds no state, and vesin's objects cannot be pickled.
    if _sparse(positions, box, pbc, cutoff):
        i, j, shift, distance = _tree_list(positions, box, pbc, cutoff)
    else:
        i, j, shift, distance = NeighborList(cutoff=cutoff, full_list=True, sorted=True).compute(
            points=positions, box=box, periodic=pbc, quantities="ijSd"
        )
    if len(distance) and distance.min() == 0.0:
        e = int(distance.argmin())
        refuse_coincident(int(i[e]), int(j[e]))
    edge_index = np.stack([j.astype(np.int64, copy=False), i.astype(np.int64, copy=False)])
    return edge_index, np.ascontiguousarray(shift, dtype=np.int32)


def check_positions(positions: NDArray[np.float64]) -> None:
    """Refuse coordinates (N, 3) between which there are no distances.

    Raises:
        DataError: some are not finite or absurd; the message names the atoms.
    """
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise DataError(f"positions of atoms {bad[:5].tolist()} are not finite; fix the structure")
    if (np.abs(positions) > FARTHEST).any():
        bad = np.flatnonzero((np.abs(positions) > FARTHEST).any(axis=1))
        raise DataError(
            f"atoms {bad[:5].tolist()} are more than {FARTHEST:g} A from the origin: a run that "
            "exploded, or positions that are not in A"
        )


def refuse_coincident(i: int, j: int) -> NoReturn:
    """Raise the DataError about two atoms without a distance."""
    raise DataError(
        f"atoms {i} and {j} are at the same point; "
        "remove the duplicate (ase.geometry.get_duplicate_atoms finds them)"
    )


def complete_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a copy of `cell` whose open axes hold unit vectors that complete the lattice.

    An open axis may hold anything (zeros, vacuum); no image along it is ever used, but the matrix
    must be invertible.

    Raises:
        DataError: the periodic axes do not span a lattice.
    """
    return _completed(np.array([cell], dtype=np.float64), np.asarray(pbc, dtype=bool))[0]


def complete_cells(cells: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Do for cells (B, 3, 3) with axes (B, 3) what `complete_cell` does for one."""
    out = np.empty(cells.shape)
    for axes in {tuple(row) for row in pbc.tolist()}:  # no more than eight
        alike = (pbc == axes).all(axis=1)
        out[alike] = _completed(cells[alike], np.array(axes))
    return out


def _completed(cells: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Complete, in place, cells (n, 3, 3) that repeat along the same axes (3,)."""
    axes, periodic = np.flatnonzero(pbc), cells[:, pbc]
    if not np.isfinite(periodic).all():
        bad = int(np.isfinite(periodic).all(axis=(1, 2)).argmin())
        raise DataError(f"the cell has entries that are not finite: {cells[bad].tolist()}")
    lengths = np.sqrt((periodic**2).sum(axis=2))
    if not lengths.all():
        bad = int(lengths.all(axis=1).argmin())
        raise DataError(
            f"axes {axes[lengths[bad] == 0.0].tolist()} are periodic but their lattice vectors "
            "are zero; set `atoms.cell`, or set `atoms.pbc` to False there"
        )
    if len(axes) == 0:
        cells[:] = np.eye(3)
        return cells
    unit = periodic / lengths[:, :, None]
    if len(axes) == 3:
        singular = np.linalg.svd(unit, compute_uv=False)
    else:
        _, singular, orthogonal = np.linalg.svd(unit)
        cells[:, ~pbc] = orthogonal[:, len(axes) :]
    if singular.min() < 1e-6:
        bad = int(singular.min(axis=1).argmin())
        raise DataError(
            f"the lattice vectors of the periodic axes are linearly dependent: "
            f"{periodic[bad].tolist()}; a lattice needs independent ones"
        )
    apart = 1.0 / np.sqrt((np.linalg.inv(cells) ** 2).sum(axis=1))[:, pbc]
    if apart.min() < THINNEST:
        bad, thin = divmod(int(apart.argmin()), len(axes))
        raise DataError(
            f"lattice planes along axis {axes[thin]} are {apart[bad, thin]:.3g} A apart: the cell "
            f"has collapsed or is not in A: {periodic[bad].tolist()}"
        )
    return cells


MAX_CELLS = 1e5  # vesin's own limit: beyond it every axis gets fewer cells, a thin one none


def _sparse(
    positions: NDArray[np.float64],
    box: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
) -> bool:
    """Whether a grid of cells one cutoff wide would be mostly empty, or too thin for vesin."""
    inverse = np.linalg.inv(box)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    extents = np.where(pbc, heights, np.ptp(positions @ inverse, axis=0) * heights)
    cells = np.maximum(1.0, extents // cutoff)
    total = float(cells.prod())
    too_thin = total > MAX_CELLS and cells.min() * (MAX_CELLS / total) ** (1 / 3) < 1.0
    return too_thin or total > 1000.0 + 10.0 * len(positions)


def _tree_list(
    positions: NDArray[np.float64],
    box: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Find centres i, neighbours j, shifts and distances with a k-d tree over explicit images."""
    inverse = np.linalg.inv(box)
    fractional = positions @ inverse
    wrap = np.floor(fractional) * pbc
    fractional -= wrap
    margin = cutoff * np.linalg.norm(inverse, axis=0)  # the cutoff in fractions of each axis
    image, atom = np.zeros((len(positions), 3)), np.arange(len(positions))
    for axis in np.flatnonzero(pbc):  # keep the images within the cutoff of the cell's faces
        reach = np.arange(-np.ceil(margin[axis]), np.ceil(margin[axis]) + 1)
        shifted = fractional[atom, axis] + image[:, axis] + reach[:, None]
        n, kept = np.nonzero((shifted > -margin[axis]) & (shifted < 1.0 + margin[axis]))
        image, atom = image[kept], atom[kept]
        image[:, axis] = reach[n]
    home = positions - wrap @ box
    pairs = KDTree(home).sparse_distance_matrix(
        KDTree(home[atom] + image @ box), cutoff, output_type="ndarray"
    )
    i, k = pairs["i"], pairs["j"]
    itself = (atom[k] == i) & ~image[k].any(axis=1)
    chosen = np.flatnonzero(~itself & (pairs["v"] < cutoff))
    chosen = chosen[np.argsort(i[chosen], kind="stable")]
    i, k = i[chosen], k[chosen]
    j = atom[k]
    shift = (image[k] - wrap[j] + wrap[i]).astype(np.int64)
    return i, j, shift, pairs["v"][chosen]
