"""What ASE itself writes or parses: databases, trajectories, VASP output, CIF and POSCAR.

SQLite databases are opened read-only and decoded here: ASE would create tables in a foreign file
and rebuild objects that the file names. The others go through ASE with their format given, so that
no file chooses its own parser.
"""

from __future__ import annotations

import sqlite3
import struct
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import ase.io
import numpy as np
from ase import Atoms
from ase.io.trajectory import TrajectoryReader
from numpy.typing import NDArray

from mlip.data.readers.frames import RawFrame
from mlip.data.readers.rows import decode_row, parse_json
from mlip.errors import CorruptDataError, DataError

MAX_JSON_DB: Final = 2 * 1024**3  # bytes; ASE's JSON databases are read whole
_BLOBS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "numbers": ("<i4", (-1,)),
    "positions": ("<f8", (-1, 3)),
    "cell": ("<f8", (3, 3)),
    "forces": ("<f8", (-1, 3)),
    "stress": ("<f8", (-1,)),
    "magmoms": ("<f8", (-1,)),
    "tags": ("<i4", (-1,)),
    "initial_magmoms": ("<f8", (-1,)),
    "momenta": ("<f8", (-1, 3)),
}
_SCALARS: Final = ("energy", "free_energy", "pbc", "constraints", "key_value_pairs", "data")


def read_sqlite(path: Path, *, keep_all: bool = False) -> Iterator[RawFrame]:
    """Yield the rows of an ASE SQLite database in the order of their ids.

    Raises:
        DataError: it is no ASE database, is empty, or a row cannot be decoded.
        CorruptDataError: the file is cut short or damaged.
    """
    _check_length(path)
    try:
        address = f"file:{quote(str(path.resolve()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            known = {row[1] for row in connection.execute("PRAGMA table_info(systems)")}
            if not {"id", "numbers", "positions"} <= known:
                raise DataError(f"{path}: is no ASE database (it has no table of systems)")
            columns = [name for name in (*_BLOBS, *_SCALARS) if name in known]
            query = f"SELECT id, {', '.join(columns)} FROM systems ORDER BY id"  # noqa: S608
            empty = True
            for row_id, *values in connection.execute(query):
                empty = False
                place = f"{path}: row {row_id}"
                row = dict(zip(columns, values, strict=True))
                row = _decode_columns(row, place)
                yield RawFrame.unless_misshapen(decode_row, row, place, keep_all=keep_all)
            if empty:
                raise DataError(f"{path}: the database is empty; expected at least one row")
    except (sqlite3.Error, UnicodeDecodeError) as error:  # its own messages quote the damage
        raise CorruptDataError(
            f"{path}: cannot be read ({error}); it is damaged or in use; copy it again"
        ) from None


def _check_length(path: Path) -> None:
    """Refuse a file shorter than its header says: SQLite notices missing pages only on use."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = stream.read(100)
    if header.startswith(b"SQLite format 3\0") and header[24:28] == header[92:96]:
        page_size, pages = struct.unpack_from(">H10xI", header, 16)
        needed = pages * (page_size if page_size > 1 else 65536)
        if size < needed:
            raise CorruptDataError(
                f"{path}: is cut short: it has {size} bytes and needs {needed}; copy it again"
            )


def _decode_columns(row: dict[str, Any], place: str) -> dict[str, Any]:
    for name, (dtype, shape) in _BLOBS.items():
        if row.get(name) is None:
            continue
        try:
            row[name] = np.frombuffer(row[name], dtype).reshape(shape)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"{place}: {name!r} is damaged ({error}); copy it") from None
    if row.get("pbc") is not None:
        row["pbc"] = [bool(int(row["pbc"]) & bit) for bit in (1, 2, 4)]
    for name in ("key_value_pairs", "data"):
        value = row.get(name)
        if isinstance(value, str):
            row[name] = parse_json(value.encode(), f"{place}: {name}")
        elif isinstance(value, bytes):
            row[name] = _parse_binary(value, f"{place}: {name}")
    return row


def _parse_binary(value: bytes, place: str) -> Any:
    """Decode ASE's binary dictionaries: an offset, raw arrays, then JSON that points at them."""
    try:
        (offset,) = struct.unpack_from("<q", value)
    except struct.error:
        raise CorruptDataError(f"{place}: is cut short; copy the file again") from None
    if not 8 <= offset <= len(value):
        raise CorruptDataError(f"{place}: is damaged; copy the file again")
    return _resolve(parse_json(value[offset:], place), value[:offset], place)


