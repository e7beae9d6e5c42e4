"""Disjoint parts of a data set, written to disk: training, validation, test.

Which structures stay together is a function of their content and the seed alone, not of the order
of the files: equal structures always (turned and renumbered copies, too), and what the caller
names. Files are read twice, first to decide and then to copy, so that nothing is held in memory.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import write
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlip.atomic import atomic_write
from mlip.data.checkup.census import Census, take_census
from mlip.data.checkup.duplicates import structure_classes
from mlip.data.checkup.reading import frames_in
from mlip.data.progress import counted
from mlip.data.readers import ReadOptions
from mlip.data.readers.canonical import SEARCH
from mlip.data.readers.refused import check_share, skipped_words
from mlip.data.splits import Splits, make_splits
from mlip.errors import ConfigError, DataError

PARTS: Final = ("train", "val", "test")
WAYS: Final = ("random", "group", "composition", "element")
RECORD: Final = "splits.json"
UNUSABLE: Final = ("not-finite", "absurd", "cell", "other-key", "refused")  # kinds of findings
VERSION: Final = 1


@dataclass(frozen=True)
class Partition:
    """What was decided and written.

    Attributes:
        census: of the files.
        splits: rows of the census in each part.
        by: one of `WAYS`.
        sets: how many sets of structures that stay together there are.
        paths: the files of the parts, and the record.
    """

    census: Census
    splits: Splits
    by: str
    sets: int
    paths: tuple[Path, ...]


def partition(
    paths: Sequence[Path | str],
    out_dir: Path | str,
    *,
    val: float,
    test: float,
    by: str | None = None,
    seed: int = 0,
    force: bool = False,
    processes: int = 1,
    format: str = "auto",
    **options: Any,
) -> Partition:
    """Split files into extxyz files `train`, `val` and `test` with canonical labels.

    Beside them lies `splits.json`: which frame of which file went where.

    Args:
        paths: files, folders or globs.
        out_dir: folder of the parts.
        val: share of structures to validate on.
        test: share to test on.
        by: what is never cut: `random` nothing but equal structures, `group` a material or molecule
            id, `composition`, `element` all structures of the same elements; None is `group` where
            there are groups, else `random`.
        seed: of the shuffle.
        force: overwrite an earlier split.
        processes: how many read at the same time; one writes.
        format: of the files.
        **options: of the reader.

    Raises:
        DataError: a file or frame cannot be read, or there are too few sets to split.
        ConfigError: an option is wrong, or a part exists.
    """
    if by is not None and by not in WAYS:
        raise ConfigError(f"by={by!r}; expected one of {', '.join(WAYS)}")
    wanted = ["train", *(p for p, share in (("val", val), ("test", test)) if share > 0)]
    targets = {part: Path(out_dir) / f"{part}.extxyz" for part in wanted}
    _refuse_overwriting(Path(out_dir), targets, force=force)
    census = take_census(paths, format, processes=processes, **options)
    _refuse_unusable(census, ReadOptions.parse(options).on_bad)
    by = by or ("group" if (census.frames["group"] >= 0).any() else "random")
    sets = kept_together(census, by)
    number = len(np.unique(sets))
    if number < len(wanted):
        raise DataError(
            f"{_names(census)}: there are {number} sets of structures that stay together ({by}), "
            f"too few for {len(wanted)} parts; choose another --by"
        )
    present = [frozenset(z.tolist()) for z, _ in census.compositions]
    elements = (census.frames["composition"], present)
    splits = make_splits(sets, elements, val_fraction=val, test_fraction=test, seed=seed)
    for part in wanted:
        if not len(getattr(splits, part)):
            raise DataError(
                f"nothing is left for {part}: {'; '.join(splits.notes)}; ask for a larger share, "
                "or choose another --seed or --by"
            )
    record = Path(out_dir) / RECORD
    with ExitStack() as stack:  # the record is entered first and so written last
        record_file = stack.enter_context(atomic_write(record))
        files = {part: stack.enter_context(atomic_write(path)) for part, path in targets.items()}
        _copy(census, splits, files, format, options)
        document = _record(census, splits, by, {"val": val, "test": test})
        record_file.write_text(json.dumps(document, indent=1) + "\n")
    return Partition(census, splits, by, number, (*targets.values(), record))


def kept_together(census: Census, by: str) -> NDArray[np.uint64]:
    """Number the sets of structures that no split may cut, by their content.

    Args:
        census: of the files.
        by: one of `WAYS`.

    Returns:
        (n,) equal for frames of one set; the same for the same structures in any order.

    Raises:
        DataError: `by` is `group` and no frame has one.
    """
    classes = structure_classes(census.frames)
    sets = classes if by == "random" else _linked(classes, _keys(census, by))
    _, sets = np.unique(sets, return_inverse=True)
    names = np.full(int(sets.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(names, sets, census.frames["content"])
    return names[sets]


def _linked(classes: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number what is connected by equal classes or equal keys (-1: no key), however indirectly."""
    n, keyed = len(classes), np.flatnonzero(keys >= 0)
    classes = np.unique(classes, return_inverse=True)[1]
    frame = np.concatenate([np.arange(n), keyed])
    shared = n + np.concatenate([classes, n + keys[keyed]])
    size = int(shared.max(initial=0)) + 1
    links = coo_array((np.ones(len(frame), dtype=np.int8), (frame, shared)), shape=(size, size))
    return connected_components(links, directed=False)[1][:n]


