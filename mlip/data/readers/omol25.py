"""OMol25 shards (`.aselmdb`): LMDB files whose records are zlib-compressed JSON rows.

Read with lmdb, zlib and orjson alone: nine times faster than through ASE rows, and safe where a
general reader is not. A damaged LMDB file would kill the process, so its pages are checked before
it is mapped; a record may not expand without limit; pickled records, which older data sets have
under the same suffix, are refused.

Rows are numbered as in fairchem: ids 1 to nextid-1 without the deleted ones, ascending (LMDB's own
order is alphabetical), shards sorted by path.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.frames import RawFrame
from mlip.data.readers.lmdb_pages import check_lmdb
from mlip.data.readers.paths import SIDECAR
from mlip.data.readers.rows import decode_row, parse_json
from mlip.errors import CorruptDataError, DataError

MAX_RECORD: Final = 64 * 1024**2  # bytes of JSON; a 350-atom row has 0.1 MB
MAX_RATIO: Final = 200  # zlib can reach 1030; rows have 2 to 4
RATIO_FLOOR: Final = 1024**2  # bytes below which no ratio is suspicious

_Version = tuple[int, int, int]  # of a file: inode, size, time
_environments: dict[tuple[str, int], tuple[_Version, lmdb.Environment]] = {}  # by path and process
_checked: set[tuple[str, _Version]] = set()  # files whose pages are sound; forked processes know


def read_aselmdb(
    path: Path, span: tuple[int, int] | None = None, *, keep_all: bool = False
) -> Iterator[RawFrame]:
    """Yield the rows of one shard in the order of their ids.

    Args:
        path: the shard.
        span: first row and the one after the last, counted from 0; default all.
        keep_all: see `decode_row`.

    Raises:
        DataError: it holds no rows, a pickle, or an entry that cannot be decoded.
        CorruptDataError: it is truncated, or a row is missing or damaged.
    """
    environment = _open(path)
    try:
        with environment.begin(buffers=True) as transaction:
            ids = _ids(path, transaction)
            if not ids:
                raise DataError(f"{path}: the database is empty; expected at least one row")
            for row_id in ids[slice(*(span or (0, None)))]:
                yield _row(path, transaction, row_id, keep_all=keep_all)
    except lmdb.Error as error:
        raise CorruptDataError(f"{path}: is damaged ({error}); copy it again") from error


class ShardRows:
    """The rows of one shard by their number, counted from 0 in the order of `read_aselmdb`.

    For a file that was read through before. Every process opens it for itself, at its first row.
    """

    def __init__(self, path: Path, size: int, mtime_ns: int) -> None:
        """Say which file it is.

        Args:
            path: the shard.
            size: bytes it had.
            mtime_ns: when it was last written.
        """
        self.path, self._known = path, (size, mtime_ns)
        self._process = -1

    def __getitem__(self, number: int) -> RawFrame:
        """Return a row.

        Raises:
            DataError: the file is gone or has been written to since it was read through.
            CorruptDataError: the row is damaged or missing.
        """
        if self._process != os.getpid():
            self._open()
        try:
            with self._environment.begin(buffers=True) as transaction:
                return _row(self.path, transaction, int(self._ids[number]))
        except (lmdb.Error, IndexError) as error:
            raise CorruptDataError(
                f"{self.path}: row number {number} is out of reach ({error}); copy the file again"
            ) from error

    def _open(self) -> None:
        try:
            found = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error}); restore it") from None
        if (found.st_size, found.st_mtime_ns) != self._known:
            raise DataError(
                f"{self.path}: has been written to since it was indexed; index it again"
            )
        try:
            self._environment = _open(self.path, records=False)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be opened ({error}); every process keeps one file open for "
                "each shard that it reads from (`ulimit -n` says how many it may)"
            ) from None
        with self._environment.begin(buffers=True) as transaction:
            ids = _ids(self.path, transaction)
        self._ids = ids if isinstance(ids, range) else np.array(ids)
        self._process = os.getpid()


def split_aselmdb(path: Path, rows: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield spans of at most `rows` rows, each with its share of the bytes."""
    total = max(count_rows(path), 1)
    share = path.stat().st_size / total
    for begin in range(0, total, rows):
        end = min(begin + rows, total)
        yield (begin, end), round(share * (end - begin))


def count_rows(path: Path) -> int:
    """Return the number of rows of one shard without reading them."""
    with _open(path).begin(buffers=True) as transaction:
        return len(_ids(path, transaction))


