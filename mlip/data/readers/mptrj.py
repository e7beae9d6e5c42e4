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
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Generic

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.blocks import in_lists
from mlip.data.readers.collector import no_collector
from mlip.data.readers.frames import Column, RawBlock, RawFrame
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
from mlip.data.readers.stacked import Doubtful
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
_Named = tuple[str, str, _AnyFrame | DataError]  # mp_id, frame_id
_Material = dict[str, _Frame[Site]] | dict[str, _Frame[UnusualSite]] | dict[str, Any]
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
        DataError: a material cannot be understood.
        CorruptDataError: the file is cut short or damaged.
    """
    for some in read_mptrj_blocks(path, span):
        yield from some.frames() if isinstance(some, RawBlock) else some


def read_mptrj_blocks(
    path: Path, span: tuple[int, int] | None = None
) -> Iterator[RawBlock | list[RawFrame]]:
    """Yield frames stacked, or in lists where one is unusual; arguments and errors as above."""
    lists = in_lists(_decoded(path, span))
    while True:
        with no_collector():  # what is decoded is gone before the collector could visit it
            some = _stacked_if_usual(next(lists, []))
        if isinstance(some, RawBlock):
            yield some
        elif some:
            yield from in_lists(_one_by_one(path, some))
        else:
            return


def _stacked_if_usual(frames: list[_Named]) -> RawBlock | list[_Named]:
    try:
        block = _stacked(frames)
    except Doubtful:
        return frames
    frames.clear()  # whoever made the list still holds it
    return block


def _decoded(path: Path, span: tuple[int, int] | None) -> Iterator[_Named]:
    for mp_id, text, place in _materials(path, span):
        material = _decode(text, place)
        for frame_id in list(material):
            yield mp_id, frame_id, material.pop(frame_id)


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
            frames[frame_id] = DataError(f"{place}, {frame_id}: {error}; {_NOT_THE_LAYOUT}")
    return frames


_NOT_THE_LAYOUT: Final = "this is not the MPtrj layout, correct it"


def _one_by_one(path: Path, frames: Sequence[_Named]) -> Iterator[RawFrame]:
    for named in frames:
        yield RawFrame.unless_misshapen(_raw_frame, path, *named)


def _raw_frame(path: Path, mp_id: str, frame_id: str, frame: _AnyFrame | DataError) -> RawFrame:
    if isinstance(frame, DataError):
        raise frame
    where = f"{mp_id}, {frame_id}"
    place = f"{path}: {where}"
    results = {
        "energy": frame.uncorrected_total_energy,
        "forces": None if frame.force is None else vectors(frame.force),
        "stress": kbar_of_vasp(frame.stress, place),
        "magmoms": np.array(frame.magmom, dtype=np.float64) if frame.magmom else None,
    }
    return RawFrame(
        **geometry(frame.structure, place),
        results={name: value for name, value in results.items() if value is not None},
        info=_info(mp_id, frame_id, frame),
        where=where,
    )


def _stacked(named: Sequence[_Named]) -> RawBlock:
    """Return what `_one_by_one` gives, in a third of the time.

    Raises:
        Doubtful: a frame is unusual, or there is none.
    """
    frames = [frame for _, _, frame in named if not isinstance(frame, DataError)]
    if len(frames) < len(named):
        raise Doubtful
    geometries = geometries_of([frame.structure for frame in frames])
    given = {
        "energy": [frame.uncorrected_total_energy for frame in frames],
        "forces": [frame.force for frame in frames],
        "stress": [frame.stress for frame in frames],
        "magmoms": [frame.magmom or None for frame in frames],
    }
    labels = {}
    for label, values in given.items():
        there = [value for value in values if value is not None]
        if there:
            has = np.array([value is not None for value in values])
            stacked = _STACK[label](there, geometries["counts"][has].tolist())
            labels[label] = Column(has, stacked, [f"calc:{label}"] * len(there))
    return RawBlock(
        **geometries,
        labels=labels,
        info=[
            _info(mp_id, frame_id, frame)
            for (mp_id, frame_id, _), frame in zip(named, frames, strict=True)
        ],
        where=[f"{mp_id}, {frame_id}" for mp_id, frame_id, _ in named],
    )


def _stack_stresses(tensors: list[Any], counts: list[int]) -> NDArray[np.float64]:
    return vectors_of(tensors, [3] * len(counts)).reshape(-1, 3, 3) * KBAR_VASP


def _stack_magmoms(magmoms: list[Any], counts: list[int]) -> NDArray[np.float64]:
    if list(map(len, magmoms)) != counts:
        raise Doubtful
    return np.array(list(chain.from_iterable(magmoms)), dtype=np.float64)  # NaN for None


_STACK: Final[dict[str, Callable[[list[Any], list[int]], Any]]] = {
    "energy": lambda energies, _: energies,
    "forces": vectors_of,
    "stress": _stack_stresses,
    "magmoms": _stack_magmoms,
}


def _info(mp_id: str, frame_id: str, frame: _AnyFrame) -> dict[str, Any]:
    scalars = zip(_SCALARS, _scalars_of(frame), strict=True)
    info: dict[str, Any] = {name: value for name, value in scalars if value is not None}
    info.update(mp_id=mp_id, frame_id=frame_id)
    if parts := _FRAME_ID.fullmatch(frame_id):  # as the other packagings of MPtrj have it
        info.update(task_id=parts[1], calc_id=int(parts[2]), ionic_step=int(parts[3]))
    return info
