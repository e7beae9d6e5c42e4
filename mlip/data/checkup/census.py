"""One pass over the files: a few numbers of every frame, in arrays, and notes of its faults.

What is kept is about 130 bytes per frame and one entry per composition, whatever the files weigh.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlip.data.checkup.energies import Composition
from mlip.data.checkup.findings import Example, Notebook
from mlip.data.checkup.frame import (
    COLUMNS,
    SIZES,
    absurdity,
    contacts,
    content,
    fixed_atoms,
    force_faults,
    geometry_faults,
    label_faults,
    labels_of,
    state_faults,
    why_refused,
)
from mlip.data.checkup.pairs import PairFinder
from mlip.data.checkup.reading import expand, frames_in
from mlip.data.progress import counted
from mlip.data.readers import Inspected
from mlip.data.readers.canonical import SEARCH
from mlip.data.readers.frames import RawFrame
from mlip.errors import DataError

LABELS = tuple(SEARCH)


@dataclass
class Part:
    """What one argument of the command names: a file, or the files of a folder or glob."""

    name: str
    files: list[Path]
    frames: int = 0  # that the reader handed over, refused ones included
    usable: int = 0
    labels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    keys: dict[str, Counter[str]] = field(default_factory=lambda: {x: Counter() for x in LABELS})
    other_keys: Counter[str] = field(default_factory=Counter)  # of frames without an energy
    lacking: dict[str, list[Example]] = field(default_factory=lambda: {x: [] for x in LABELS})
    wanting: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    atoms: NDArray[np.int64] = field(default_factory=lambda: np.zeros(119, dtype=np.int64))
    force_sizes: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(SIZES) - 1, dtype=np.int64)
    )
    pairs: PairFinder = field(default_factory=PairFinder)


class Census:
    """Everything that the judgements need to know."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.files = [file for part in parts for file in part.files]
        self.part_of_file = np.repeat(np.arange(len(parts)), [len(part.files) for part in parts])
        self.compositions: list[Composition] = []
        self.groups: list[str] = []
        self.notes = Notebook()
        self.unread: dict[str, str] = {}  # file -> why the rest of it is unread
        self.seconds = 0.0
        self._rows = np.zeros(1024, dtype=COLUMNS)
        self._size = 0
        self._composition_ids: dict[bytes, int] = {}
        self._group_ids: dict[str, int] = {}

    @property
    def frames(self) -> NDArray[np.void]:
        """The usable frames, of type `COLUMNS`."""
        return self._rows[: self._size]

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

    def append(self, values: tuple[Any, ...]) -> None:
        """Keep the numbers of one frame."""
        if self._size == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._size] = values
        self._size += 1

    def composition(self, atoms: Atoms) -> int:
        """Return the number of a composition, a new one if it was not seen before."""
        elements, counts = np.unique(atoms.numbers, return_counts=True)
        key = elements.astype(np.uint8).tobytes() + counts.astype(np.int64).tobytes()
        if (found := self._composition_ids.get(key)) is None:
            found = self._composition_ids[key] = len(self.compositions)
            self.compositions.append((elements, counts))
        return found

    def group(self, atoms: Atoms) -> int:
        """Return the number of a split key, -1 if the frame has none."""
        if (name := atoms.info.get("group")) is None:
            return -1
        if (found := self._group_ids.get(name)) is None:
            found = self._group_ids[name] = len(self.groups)
            self.groups.append(name)
        return found


def take_census(
    paths: Sequence[str | os.PathLike[str]], format: str = "auto", **options: Any
) -> Census:
    """Read files frame by frame.

    Args:
        paths: each is one part: a file, a folder, a glob or a store.
        format: of the files.
        **options: of the reader.

    Raises:
        DataError: a path does not exist or holds nothing readable.
        ConfigError: an option is unknown.
    """
    parts = [Part(os.fspath(path), expand(path, format)) for path in paths]
    census = Census(parts)
    start = time.perf_counter()
    for file, name in enumerate(map(str, census.files)):
        part = census.parts[census.part_of_file[file]]
        frames = counted(_until_unreadable(census, file, format, options), name)
        for index, inspected in enumerate(frames):
            _visit(census, part, file, index, inspected)
    census.seconds = time.perf_counter() - start
    return census


