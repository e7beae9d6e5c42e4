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
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Generic

import msgspec
import numpy as np

from mlip.data.readers.collector import no_collector
from mlip.data.readers.frames import RawFrame
from mlip.data.readers.materials import cut_materials
from mlip.data.readers.pymatgen_json import (
    KBAR_VASP,
    S,
    Site,
    Structure,
    UnusualSite,
    Vector,
    geometries_of,
    geometry,
    kbar_of_vasp,
    vectors,
    vectors_of,
)
from mlip.errors import CorruptDataError, DataError

_KEY: Final = re.compile(rb'\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
_FRAME_ID: Final = re.compile(r"(.+)-(\d+)-(\d+)")  # task, calculation, ionic step


class _Frame(msgspec.Struct, Generic[S], gc=False):
    structure: Structure[S]
    uncorrected_total_energy: float | None = None
    corrected_total_energy: float | None = None
    energy_per_atom: float | None = None
    ef_per_atom: float | None = None
    e_per_atom_relaxed: float | None = None
    ef_per_atom_relaxed: float | None = None
    force: list[Vector] | None = None
    stress: list[list[float]] | None = None
    magmom: list[float | None] | None = None
    bandgap: float | None = None


_AnyFrame = _Frame[Site] | _Frame[UnusualSite]
_Material = dict[str, _Frame[Site]] | dict[str, _Frame[UnusualSite]]
_Unusual = dict[str, _Frame[UnusualSite]]
_DECODER: Final = msgspec.json.Decoder(dict[str, _Frame[Site]])
_UNUSUAL: Final = msgspec.json.Decoder(_Unusual)
_SCALARS: Final = tuple(
    name
    for name in _Frame.__struct_fields__
    if name not in ("structure", "force", "stress", "magmom", "uncorrected_total_energy")
)
_scalars_of: Final = attrgetter(*_SCALARS)


def read_mptrj(path: Path, span: tuple[int, int] | None = None) -> Iterator[RawFrame]:
    """Yield every frame, material by material, in the order of the file.

    Args:
        path: the file.
        span: bytes of the materials to read, as `split_materials` gives them; default all.

    Raises:
        DataError: a record cannot be understood, or a site is disordered.
        CorruptDataError: the file is cut short or damaged.
    """
    for mp_id, text, place in _materials(path, span):
        with no_collector():  # what is decoded is gone before the collector could visit it
            frames = _frames(path, mp_id, _decode(text, place))
        yield from frames


def _materials(path: Path, span: tuple[int, int] | None) -> Iterator[tuple[str, memoryview, str]]:
    """Yield (mp_id, text, place) of each material in turn, holding one of them and one chunk."""
    last = ""
    for offset, piece in cut_materials(path, span):
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
        yield mp_id, memoryview(piece)[head.end() :], f"{path}: {progress}: {mp_id}"
        last = mp_id
    if not last:
        raise DataError(f"{path}: the file holds no material; expected {{mp_id: {{frame_id: ..}}}}")


def _decode(text: memoryview, place: str) -> _Material:
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is one
        pass
    try:
        return _UNUSUAL.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:  # NaN is no JSON, but written by Python; bad labels are named where labels are checked
        material = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(
            f"{place}: is cut short or damaged ({error}); copy or download the file again"
        ) from None
    if not isinstance(material, dict):
        raise DataError(f"{place}: is no object of frames; {_NOT_THE_LAYOUT}")
    frames = {}
    for frame_id, frame in material.items():
        try:
            frames[frame_id] = msgspec.convert(frame, _Frame[UnusualSite])
        except msgspec.ValidationError as error:
            raise DataError(f"{place}, {frame_id}: {error}; {_NOT_THE_LAYOUT}") from None
    return frames


_NOT_THE_LAYOUT: Final = "this is not the MPtrj layout, correct it"


def _frames(path: Path, mp_id: str, material: _Material) -> Iterable[RawFrame]:
    return _together(mp_id, material) or _one_by_one(path, mp_id, material)


def _one_by_one(path: Path, mp_id: str, material: _Material) -> Iterator[RawFrame]:
    for frame_id, frame in material.items():
        where = f"{mp_id}, {frame_id}"
        place = f"{path}: {where}"
        forces = None if frame.force is None else vectors(frame.force)
        results = _results(frame, forces, kbar_of_vasp(frame.stress, place))
        yield RawFrame(
            **geometry(frame.structure, place),
            results=results,
            info=_info(mp_id, frame_id, frame),
            where=where,
        )


def _together(mp_id: str, material: _Material) -> list[RawFrame]:
    """Return what `_one_by_one` gives in half the time, or nothing if a frame is unusual."""
    frames = list(material.values())
    with_stress = [frame.stress for frame in frames if frame.stress is not None]
    if any(len(rows) != 3 for rows in with_stress):
        return []
    try:
        tensors = vectors(chain.from_iterable(with_stress)).reshape(-1, 3, 3)
    except struct.error:  # ragged
        return []
    if not (geometries := geometries_of([frame.structure for frame in frames])):
        return []
    forces = vectors_of([frame.force or () for frame in frames])
    stresses = iter(tensors * KBAR_VASP)
    return [
        RawFrame(
            **arrays,
            results=_results(
                frame,
                None if frame.force is None else part,
                None if frame.stress is None else next(stresses),
            ),
            info=_info(mp_id, frame_id, frame),
            where=f"{mp_id}, {frame_id}",
        )
        for (frame_id, frame), arrays, part in zip(
            material.items(), geometries, forces, strict=True
        )
    ]


def _results(frame: _AnyFrame, forces: Any, stress: Any) -> dict[str, Any]:
    results = {"energy": frame.uncorrected_total_energy, "forces": forces, "stress": stress}
    if frame.magmom:
        results["magmoms"] = np.array(frame.magmom, dtype=np.float64)  # NaN for None
    return {name: value for name, value in results.items() if value is not None}


def _info(mp_id: str, frame_id: str, frame: _AnyFrame) -> dict[str, Any]:
    scalars = zip(_SCALARS, _scalars_of(frame), strict=True)
    info: dict[str, Any] = {name: value for name, value in scalars if value is not None}
    info.update(mp_id=mp_id, frame_id=frame_id)
    if parts := _FRAME_ID.fullmatch(frame_id):  # as the other packagings of MPtrj have it
        info.update(task_id=parts[1], calc_id=int(parts[2]), ionic_step=int(parts[3]))
    return info
