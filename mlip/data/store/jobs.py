"""The pieces of work that a conversion consists of, and doing one of them.

A job is a run of small files or a part of a large one. Which jobs there are depends on the files
alone, never on the number of processes or hosts, so that any of them can go on where another was
killed: a shard is complete or absent, and the shards of a job follow from each other.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from mlip.data.readers import Block, Noticed, Piece, Refused, read_blocks, split_files
from mlip.data.store.layout import SHARD, SHARDS
from mlip.data.store.writer import ShardWriter

SHARD_ROWS: Final = 100_000  # structures of a shard at most
JOB_BYTES: Final = 64 * 1024**2  # small files are read together up to this size
# frames, their source, number in the piece of the first of them, the piece
_Placed = tuple[Block | Refused, int, int, Piece]


@dataclass(frozen=True)
class Job:
    """Pieces that one process reads in one go.

    Attributes:
        name: unique in the store, ordered as the pieces are.
        pieces: what to read.
        sources: for each piece the number of its file in the store.
    """

    name: str
    pieces: tuple[Piece, ...]
    sources: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in self.pieces)

    @property
    def part_of(self) -> int | None:
        """Number of the file that this is a part of; None if the job consists of whole files."""
        return self.sources[0] if self.pieces[0].span else None


def plan_jobs(
    files: Sequence[Path],
    format: str,
    options: Mapping[str, Any],
    *,
    generation: int = 0,
    first_source: int = 0,
) -> Iterator[Job]:
    """Yield the jobs of some files, in their order.

    Args:
        files: what to read.
        format: of the files, or `auto`.
        options: of the reader.
        generation: how often the store has been appended to.
        first_source: number of the first of these files in the store.
    """
    number = {file: first_source + k for k, file in enumerate(files)}
    names = (f"{generation:03d}-{k:06d}" for k in count())
    for pieces in _together(split_files(files, format, **options)):
        yield Job(next(names), tuple(pieces), tuple(number[p.path] for p in pieces))


def _together(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield parts of files alone and small files together."""
    waiting: list[Piece] = []
    for piece in pieces:
        if waiting and (piece.span or sum(p.size for p in waiting) + piece.size > JOB_BYTES):
            yield waiting
            waiting = []
        waiting.append(piece)
        if piece.span:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def finished_shards(folder: Path, job: str) -> tuple[list[dict[str, Any]], bool]:
    """Return what the finished shards of a job say, in order, and whether they are all of it."""
    found: list[dict[str, Any]] = []
    while True:
        path = folder / SHARDS / f"{job}-{len(found):04d}" / SHARD
        try:
            found.append({"name": path.parent.name, **json.loads(path.read_text())})
        except FileNotFoundError:
            return found, False
        if found[-1]["last"]:
            return found, True


def frames_of(shard: Mapping[str, Any]) -> int:
    """Return how many frames a shard was made of, those that were left out included."""
    return shard["structures"] + len(shard["refused"])


def run_job(
    folder: Path,
    job: Job,
    options: Mapping[str, Any],
    advance: Callable[[int], None] = lambda frames: None,
    in_place: bool = False,
) -> list[str]:
    """Write the shards of a job that are not there yet.

    Args:
        folder: of the store.
        job: what to read.
        options: of the reader.
        advance: called with the number of frames read since the last call.
        in_place: leave the large columns where they are.

    Returns:
        What the readers warned of.

    Raises:
        DataError: a frame is bad.
    """
    done, complete = finished_shards(folder, job.name)
    if complete:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        noticed = Noticed()
        rows = _Rows(_read(job, options, noticed, advance))
        for _ in rows.take(sum(map(frames_of, done))):
            pass  # read again, because labels are checked over all frames of a file
        _write_shards(folder, job, len(done), rows, noticed, in_place, options)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def _write_shards(
    folder: Path,
    job: Job,
    number: int,
    rows: _Rows,
    noticed: Noticed,
    in_place: bool,
    options: Mapping[str, Any],
) -> None:
    """Write shards `number` and on; each gets its name when it is on disk."""
    last = False
    while not last:
        name = f"{job.name}-{number:04d}"
        temporary = folder / SHARDS / f".{name}.{socket.gethostname()}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            skip = options.get("on_bad") == "skip"
            with ShardWriter(temporary, in_place=in_place, skip=skip) as writer:
                for frames, source, first, piece in rows.take(SHARD_ROWS):
                    writer.add(frames, source, first, piece)
                last = len(writer) < SHARD_ROWS
                told = asdict(noticed if last else Noticed())  # of the whole job, said once
                writer.finish(last=last, part_of=job.part_of, **told)
            _publish(temporary, folder / SHARDS / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        number += 1


def _publish(temporary: Path, final: Path) -> None:
    try:
        temporary.rename(final)
    except OSError:  # a worker whose parent was killed may have been faster
        if not (final / SHARD).exists():
            raise


class _Rows:
    """Blocks in turn, of which any number of rows can be taken."""

    def __init__(self, blocks: Iterator[_Placed]) -> None:
        self._blocks = blocks
        self._rest: _Placed | None = None  # of a block that only a part was taken of

    def take(self, rows: int) -> Iterator[_Placed]:
        """Yield the next so many rows, or all that are left."""
        while rows and (placed := self._rest or next(self._blocks, None)):
            block, source, first, piece = placed
            self._rest = None
            if isinstance(block, Block) and len(block) > rows:
                self._rest = block.part(rows, len(block)), source, first + rows, piece
                block = block.part(0, rows)
            rows -= len(block)
            yield block, source, first, piece


def _read(
    job: Job, options: Mapping[str, Any], noticed: Noticed, advance: Callable[[int], None]
) -> Iterator[_Placed]:
    """Yield the frames of a job; what its part of a file shows is judged when all parts are."""
    for piece, source in zip(job.pieces, job.sources, strict=True):
        first = 0
        for frames in read_blocks(piece, noticed if piece.span else None, **options):
            yield frames, source, first, piece
            first += len(frames)
            advance(len(frames))