def _until_unreadable(
    census: Census, file: int, format: str, options: Mapping[str, Any]
) -> Iterator[Inspected]:
    """Yield frames until the reader gives up, which is a finding and not the end."""
    path, read = census.files[file], 0
    try:
        for inspected in frames_in(path, format, **options):
            yield inspected
            read += 1
    except DataError as error:
        why = _without_path(str(error), path)
        census.unread[str(path)] = why
        census.notes.note("unreadable", Example(str(path), None, f"after {read} frames: {why}"))


def _visit(census: Census, part: Part, file: int, index: int, inspected: Inspected) -> None:
    part.frames += 1
    path, raw, atoms = census.files[file], inspected.raw, inspected.meaning
    place = str(path)
    if isinstance(atoms, DataError):
        detail = _without_path(str(atoms), path)
        census.notes.note(why_refused(raw), Example(place, index, detail))
        return
    if detail := absurdity(atoms):
        census.notes.note("absurd", Example(place, index, detail))
        return
    part.usable += 1
    _count_labels(part, raw, atoms, Example(place, index))
    faults = [*label_faults(raw, atoms), *state_faults(atoms)]
    results = labels_of(atoms)
    forces = results.get("forces")
    if forces is not None:
        faults += force_faults(forces, atoms, fixed_atoms(raw))
        sizes = np.abs(forces)
        logs = np.log10(np.maximum(sizes[sizes > 0], 10 ** SIZES[0]))
        part.force_sizes += np.histogram(np.minimum(logs, SIZES[-1]), SIZES)[0]
    try:
        distance, ratio, shape, pair = contacts(atoms)
        faults += geometry_faults(atoms, distance, ratio, pair)
    except DataError as error:
        ratio, shape = 0.0, np.full(3, np.nan)
        faults.append(("overlap", str(error)))
    for kind, detail in faults:
        census.notes.note(kind, Example(place, index, detail))
    stress = results.get("stress")
    census.append(
        (
            file,
            index,
            census.composition(atoms),
            len(atoms),
            atoms.info.get("charge", 0),
            atoms.info.get("spin", 0),
            int(atoms.pbc @ [1, 2, 4]),
            census.group(atoms),
            results.get("energy", np.nan),
            content(atoms),
            np.nan if forces is None else np.abs(forces).mean(),
            np.nan if forces is None else np.sqrt(np.square(forces).mean()),
            np.nan if forces is None else np.abs(forces).max(),
            np.nan if stress is None else stress[:3].mean(),
            abs(np.linalg.det(atoms.cell.array)) if atoms.pbc.all() else np.nan,
            ratio,
            shape,
        )
    )
    np.add.at(part.atoms, atoms.numbers, 1)
    part.pairs.offer(atoms)


def _count_labels(part: Part, raw: RawFrame, atoms: Atoms, place: Example) -> None:
    results = labels_of(atoms)
    for label in LABELS:
        if label in results:
            part.labels[label] += 1
            name = next((n for n in SEARCH[label] if raw.get(n) is not None), "another key")
            part.keys[label][name.removeprefix("calc:")] += 1
        elif _could_have(label, atoms):
            part.wanting[label] += 1
            if len(part.lacking[label]) < 3:
                part.lacking[label].append(place)
    if "energy" not in results:
        part.other_keys.update([*raw.info, *raw.arrays, *raw.results])


def _could_have(label: str, atoms: Atoms) -> bool:
    """Whether a frame without the label lacks it: one atom has no forces to speak of."""
    if label == "forces":
        return len(atoms) > 1
    return bool(atoms.pbc.all()) if label == "stress" else label == "energy"


def _without_path(message: str, path: Path) -> str:
    """Return an error message without the file and frame that stand beside it anyway."""
    message = message.removeprefix(f"{path}: ")
    if message.startswith("frame ") and ": " in message:
        message = message.partition(": ")[2]
    return message
