"""MatPES in its own JSON: a list of records, or a record a line (`.jsonl`).

A record is `{structure, energy, forces, stress, matpes_id, provenance: {original_mp_id}, ...}`. The
format fixes its units: energies eV, forces eV/Å, stress kbar with VASP's sign, which `mlip` turns
into eV/Å³ and ASE's sign. The six components of the stress are taken in ASE's order (xx, yy, zz,
yz, xz, xy), as the authors' notebook on training does; the dataset's page does not say.

Source: Kaplan et al., arXiv:2503.04070; matpes.ai; the notebooks of materialsvirtuallab/matpes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Generic

import msgspec
import numpy as np

from mlip.data.readers.collector import no_collector
from mlip.data.readers.frames import RawFrame
from mlip.data.readers.pymatgen_json import (
    Properties,
    S,
    Site,
    Structure,
    UnusualSite,
    Vector,
    geometry,
    kbar_of_vasp,
    numbers_of,
    vectors,
)
from mlip.data.readers.streams import open_bytes
from mlip.errors import CorruptDataError, DataError

CHUNK: Final = 1024**2  # bytes
MAX_RECORD: Final = 64 * 1024**2  # bytes; one of MatPES has a few thousand
_BETWEEN: Final = re.compile(rb"(?:\xef\xbb\xbf)?[\s,]*")


class _Site(Site, gc=False):
    properties: Properties | None = None


class _Provenance(msgspec.Struct, gc=False):
    original_mp_id: str | None = None


class _Record(msgspec.Struct, Generic[S], gc=False):
    structure: Structure[S]
    energy: float | None = None
    forces: list[Vector] | None = None
    stress: list[Any] | None = None  # six numbers, or three rows
    matpes_id: str | None = None
    functional: str | None = None
    provenance: _Provenance | None = None
    bandgap: float | None = None
    cohesive_energy_per_atom: float | None = None
    formation_energy_per_atom: float | None = None


_DECODER: Final = msgspec.json.Decoder(_Record[_Site])
_UNUSUAL: Final = msgspec.json.Decoder(_Record[UnusualSite])
_SCALARS: Final = ("functional", "bandgap", "cohesive_energy_per_atom", "formation_energy_per_atom")


def read_matpes(path: Path) -> Iterator[RawFrame]:
    """Yield every record, in the order of the file.

    Raises:
        DataError: a record cannot be understood.
        CorruptDataError: the file is cut short or damaged.
    """
    index = -1
    for index, (offset, text) in enumerate(_records(path)):
        place = f"{path}: frame {index} at byte {offset}"
        yield RawFrame.unless_misshapen(_read_record, text, place)
    if index < 0:
        raise DataError(f"{path}: the file holds no record; expected [{{structure, energy, ..}}]")


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, `{...}`) for each record, holding one chunk."""
    rest, base = b"", 0  # what is not yet given out, and where in the file it begins
    listed = False  # "[" came first
    with open_bytes(path) as stream:
        while chunk := stream.read(CHUNK):
            buffer = rest + chunk
            start = 0
            if base == 0 and (opening := re.match(rb"(?:\xef\xbb\xbf)?\s*\[", buffer)):
                listed, start = True, opening.end()
            for stop in _ends(buffer, start, path, base):
                begin = _skip(buffer, start, path, base)
                yield base + begin, buffer[begin:stop]
                start = stop
            rest, base = buffer[start:], base + start
            if len(rest) > MAX_RECORD:
                raise DataError(
                    f"{path}: byte {base}: a record of more than {MAX_RECORD} bytes; is this "
                    "MatPES, [{structure, energy, ..}, ..]?"
                )
    if rest.strip() != (b"]" if listed else b""):
        raise CorruptDataError(
            f"{path}: byte {base}: is cut short or damaged, it ends in {rest[-40:]!r}; copy or "
            "download it again"
        )


def _ends(buffer: bytes, start: int, path: Path, base: int) -> list[int]:
    """Return where records end: where as many braces have closed as have opened."""
    text = np.frombuffer(buffer, np.uint8, offset=start)
    braces = np.flatnonzero((text == ord("{")) | (text == ord("}")))
    depth = np.cumsum(np.where(text[braces] == ord("{"), 1, -1))
    if len(depth) and depth.min() < 0:
        at = base + start + int(braces[depth.argmin()])
        raise CorruptDataError(
            f"{path}: byte {at}: a brace closes that did not open; the file is damaged, copy or "
            "download it again"
        )
    return (braces[depth == 0] + start + 1).tolist()


def _skip(buffer: bytes, start: int, path: Path, base: int) -> int:
    """Return where the record begins, with nothing but commas and white space before it."""
    between = _BETWEEN.match(buffer, start)
    begin = between.end() if between else start
    if buffer[begin : begin + 1] != b"{":
        raise CorruptDataError(
            f"{path}: byte {base + begin}: expected a record, found "
            f"{buffer[begin : begin + 40]!r}; the file is damaged, copy or download it again"
        )
    return begin


def _decode(text: bytes, place: str) -> _Record[Any]:
    for decoder in (_DECODER, _UNUSUAL):
        try:
            with no_collector():
                return decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is one
            pass
    try:  # NaN is no JSON, but written by Python; bad labels are named where labels are checked
        return msgspec.convert(json.loads(text), _Record[UnusualSite])
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: {error}; this is not MatPES's layout, correct it") from None
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(
            f"{place}: is damaged ({error}), or a text in it holds a brace without its other; copy "
            "or download the file again"
        ) from None


def _read_record(text: bytes, place: str) -> RawFrame:
    return _raw_frame(_decode(text, place), place)


def _raw_frame(record: _Record[Any], place: str) -> RawFrame:
    where = record.matpes_id or ""
    place = f"{place} ({where})" if where else place
    results: dict[str, Any] = {
        "energy": record.energy,
        "forces": None if record.forces is None else vectors(record.forces),
        "stress": kbar_of_vasp(record.stress, place),
    }
    moments = [site.properties and site.properties.magmom for site in record.structure.sites]
    if any(moment is not None for moment in moments):
        results["magmoms"] = numbers_of(moments, "the magmom of its sites", place)
    info = {name: getattr(record, name) for name in _SCALARS}
    info["frame_id"] = record.matpes_id
    info["mp_id"] = record.provenance and record.provenance.original_mp_id
    return RawFrame(
        **geometry(record.structure, place),
        results={k: v for k, v in results.items() if v is not None},
        info={k: v for k, v in info.items() if v is not None},
        where=where,
    )