def _resolve(obj: Any, buffer: bytes, place: str) -> Any:
    if isinstance(obj, list):
        return [_resolve(item, buffer, place) for item in obj]
    if not isinstance(obj, dict):
        return obj
    if "__ndarray__" not in obj:
        return {key: _resolve(item, buffer, place) for key, item in obj.items()}
    try:
        shape, dtype, offset = obj["__ndarray__"]
        kind = np.dtype(str(dtype))
        if kind.kind not in "iufbU":
            raise TypeError(f"type {dtype} is not allowed")
        count = int(np.prod(shape, dtype=object)) if shape else 1
        array: NDArray[Any] = np.frombuffer(buffer, kind, count, offset).reshape(shape)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: an array cannot be decoded ({error})") from None
    return array


def read_json_db(path: Path, *, keep_all: bool = False) -> Iterator[RawFrame]:
    """Yield the rows of an ASE JSON database in the order of their ids.

    Raises:
        DataError: it is too large, no ASE database, or empty.
        CorruptDataError: it is not JSON.
    """
    if (size := path.stat().st_size) > MAX_JSON_DB:
        raise DataError(f"{path}: {size} bytes of JSON are read whole; convert it to .db first")
    rows = parse_json(path.read_bytes(), str(path))
    ids = sorted(int(k) for k in rows if k.isdigit()) if isinstance(rows, dict) else []
    if not ids:
        raise DataError(f"{path}: holds no rows; expected an ASE database {{'1': {{...}}, ...}}")
    for row_id in ids:
        row, place = rows[str(row_id)], f"{path}: row {row_id}"
        yield RawFrame.unless_misshapen(decode_row, row, place, keep_all=keep_all)


def read_traj(path: Path) -> Iterator[RawFrame]:
    """Yield the frames of an ASE trajectory.

    Raises:
        DataError: it is no trajectory, or empty.
        CorruptDataError: it is cut short or damaged.
    """
    with path.open("rb") as stream:
        if stream.read(8) != b"- of Ulm":  # older trajectories are pickles
            raise DataError(
                f"{path}: is no ASE trajectory in today's format; pickled trajectories are never "
                "read; convert it with the ASE version that wrote it"
            )
    done = 0
    try:
        with TrajectoryReader(str(path)) as reader:
            for atoms in reader:
                yield RawFrame.from_atoms(cast(Atoms, atoms))
                done += 1
            if len(reader) == 0:
                raise DataError(f"{path}: the trajectory is empty; expected at least one frame")
    except DataError:
        raise
    except Exception as error:
        raise CorruptDataError(
            f"{path}: frame {done}: cannot be read ({error}); the file is cut short or damaged"
        ) from error


def read_with_ase(path: Path, format: str) -> Iterator[RawFrame]:
    """Yield the frames of a VASP, CIF or POSCAR file.

    VASP's energies are those extrapolated to zero smearing, as ASE reports them; its stresses
    arrive from ASE in eV/Å³ with ASE's sign.

    Raises:
        DataError: ASE cannot parse it, or a CIF has partly occupied sites.
    """
    frames = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for atoms in ase.io.iread(stream, index=slice(None), format=format):
                if (occupancy := atoms.info.get("occupancy")) and format == "cif":
                    _check_occupancy(path, occupancy)
                frames += 1
                yield RawFrame.from_atoms(atoms)
            finished = format not in _ENDS or _ENDS[format] in _tail(path)
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise DataError(
            f"{path}: frame {frames}: cannot be read as {format} ({reason}); check the file, or "
            "set data.format"
        ) from error
    if frames == 0:
        raise DataError(f"{path}: holds no complete structure; is the {format} file finished?")
    if not finished:
        warnings.warn(
            f"{path}: VASP did not finish this file; its {frames} complete steps are read",
            stacklevel=2,
        )


_ENDS: Final = {"vasp-xml": "</modeling>", "vasp-out": "General timing and accounting"}


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 64 * 1024))
        return stream.read().decode("utf-8", "replace")


def _check_occupancy(path: Path, occupancy: dict[Any, dict[str, float]]) -> None:
    for site, species in occupancy.items():
        if len(species) != 1 or abs(sum(species.values()) - 1.0) > 1e-6:
            raise DataError(
                f"{path}: site {site} is disordered ({species}); one whole element is expected on "
                "every site; make an ordered cell first"
            )
