"""Bytes of a text file, compressed or not, that can neither run over memory nor end unnoticed.

A decompression bomb grows without limit and a cut archive ends early; both become errors that name
the file. Everything is streamed: nothing here holds more than a buffer.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from mlip.errors import CorruptDataError, DataError

COMPRESSED: Final = (".gz", ".bz2", ".xz")
MAX_RATIO: Final = 200  # text of numbers compresses 3 to 10 times, a bomb 1000 times
RATIO_FLOOR: Final = 64 * 1024**2  # bytes below which no ratio is suspicious
_BUFFER: Final = 1024**2


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for streaming; `.gz`, `.bz2` and `.xz` are decompressed on the way.

    Raises:
        DataError: the file cannot be opened; while reading, that it expands beyond `MAX_RATIO`.
        CorruptDataError: while reading, that the archive is truncated or damaged.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check it") from error
    if path.suffix not in COMPRESSED:
        return io.BufferedReader(cast(Any, raw), _BUFFER)
    return io.BufferedReader(_Decompressed(path, raw), _BUFFER)


class _Decompressed(io.RawIOBase):
    """A raw stream over a decompressor that counts what comes out."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self._path = path
        self._raw = raw
        self._limit = max(RATIO_FLOOR, MAX_RATIO * path.stat().st_size)
        self._size = 0
        if path.suffix == ".gz":
            self._stream: Any = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".bz2":
            self._stream = bz2.BZ2File(raw)
        else:
            self._stream = lzma.LZMAFile(raw)  # noqa: SIM115, closed in close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            count = self._stream.readinto(buffer)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise CorruptDataError(
                f"{self._path}: the archive is damaged or cut short after {self._size} bytes of "
                f"content ({error}); copy or download it again"
            ) from error
        self._size += count
        if self._size > self._limit:
            raise DataError(
                f"{self._path}: expands to more than {MAX_RATIO} times its size, which text of "
                "numbers never does; if you trust it, decompress it yourself and give that file"
            )
        return count

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._raw.close()
        super().close()
