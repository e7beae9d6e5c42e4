"""MPtrj in its own JSON: `{mp_id: {frame_id: {structure, energies, force, stress, magmom}}}`.

The file has 11 GB and fits no memory as Python objects, so it is cut into materials while it
streams by, and each material is decoded with msgspec into exactly the fields below. pymatgen's
decoder is not used: it imports whatever module a file names, and takes twenty minutes.

The format fixes its units: energies eV, forces eV/Å, stress kbar with VASP's sign (compression
positive), which `mlip` turns into eV/Å³ and ASE's sign: sigma = -kbar / 1602.1766208.
`.json.gz` is read the same way, as a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlip.data.readers.canonical import RawFrame
from mlip.data.readers.collector import no_collector
from mlip.data.readers.streams import open_bytes
from mlip.errors import CorruptDataError, DataError
from mlip.units import stress_factor

CHUNK: Final = 1024**2  # bytes; larger blocks go back to the kernel after every use
MAX_MATERIAL: Final = 2 * 1024**3  # bytes; the largest material has a few hundred frames
KBAR_VASP: Final = -stress_factor("kbar")  # to eV/Å³, ASE's sign

# A value ends and a new key follows: the end of a material wherever the braces are balanced.
_BOUNDARY: Final = re.compile(rb'\}\s*,\s*"[^"]*"\s*:\s*\{')
_MAY_END: Final = b"}{ \t\r\n"  # before the last brace of a material; a frame ends in a value
_OVERLAP: Final = 4096  # longer than any boundary
_KEY: Final = re.compile(rb'\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
_FRAME_ID: Final = re.compile(r"(.+)-(\d+)-(\d+)")  # task, calculation, ionic step
_ELEMENT: Final = re.compile(r"[A-Z][a-z]?(?=$|[0-9+-])")  # "Fe2+" is iron


_WHOLE: Final = {(symbol, 1.0): number for symbol, number in atomic_numbers.items()}


class _Species(msgspec.Struct, gc=False):
    element: str
    occu: float = 1.0


class _Site(msgspec.Struct, gc=False):
    species: list[_Species]
    abc: tuple[float, float, float] | None = None
    xyz: tuple[float, float, float] | None = None


class _Lattice(msgspec.Struct, gc=False):
    matrix: list[tuple[float, float, float]]
    pbc: tuple[bool, bool, bool] = (True, True, True)


class _Structure(msgspec.Struct, gc=False):
    lattice: _Lattice
    sites: list[_Site]


class _Frame(msgspec.Struct, gc=False):
    structure: _Structure
    uncorrected_total_energy: float | None = None
    corrected_total_energy: float | None = None
    energy_per_atom: float | None = None
    ef_per_atom: float | None = None
    e_per_atom_relaxed: float | None = None
    ef_per_atom_relaxed: float | None = None
    force: list[list[float]] | None = None
    stress: list[list[float]] | None = None
    magmom: list[float | None] | None = None
    bandgap: float | None = None


_Material = dict[str, _Frame]
_DECODER: Final = msgspec.json.Decoder(_Material)
_SCALARS: Final = tuple(
    name
    for name in _Frame.__struct_fields__
    if name not in ("structure", "force", "stress", "magmom", "uncorrected_total_energy")
)


def read_mptrj(path: Path, span: tuple[int, int] | None = None) -> Iterator[RawFrame]:
    """Yield every frame, material by material, in the order of the file.

    Args:
        path: the file.
        span: bytes of the materials to read, as `split_mptrj` gives them; default all.

    Raises:
        DataError: a record cannot be understood, or a site is disordered.
        CorruptDataError: the file is cut short or damaged.
    """
    for mp_id, material in _materials(path, span):
        for frame_id, frame in material.items():
            yield _raw_frame(path, mp_id, frame_id, frame)


def split_mptrj(path: Path, size: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield spans of whole materials that can be read by themselves, each with its bytes.

    All but the last have `size` bytes or a little more.
    """
    begin = 0
    for offset, _ in islice(_pieces(path), 1, None):
        if offset - begin >= size:
            yield (begin, offset), offset - begin
            begin = offset
    end = path.stat().st_size
    yield (begin, end), end - begin


def _materials(path: Path, span: tuple[int, int] | None) -> Iterator[tuple[str, _Material]]:
    """Yield (mp_id, decoded material) in turn, holding one material and one chunk."""
    last = ""
    for offset, piece in _pieces(path, span):
        progress = f"byte {offset}, after {f'material {last}' if last else 'no material'}"
        if (head := _KEY.match(piece)) is None:
            raise CorruptDataError(
                f"{path}: {progress}: expected the id of a material, found {piece[:40]!r}; "
                "the file is cut short or damaged, copy or download it again"
            )
        try:
            mp_id = str(json.loads(b'"' + head.group(1) + b'"'))
        except ValueError:
            raise CorruptDataError(
                f"{path}: {progress}: the id of a material is {head.group(1)[:40]!r}, which is no "
                "text; the file is damaged, copy or download it again"
            ) from None
        yield mp_id, _decode(memoryview(piece)[head.end() :], f"{path}: {progress}: {mp_id}")
        last = mp_id
    if not last:
        raise DataError(f"{path}: the file holds no material; expected {{mp_id: {{frame_id: ..}}}}")