def _keys(census: Census, by: str) -> NDArray[np.int64]:
    """Number what stays together beside equal structures; -1 for frames without it."""
    frames = census.frames
    if by == "group":
        if not (frames["group"] >= 0).any():
            raise DataError(
                f"{_names(census)}: no frame has a group; name the info key with data.group=KEY, "
                "or choose another --by"
            )
        return frames["group"].astype(np.int64)
    if by == "composition":
        return frames["composition"].astype(np.int64)
    numbers: dict[bytes, int] = {}
    systems = [numbers.setdefault(z.tobytes(), len(numbers)) for z, _ in census.compositions]
    return np.array(systems, dtype=np.int64)[frames["composition"]]


def _names(census: Census) -> str:
    return ", ".join(part.name for part in census.parts)


def _refuse_overwriting(out_dir: Path, targets: Mapping[str, Path], *, force: bool) -> None:
    for part in PARTS:
        path = out_dir / f"{part}.extxyz"
        if not path.exists():
            continue
        if part not in targets:
            raise ConfigError(
                f"{path} is of another split, which has no part in this one; remove it"
            )
        if not force:
            raise ConfigError(f"{path} exists; give another --out-dir or --force")


def _refuse_unusable(census: Census, on_bad: str) -> None:
    for file, why in census.unread.items():
        raise DataError(f"{file}: {why}")
    if not (bad := census.total - len(census.frames)):
        return
    number = {str(file): k for k, file in enumerate(census.files)}

    def first_of(*kinds: str) -> str:
        places = [place for kind in kinds for place in census.notes.examples.get(kind, [])]
        return str(min(places, key=lambda x: (number[x.file], x.frame or 0), default=""))

    if first := first_of(*UNUSABLE) if on_bad == "error" else first_of("other-key"):
        raise DataError(f"{first}; mlip data check finds all such frames")
    first = first_of(*UNUSABLE)
    check_share(bad, census.total, first)
    warnings.warn(skipped_words(_names(census), bad, first), stacklevel=3)


def _copy(
    census: Census,
    splits: Splits,
    files: Mapping[str, Path],
    format: str,
    options: Mapping[str, Any],
) -> None:
    """Read the files again and append each frame to its part."""
    part_of = np.zeros(len(census.frames), dtype=np.int8)
    for number, part in enumerate(PARTS):
        part_of[getattr(splits, part)] = number
    names = label_names(options)
    row, usable = 0, census.frames
    with ExitStack() as stack:
        handles = {part: stack.enter_context(path.open("w")) for part, path in files.items()}
        for number, file in enumerate(census.files):
            frames = frames_in(file, format, **{**options, "keep_info": True})
            for index, inspected in enumerate(counted(frames, f"writing {file}")):
                if row == len(usable) or tuple(usable[["file", "frame"]][row]) != (number, index):
                    continue  # it cannot be used, and may be left out
                if isinstance(atoms := inspected.meaning, DataError):
                    raise atoms  # the file has changed since it was counted
                write(handles[PARTS[part_of[row]]], canonical(atoms, names), format="extxyz")
                row += 1
    if row < len(usable):
        raise DataError(f"{_names(census)}: frames are gone since they were counted; split again")


def label_names(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the entries that hold labels, the caller's own keys included."""
    keys = ReadOptions.parse(options).keys
    own = {keys.energy, keys.forces, keys.stress, keys.virial} - {None}
    usual = {name for names in SEARCH.values() for name in names if not name.startswith("calc:")}
    return frozenset(usual | {str(name) for name in own})


def canonical(atoms: Atoms, names: frozenset[str]) -> Atoms:
    """Take away what labels were read from: in the file that is written they are elsewhere.

    The labels themselves, in eV and Å, stay in the calculator; a second spelling in old units would
    be read first.
    """
    for name in names:
        atoms.info.pop(name, None)
        if name in atoms.arrays:
            del atoms.arrays[name]
    return atoms


def _record(census: Census, splits: Splits, by: str, shares: Mapping[str, float]) -> dict[str, Any]:
    frames = census.frames
    out: dict[str, Any] = {
        "version": VERSION,
        "seed": splits.seed,
        "by": by,
        "fractions": dict(shares),
        "notes": splits.notes,
    }
    for part in PARTS:
        rows = getattr(splits, part)
        file, frame = frames["file"][rows], frames["frame"][rows]
        out[part] = {
            str(name): frame[file == number].tolist()
            for number, name in enumerate(census.files)
            if (file == number).any()
        }
    if census.total > len(frames):
        out["dropped"] = {"bad": _unusable_by_file(census)}
    return out


def _unusable_by_file(census: Census) -> dict[str, list[int]]:
    """Return the numbers of the frames that the parts do not have."""
    file, frame = census.frames["file"], census.frames["frame"]
    sizes = zip(census.files, census.sizes, strict=True)
    left = {
        str(name): np.setdiff1d(np.arange(size), frame[file == number]).tolist()
        for number, (name, size) in enumerate(sizes)
    }
    return {name: numbers for name, numbers in left.items() if numbers}


def elements_of(census: Census, rows: NDArray[np.int64]) -> list[str]:
    """Return the symbols of the elements in some frames."""
    found: set[int] = set()
    for number in np.unique(census.frames["composition"][rows]):
        found |= set(census.compositions[number][0].tolist())
    return [chemical_symbols[z] for z in sorted(found)]
