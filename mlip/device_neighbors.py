"""Neighbour lists of a batch where the batch is: the contract of `neighbors` in tensor operations.

On an accelerator the search on the CPU and the way of the edges from there would take longer than
a fast potential. Structures are checked by `neighbors` before, and one oracle checks both.

Images within the cutoff of a cell's faces are written out, so that no cell is too small. They are
sorted by the bin they are in, the bins around an atom are looked up among those that hold anything,
and no grid is stored: vacuum costs nothing.

Letters: N atoms, B structures, M atoms and images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mlip.neighbors import refuse_coincident

SLACK = 1.0 + 1e-6  # images and bins reach beyond the cutoff, because fractions are rounded
FINE = 4  # bins per cutoff along the last axis, where a row of them is one range of the sorted
MOST_BINS = 2.0**62  # of all structures: their numbers are int64
PAIRS_AT_ONCE = 2**22  # whose distances are computed at a time, at about 100 bytes each


def batched_neighbor_list(
    positions: Tensor, box: Tensor, pbc: Tensor, batch: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Find every directed pair of atoms of one structure closer than `cutoff`, however many.

    Args:
        positions: (N, 3) Cartesian coordinates, Å, float64, accepted by `check_positions`. Need not
            be wrapped.
        box: (B, 3, 3) what `complete_cell` makes of each cell, Å, float64.
        pbc: (B, 3) which axes repeat.
        batch: (N,) which structure an atom belongs to, in ascending order.
        cutoff: distance below which a pair is kept, Å.

    Returns:
        edge_index: (2, E) row 0 the neighbour j, row 1 the centre i, sorted by i; int64.
        edge_shift: (E, 3) whole lattice vectors n that bring j to its image, so that the edge
            vector is `positions[j] + n @ cell - positions[i]`; int32.

    Raises:
        DataError: two atoms sit on the same point; they are numbered within their structure.
    """
    inverse = torch.linalg.inv_ex(box).inverse  # `inv` would wait for the device
    reach = cutoff * SLACK * torch.linalg.vector_norm(inverse, dim=1)  # (B, 3), in fractions
    fractional = _times(positions, inverse[batch])
    wrap = fractional.floor() * pbc[batch]
    fractional -= wrap
    atom, image, own = _images(fractional, reach[batch], pbc[batch])
    bins = _Bins.cover(fractional, reach, pbc, batch)
    number = bins.number(fractional[atom] + image, batch[atom])
    number, order = number.sort(stable=True)
    atom, image = atom[order], image[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    own = rank[own]
    first, count = bins.around(number[own], batch, number)

    home = positions - _times(wrap, box[batch])
    place = home[atom] + _times(image, box[batch[atom]])
    centres, others, lengths = [], [], []
    for i, k in _candidates(first, count):
        apart = place.index_select(0, k) - home.index_select(0, i)
        length = torch.linalg.vector_norm(apart, dim=1)
        kept = ((length < cutoff) & (k != own[i])).nonzero()[:, 0]
        centres.append(i[kept])
        others.append(k[kept])
        lengths.append(length[kept])
    i, k, length = torch.cat(centres), torch.cat(others), torch.cat(lengths)
    j = atom[k]
    if len(length) and not bool(length.all()):
        e = length.argmin()
        before = (batch < batch[i[e]]).sum()
        refuse_coincident(int(i[e] - before), int(j[e] - before))
    return torch.stack([j, i]), (image[k] - wrap[j] + wrap[i]).to(torch.int32)


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Product of each row vector (n, 3) with its matrix (n, 3, 3)."""
    return (vectors[:, :, None] * matrices).sum(1)


def _images(fractional: Tensor, reach: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images that are within `reach` (N, 3) of the faces of their cell.

    Returns:
        atom: (M,) whose image it is, in ascending order.
        image: (M, 3) by how many lattice vectors it is moved, float64.
        own: (N,) where among them the atom itself is.
    """
    lowest = (-reach - fractional).ceil() * pbc
    span = ((1.0 + reach - fractional).floor() * pbc - lowest).long() + 1
    stride = torch.stack([span[:, 1] * span[:, 2], span[:, 2], torch.ones_like(span[:, 2])], dim=1)
    count = span.prod(1)
    start = count.cumsum(0) - count
    atom = torch.repeat_interleave(count)
    place = torch.arange(len(atom), device=atom.device) - start[atom]
    image = lowest[atom] + place[:, None] // stride[atom] % span[atom]
    return atom, image, start - (lowest.long() * stride).sum(1)


@dataclass(slots=True)
class _Bins:
    """Bins of each structure: slices of its cell, at least a cutoff thick, `FINE` along the last.

    They are numbered through all structures, along the last axis first. The bins around one that
    holds something have numbers of their own, also where they are outside.
    """

    lowest: Tensor  # (B, 3) fractions where they begin
    width: Tensor  # (B, 3) fractions
    stride: Tensor  # (B, 3)
    start: Tensor  # (B,) number of the bin at `lowest`

    @classmethod
    def cover(cls, fractional: Tensor, reach: Tensor, pbc: Tensor, batch: Tensor) -> _Bins:
        """Make bins for atoms at `fractional` (N, 3) and their images within `reach` (B, 3)."""
        index = batch[:, None].expand_as(fractional)

        def extreme(which: str) -> Tensor:
            none = torch.zeros_like(reach)
            return none.scatter_reduce(0, index, fractional, which, include_self=False)

        lowest = torch.where(pbc, -reach, extreme("amin"))
        extent = torch.where(pbc, 1.0 + reach, extreme("amax")) - lowest
        fine = reach.new_tensor([1, 1, FINE])
        width = reach / fine
        room = MOST_BINS / len(reach)
        size = (extent / width).floor() + 1 + 2 * fine
        # Atoms that flew apart by kilometres share bins that are wider.
        widest = torch.maximum(width, extent / (math.floor(room ** (1 / 3)) - 2 * FINE - 1))
        width = torch.where(size.prod(1, keepdim=True) > room, widest, width)
        size = ((extent / width).floor() + 1 + 2 * fine).long()
        stride = torch.stack([size[:, 1] * size[:, 2], size[:, 2], torch.ones_like(size[:, 2])], 1)
        total = size.prod(1)
        outside = (stride * fine.long()).sum(1)
        return cls(lowest, width, stride, total.cumsum(0) - total + outside)

    def number(self, fractional: Tensor, batch: Tensor) -> Tensor:
        """Return the number (n,) of the bin of each point (n, 3) of structure `batch` (n,)."""
        place = ((fractional - self.lowest[batch]) / self.width[batch]).floor().long()
        return self.start[batch] + (place * self.stride[batch]).sum(1)

    def around(self, centre: Tensor, batch: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the nine rows of bins within a cutoff of each atom.

        Args:
            centre: (N,) number of the atom's bin.
            batch: (N,) its structure.
            number: (M,) of the bins that hold something, sorted.

        Returns:
            first: (N, 9) where each row begins in `number`.
            count: (N, 9) how many it holds.
        """
        side = torch.arange(-1, 2, device=centre.device)
        x, y = torch.cartesian_prod(side, side).T
        row = centre[:, None] + x * self.stride[batch, :1] + y * self.stride[batch, 1:2]
        first = torch.searchsorted(number, row - FINE)
        return first, torch.searchsorted(number, row + FINE, right=True) - first


def _candidates(first: Tensor, count: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield centres and members of the ranges (N, R) that start at `first`, sorted by centre.

    As many at a time as `PAIRS_AT_ONCE`, or those of one centre.
    """
    ends = count.sum(1).cumsum(0)
    n, total = len(ends), int(ends[-1]) if len(ends) else 0
    cuts = [0, n]
    if total > PAIRS_AT_ONCE:
        steps = torch.arange(PAIRS_AT_ONCE, total, PAIRS_AT_ONCE, device=ends.device)
        cuts = sorted({*cuts, *torch.searchsorted(ends, steps, right=True).tolist()})
    for begin, end in pairwise(cuts):
        some = count[begin:end].flatten()
        row = torch.repeat_interleave(some)
        start = some.cumsum(0) - some
        place = torch.arange(len(row), device=row.device)
        yield begin + row // count.shape[1], place + (first[begin:end].flatten() - start)[row]