def _pieces(path: Path, span: tuple[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, `"mp_id": {...}`) for each material of the file or of a part of it."""
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
        counted = start  # braces are counted up to here ...
        depth = 0  # ... and this many are open; one inside a string would end in a decoding error
        while True:
            for match in _BOUNDARY.finditer(buffer, max(start, counted - 1)):
                stop = match.start() + 1
                if buffer[stop - 2] not in _MAY_END:
                    continue  # the end of a frame
                depth += buffer.count(b"{", counted, stop) - buffer.count(b"}", counted, stop)
                counted = stop
                if depth == 0:
                    yield base + start, buffer[start:stop]
                    start = counted = buffer.index(b",", stop) + 1
            safe = max(counted, len(buffer) - _OVERLAP)
            depth += buffer.count(b"{", counted, safe) - buffer.count(b"}", counted, safe)
            counted = safe
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
    yield from _last_pieces(buffer, base, start, b"" if cut else b"}")


def _last_pieces(buffer: bytes, base: int, start: int, end: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what no boundary follows: the last material of a file or part that closes by `end`."""
    # A file cut within a key has one more complete material; so has a part, which ends in a comma.
    depth, counted, origin = 0, start, start
    for match in re.finditer(rb"\}\s*,", buffer[start:]):
        stop = origin + match.start() + 1
        depth += buffer.count(b"{", counted, stop) - buffer.count(b"}", counted, stop)
        counted = stop
        if depth == 0:
            yield base + start, buffer[start:stop]
            start = origin + match.end()
            break
    rest = buffer[start:].strip()
    if rest != end:
        # The closing brace of the whole file goes; a cut file then cannot be decoded.
        yield base + start, rest.removesuffix(b"}")


def _decode(text: memoryview, place: str) -> _Material:
    try:
        with no_collector():
            return _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: {error}; this is not the MPtrj layout, correct it") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # NaN is no JSON, but written by Python; bad labels are named where labels are checked
        return msgspec.convert(json.loads(bytes(text)), _Material)
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: {error}; this is not the MPtrj layout, correct it") from None
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(
            f"{place}: is cut short or damaged ({error}); copy or download the file again"
        ) from None


def _raw_frame(path: Path, mp_id: str, frame_id: str, frame: _Frame) -> RawFrame:
    where = f"{mp_id}, {frame_id}"
    sites = frame.structure.sites
    matrix = np.array(frame.structure.lattice.matrix, dtype=np.float64)
    fractional = [site.abc for site in sites if site.abc is not None]
    if len(fractional) == len(sites):
        flat = np.fromiter(chain.from_iterable(fractional), np.float64, 3 * len(sites))
        positions = flat.reshape(-1, 3) @ matrix
    else:
        positions = np.array([site.xyz for site in sites], dtype=np.float64)
    results: dict[str, Any] = {
        "energy": frame.uncorrected_total_energy,
        "forces": frame.force,
        "stress": _stress(frame.stress, f"{path}: {where}"),
    }
    if frame.magmom:
        results["magmoms"] = [np.nan if m is None else m for m in frame.magmom]
    info = {name: getattr(frame, name) for name in _SCALARS}
    info.update(mp_id=mp_id, frame_id=frame_id)
    if parts := _FRAME_ID.fullmatch(frame_id):  # as the other packagings of MPtrj have it
        info.update(task_id=parts[1], calc_id=int(parts[2]), ionic_step=int(parts[3]))
    return RawFrame(
        numbers=_atomic_numbers(sites, f"{path}: {where}"),
        positions=positions,
        cell=matrix,
        pbc=frame.structure.lattice.pbc,
        results={k: v for k, v in results.items() if v is not None},
        info={k: v for k, v in info.items() if v is not None},
        where=where,
    )


def _atomic_numbers(sites: list[_Site], place: str) -> NDArray[np.int64]:
    try:
        numbers = [
            _WHOLE[species.element, species.occu] for (species,) in [s.species for s in sites]
        ]
    except (KeyError, ValueError):  # something is unusual: look closely, and say at which site
        numbers = [_atomic_number(site, f"{place}: site {i}") for i, site in enumerate(sites)]
    return np.array(numbers, dtype=np.int64)


def _atomic_number(site: _Site, place: str) -> int:
    if len(site.species) != 1 or abs(site.species[0].occu - 1.0) > 1e-6:
        occupation = ", ".join(f"{s.element} {s.occu:g}" for s in site.species)
        raise DataError(
            f"{place} is disordered ({occupation}); a training structure has one whole element on "
            "every site; remove this frame"
        )
    element = site.species[0].element
    if (number := atomic_numbers.get(element)) is not None:
        return number
    symbol = _ELEMENT.match(element)
    number = atomic_numbers.get(symbol.group()) if symbol else None
    if number is None:
        raise DataError(f"{place} holds {element!r}, which is no element; correct or remove it")
    return number


def _stress(stress: list[list[float]] | None, place: str) -> NDArray[np.float64] | None:
    """Convert VASP's kbar, compression positive, to eV/Å³ in ASE's sign."""
    if stress is None:
        return None
    try:
        return np.array(stress, dtype=np.float64) * KBAR_VASP
    except ValueError:
        raise DataError(f"{place}: its stress is ragged; expected 3x3 numbers in kbar") from None