def read_natoms(files: Sequence[Path]) -> NDArray[np.int64] | None:
    """Return the atom counts of every row from the folder's `metadata.npz`, None without one.

    Args:
        files: all shards of one folder, sorted, as `expand_paths` returns them.

    Raises:
        DataError: the file has no `natoms`, or not one for every row: it belongs to other shards.
    """
    folders = {file.parent for file in files}
    sidecar = files[0].parent / SIDECAR
    if len(folders) != 1 or not sidecar.exists():
        return None
    rows = sum(count_rows(file) for file in files)
    try:
        with np.load(sidecar, allow_pickle=False) as archive:
            natoms = archive["natoms"]
            lengths = {"natoms": natoms.shape}
            if "data_ids" in archive.files:
                lengths["data_ids"] = archive["data_ids"].shape
    except (KeyError, ValueError, OSError, zlib.error, EOFError) as error:
        raise DataError(
            f"{sidecar}: cannot be read ({error}); it needs an integer array natoms, without "
            "pickled objects; correct or remove it"
        ) from None
    for name, shape in lengths.items():
        if shape != (rows,):
            raise DataError(
                f"{sidecar}: {name} has shape {shape}, but the {len(files)} shards beside it have "
                f"{rows} rows; it belongs to other shards; remove it or restore them"
            )
    if natoms.dtype.kind not in "iu" or (natoms < 1).any():
        raise DataError(f"{sidecar}: natoms are not all whole numbers above zero; remove the file")
    return natoms.astype(np.int64)


def _row(path: Path, transaction: Any, row_id: int, *, keep_all: bool = False) -> RawFrame:
    place = f"{path}: row {row_id}"
    record = transaction.get(b"%d" % row_id)
    if record is None:
        raise CorruptDataError(
            f"{place}: is missing; the database is damaged, copy or download it again"
        )
    row = _load(record, place)
    return RawFrame.unless_misshapen(decode_row, row, place, keep_all=keep_all)


def _open(path: Path, *, records: bool = True) -> lmdb.Environment:
    """Return this process's only environment of a file (LMDB forbids a second one).

    Args:
        path: the file.
        records: as of `check_lmdb`.
    """
    stat = path.stat()
    key = (str(path.resolve()), os.getpid())
    version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    cached = _environments.get(key)
    if cached is not None:
        if cached[0] == version:
            return cached[1]
        cached[1].close()  # the file was replaced
    if (key[0], version) not in _checked:
        check_lmdb(path, records=records)
        _checked.add((key[0], version))
    try:
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False
        )
    except lmdb.Error as error:
        raise CorruptDataError(
            f"{path}: cannot be opened ({error}); copy or download it again"
        ) from error
    _environments[key] = (version, environment)
    return environment


def _ids(path: Path, transaction: Any) -> Sequence[int]:
    record = transaction.get(b"nextid")
    if record is None:
        first = next(iter(transaction.cursor()), None)
        if first is not None:
            _load(first[1], f"{path}: record {bytes(first[0])[:40]!r}")  # says it is a pickle
        raise DataError(
            f"{path}: has no 'nextid' record, so it is no ASE database; mlip reads .aselmdb "
            "shards (OMol25); convert other LMDB data with the program that wrote it"
        )
    nextid = _load(record, f"{path}: record 'nextid'")
    deleted: set[int] = set()
    if (record := transaction.get(b"deleted_ids")) is not None:
        listed = _load(record, f"{path}: record 'deleted_ids'")
        if not isinstance(listed, list) or not all(isinstance(row_id, int) for row_id in listed):
            raise CorruptDataError(f"{path}: its 'deleted_ids' is no list of ids; copy it again")
        deleted = set(listed)
    if not isinstance(nextid, int) or not 0 < nextid < 2**40:
        raise CorruptDataError(f"{path}: its 'nextid' is {nextid!r}; expected a row count plus 1")
    if not deleted:
        return range(1, nextid)
    return [row_id for row_id in range(1, nextid) if row_id not in deleted]


def _load(record: Any, place: str) -> Any:
    """Decompress and parse one record.

    Raises:
        DataError: it is a pickle or expands beyond the limits.
        CorruptDataError: it is damaged.
    """
    if record[:1] == b"\x80":
        raise DataError(_PICKLE.format(place=place))
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(record, MAX_RECORD)
    except zlib.error as error:
        raise CorruptDataError(
            f"{place}: is damaged ({error}); copy or download the file again"
        ) from None
    if inflate.unconsumed_tail or (len(text) > RATIO_FLOOR and len(text) > MAX_RATIO * len(record)):
        raise DataError(
            f"{place}: {len(record)} bytes expand to {len(text)} or more, beyond the limit of "
            f"{MAX_RECORD} bytes and {MAX_RATIO} times; it is damaged or hostile and is not read"
        )
    if not inflate.eof:
        raise CorruptDataError(f"{place}: is cut short; copy or download the file again")
    if text[:1] == b"\x80":
        raise DataError(_PICKLE.format(place=place))
    return parse_json(text, place)


_PICKLE: Final = (
    "{place}: is a Python pickle, which can run any code when read; mlip never reads pickles; "
    "convert it to .aselmdb or extxyz with the program that wrote it"
)
