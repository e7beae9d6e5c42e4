"""Files in, canonical structures out: the only door for data.

`read_structures` reads any supported format into the one form that the rest of `mlip` knows
(`mlip.data.readers.canonical`). A new format is one function `Path -> Iterator[RawFrame]` and one
line in the table here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ase import Atoms

from mlip.data.readers.ase_db import read_json_db, read_sqlite, read_traj, read_with_ase
from mlip.data.readers.blocks import canonical_blocks, in_lists
from mlip.data.readers.by_number import Frames, require_by_number
from mlip.data.readers.canonical import Canonicalizer
from mlip.data.readers.extxyz import read_extxyz
from mlip.data.readers.extxyz_parts import split_extxyz
from mlip.data.readers.frames import Block, Frame, RawBlock, RawFrame
from mlip.data.readers.materials import split_materials
from mlip.data.readers.matpes import read_matpes
from mlip.data.readers.mptrj import read_mptrj, read_mptrj_blocks
from mlip.data.readers.npz import read_npz
from mlip.data.readers.omol25 import read_aselmdb, read_natoms, split_aselmdb
from mlip.data.readers.options import LabelKeys, ReadOptions
from mlip.data.readers.paths import (
    FORMATS,
    PathLike,
    check_format,
    detect_format,
    expand_paths,
    refuse_empty,
)
from mlip.data.readers.refused import Refused, check_hope, check_share, skipped_words
from mlip.data.readers.streams import COMPRESSED
from mlip.errors import ConfigError, DataError

__all__ = [
    "FORMATS",
    "Block",
    "Frame",
    "FrameKeys",
    "Frames",
    "Inspected",
    "LabelKeys",
    "Noticed",
    "Piece",
    "ReadOptions",
    "Refused",
    "describe_keys",
    "expand_paths",
    "inspect_frames",
    "inspect_piece",
    "numbered_structures",
    "read_blocks",
    "read_frames",
    "read_natoms",
    "read_structures",
    "require_by_number",
    "split_files",
]

Reader = Callable[[Path, ReadOptions], Iterator[RawFrame]]
_READERS: Final[dict[str, Reader]] = {
    "extxyz": lambda path, _: read_extxyz(path),
    "aselmdb": lambda path, o: read_aselmdb(path, keep_all=o.keep_info),
    "mptrj": lambda path, _: read_mptrj(path),
    "matpes": lambda path, _: read_matpes(path),
    "npz": lambda path, o: read_npz(path, energy_unit=o.energy_unit, force_unit=o.force_unit),
    "db": lambda path, o: read_sqlite(path, keep_all=o.keep_info),
    "json": lambda path, o: read_json_db(path, keep_all=o.keep_info),
    "traj": lambda path, _: read_traj(path),
    "vasp-xml": lambda path, _: read_with_ase(path, "vasp-xml"),
    "vasp-out": lambda path, _: read_with_ase(path, "vasp-out"),
    "vasp": lambda path, _: read_with_ase(path, "vasp"),
    "cif": lambda path, _: read_with_ase(path, "cif"),
}
Span = tuple[int, ...]
# Formats whose files may be too large for one process: how to cut and to read them.
_SPLIT: Final[dict[str, tuple[Callable[[Path, int], Iterator[tuple[Span | None, int]]], int]]] = {
    "aselmdb": (split_aselmdb, 50_000),  # rows
    "extxyz": (split_extxyz, 64 * 1024**2),  # bytes
    "mptrj": (split_materials, 256 * 1024**2),  # bytes
}
_PARTS: Final[dict[str, Callable[[Path, Any, ReadOptions], Iterator[RawFrame]]]] = {
    "aselmdb": lambda path, span, o: read_aselmdb(path, span, keep_all=o.keep_info),
    "extxyz": lambda path, span, _: read_extxyz(path, span),
    "mptrj": lambda path, span, _: read_mptrj(path, span),
}
# Formats whose readers have many frames behind one another anyway.
_STACKED: Final[dict[str, Callable[[Path, Any], Iterator[RawBlock | list[RawFrame]]]]] = {
    "mptrj": read_mptrj_blocks,
}
_FIRST: Final = {"aselmdb": 0, "extxyz": 2}  # which number of a span is that of the first frame
# Formats whose readers hand over eV, eV/Å and eV/Å³, and the units that the files themselves have.
_OWN_UNITS: Final[dict[str, tuple[str, str]]] = {
    "mptrj": ("kbar", "vasp"),
    "matpes": ("kbar", "vasp"),
    "vasp-xml": ("kbar", "vasp"),
    "vasp-out": ("kbar", "vasp"),
}


def read_structures(
    path: PathLike | Iterable[PathLike], format: str = "auto", **options: Any
) -> Iterator[Atoms]:
    """Read structures one by one, with canonical labels.

    Args:
        path: a file, a directory (all its files of one kind), a glob, or a list of them.
        format: one of `FORMATS`, or `auto`.
        **options: the fields of `ReadOptions`: keys, energy_unit, force_unit, stress_unit,
            stress_sign, stress_voigt, energy, group, keep_info, on_bad.

    Returns:
        An iterator of `ase.Atoms`. `atoms.calc.results` has those of energy (eV), forces
        (N, 3) eV/Å, stress (6,) eV/Å³ (ASE's order and sign) and magmoms (N,) that the source
        has; `atoms.calc` is None if it has none. `atoms.info` has those of charge, spin, group,
        id, data_id, source, config_type and weights that the source has.

    Raises:
        DataError: at the call if a path is missing or not readable, later if a frame is bad.
        ConfigError: an option or the format is unknown.
    """
    return (atoms for _, _, atoms in numbered_structures(path, format, **options))


def numbered_structures(
    path: PathLike | Iterable[PathLike], format: str = "auto", **options: Any
) -> Iterator[tuple[Path, int, Atoms]]:
    """Read as `read_structures` does; yield the file, the number of the frame in it, and the frame.

    Numbers count frames that are skipped, too.
    """
    parsed = ReadOptions.parse(options)
    files = expand_paths(path, check_format(format))
    jobs = [(file, _checked_kind(file, format, parsed)) for file in files]
    if (
        jobs[0][1] == "aselmdb"
        and isinstance(path, (str, os.PathLike))
        and Path(path).expanduser().is_dir()
    ):
        read_natoms(files)  # a metadata.npz of other shards is an error
    return _read(jobs, parsed)


def _checked_kind(file: Path, format: str, options: ReadOptions) -> str:
    """Return the format of a file that has content and units that fit it."""
    format = check_format(format)
    kind = detect_format(file) if format == "auto" else format
    refuse_empty(file)
    _check_units(file, kind, options)
    return kind


def _read(jobs: list[tuple[Path, str]], options: ReadOptions) -> Iterator[tuple[Path, int, Atoms]]:
    total, skipped = 0, list[Refused]()
    for file, kind in jobs:
        canonical = Canonicalizer(file, _units_left(kind, options))
        refused = list[Refused]()
        for index, frame in enumerate(_READERS[kind](file, options)):
            found = canonical.unless_refused(canonical, frame, index)
            if isinstance(found, Refused):
                refused.append(found)
                check_hope(len(refused), canonical.count + len(refused), found.why)
            else:
                yield file, index, found
        canonical.finish()
        total += canonical.count + len(refused)
        skipped += refused
        if refused:
            warnings.warn(skipped_words(file, len(refused), refused[0].why), stacklevel=2)
    if skipped:
        check_share(len(skipped), total, skipped[0].why)


@dataclass(frozen=True, slots=True)
class Inspected:
    """A frame as its file has it, and the structure it means or why it means none."""

    raw: RawFrame
    meaning: Atoms | DataError


def inspect_frames(file: Path, format: str = "auto", **options: Any) -> Iterator[Inspected]:
    """Read one file as `read_structures` does, but go on past frames that it refuses.

    Raises:
        DataError: the bytes cannot be followed any further; what is behind stays unread.
        ConfigError: an option or the format is unknown.
    """
    kind = _checked_kind(file, format, ReadOptions.parse(options))
    yield from inspect_piece(Piece(file, kind, file.stat().st_size), **options)


def inspect_piece(
    piece: Piece, noticed: Noticed | None = None, **options: Any
) -> Iterator[Inspected]:
    """Do for a part of a file what `inspect_frames` does.

    Args:
        piece: what to read.
        noticed: what earlier pieces of the file showed, and in the end this one, too.
        **options: as of `read_structures`.
    """
    parsed = ReadOptions.parse(options)
    canonical = _canonicalizer(piece, parsed, noticed)
    for index, frame in enumerate(_raw_frames(piece, parsed), start=piece.first or 0):
        before = canonical.noticed()
        try:
            meaning: Atoms | DataError = canonical(frame, index)
        except DataError as error:
            canonical.forget_since(before)
            meaning = error
        yield Inspected(frame, meaning)


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part of one that can be read by itself.

    Attributes:
        path: the file.
        kind: its format.
        size: bytes.
        span: where the part begins and ends, in the reader's own terms; None is the whole file.
    """

    path: Path
    kind: str
    size: int
    span: Span | None = None

    @property
    def first(self) -> int | None:
        """Number in the file of the first frame; None if nobody has counted those before it."""
        if self.span is None or self.span[0] == 0:
            return 0
        return self.span[_FIRST[self.kind]] if self.kind in _FIRST else None

    def frame(self, index: int) -> str:
        """Say which frame of the file the frame `index` of this piece is, for messages."""
        return f"{self.path}, frame {(self.first or 0) + index}{self.behind}"

    @property
    def behind(self) -> str:
        """What frames are counted from, in words, if not from the first of the file."""
        return f" after byte {self.span[0]}" if self.span and self.first is None else ""


@dataclass(slots=True)
class Noticed:
    """What holds for all frames of a file, as far as they have been read.

    Attributes:
        keys: under which key each label is; a frame that has one under another key is refused.
        left_out: what was left out of their labels, and in how many frames.
    """

    keys: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def split_files(
    files: Iterable[Path], format: str, *, finer: int = 1, **options: Any
) -> Iterator[Piece]:
    """Yield files, or parts of large ones that can be read at the same time, in their order.

    Args:
        files: what to cut.
        format: of the files, or `auto`.
        finer: how many times smaller than usual parts are to be.
        **options: as of `read_structures`.

    Raises:
        DataError: a file cannot be read.
        ConfigError: an option or the format is unknown.
    """
    parsed = ReadOptions.parse(options)
    for file in files:
        kind = _checked_kind(file, format, parsed)
        if kind in _SPLIT and file.suffix not in COMPRESSED:
            split, size = _SPLIT[kind]
            yield from (
                Piece(file, kind, share, span) for span, share in split(file, max(1, size // finer))
            )
        else:
            yield Piece(file, kind, file.stat().st_size)


def read_frames(piece: Piece, noticed: Noticed | None = None, **options: Any) -> Iterator[Frame]:
    """Read canonical frames as arrays: what `read_structures` gives, several times faster.

    Args:
        piece: what to read.
        noticed: what earlier pieces of the file showed, and when all frames have been read this
            one, too; who gives it says it, else it is said here.
        **options: as of `read_structures`.

    Raises:
        DataError: a frame is bad.
        ConfigError: an option is unknown.
    """
    for block in read_blocks(piece, noticed, **options):
        if isinstance(block, Block):
            yield from block.frames()


def read_blocks(
    piece: Piece, noticed: Noticed | None = None, **options: Any
) -> Iterator[Block | Refused]:
    """Read canonical frames in blocks of some dozens; arguments and errors as of `read_frames`.

    Frames that are skipped have something in their place: the caller counts and names them.
    """
    parsed = ReadOptions.parse(options)
    canonical = _canonicalizer(piece, parsed, noticed)
    yield from canonical_blocks(canonical, _raw_blocks(piece, parsed), piece.first or 0)
    if noticed is None:
        canonical.finish()


def _canonicalizer(piece: Piece, options: ReadOptions, noticed: Noticed | None) -> Canonicalizer:
    canonical = Canonicalizer(piece.path, _units_left(piece.kind, options))
    canonical.behind = piece.behind
    if noticed is not None:
        canonical.keys, canonical.left_out = noticed.keys, noticed.left_out
    return canonical


def _raw_frames(piece: Piece, options: ReadOptions) -> Iterator[RawFrame]:
    if piece.span is None:
        return _READERS[piece.kind](piece.path, options)
    return _PARTS[piece.kind](piece.path, piece.span, options)


def _raw_blocks(piece: Piece, options: ReadOptions) -> Iterator[RawBlock | list[RawFrame]]:
    if piece.kind in _STACKED:
        return _STACKED[piece.kind](piece.path, piece.span)
    return in_lists(_raw_frames(piece, options))


def _check_units(file: Path, kind: str, options: ReadOptions) -> None:
    """Refuse a unit that contradicts a format which fixes its own."""
    if kind not in _OWN_UNITS:
        return
    stress_unit, stress_sign = _OWN_UNITS[kind]
    fixed = {
        "energy_unit": "eV",
        "force_unit": "eV/A",
        "stress_unit": stress_unit,
        "stress_sign": stress_sign,
    }
    for name, own in fixed.items():
        if getattr(options, name) not in (None, own):
            raise ConfigError(
                f"{file}: {name}={getattr(options, name)} contradicts the {kind} format, which is "
                f"always in {own} and is converted; leave {name} out"
            )


def _units_left(kind: str, options: ReadOptions) -> ReadOptions:
    """Return the options without the units that the reader of this format has dealt with."""
    if kind == "npz":
        return replace(options, energy_unit=None, force_unit=None)
    if kind in _OWN_UNITS:
        none = dict.fromkeys(("energy_unit", "force_unit", "stress_unit", "stress_sign"))
        return replace(options, **none)
    return options


@dataclass(frozen=True, slots=True)
class FrameKeys:
    """Names of the entries that some frames carry."""

    info: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it as part of a sentence."""
        return f"info keys {self.info}, arrays {self.arrays}, calculator results {self.results}"


def describe_keys(path: PathLike, format: str = "auto", frames: int = 20) -> FrameKeys:
    """Return what the first frames of a file carry beside the geometry, e.g. to say in an error."""
    found: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    file = expand_paths(path, format)[0]
    kind = detect_format(file) if check_format(format) == "auto" else check_format(format)
    for frame in islice(_READERS[kind](file, ReadOptions(keep_info=True)), frames):
        for names, entries in zip(found, (frame.info, frame.arrays, frame.results), strict=True):
            names.update(entries)
    return FrameKeys(*(sorted(names) for names in found))
