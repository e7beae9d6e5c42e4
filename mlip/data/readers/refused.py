"""Frames that cannot be used: what stands in their place, and how many a data set may have.

They are errors unless the caller says `on_bad="skip"`. What is skipped is counted and named, and
more than a few is no accident but a mistake in how the file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlip.errors import DataError

MAX_SHARE: Final = 0.001  # of the frames of a data set
HOPELESS: Final = 1000  # so many frames, if they are more than a tenth, end a reading at once


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame that cannot be used, in the place of a block of one.

    Attributes:
        why: what is wrong with which frame of which file.
    """

    why: str

    def __len__(self) -> int:
        """Frames."""
        return 1


def skipped_words(path: Path | str, refused: int, why: str) -> str:
    """Say how many frames of a file were left out, and what is wrong with the first of them."""
    return f"{path}: {refused} frame(s) cannot be used and are left out; the first: {why}"


def check_hope(refused: int, frames: int, why: str) -> None:
    """Refuse data of which much is bad before all of them are read.

    Args:
        refused: frames that were left out so far.
        frames: read so far, these included.
        why: what is wrong with the last of them.

    Raises:
        DataError: more than a tenth of them, and more than a few.
    """
    if refused > HOPELESS and refused > frames / 10:
        raise DataError(
            f"{refused} of {frames} frames in a row cannot be used, and data.on_bad=skip leaves "
            f"out {MAX_SHARE:.1%} of all; the last: {why}"
        )


def check_share(refused: int, frames: int, why: str) -> None:
    """Refuse data of which more is bad than may be left out.

    Args:
        refused: frames that were left out.
        frames: of the data, these included.
        why: what is wrong with the first of them.

    Raises:
        DataError: more than `MAX_SHARE` of them.
    """
    if refused > MAX_SHARE * frames:
        raise DataError(
            f"{refused} of {frames} frames cannot be used, more than the {MAX_SHARE:.1%} that "
            f"data.on_bad=skip leaves out; the first: {why}; mlip data check says what is wrong"
        )
