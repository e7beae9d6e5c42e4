"""What a run of frames shows: a leaf of the census, which whoever read the frames can hand over.

Frames, compositions and groups are numbered from 0 in the order of the leaf; the census knows what
came before. About 130 bytes are kept of a frame, and what comparing it with its neighbours needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlip.data.checkup.energies import Composition
from mlip.data.checkup.findings import EXAMPLES, Example, Notebook
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
from mlip.data.checkup.pairs import Labelled, labelled
from mlip.data.readers import Inspected
from mlip.data.readers.canonical import SEARCH, OtherKeyError
from mlip.data.readers.frames import RawFrame
from mlip.errors import DataError

LABELS = tuple(SEARCH)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(kw_only=True)
class Counts:
    """What is counted of frames."""

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

    def add(self, later: Counts, before: int) -> None:
        """Add what was counted of the frames that follow, behind `before` frames of their file."""
        self.frames += later.frames
        self.usable += later.usable
        self.atoms += later.atoms
        self.force_sizes += later.force_sizes
        self.other_keys.update(later.other_keys)
        for label in LABELS:
            self.labels[label] += later.labels[label]
            self.keys[label].update(later.keys[label])
            self.wanting[label] += later.wanting[label]
            more = later.lacking[label][: EXAMPLES - len(self.lacking[label])]
            self.lacking[label] += [example.behind(before) for example in more]


class Numbered(Generic[K, V]):
    """Things, numbered in the order in which they are first seen."""

    def __init__(self) -> None:
        self.things: list[V] = []
        self._numbers: dict[K, int] = {}

    def number(self, key: K, thing: V) -> int:
        """Return the number of a thing that a key tells from others."""
        found = self._numbers.setdefault(key, len(self.things))
        if found == len(self.things):
            self.things.append(thing)
        return found


class Compositions(Numbered[tuple[bytes, bytes], Composition]):
    """Elements and their counts."""

    def of(self, composition: Composition) -> int:
        """Return the number of a composition."""
        elements, counts = composition
        key = elements.astype(np.uint8).tobytes(), counts.astype(np.int64).tobytes()
        return self.number(key, composition)


class Rows:
    """Rows of type `COLUMNS` that become more."""

    def __init__(self, room: int = 1024) -> None:
        self._rows = np.zeros(room, dtype=COLUMNS)
        self._size = 0

    def array(self) -> NDArray[np.void]:
        """Return those there are."""
        return self._rows[: self._size]

    def append(self, values: tuple[Any, ...]) -> None:
        """Add one."""
        self._make_room(1)
        self._rows[self._size] = values
        self._size += 1

    def extend(self, rows: NDArray[np.void]) -> None:
        """Add several."""
        self._make_room(len(rows))
        self._rows[self._size : self._size + len(rows)] = rows
        self._size += len(rows)

    def _make_room(self, more: int) -> None:
        while self._size + more > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])


class Leaf:
    """What a run of frames of one file shows."""

    def __init__(self, place: str) -> None:
        """Begin one.

        Args:
            place: the file, as findings name it.
        """
        self.place = place
        self.counts = Counts()
        self.notes = Notebook()
        self.compositions = Compositions()
        self.groups: Numbered[str, str] = Numbered()
        self.labelled: list[Labelled] = []
        self.rows = Rows(64)

    def take(self, inspected: Inspected) -> None:
        """Look at the next frame."""
        counts = self.counts
        index = counts.frames
        counts.frames += 1
        raw, atoms = inspected.raw, inspected.meaning
        if isinstance(atoms, DataError):
            kind = "other-key" if isinstance(atoms, OtherKeyError) else why_refused(raw)
            self._note(kind, index, without_path(str(atoms), self.place))
            return
        if detail := absurdity(atoms):
            self._note("absurd", index, detail)
            return
        counts.usable += 1
        _count_labels(counts, raw, atoms, Example(self.place, index))
        faults = [*label_faults(raw, atoms), *state_faults(atoms)]
        results = labels_of(atoms)
        forces = results.get("forces")
        if forces is not None:
            faults += force_faults(forces, atoms, fixed_atoms(raw))
            sizes = np.abs(forces)
            logs = np.log10(np.maximum(sizes[sizes > 0], 10 ** SIZES[0]))
            counts.force_sizes += np.histogram(np.minimum(logs, SIZES[-1]), SIZES)[0]
        try:
            distance, ratio, shape, pair = contacts(atoms)
            faults += geometry_faults(atoms, distance, ratio, pair)
        except DataError as error:
            ratio, shape = 0.0, np.full(3, np.nan)
            faults.append(("overlap", str(error)))
        for kind, detail in faults:
            self._note(kind, index, detail)
        stress = results.get("stress")
        group = atoms.info.get("group")
        self.rows.append(
            (
                -1,
                index,
                self.compositions.of(np.unique(atoms.numbers, return_counts=True)),
                len(atoms),
                atoms.info.get("charge", 0),
                atoms.info.get("spin", 0),
                int(atoms.pbc @ [1, 2, 4]),
                -1 if group is None else self.groups.number(group, group),
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
        np.add.at(counts.atoms, atoms.numbers, 1)
        if (found := labelled(atoms)) is not None:
            self.labelled.append(found)

    def _note(self, kind: str, index: int, detail: str) -> None:
        self.notes.note(kind, Example(self.place, index, detail))


def _count_labels(counts: Counts, raw: RawFrame, atoms: Atoms, place: Example) -> None:
    results = labels_of(atoms)
    for label in LABELS:
        if label in results:
            counts.labels[label] += 1
            name = next((n for n in SEARCH[label] if raw.get(n) is not None), "another key")
            counts.keys[label][name.removeprefix("calc:")] += 1
        elif _could_have(label, atoms):
            counts.wanting[label] += 1
            if len(counts.lacking[label]) < EXAMPLES:
                counts.lacking[label].append(place)
    if "energy" not in results:
        counts.other_keys.update([*raw.info, *raw.arrays, *raw.results])


def _could_have(label: str, atoms: Atoms) -> bool:
    """Whether a frame without the label lacks it: one atom has no forces to speak of."""
    if label == "forces":
        return len(atoms) > 1
    return bool(atoms.pbc.all()) if label == "stress" else label == "energy"


def without_path(message: str, path: str) -> str:
    """Return an error message without the file and frame that stand beside it anyway."""
    message = message.removeprefix(f"{path}: ")
    if message.startswith("frame ") and ": " in message:
        message = message.partition(": ")[2]
    return message
