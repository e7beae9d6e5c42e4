"""Frames of a file by their number, for formats whose files know where each of them is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mlip.data.readers.canonical import Canonicalizer
from mlip.data.readers.frames import Frame
from mlip.data.readers.omol25 import ShardRows
from mlip.data.readers.options import ReadOptions
from mlip.data.readers.paths import check_format, detect_format
from mlip.errors import ConfigError

BY_NUMBER: Final = ("aselmdb",)


class Frames:
    """Canonical frames of one file by number: those that `read_frames` yields in turn.

    For a file that was read through before; it is opened at the first frame, by every process.
    """

    def __init__(self, path: Path, size: int, mtime_ns: int, **options: Any) -> None:
        """Say which file it is, and how it was read.

        Args:
            path: the file, of one of the formats `BY_NUMBER`.
            size: bytes it had.
            mtime_ns: when it was last written.
            **options: as of `read_structures`.

        Raises:
            ConfigError: an option is unknown.
        """
        self._rows = ShardRows(path, size, mtime_ns)
        self._canonical = Canonicalizer(path, ReadOptions.parse(options))

    def __getitem__(self, number: int) -> Frame:
        """Return a frame, counted from 0.

        Raises:
            DataError: the file is gone, or not the one that was read through.
            CorruptDataError: the frame is damaged.
        """
        return self._canonical.arrays(self._rows[number], number)


def require_by_number(files: Iterable[Path], format: str = "auto") -> None:
    """Refuse files of which a frame cannot be read without those before it.

    Raises:
        ConfigError: names the file and its format.
    """
    format = check_format(format)
    for file in files:
        kind = detect_format(file) if format == "auto" else format
        if kind not in BY_NUMBER:
            raise ConfigError(
                f"{file}: is {kind}, whose frames can be read in their order only; in_place is for "
                f"{', '.join(BY_NUMBER)}; leave it out, and the data are converted once"
            )
