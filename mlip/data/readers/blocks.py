"""Canonical frames in blocks: what `Canonicalizer.arrays` gives for each, at a third of its cost.

Numbers are checked and converted for all frames of a block together. If any of them is not plainly
right, the frames are gone through one by one, which names the frame and its fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.canonical import Canonicalizer
from mlip.data.readers.frames import Frame, RawFrame
from mlip.data.readers.stacked import (
    Doubtful,
    check_cells,
    parts_of,
    stacked_floats,
    stacked_numbers,
    stacked_pbc,
    voigt_of,
)
from mlip.errors import DataError

BLOCK: Final = 64  # frames; their arrays stay in the processor's cache
_NO_CELL: Final = np.zeros((3, 3))
Labels = dict[str, tuple[str, Any]]  # name and value of each that a frame has


def canonical_frames(
    canonical: Canonicalizer, raw: Iterable[RawFrame], first: int
) -> Iterator[Frame]:
    """Yield the canonical form of frames as arrays, which are views of larger ones.

    Args:
        canonical: of their file.
        raw: the frames as the file has them.
        first: number of the first in the file.

    Raises:
        DataError: a frame is bad; those before it have been yielded.
    """
    index = first
    for block in _blocks(raw):
        try:
            done: Iterable[Frame] = _together(canonical, block)
        except (Doubtful, DataError):
            done = (canonical.arrays(frame, k) for k, frame in enumerate(block, start=index))
        yield from done
        index += len(block)


def _blocks(raw: Iterable[RawFrame]) -> Iterator[list[RawFrame]]:
    """Yield frames in lists; when reading fails, first those that came before."""
    block: list[RawFrame] = []
    try:
        for frame in raw:
            block.append(frame)
            if len(block) == BLOCK:
                yield block
                block = []
    except DataError:
        yield block
        raise
    yield block


def _together(canonical: Canonicalizer, raw: Sequence[RawFrame]) -> list[Frame]:
    """Return the canonical form of all; what may count something comes after what may fail."""
    if not raw:
        return []
    numbers = stacked_numbers([f.numbers for f in raw])
    counts = [len(f.numbers) for f in raw]
    positions = _vectors([f.positions for f in raw], counts)
    cells = stacked_floats(
        [_NO_CELL if f.cell is None else f.cell for f in raw], repeat((3, 3), len(raw))
    ).reshape(-1, 3, 3)
    pbc = stacked_pbc([f.pbc for f in raw])
    check_cells(cells, pbc)
    frames = [
        Frame(*arrays, results={}, info={})
        for arrays in zip(
            parts_of(numbers, counts), parts_of(positions, counts), cells, pbc, strict=True
        )
    ]
    found = [canonical.find(f, "") for f in raw]
    _add_forces(canonical, found, frames)
    for frame, labels, source in zip(frames, found, raw, strict=True):
        frame.info = canonical.info(source, frame.numbers, "")
        if "energy" in labels:
            name, value = labels["energy"]
            frame.results["energy"] = canonical.energy_of(value, name, "")
    _add_stresses(canonical, found, frames)
    _add_magmoms(canonical, found, frames)
    canonical.count += len(raw)
    return frames


def _add_forces(canonical: Canonicalizer, found: Sequence[Labels], frames: Sequence[Frame]) -> None:
    """Put the forces of those that have some into their results."""
    owners, values, _ = _of("forces", found, frames)
    if not owners:
        return
    counts = [len(frame.numbers) for frame in owners]
    forces = _vectors(values, counts) * canonical.force_factor
    _put("forces", parts_of(forces, counts), owners)


def _add_stresses(
    canonical: Canonicalizer, found: Sequence[Labels], frames: Sequence[Frame]
) -> None:
    owners, values, names = _of("stress", found, frames)
    if not owners:
        return
    try:
        if any(map(canonical.is_virial, set(names))) or not np.array([f.pbc for f in owners]).all():
            raise Doubtful
        tensors = stacked_floats(values, repeat((3, 3), len(values))).reshape(-1, 3, 3)
        stresses: Iterable[Any] = voigt_of(tensors * canonical.stress_factor)
    except Doubtful:
        stresses = [
            canonical.stress_of(value, name, f.cell, f.pbc, "")
            for value, name, f in zip(values, names, owners, strict=True)
        ]
    _put("stress", stresses, owners)


def _add_magmoms(
    canonical: Canonicalizer, found: Sequence[Labels], frames: Sequence[Frame]
) -> None:
    owners, values, names = _of("magmoms", found, frames)
    if not owners:
        return
    counts = [len(frame.numbers) for frame in owners]
    try:
        magmoms: Iterable[Any] = parts_of(stacked_floats(values, zip(counts)), counts)
    except Doubtful:  # some are NaN, for unknown
        magmoms = [
            canonical.magmoms_of(value, name, n, "")
            for value, name, n in zip(values, names, counts, strict=True)
        ]
    _put("magmoms", magmoms, owners)


def _put(label: str, values: Iterable[Any], owners: Sequence[Frame]) -> None:
    """Write a label into the results of its frames; None is none."""
    for frame, value in zip(owners, values, strict=True):
        if value is not None:
            frame.results[label] = value


def _of(
    label: str, found: Sequence[Labels], frames: Sequence[Frame]
) -> tuple[list[Frame], list[Any], list[str]]:
    """Return the frames that have a label, its values and the names it was found under."""
    owners = [frame for frame, labels in zip(frames, found, strict=True) if label in labels]
    hits = [labels[label] for labels in found if label in labels]
    return owners, [value for _, value in hits], [name for name, _ in hits]


def _vectors(values: Sequence[Any], counts: Sequence[int]) -> NDArray[np.float64]:
    """Return arrays of one vector per atom behind one another."""
    return stacked_floats(values, [(n, 3) for n in counts])
