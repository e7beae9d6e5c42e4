"""Files in, canonical structures out: the only door for data.

`read_structures` reads any supported format into the one form that the rest of `mlip` knows
(`mlip.data.readers.canonical`). A new format is one function `Path -> Iterator[RawFrame]` and one
line in the table here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ase import Atoms

from mlip.data.readers.canonical import Canonicalizer, RawFrame
from mlip.data.readers.extxyz import read_extxyz
from mlip.data.readers.mptrj import read_mptrj
from mlip.data.readers.omol25 import read_aselmdb, read_natoms
from mlip.data.readers.options import LabelKeys, ReadOptions
from mlip.data.readers.paths import FORMATS, PathLike, check_format, detect_format, expand_paths

__all__ = [
    "FORMATS",
    "FrameKeys",
    "LabelKeys",
    "ReadOptions",
    "describe_keys",
    "expand_paths",
    "read_natoms",
    "read_structures",
]

Reader = Callable[[Path, ReadOptions], Iterator[RawFrame]]
_READERS: Final[dict[str, Reader]] = {
    "extxyz": lambda path, _: read_extxyz(path),
    "mptrj": lambda path, _: read_mptrj(path),
    "aselmdb": lambda path, options: read_aselmdb(path, keep_all=options.keep_info),
}


def read_structures(
    path: PathLike | Iterable[PathLike], format: str = "auto", **options: Any
) -> Iterator[Atoms]:
    """Read structures one by one, with canonical labels.

    Args:
        path: a file, a directory (all its files of one kind), a glob, or a list of them.
        format: one of `FORMATS`, or `auto`.
        **options: the fields of `ReadOptions`: keys, energy_unit, force_unit, stress_unit,
            stress_sign, stress_voigt, energy, group, keep_info.

    Returns:
        An iterator of `ase.Atoms`. `atoms.calc.results` has those of energy (eV), forces
        (N, 3) eV/Å, stress (6,) eV/Å³ (ASE's order and sign) and magmoms (N,) that the source
        has; `atoms.calc` is None if it has none. `atoms.info` has those of charge, spin, group,
        id, data_id, source, config_type and weights that the source has.

    Raises:
        DataError: at the call if a path is missing or not readable, later if a frame is bad.
        ConfigError: an option or the format is unknown.
    """
    parsed = ReadOptions.parse(options)
    format = check_format(format)
    files = expand_paths(path, format)
    jobs = [(file, detect_format(file) if format == "auto" else format) for file in files]
    return _read(jobs, parsed)


def _read(jobs: list[tuple[Path, str]], options: ReadOptions) -> Iterator[Atoms]:
    for file, kind in jobs:
        canonical = Canonicalizer(file, options)
        for index, frame in enumerate(_READERS[kind](file, options)):
            yield canonical(frame, index)
        canonical.finish()


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
