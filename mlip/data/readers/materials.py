"""`{mp_id: {...}, ...}` cut into its materials while it streams by.

Nothing is decoded here: a material ends where as many braces have closed as have opened and the key
of another follows. A brace inside a string would end in a decoding error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.streams import open_bytes
from mlip.errors import DataError

CHUNK: Final = 512 * 1024  # bytes; what is made of larger ones goes back to the kernel every time
MAX_MATERIAL: Final = 2 * 1024**3  # bytes; the largest material has a few hundred frames

_BOUNDARY: Final = re.compile(rb'\}\s*(,)\s*"[^"]*"\s*:\s*\{')  # a value ends, a new key follows
_MAY_END: Final = b"}{ \t\r\n"  # before the last brace of a material; a frame ends in a value
_COMMA: Final = re.compile(rb"\s*,")
_OVERLAP: Final = 4096  # longer than any boundary
_BETWEEN: Final = ord("{") + 1  # between the two braces


def split_materials(path: Path, size: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield spans of whole materials that can be read by themselves, each with its bytes.

    All but the last have `size` bytes or a little more.
    """
    begin, end = 0, path.stat().st_size
    base, depth = 0, -1  # offset of the buffer; braces open there, without that of the file
    with open_bytes(path) as stream:
        buffer = stream.read(CHUNK)
        while buffer:
            safe = max(0, len(buffer) - _OVERLAP)
            if base + len(buffer) < begin + size:
                depth += _opened(buffer, safe)  # where materials end is no matter yet
            else:
                braces, depths = _braces(buffer, 0, depth)
                for _, after in _ends(buffer, braces, depths):
                    if base + after - begin >= size:
                        yield (begin, base + after), base + after - begin
                        begin = base + after
                depth = _depth_at(safe, braces, depths, depth)
            if not (chunk := stream.read(CHUNK)):
                break
            buffer, base = buffer[safe:] + chunk, base + safe
    yield (begin, end), end - begin


def cut_materials(path: Path, span: tuple[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, `"mp_id": {...}`) for each material of the file or of a part of it.

    Args:
        path: the file.
        span: bytes of the materials, as `split_materials` gives them; default all.

    Raises:
        DataError: the file is none of materials.
    """
    base, end = span or (0, None)  # offset of the buffer in the file
    with open_bytes(path) as stream:
        if base:
            stream.seek(base)
        buffer = stream.read(CHUNK if end is None else min(CHUNK, end - base))
        opening = re.match(rb"(?:\xef\xbb\xbf)?\s*\{" if base == 0 else rb"", buffer)
        if opening is None:
            raise DataError(
                f"{path}: does not start with '{{'; expected {{mp_id: {{frame_id: ..}}}}"
            )
        start = opening.end()  # of the current material, in the buffer
        counted, depth = start, 0  # braces are counted up to here, and so many are open
        while True:
            braces, depths = _braces(buffer, counted, depth)
            for stop, after in _ends(buffer, braces, depths):
                yield base + start, buffer[start:stop]
                start = after
            safe = max(start, counted, len(buffer) - _OVERLAP)
            counted, depth = safe, _depth_at(safe, braces, depths, depth)
            if len(buffer) - start > MAX_MATERIAL:
                raise DataError(
                    f"{path}: byte {base + start}: a material of more than {MAX_MATERIAL} bytes; "
                    "is this MPtrj, {mp_id: {frame_id: ...}}?"
                )
            left = CHUNK if end is None else end - base - len(buffer)
            if not (chunk := stream.read(min(CHUNK, left))):
                break
            buffer = buffer[start:] + chunk
            base, counted, start = base + start, counted - start, 0
    cut = end is not None and end < path.stat().st_size
    yield from _last_materials(buffer, base, start, b"" if cut else b"}")


def _last_materials(
    buffer: bytes, base: int, start: int, end: bytes
) -> Iterator[tuple[int, bytes]]:
    """Yield what no boundary follows: the last material of a file or part that closes by `end`."""
    # A file cut within a key has one more complete material; so has a part, which ends in a comma.
    for stop in _closed(*_braces(buffer, start, 0)):
        if comma := _COMMA.match(buffer, stop):
            yield base + start, buffer[start:stop]
            start = comma.end()
            break
    rest = buffer[start:].strip()
    if rest != end:
        # The closing brace of the whole file goes; a cut file then cannot be decoded.
        yield base + start, rest.removesuffix(b"}")


def _ends(
    buffer: bytes, braces: NDArray[np.intp], depths: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Yield where materials end that another follows, and where that begins."""
    for stop in _closed(braces, depths):
        if buffer[stop - 2] in _MAY_END and (boundary := _BOUNDARY.match(buffer, stop - 1)):
            yield stop, boundary.end(1)


def _closed(braces: NDArray[np.intp], depths: NDArray[np.int64]) -> list[int]:
    """Return where nothing is open any more."""
    return (braces[depths == 0] + 1).tolist()


def _braces(buffer: bytes, start: int, depth: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return where the braces from `start` on are, and how many are open behind each of them.

    `depth` are open at the start.
    """
    text = np.frombuffer(buffer, np.uint8)[start:]
    braces = np.flatnonzero((text == ord("{")) | (text == ord("}")))
    steps = (_BETWEEN - text[braces]).view(np.int8)  # 1 or -1, and a third of the time of `where`
    return braces + start, depth + steps.cumsum(dtype=np.int64)


def _depth_at(place: int, braces: NDArray[np.intp], depths: NDArray[np.int64], depth: int) -> int:
    """Return how many braces are open at a place; `depth` is before the first of these."""
    passed = int(braces.searchsorted(place))
    return int(depths[passed - 1]) if passed else depth


def _opened(buffer: bytes, stop: int) -> int:
    """Return how many more braces open than close; numpy counts four times faster than bytes do."""
    part = np.frombuffer(buffer, np.uint8)[:stop]
    return int(np.count_nonzero(part == ord("{")) - np.count_nonzero(part == ord("}")))
