"""The packed store: every structure of a run in a few memory-mapped arrays, built once.

Text is parsed once per file version and option set; afterwards a batch is a handful of slices. The
store and its key know nothing of cutoff or model dtype: neighbours are found when a batch is made
(cheaper than reading them, and augmentation stays possible).

Layout of a store folder: one raw little-endian array per column, `manifest.json` with sizes and
checksums. It is built under a temporary name and renamed when complete, so a half-built one is
never read, and of two processes that build the same one the first to finish wins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np

from mlip.data.readers import expand_paths, read_structures
from mlip.errors import DataError
from mlip.graph import structure_arrays
from mlip.neighbors import neighbor_list

log = logging.getLogger("mlip")
VERSION: Final = 2  # of this layout and of the readers' meaning; raise it when either changes


@dataclass(frozen=True)
class Column:
    """One array of the store."""

    per: str  # "atom" or "graph"
    shape: tuple[int, ...]
    dtype: str
    missing: float = 0.0


COLUMNS: Final[Mapping[str, Column]] = {
    "atomic_numbers": Column("atom", (), "|u1"),
    "positions": Column("atom", (3,), "<f8"),
    "forces": Column("atom", (3,), "<f8", np.nan),
    "magmoms": Column("atom", (), "<f8", np.nan),
    "cell": Column("graph", (3, 3), "<f8"),
    "pbc": Column("graph", (3,), "|b1"),
    "charge": Column("graph", (), "<i2"),
    "spin": Column("graph", (), "<i2"),
    "energy": Column("graph", (), "<f8", np.nan),
    "stress": Column("graph", (3, 3), "<f8", np.nan),
    "weight": Column("graph", (), "<f8", 1.0),
    "sample_id": Column("graph", (), "<i8"),
    "source": Column("graph", (), "<i4"),
    # bookkeeping that graphs do not carry
    "num_atoms": Column("graph", (), "<i8"),
    "group": Column("graph", (), "<u8"),  # hash of the split key; equal = never separated
}
INTERNAL = ("num_atoms", "group")
VERIFY_UP_TO: Final = 256 * 1024**2  # bytes that are checked against their checksum at every start
MIN_DISTANCE: Final = 0.3  # Å; closer atoms are a mistake in the file


class Store:
    """Read-only random access to packed structures.

    Holds paths, not arrays, when copied to another process.
    """

    def __init__(self, folder: Path, sources: Sequence[str] | None = None) -> None:
        """Open a store.

        Args:
            folder: where it is.
            sources: names of its files as the caller knows them; default those at its making,
                which may be relative to another folder.
        """
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.sources: list[str] = list(sources or self.manifest["sources"])
        self._columns: dict[str, np.ndarray] = {}
        self.num_atoms = np.array(self.column("num_atoms"))
        self._start = np.concatenate([[0], np.cumsum(self.num_atoms)])

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.num_atoms)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "sources": self.sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["sources"])

    def column(self, name: str) -> np.ndarray:
        """Return a whole column, memory-mapped: (structures or atoms, *shape)."""
        if name not in self._columns:
            spec = COLUMNS[name]
            n = self.manifest["atoms" if spec.per == "atom" else "structures"]
            shape = (n, *spec.shape)
            if n == 0:
                self._columns[name] = np.zeros(shape, spec.dtype)
            else:
                mapped = np.memmap(self.folder / f"{name}.bin", spec.dtype, "r", shape=shape)
                self._columns[name] = mapped.view(np.ndarray)
        return self._columns[name]

    def atoms_of(self, index: int) -> slice:
        """Return where the atoms of a structure lie in per-atom columns.

        Raises:
            IndexError: there is no such structure (negative numbers do not wrap).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)}")
        return slice(int(self._start[index]), int(self._start[index + 1]))

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return the SCHEMA fields of a structure, without neighbours."""
        atoms = self.atoms_of(index)
        out = {}
        for name, spec in COLUMNS.items():
            if name not in INTERNAL:
                rows = atoms if spec.per == "atom" else slice(index, index + 1)
                out[name] = self.column(name)[rows]
        return out

    def compositions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count elements: (structures, species) counts and the sorted species."""
        numbers = self.column("atomic_numbers")
        species = np.unique(np.concatenate([numbers[self.atoms_of(int(i))] for i in indices]))
        counts = np.zeros((len(indices), len(species)))
        for row, i in enumerate(indices):
            z, n = np.unique(numbers[self.atoms_of(int(i))], return_counts=True)
            counts[row, np.searchsorted(species, z)] = n
        return counts, species.astype(int)

    def where(self, index: int) -> str:
        """Say which frame of which file a structure is, for messages."""
        source = self.sources[int(self.column("source")[index])]
        return f"{source}, frame {int(self.column('sample_id')[index])}"


def open_store(
    paths: Any,
    *,
    format: str = "auto",
    options: Mapping[str, Any] | None = None,
    cache_dir: Path | str | None = None,
) -> Store:
    """Return the store of some files, building it on first use.

    Args:
        paths: file, directory, glob or list, as `read_structures` takes them.
        format: of the files.
        options: of the reader.
        cache_dir: where stores live; default the environment variable MLIP_CACHE, else
            `~/.cache/mlip-trainer`.

    Raises:
        DataError: a file is missing or holds something unusable, or there are no structures.
    """
    files = expand_paths(paths, format)
    key = _key(files, format, options or {})
    root = _writable(Path(cache_dir or os.environ.get("MLIP_CACHE", "~/.cache/mlip-trainer")))
    folder = root / f"store-{key}"
    names = [str(file) for file in files]
    if _complete(folder):
        log.info("store: cache hit %s", folder)
        return Store(folder, names)
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".store-{key}.tmp-"))
    try:
        _build(temporary, files, format, options or {})
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster, or a damaged one is in the way
            if not _complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Store(folder, names)


