"""Which files a path means, and which format each of them is.

A path never chooses code by itself: names with a URL scheme or ASE's `@index` are refused, and the
format comes from a short allow-list, by suffix and where that is ambiguous by a look at the bytes.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from mlip.data.readers.streams import COMPRESSED, open_bytes
from mlip.errors import ConfigError, DataError

FORMATS: Final = (
    *("extxyz", "aselmdb", "mptrj", "matpes", "npz", "db", "json", "traj"),
    *("vasp-xml", "vasp-out", "vasp", "cif"),
)
ALIASES: Final = {"xyz": "extxyz", "omol25": "aselmdb", "poscar": "vasp", "vasprun": "vasp-xml"}
SIDECAR: Final = "metadata.npz"  # belongs to a folder of .aselmdb shards
PathLike = str | os.PathLike[str]

_SUFFIXES: Final = {
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".aselmdb": "aselmdb",
    ".lmdb": "aselmdb",
    ".npz": "npz",
    ".db": "db",
    ".traj": "traj",
    ".cif": "cif",
    ".vasp": "vasp",
    ".poscar": "vasp",
}
_NAMES: Final = (
    (re.compile(r"(.*[._-])?OUTCAR([._-].*)?"), "vasp-out"),
    (re.compile(r"(.*[._-])?vasprun([._-].*)?\.xml"), "vasp-xml"),
    (re.compile(r"(.*[._-])?(POSCAR|CONTCAR)([._-].*)?"), "vasp"),
)
_COMPRESSIBLE: Final = ("extxyz", "mptrj", "matpes")
_URL: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")
_JSON_DB: Final = re.compile(rb'^\s*\{\s*"(\d+"\s*:\s*\{|ids"\s*:\s*\[|nextid")')
_JSON_MPTRJ: Final = re.compile(rb'^\s*\{\s*"[^"]*"\s*:\s*\{\s*"[^"]*"\s*:\s*\{')
_JSON_MATPES: Final = re.compile(rb'^\s*\[?\s*\{.*"matpes_id"\s*:', re.DOTALL)
_MPTRJ_FIELDS: Final = re.compile(
    rb'"(structure|uncorrected_total_energy|corrected_total_energy|energy_per_atom|mp_id)"\s*:'
)


def check_format(name: str) -> str:
    """Return the canonical name of a format, or "auto".

    Raises:
        ConfigError: the format is not in the allow-list.
    """
    name = ALIASES.get(name, name)
    if name != "auto" and name not in FORMATS:
        close = get_close_matches(name, [*FORMATS, *ALIASES], n=1)
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"unknown format {name!r}{hint} known are auto, {', '.join(FORMATS)}")
    return name


def expand_paths(path: PathLike | Iterable[PathLike], format: str = "auto") -> list[Path]:
    """Return the files that `path` means, sorted within each glob or directory.

    Args:
        path: a file, a directory (all its files of one readable kind), a glob, or a list of them.
        format: keep only this format in a directory; `auto` takes the one kind there is.

    Raises:
        DataError: nothing is there, a directory holds several kinds or none, or a file is named
            twice.
        ConfigError: the format is unknown.
    """
    format = check_format(format)
    given: Sequence[PathLike]
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not given:
        raise DataError("no data files were given: the list of paths is empty; name at least one")
    files = [file for item in given for file in _expand_one(item, format)]
    twice = [file for file, count in Counter(f.resolve() for f in files).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]}: is named more than once in the data paths; name it once")
    return files


def detect_format(path: Path) -> str:
    """Return the format of one file.

    Raises:
        DataError: it is none that `mlip` reads.
    """
    found = _guess(path)
    if found is None:
        refuse_empty(path)
        raise DataError(
            f"{path}: is no file that mlip can read; known formats are {', '.join(FORMATS)}; "
            "rename it, convert it to extxyz, or set data.format if it is one of them"
        )
    packed = path.suffix in COMPRESSED
    if packed and found not in _COMPRESSIBLE:
        raise DataError(f"{path}: compressed {found} files are not read; decompress it first")
    return found


def refuse_empty(path: Path) -> None:
    """Refuse a file without content, which no format can tell from a wrong one.

    Raises:
        DataError: it has no bytes, or only white space.
    """
    with open_bytes(path) as stream:
        head = stream.read(4096)
    if len(head) < 4096 and not head.strip():
        raise DataError(f"{path}: the file is empty; expected at least one frame")


def _expand_one(item: PathLike, format: str) -> list[Path]:
    text = os.fspath(item)
    if _URL.match(text) and not Path(text).exists():
        raise DataError(
            f"{text!r}: looks like a URL or a database address; mlip reads local files only; "
            "download it and give its path"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _expand_directory(path, format)
    if path.exists():
        return [path]
    if glob.has_magic(text):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if files := [match for match in matches if match.is_file()]:
            return files
        raise DataError(f"{text}: no file matches this pattern (in {Path.cwd()}); check it")
    raise DataError(_missing(path, text))


def _expand_directory(path: Path, format: str) -> list[Path]:
    kinds: dict[str, list[Path]] = {}
    others: list[str] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name == SIDECAR:
            continue
        kind = _guess(entry) if entry.is_file() else None
        if kind is None:
            others.append(entry.name + ("/" if entry.is_dir() else ""))
        else:
            kinds.setdefault(kind, []).append(entry)
    if format in kinds:
        return kinds[format]
    if format == "auto" and len(kinds) == 1:
        return next(iter(kinds.values()))
    if kinds:
        there = ", ".join(f"{len(files)} {kind} ({files[0].name})" for kind, files in kinds.items())
        wanted = "several kinds of data" if format == "auto" else f"no {format} files but others"
        raise DataError(
            f"{path}: the directory holds {wanted}: {there}; "
            "give a file, a glob such as '*.extxyz', or set data.format"
        )
    there = f"it holds {_listing(others)}" if others else "it is empty"
    raise DataError(
        f"{path}: nothing in this directory can be read: {there}; "
        f"expected files of one of {', '.join(FORMATS)}"
    )


def _guess(path: Path) -> str | None:
    """Return the format by name, else by content, else None."""
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name
    suffix = Path(name).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    for pattern, found in _NAMES:
        if pattern.fullmatch(name):
            return found
    if suffix not in ("", ".json", ".jsonl", ".txt", ".dat", ".sqlite"):
        return None
    with open_bytes(path) as stream:
        head = stream.read(1024**2 if suffix in (".json", ".jsonl") else 4096)
    if suffix in (".json", ".jsonl") and _JSON_MATPES.match(head):
        return "matpes"
    if suffix == ".json":
        if _JSON_DB.match(head):
            return "json"
        nested = _JSON_MPTRJ.match(head) and _MPTRJ_FIELDS.search(head)
        return "mptrj" if nested else None
    if head.startswith(b"SQLite format 3\0"):
        return "db"
    if head.startswith(b"- of UlmASE-Traj"):
        return "traj"
    if head[16:20] in (b"\xde\xc0\xef\xbe", b"\xbe\xef\xc0\xde"):
        return "aselmdb"
    if re.match(rb"\s*\d+[ \t]*\r?\n", head):
        return "extxyz"
    return None


def _missing(path: Path, text: str) -> str:
    message = f"{text}: no such file or directory"
    if "@" in path.name and path.with_name(path.name.rpartition("@")[0]).exists():
        return f"{message}; '@' selections are not supported, give the plain file name"
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if parent != path.parent:
        return f"{message}; {parent} exists, but nothing below it on this path"
    names = [entry.name for entry in parent.iterdir()]
    if close := get_close_matches(path.name, names, n=3):
        return f"{message}; similar names there: {', '.join(close)}"
    return f"{message}; {parent.resolve()} holds {_listing(sorted(names))}"


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) or "nothing"
