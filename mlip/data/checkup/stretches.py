"""Who looks at which frames: this process at all, or several at stretches of files, in turn.

Stretches come back in the order of the files, and each is then what it would have been had one
process read everything: what a stretch has to know of those before it is checked when it is back,
and one that guessed wrongly is read again here.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mlip.data.checkup.leaf import Leaf, without_path
from mlip.data.checkup.reading import frames_in, stored_frames
from mlip.data.processes import workers
from mlip.data.readers import Inspected, Noticed, Piece, inspect_piece, split_files
from mlip.data.store import Store, open_store
from mlip.data.store.layout import is_store
from mlip.errors import DataError

LEAF: Final = 200  # frames that are looked at in a row here
FINER: Final = 8  # parts of files are so many times smaller than those of a conversion
ROWS: Final = 4000  # of a store that a worker looks at in one go
ALONE: Final = 16 * 1024**2  # bytes; larger files that cannot be cut are read here, leaf by leaf


@dataclass(frozen=True)
class Stretch:
    """Frames of one file that follow each other.

    Attributes:
        file: its number.
        path: of the file or store.
        piece: the part of the file, or all of it; None where only reading all of it here will do.
        before: the piece before this one.
        rows: of a store, the first and the one after the last.
    """

    file: int
    path: Path
    piece: Piece | None = None
    before: Piece | None = None
    rows: tuple[int, int] | None = None


@dataclass
class Look:
    """What a stretch, or a leaf of one, showed.

    Attributes:
        file: number of the file.
        leaf: of its frames.
        unread: why the rest of the file could not be read; None if it could.
        keys: under which key each label was found.
        said: what the reader warned of.
    """

    file: int
    leaf: Leaf
    unread: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def look_through(
    files: Sequence[Path], format: str, options: Mapping[str, Any], processes: int
) -> Iterator[Look]:
    """Yield what the frames of files show, in their order; of each file there is at least one.

    Args:
        files: files and stores.
        format: of the files.
        options: of the reader.
        processes: how many look at the same time.

    Raises:
        DataError: a process was killed.
        ConfigError: an option is unknown.
    """
    if processes == 1:
        for file, path in enumerate(files):
            yield from _here(file, path, format, options)
        return
    killed = (
        f"{files[0]}{' and others' if len(files) > 1 else ''}: a process that read data was killed "
        "(out of memory?); try again with fewer --processes"
    )
    with workers(processes, killed) as pool:
        order: deque[Stretch] = deque()
        tasks = ((s, options) for s in _noted(_stretches(files, format, options), order))
        file, known, over = -1, dict[str, str](), False
        for look in pool.in_turn(_look, tasks, ahead=2 * processes):
            stretch = order.popleft()
            if stretch.file != file:
                file, known, over = stretch.file, {}, False
            if over:
                continue
            if look is None:
                yield from _here(file, stretch.path, format, options)
                continue
            if any(known.get(label, key) != key for label, key in look.keys.items()):
                look = _look_at(stretch, options, known)
            known |= look.keys
            over = look.unread is not None
            for message in look.said:
                warnings.warn(message, stacklevel=2)
            yield look


def _noted(stretches: Iterator[Stretch], order: deque[Stretch]) -> Iterator[Stretch]:
    for stretch in stretches:
        order.append(stretch)
        yield stretch


def _stretches(files: Sequence[Path], format: str, options: Mapping[str, Any]) -> Iterator[Stretch]:
    for file, path in enumerate(files):
        if is_store(path):
            yield from _stretches_of_store(file, path, format, options)
            continue
        before: Piece | None = None
        try:
            for piece in split_files([path], format, finer=FINER, **options):
                alone = piece.span is None and piece.size > ALONE
                yield Stretch(file, path, None if alone else piece, before)
                before = piece
        except DataError:
            # Whoever reads on meets the same fault, behind the frames that lie before it.
            rest = _rest(before)
            yield Stretch(file, path, rest, before if rest else None)


def _rest(before: Piece | None) -> Piece | None:
    """Return what follows the last piece that could be cut off, None if that is all of the file."""
    if before is None or before.span is None:
        return None
    end = before.path.stat().st_size
    return replace(before, size=end - before.span[1], span=(before.span[1], end))


def _stretches_of_store(
    file: int, path: Path, format: str, options: Mapping[str, Any]
) -> Iterator[Stretch]:
    reading = {name: value for name, value in options.items() if name != "keep_info"}
    try:
        size = len(open_store(path, format=format, options=reading))
    except DataError:
        yield Stretch(file, path)
        return
    for begin in range(0, size, ROWS):
        yield Stretch(file, path, rows=(begin, min(begin + ROWS, size)))


def _here(file: int, path: Path, format: str, options: Mapping[str, Any]) -> Iterator[Look]:
    """Look at all of a file, a leaf at a time."""
    faults: list[str] = []
    leaf = Leaf(str(path))
    for inspected in _until_unreadable(frames_in(path, format, **options), path, faults):
        leaf.take(inspected)
        if leaf.counts.frames == LEAF:
            yield Look(file, leaf)
            leaf = Leaf(str(path))
    yield Look(file, leaf, faults[0] if faults else None)


def _look(stretch: Stretch, options: Mapping[str, Any]) -> Look | None:
    """Look at a stretch, in a worker; None is for the parent to do."""
    if stretch.piece is None and stretch.rows is None:
        return None
    return _look_at(stretch, options, {})


def _look_at(stretch: Stretch, options: Mapping[str, Any], known: Mapping[str, str]) -> Look:
    """Look at a stretch.

    Args:
        stretch: what to look at.
        options: of the reader.
        known: under which key each label was before.
    """
    noticed, faults, leaf = Noticed(dict(known)), list[str](), Leaf(str(stretch.path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for inspected in _until_unreadable(
            _frames(stretch, noticed, options), stretch.path, faults
        ):
            leaf.take(inspected)
        if faults and not leaf.counts.frames and stretch.before and stretch.piece:
            faults = _told_by_what_came_before(stretch.piece, stretch.before, options) or faults
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return Look(stretch.file, leaf, faults[0] if faults else None, noticed.keys, said)


def _frames(stretch: Stretch, noticed: Noticed, options: Mapping[str, Any]) -> Iterator[Inspected]:
    if stretch.piece is not None:
        return inspect_piece(stretch.piece, noticed, **options)
    return stored_frames(_opened(stretch.path), *(stretch.rows or (0, 0)))


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Store:
    """Return a store that the parent has verified; a worker opens it once."""
    return Store(folder)


def _told_by_what_came_before(piece: Piece, before: Piece, options: Mapping[str, Any]) -> list[str]:
    """Return how the fault at the beginning of a piece is told by who has read what is before it.

    A reader says where it is by what it read last.
    """
    if not (piece.span and before.span) or piece.kind != "mptrj":
        return []
    faults: list[str] = []
    both = replace(before, span=(before.span[0], piece.span[1]))
    for _ in _until_unreadable(inspect_piece(both, **options), piece.path, faults):
        pass
    return faults


def _until_unreadable(
    frames: Iterator[Inspected], path: Path, faults: list[str]
) -> Iterator[Inspected]:
    """Yield frames until the reader gives up, and note why it did."""
    try:
        yield from frames
    except DataError as error:
        faults.append(without_path(str(error), str(path)))