def _build(folder: Path, files: Sequence[Path], format: str, options: Mapping[str, Any]) -> None:
    """Stream every frame into the columns of `folder`; memory stays flat."""
    count = {"graph": 0, "atom": 0}
    digests = {name: _digest() for name in COLUMNS}
    with ExitStack() as stack:
        out = {n: stack.enter_context((folder / f"{n}.bin").open("wb")) for n in COLUMNS}
        for source, file in enumerate(files):
            for frame, atoms in enumerate(_tracked(file, format, options)):
                _refuse_overlaps(atoms, file, frame)
                for name, array in _row(atoms, source, frame).items():
                    data = np.ascontiguousarray(array, dtype=COLUMNS[name].dtype).tobytes()
                    digests[name].update(data)
                    out[name].write(data)
                count["graph"] += 1
                count["atom"] += len(atoms)
        for handle in out.values():
            handle.flush()
            os.fsync(handle.fileno())
    if count["graph"] == 0:
        raise DataError(f"{', '.join(map(str, files))}: no structures")
    manifest = {
        "version": VERSION,
        "structures": count["graph"],
        "atoms": count["atom"],
        "sources": [str(f) for f in files],
        "sizes": {name: (folder / f"{name}.bin").stat().st_size for name in COLUMNS},
        "blake2b": {name: digest.hexdigest() for name, digest in digests.items()},
    }
    with (folder / "manifest.json").open("w") as handle:
        json.dump(manifest, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())


def _refuse_overlaps(atoms: ase.Atoms, file: Path, frame: int) -> None:
    x = atoms.positions
    try:
        (j, i), shift = neighbor_list(x, atoms.cell.array, atoms.pbc, 1.0)
    except DataError as error:
        raise DataError(f"{file}, frame {frame}: {error}") from error
    distance = np.linalg.norm(x[j] + shift @ atoms.cell.array - x[i], axis=1)
    if len(distance) and distance.min() < MIN_DISTANCE:
        e = int(distance.argmin())
        raise DataError(
            f"{file}, frame {frame}: atoms {j[e]} and {i[e]} are {distance[e]:.3f} A apart, closer "
            f"than {MIN_DISTANCE} A; remove the frame or mend it"
        )


def _row(atoms: ase.Atoms, source: int, frame: int) -> dict[str, np.ndarray]:
    given = structure_arrays(atoms)
    row = {}
    for name, spec in COLUMNS.items():
        n = len(atoms) if spec.per == "atom" else 1
        row[name] = given.get(name, np.full((n, *spec.shape), spec.missing))
    row["sample_id"] = np.array([frame])
    row["source"] = np.array([source])
    row["num_atoms"] = np.array([len(atoms)])
    row["group"] = np.array([_group(atoms)], dtype=np.uint64)
    return row


def _group(atoms: ase.Atoms) -> int:
    """Hash the split key; a structure without one is grouped with its exact duplicates."""
    if "group" in atoms.info:
        text = f"group:{atoms.info['group']}".encode()
    else:
        text = b"".join(
            np.ascontiguousarray(a).tobytes()
            for a in (atoms.numbers, np.round(atoms.positions, 6) + 0.0, atoms.cell.array)
        )
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _tracked(file: Path, format: str, options: Mapping[str, Any]) -> Iterable[ase.Atoms]:
    """Read a file with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("reading {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(file.name, total=None)
        for n, atoms in enumerate(read_structures(file, format, **options), start=1):
            if n % 500 == 0:
                bar.update(task, description=f"{file.name}: {n} frames")
            yield atoms


def _key(files: Sequence[Path], format: str, options: Mapping[str, Any]) -> str:
    """Name a store by the files (path, size, time, head and tail) and how they are read."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((VERSION, format, sorted(options.items(), key=str))).encode())
    for file in files:
        stat = file.stat()
        digest.update(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
        with file.open("rb") as handle:
            digest.update(handle.read(65536))
            handle.seek(max(0, stat.st_size - 65536))
            digest.update(handle.read(65536))
    return digest.hexdigest()


def _complete(folder: Path) -> bool:
    """Whether a store is there, every column with its recorded size and (if small) checksum."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in COLUMNS}
    except (OSError, ValueError):
        return False
    good = manifest.get("version") == VERSION and manifest.get("sizes") == sizes
    if good and sum(sizes.values()) <= VERIFY_UP_TO:
        good = manifest["blake2b"] == {
            name: _digest((folder / f"{name}.bin").read_bytes()).hexdigest() for name in COLUMNS
        }
    if not good:
        log.warning("store %s is damaged or from another version: it is built again", folder)
    return good


def _digest(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _writable(root: Path) -> Path:
    root = root.expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError as error:
        other = Path(tempfile.gettempdir()) / f"mlip-cache-{os.getuid()}"
        other.mkdir(mode=0o700, exist_ok=True)
        log.warning("cache folder %s cannot be written (%s): using %s", root, error, other)
        return other
