"""One pass over the files: a few numbers of every frame, in arrays, and notes of its faults.

What is kept is about 130 bytes per frame and one entry per composition, whatever the files weigh.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlip.data.checkup.energies import Composition
from mlip.data.checkup.findings import Example, Notebook
from mlip.data.checkup.leaf import LABELS, Compositions, Counts, Leaf, Numbered, Rows
from mlip.data.checkup.pairs import PairFinder
from mlip.data.checkup.reading import expand
from mlip.data.checkup.stretches import Look, look_through
from mlip.data.progress import counted

__all__ = ["LABELS", "Census", "Part", "take_census"]


@dataclass
class Part(Counts):
    """What one argument of the command names: a file, or the files of a folder or glob."""

    name: str
    files: list[Path]
    pairs: PairFinder = field(default_factory=PairFinder)


class Census:
    """Everything that the judgements need to know."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.files = [file for part in parts for file in part.files]
        self.part_of_file = np.repeat(np.arange(len(parts)), [len(part.files) for part in parts])
        self.notes = Notebook()
        self.sizes = [0] * len(self.files)  # frames that the readers handed over
        self.unread: dict[str, str] = {}  # file -> why the rest of it is unread
        self.seconds = 0.0
        self._rows = Rows()
        self._compositions = Compositions()
        self._groups: Numbered[str, str] = Numbered()

    @property
    def frames(self) -> NDArray[np.void]:
        """The usable frames, of type `COLUMNS`."""
        return self._rows.array()

    @property
    def compositions(self) -> list[Composition]:
        """Elements and counts, by the number that frames have of them."""
        return self._compositions.things

    @property
    def groups(self) -> list[str]:
        """Split keys, by the number that frames have of them."""
        return self._groups.things

    @property
    def part(self) -> NDArray[np.int64]:
        """Which part each usable frame belongs to."""
        return self.part_of_file[self.frames["file"]]

    @property
    def total(self) -> int:
        """Frames that the readers handed over."""
        return sum(part.frames for part in self.parts)

    def example(self, row: int, detail: str = "") -> Example:
        """Return where a usable frame is."""
        frame = self.frames[row]
        return Example(str(self.files[frame["file"]]), int(frame["frame"]), detail)

    def add(self, leaf: Leaf, file: int, before: int) -> None:
        """Add what the next frames of a file show.

        Args:
            leaf: of these frames.
            file: its number.
            before: frames of the file that came before.
        """
        part = self.parts[self.part_of_file[file]]
        part.add(leaf.counts, before)
        self.notes.add(leaf.notes, before)
        rows = leaf.rows.array()
        compositions = [self._compositions.of(c) for c in leaf.compositions.things]
        groups = [self._groups.number(name, name) for name in leaf.groups.things]
        rows["file"] = file
        rows["frame"] += before
        if len(rows):
            rows["composition"] = np.array(compositions)[rows["composition"]]
            rows["group"] = np.array([*groups, -1])[rows["group"]]  # the last stays what it is
        self._rows.extend(rows)
        for frame in leaf.labelled:
            part.pairs.offer(frame)


def take_census(
    paths: Sequence[str | os.PathLike[str]],
    format: str = "auto",
    *,
    processes: int = 1,
    **options: Any,
) -> Census:
    """Read files frame by frame.

    Args:
        paths: each is one part: a file, a folder, a glob or a store.
        format: of the files.
        processes: how many read at the same time.
        **options: of the reader.

    Raises:
        DataError: a path does not exist or holds nothing readable, or a process was killed.
        ConfigError: an option is unknown.
    """
    parts = [Part(os.fspath(path), expand(path, format)) for path in paths]
    census = Census(parts)
    start = time.perf_counter()
    looks = look_through(census.files, format, options, processes)
    for file, of_file in groupby(looks, key=lambda look: look.file):
        path, before = str(census.files[file]), 0
        for look in _shown(of_file, path):
            census.add(look.leaf, file, before)
            before += look.leaf.counts.frames
            census.sizes[file] = before
            if look.unread is not None:  # a finding and not the end
                census.unread[path] = look.unread
                why = f"after {before} frames: {look.unread}"
                census.notes.note("unreadable", Example(path, None, why))
    census.seconds = time.perf_counter() - start
    return census


def _shown(looks: Iterator[Look], name: str) -> Iterator[Look]:
    """Pass looks on and show, on a terminal, how many frames went by."""
    frames = counted(count(), name)
    try:
        for look in looks:
            for _ in islice(frames, look.leaf.counts.frames):
                pass
            yield look
    finally:
        frames.close()
