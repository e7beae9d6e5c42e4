"""Neighbour lists: the only place where periodic images are found.

One function, one backend (`vesin`), one convention. The brute-force oracle that checks it lives
with the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space
from vesin import NeighborList

from mlip.errors import DataError


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
            cell are not finite, or two atoms sit on the same point.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise DataError(f"positions of atoms {bad[:5].tolist()} are not finite; fix the structure")
    if len(positions) == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int32)
    box = complete_cell(cell, pbc)
    # One list per call: it is cheap, holds no state, and vesin's objects cannot be pickled.
    i, j, shift, distance = NeighborList(cutoff=cutoff, full_list=True, sorted=True).compute(
        points=positions, box=box, periodic=pbc, quantities="ijSd"
    )
    if len(distance) and distance.min() == 0.0:
        e = int(distance.argmin())
        raise DataError(
            f"atoms {int(i[e])} and {int(j[e])} are at the same point; "
            "remove the duplicate (ase.geometry.get_duplicate_atoms finds them)"
        )
    edge_index = np.stack([j.view(np.int64), i.view(np.int64)])
    return edge_index, np.ascontiguousarray(shift, dtype=np.int32)


def complete_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a copy of `cell` whose open axes hold unit vectors that complete the lattice.

    An open axis may hold anything (zeros, vacuum); no image along it is ever used, but the matrix
    must be invertible.

    Raises:
        DataError: the periodic axes do not span a lattice.
    """
    cell = np.array(cell, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    if not np.isfinite(cell[pbc]).all():
        raise DataError(f"the cell has entries that are not finite: {cell.tolist()}")
    lengths = np.linalg.norm(cell, axis=1)
    if bad := [axis for axis in range(3) if pbc[axis] and lengths[axis] == 0.0]:
        raise DataError(
            f"axes {bad} are periodic but their lattice vectors are zero; "
            "set `atoms.cell`, or set `atoms.pbc` to False there"
        )
    periodic = cell[pbc]
    if pbc.any():
        unit = periodic / lengths[pbc][:, None]
        if np.linalg.svd(unit, compute_uv=False).min() < 1e-6:
            raise DataError(
                f"the lattice vectors of the periodic axes are linearly dependent: "
                f"{periodic.tolist()}; a lattice needs independent ones"
            )
    cell[~pbc] = null_space(periodic).T if pbc.any() else np.eye(3)
    return cell
