"""Canonical frames in blocks: what `Canonicalizer.arrays` gives for each, much faster.

Numbers are checked and converted for all frames of a block together. If any of them is not plainly
right, the frames are gone through one by one, which names the frame and its fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.canonical import SEARCH, Canonicalizer
from mlip.data.readers.frames import Block, Column, Frame, RawBlock, RawFrame
from mlip.data.readers.options import LabelKeys
from mlip.data.readers.refused import Refused
from mlip.data.readers.stacked import (
    Doubtful,
    check_cells,
    check_finite,
    check_numbers,
    stacked_floats,
    stacked_numbers,
    stacked_pbc,
    voigt_of,
)
from mlip.errors import DataError

BLOCK: Final = 64  # frames; their arrays stay in the processor's cache
_NO_CELL: Final = np.zeros((3, 3))
T = TypeVar("T")


def in_lists(frames: Iterable[T]) -> Iterator[list[T]]:
    """Yield frames in lists; when reading fails, first those that came before."""
    some: list[T] = []
    try:
        for frame in frames:
            some.append(frame)
            if len(some) == BLOCK:
                yield some
                some = []
    except DataError:
        if some:
            yield some
        raise
    if some:
        yield some


def canonical_blocks(
    canonical: Canonicalizer, raw: Iterable[RawBlock | list[RawFrame]], first: int
) -> Iterator[Block | Refused]:
    """Yield the canonical form of frames.

    Args:
        canonical: of their file.
        raw: the frames as the file has them, stacked by the reader or in lists.
        first: number of the first in the file.

    Raises:
        DataError: a frame is bad and may not be skipped; those before it have been yielded.
    """
    index = first
    for some in raw:
        for block in _canonical(canonical, some, index):
            yield block
            index += len(block)


def _canonical(
    canonical: Canonicalizer, raw: RawBlock | list[RawFrame], first: int
) -> Iterable[Block | Refused]:
    """Return a block if that is enough; what is doubtful is looked at more closely, twice."""
    before = canonical.noticed()
    if isinstance(raw, RawBlock):
        try:
            return [_checked(canonical, _noticed(canonical, raw))]
        except (Doubtful, DataError):
            raw = list(raw.frames())
    try:
        return [_checked(canonical, _stacked(canonical, raw))]
    except (Doubtful, DataError):
        canonical.forget_since(before)  # a frame that is refused now shows nothing
        alone = (
            canonical.unless_refused(canonical.arrays, frame, k)
            for k, frame in enumerate(raw, start=first)
        )
        return chain.from_iterable(map(_together, in_lists(alone)))


def _together(frames: Iterable[Frame | Refused]) -> Iterator[Block | Refused]:
    """Yield frames as blocks, and those that were refused in between."""
    for _, some in groupby(frames, type):
        found = list(some)
        good = [frame for frame in found if isinstance(frame, Frame)]
        yield from [Block.of(good)] if good else [bad for bad in found if isinstance(bad, Refused)]


def _noticed(canonical: Canonicalizer, raw: RawBlock) -> RawBlock:
    """Return the block, having remembered where its labels are.

    Raises:
        Doubtful: the options name labels that may be somewhere else.
        DataError: earlier frames have one under another key.
    """
    if canonical.options.keys != LabelKeys() or canonical.options.energy != "uncorrected":
        raise Doubtful
    canonical.find(RawFrame((), (), results=raw.labels), "")  # looks at names, not at values
    return raw


def _stacked(canonical: Canonicalizer, frames: Sequence[RawFrame]) -> RawBlock:
    """Put frames behind one another, and find their labels.

    Raises:
        Doubtful: something is no plain array of the shape that it should have.
        DataError: a frame has a label under another key than those before it.
    """
    if any(frame.fault for frame in frames):
        raise Doubtful
    counts = np.array([len(frame.numbers) for frame in frames])
    cells = [_NO_CELL if frame.cell is None else frame.cell for frame in frames]
    found = [canonical.find(frame, "") for frame in frames]
    labels = {}
    for label in SEARCH:
        has = np.array([label in hits for hits in found])
        if has.any():
            names, values = zip(*[hits[label] for hits in found if label in hits], strict=True)
            labels[label] = Column(has, values, names)
    return RawBlock(
        counts=counts,
        numbers=stacked_numbers([frame.numbers for frame in frames]),
        positions=stacked_floats([frame.positions for frame in frames], _vectors(counts)),
        cell=stacked_floats(cells, repeat((3, 3), len(cells))).reshape(-1, 3, 3),
        pbc=stacked_pbc([frame.pbc for frame in frames]),
        info=[frame.info for frame in frames],
        labels=labels,
    )


def _checked(canonical: Canonicalizer, raw: RawBlock) -> Block:
    """Return the canonical form.

    Raises:
        Doubtful: something is not plainly right.
        DataError: something is wrong.
    """
    if not raw.counts.all():  # a frame without atoms
        raise Doubtful
    check_numbers(raw.numbers)
    check_finite(raw.positions)
    check_finite(raw.cell)
    check_cells(raw.cell, raw.pbc)
    infos = zip(raw.info, raw.parts(raw.numbers), strict=True)
    block = Block(
        counts=raw.counts,
        numbers=raw.numbers,
        positions=raw.positions,
        cell=raw.cell,
        pbc=raw.pbc,
        info=[canonical.info(one, numbers, "") for one, numbers in infos],
        energy=np.full(len(raw.counts), np.nan),
        forces=np.full((len(raw.numbers), 3), np.nan),
        stress=np.full((len(raw.counts), 6), np.nan),
        magmoms=np.full(len(raw.numbers), np.nan),
    )
    for label, convert in _CONVERT.items():
        if label in raw.labels:
            convert(canonical, raw.labels[label], block)
    canonical.count += len(block)
    return block


def _add_forces(canonical: Canonicalizer, column: Column, block: Block) -> None:
    counts = block.counts[column.has]
    forces = check_finite(stacked_floats(column.values, _vectors(counts)))
    block.forces[np.repeat(column.has, block.counts)] = forces * canonical.force_factor


def _add_energies(canonical: Canonicalizer, column: Column, block: Block) -> None:
    energies = zip(column.values, column.names, strict=True)
    block.energy[column.has] = [canonical.energy_of(value, name, "") for value, name in energies]


def _add_stresses(canonical: Canonicalizer, column: Column, block: Block) -> None:
    cells, pbc = block.cell[column.has], block.pbc[column.has]
    try:
        if any(map(canonical.is_virial, set(column.names))) or not pbc.all():
            raise Doubtful
        tensors = check_finite(stacked_floats(column.values, repeat((3, 3), len(pbc))))
        stresses: Any = voigt_of(tensors.reshape(-1, 3, 3) * canonical.stress_factor)
    except Doubtful:
        stresses = [
            canonical.stress_of(value, name, cell, axes, "")
            for value, name, cell, axes in zip(column.values, column.names, cells, pbc, strict=True)
        ]
        stresses = [_NO_STRESS if stress is None else stress for stress in stresses]
    block.stress[column.has] = stresses


def _add_magmoms(canonical: Canonicalizer, column: Column, block: Block) -> None:
    counts = block.counts[column.has].tolist()
    try:
        magmoms = stacked_floats(column.values, zip(counts))
        if np.isinf(magmoms).any():
            raise Doubtful
    except Doubtful:
        if isinstance(column.values, np.ndarray):
            raise
        each = [
            canonical.magmoms_of(value, name, n, "")
            for value, name, n in zip(column.values, column.names, counts, strict=True)
        ]
        magmoms = np.concatenate(
            [
                np.full(n, np.nan) if one is None else one
                for one, n in zip(each, counts, strict=True)
            ]
        )
    block.magmoms[np.repeat(column.has, block.counts)] = magmoms


# What may count something comes after what may fail.
_CONVERT: Final = {
    "forces": _add_forces,
    "energy": _add_energies,
    "stress": _add_stresses,
    "magmoms": _add_magmoms,
}
_NO_STRESS: Final = np.full(6, np.nan)


def _vectors(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the shapes of arrays of one vector per atom."""
    return [(n, 3) for n in counts.tolist()]
