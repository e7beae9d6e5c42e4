"""Extended XYZ, streamed frame by frame.

ASE's reader indexes the whole file first, stops without a word at a blank line in the middle,
rewinds compressed files for every frame and refuses 6-component stresses. This one reads forward
once, and a frame that is cut short is an error. Values mean what they mean to ASE (a test compares
the two on real files).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlip.data.readers.frames import RawFrame
from mlip.data.readers.streams import open_bytes
from mlip.errors import CorruptDataError, DataError

MAX_LINE: Final = 64 * 1024**2  # bytes; a longer line is no extxyz
MAX_ATOMS: Final = 50_000_000
_PLAIN_LAYOUT: Final = "species:S:1:pos:R:3"
_BOOLEANS: Final = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
_PAIR: Final = re.compile(
    r"""\s*(?P<key>[^\s="'{}\[\]\\]+|"(?:[^"\\]|\\.)*")"""
    r"""(?:\s*=\s*(?:"(?P<dq>(?:[^"\\]|\\.)*)"|'(?P<sq>[^']*)'|\{(?P<cb>[^}]*)\}"""
    r"""|\[(?P<sb>[^\]]*)\]|(?P<bare>[^\s"'{}\[\]\\]\S*)))?(?=\s|$)"""
)
_MEANT: Final = re.compile(r"(properties|lattice|pbc|energy|stress|virials?|charge|spin)\s*=", re.I)
_RESULTS: Final = frozenset(all_properties)
_NUMBER_STARTS: Final = tuple("+-.0123456789nNiI ")  # nan, inf
Layout = list[tuple[str, str, int]]  # name, type letter, columns


def read_extxyz(path: Path, part: tuple[int, int, int] | None = None) -> Iterator[RawFrame]:
    """Yield the frames of an extxyz file.

    Args:
        path: the file.
        part: first byte, the one after the last and number of the first frame, as `split_extxyz`
            gives them; default all.

    Raises:
        DataError: it holds no frame, is no UTF-8, or a line that should be the first of a frame is
            not or announces too many atoms.
        CorruptDataError: the last frame is cut short, or lines do not have their columns.
    """
    begin, end, first = part or (0, None, 0)
    with open_bytes(path) as stream:
        if begin:
            stream.seek(begin)
        index = first
        for frame in _frames(path, stream, first, end):
            index += 1
            yield frame
        if index == first:
            raise DataError(f"{path}: the file is empty; expected at least one frame")
        if end is not None and stream.tell() != end:
            raise CorruptDataError(
                f"{path}: frame {index - 1}: ends at byte {stream.tell()}, not at byte {end} as "
                "when frames were counted; the file changes while it is read, try again later"
            )


def _frames(path: Path, stream: BinaryIO, index: int, end: int | None) -> Iterator[RawFrame]:
    """Yield the frames that begin before byte `end`, of which the first has number `index`."""
    layouts: dict[str, Layout] = {}
    while (end is None or stream.tell() < end) and (line := stream.readline(MAX_LINE)):
        if not (head := line.strip()):
            continue  # a blank line between frames loses nothing
        place = f"{path}: frame {index}"
        if not head.isdigit():
            raise DataError(
                f"{place}: expected its number of atoms, found {_show(line)}; "
                "is the file extxyz, and was a line added or lost?"
            )
        n = int(head)
        if n > MAX_ATOMS:
            raise DataError(f"{place}: announces {n} atoms, more than {MAX_ATOMS}; check the line")
        comment = stream.readline(MAX_LINE)
        lines = list(islice(iter(lambda: stream.readline(MAX_LINE), b""), n))
        if not comment or len(lines) < n:
            raise CorruptDataError(
                f"{place}: announces {n} atoms, but the file ends after {len(lines)} of them; "
                "the file is cut short, copy it again or remove the last frame"
            )
        if b"\0" in comment:  # a hole in a file that was copied or stored badly
            raise CorruptDataError(
                f"{place}: its second line holds zero bytes; copy the file again"
            )
        try:
            text = comment.decode("utf-8").strip()
            rows = [row.decode("utf-8") for row in lines]
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is not UTF-8 text ({error.reason}); convert it") from None
        if rows and not rows[-1].endswith("\n"):
            _check_last_line(rows, place)
        yield RawFrame.unless_misshapen(_parse, text, rows, layouts, place)
        index += 1


def _check_last_line(rows: list[str], place: str) -> None:
    """Refuse a number that was cut in the middle: fewer decimals than in every other row."""
    decimals = [len(row.split()[-1].partition(".")[2]) for row in rows if row.split()]
    if len(decimals) > 1 and decimals[-1] < min(decimals[:-1]) and len(set(decimals[:-1])) == 1:
        raise CorruptDataError(
            f"{place}: the file ends in the middle of the number {rows[-1].split()[-1]!r}; "
            "it is cut short, copy it again or remove the last frame"
        )


def _parse(text: str, rows: list[str], layouts: dict[str, Layout], place: str) -> RawFrame:
    properties, info = _parse_comment(text, place)
    if (layout := layouts.get(properties)) is None:
        layout = layouts[properties] = _parse_layout(properties, place)
    columns = _parse_columns(rows, layout, place)
    positions = columns.pop("pos", None)
    if positions is None:
        raise DataError(f"{place}: its Properties {properties!r} have no 'pos'; add positions")
    cell = info.pop("Lattice", None)
    pbc = info.pop("pbc", None)
    if cell is not None:
        cell = np.asarray(cell)
        if cell.shape != (9,) or cell.dtype.kind not in "if":
            raise DataError(f"{place}: Lattice is {cell}; expected 9 numbers ax ay az bx ... cz")
        cell = cell.reshape(3, 3)
    if pbc is None:
        pbc = (cell is not None,) * 3
    elif not (isinstance(pbc, bool) or _is_three_flags(pbc)):
        raise DataError(f"{place}: pbc is {pbc!r}; expected three of T and F")
    frame = RawFrame(_numbers(columns, place), positions, cell, pbc)
    if (move_mask := columns.pop("move_mask", None)) is not None:
        frame.constraints = _constraints(move_mask)
    for store, entries in ((frame.info, info), (frame.arrays, columns)):
        for name, value in entries.items():
            (frame.results if name in _RESULTS else store)[name] = value
    # A 6-vector here is plain text, whose order the caller may set; ASE's results have one order.
    if np.size(frame.results.get("stress", ())) == 6:
        frame.info["stress"] = frame.results.pop("stress")
    return frame


def _is_three_flags(pbc: Any) -> bool:
    return np.shape(pbc) == (3,) and all(flag in (0, 1) for flag in pbc)


def _parse_comment(text: str, place: str) -> tuple[str, dict[str, Any]]:
    """Return (Properties, everything else) of a comment line."""
    pairs: dict[str, str | None] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            if not _MEANT.search(text):
                return _PLAIN_LAYOUT, {}  # a plain xyz comment: free text
            raise DataError(
                f"{place}: cannot read its second line at {text[position : position + 40]!r}; "
                'expected key=value or key="several values"'
            )
        key, *quoted, bare = match.group("key", "dq", "sq", "cb", "sb", "bare")
        value = next((v for v in (*quoted, bare) if v is not None), None)
        pairs[key.strip('"')] = value
        position = match.end()
    properties = pairs.pop("Properties", None) or _PLAIN_LAYOUT
    return properties, {key: _value(value, place) for key, value in pairs.items()}


def _value(text: str | None, place: str) -> Any:
    """Convert like ASE: whole numbers, numbers, booleans and lists of them, JSON, else text."""
    if text is None:
        return True  # a key alone
    words = text.replace(",", " ").split()
    for convert in (int, float) if text[:1] in _NUMBER_STARTS else ():
        try:
            numbers = list(map(convert, words))
        except ValueError:
            continue
        if len(numbers) == 1:
            return numbers[0]
        return np.array(numbers) if numbers else text
    if all(word in _BOOLEANS for word in words):
        booleans = [_BOOLEANS[word] for word in words]
        return booleans[0] if len(booleans) == 1 else booleans
    plain = re.sub(r"\\(.)", r"\1", text) if "\\" in text else text
    if plain.startswith("_JSON "):
        try:
            value = json.loads(plain[6:])
        except ValueError as error:
            raise DataError(f"{place}: {plain[:60]!r} is not JSON ({error}); correct it") from None
        return np.array(value) if isinstance(value, list) and _is_regular(value) else value
    return plain


def _is_regular(value: list[Any]) -> bool:
    try:
        return np.array(value).dtype.kind in "ifb"
    except ValueError:
        return False


def _parse_layout(properties: str, place: str) -> Layout:
    fields = properties.split(":")
    layout = list(zip(fields[::3], fields[1::3], fields[2::3], strict=False))
    good = len(fields) % 3 == 0 and all(
        kind in "RISL" and columns.isdigit() and int(columns) > 0 for _, kind, columns in layout
    )
    if not good or len({name for name, _, _ in layout}) != len(layout):
        raise DataError(
            f"{place}: Properties={properties!r} is not a list of name:type:columns with type R, "
            "I, S or L and different names; correct it"
        )
    return [(name, kind, int(columns)) for name, kind, columns in layout]


def _parse_columns(rows: list[str], layout: Layout, place: str) -> dict[str, NDArray[Any]]:
    width = sum(columns for _, _, columns in layout)
    tokens = " ".join(rows).split()
    if len(tokens) != width * len(rows):
        _check_widths(rows, width, place)
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for name, kind, count in layout:
        if count == 1:
            words = tokens[start::width]
        else:
            words = [w for k in range(start, len(tokens), width) for w in tokens[k : k + count]]
        try:
            values = _CONVERT[kind](words)
        except (ValueError, KeyError, OverflowError) as error:
            _check_widths(rows, width, place)
            damage = CorruptDataError if "\0" in "".join(words) else DataError  # a hole
            raise damage(
                f"{place}: column {name!r} holds something that is not of type {kind} ({error}); "
                "correct it"
            ) from None
        columns[name] = values if count == 1 else values.reshape(-1, count)
        start += count
    return columns


def _check_widths(rows: list[str], width: int, place: str) -> None:
    """Refuse rows without their columns: a line is lost, or the next frame is taken for this one.

    Raises:
        CorruptDataError: names the first of them.
    """
    for number, row in enumerate(rows):
        if len(row.split()) != width:
            raise CorruptDataError(
                f"{place}: atom {number} has {len(row.split())} columns, expected {width} "
                f"as Properties say: {_show(row)}; correct that line"
            )


_CONVERT: Final = {
    "R": lambda words: np.array(list(map(float, words))),
    "I": lambda words: np.array(list(map(int, words)), dtype=np.int64),
    "S": lambda words: np.array(words, dtype=object),
    "L": lambda words: np.array([_BOOLEANS[word] for word in words], dtype=bool),
}


def _numbers(columns: dict[str, NDArray[Any]], place: str) -> NDArray[np.int64]:
    species = columns.pop("species", None)
    numbers = columns.pop("Z", None)
    if numbers is not None:
        return numbers
    if species is None:
        raise DataError(f"{place}: has neither 'species' nor 'Z' columns; add the elements")
    try:
        return np.array([atomic_numbers[symbol] for symbol in species], dtype=np.int64)
    except KeyError:
        pass
    known = {s: atomic_numbers.get(str(s).capitalize()) for s in set(species.tolist())}
    unknown = sorted(str(s) for s, z in known.items() if z is None)
    if unknown:
        raise DataError(
            f"{place}: {unknown[0]!r} is not a chemical symbol; expected H, He, Li, ...; "
            "rename such atoms"
        )
    return np.array([known[s] for s in species.tolist()], dtype=np.int64)


def _constraints(move_mask: NDArray[Any]) -> list[Any]:
    if move_mask.ndim == 1:
        return [FixAtoms(mask=~move_mask.astype(bool))]
    return [
        FixCartesian(i, mask=~row) for i, row in enumerate(move_mask.astype(bool)) if not row.all()
    ]


def _show(line: str | bytes) -> str:
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    text = text.rstrip("\n")
    return repr(text if len(text) <= 60 else text[:57] + "...")
