"""Where an extxyz file can be cut: at the first lines of frames, found without reading the frames.

Nothing in the text of a frame tells it from another's: a comment may be a number, and so may a row
of atoms. But the first line says how many lines belong to a frame, so whoever jumps from one first
line to the next, counting the ends of lines, is as sure of the borders as `read_extxyz` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from mlip.data.readers.extxyz import MAX_ATOMS
from mlip.data.readers.streams import open_bytes

CHUNK: Final = 1024**2  # bytes; what is made of one stays in the processor's cache
_DIGITS: Final = len(str(MAX_ATOMS))

Part = tuple[int, int, int]  # first byte, the one after the last, number of the first frame


def split_extxyz(path: Path, size: int) -> Iterator[tuple[Part | None, int]]:
    """Yield parts of whole frames that can be read by themselves, each with its bytes.

    All but the last have `size` bytes or a little more. A file that is not larger is one part,
    None. What is behind a line that begins no frame belongs to the last part: its reader says what
    is wrong there.
    """
    total = path.stat().st_size
    if total <= size:
        yield None, total
        return
    begin, first = 0, 0
    for frame, offset in enumerate(_first_lines(path)):
        if offset - begin >= size and frame > first:  # blank lines alone are no part
            yield (begin, offset, first), offset - begin
            begin, first = offset, frame
    yield (begin, total, first), total - begin


def _first_lines(path: Path) -> Iterator[int]:
    """Yield where each frame begins, in bytes; stop at what is no first line of a frame."""
    with open_bytes(path) as stream:
        buffer, base = b"", 0  # its offset in the file
        inside = 0  # lines that still belong to the last frame
        while chunk := stream.read(CHUNK):
            buffer += chunk
            ends = np.flatnonzero(np.frombuffer(buffer, np.uint8) == ord("\n"))
            if not len(ends):
                return  # the end of the file, or a line that may be too long for the reader
            line = inside
            while line < len(ends):
                begin = int(ends[line - 1]) + 1 if line else 0
                if head := buffer[begin : int(ends[line])].strip():
                    if not head.isdigit() or len(head) > _DIGITS:
                        return
                    yield base + begin
                    line += 1 + int(head)  # the comment and the atoms
                line += 1
            inside = line - len(ends)
            left = int(ends[-1]) + 1
            buffer, base = buffer[left:], base + left
