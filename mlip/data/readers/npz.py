"""NumPy archives of one molecule in many geometries: rMD17, sGDML and files named like them.

`nuclear_charges/coords/energies/forces` (rMD17) and `z/R/E/F` (MD17, sGDML) hold kcal/mol and
kcal/mol/Å unless the file says otherwise (`e_unit`, `r_unit`) or the caller does. Other names need
`energy_unit`, because nothing in such a file tells its unit. Pickled objects are never loaded, and
an array must fit the bytes that its archive really has.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.readers.frames import RawFrame
from mlip.data.readers.streams import MAX_RATIO, RATIO_FLOOR
from mlip.errors import CorruptDataError, DataError
from mlip.units import LENGTH, energy_factor, force_factor

log = logging.getLogger("mlip")

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "numbers": ("nuclear_charges", "z", "atomic_numbers", "numbers", "Z"),
    "positions": ("coords", "R", "positions", "coordinates"),
    "energy": ("energies", "E", "energy"),
    "forces": ("forces", "F", "force"),
    "charge": ("charge", "charges"),
    "spin": ("spin", "spins", "multiplicity"),
    "cell": ("cell", "lattice"),
}
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError, RuntimeError)
_KCAL_NAMES: Final = ({"nuclear_charges", "coords"}, {"z", "R"})
_SGDML_LENGTHS: Final = {"ang": "A", "angstrom": "A", "å": "A", "bohr": "bohr", "a": "A"}


def read_npz(path: Path, *, energy_unit: str | None, force_unit: str | None) -> Iterator[RawFrame]:
    """Yield the geometries of one archive, labels converted to eV and eV/Å.

    Args:
        path: the archive.
        energy_unit: overrides what the file or its naming says.
        force_unit: as above; `energy_unit` per Å if only that is given.

    Raises:
        DataError: arrays are missing or disagree in length, or their unit is not known.
        CorruptDataError: the archive is cut short or damaged.
    """
    arrays = _load(path)
    found = {what: _pick(arrays, names) for what, names in _NAMES.items()}
    numbers, positions = found["numbers"], found["positions"]
    if numbers is None or positions is None:
        raise DataError(
            f"{path}: its arrays {sorted(arrays)} hold no "
            f"{'atomic numbers' if numbers is None else 'positions'}; expected rMD17's names "
            "(nuclear_charges, coords, energies, forces) or sGDML's (z, R, E, F)"
        )
    if positions.ndim == 2:
        positions = positions[None]
    if positions.ndim != 3 or positions.shape[2] != 3 or len(positions) == 0:
        raise DataError(
            f"{path}: positions have shape {positions.shape}; expected (frames, atoms, 3)"
        )
    frames = len(positions)
    length, energy, force = _factors(path, arrays, energy_unit, force_unit)
    energies = _per_frame(path, found["energy"], frames, "energies")
    forces = _per_frame(path, found["forces"], frames, "forces")
    charges = _per_frame(path, found["charge"], frames, "charges")
    spins = _per_frame(path, found["spin"], frames, "spins")
    cells = _per_frame(path, found["cell"], frames, "cells", shared_ndim=2)
    several = numbers.ndim == 2  # another order or composition in every frame
    if several and len(numbers) != frames:
        raise DataError(f"{path}: atomic numbers have {len(numbers)} rows for {frames} frames")
    for i in range(frames):
        frame = RawFrame(
            numbers=numbers[i] if several else numbers,
            positions=positions[i] * length,
            cell=None if cells is None else cells[i] * length,
            pbc=(cells is not None,) * 3,
        )
        if energies is not None:
            frame.results["energy"] = energies[i] * energy
        if forces is not None:
            frame.results["forces"] = forces[i] * force
        for name, values in (("charge", charges), ("spin", spins)):
            if values is not None:
                frame.info[name] = values[i].item() if values[i].size == 1 else values[i]
        yield frame


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array that is needed, after comparing what it announces with what is there."""
    wanted = {name for names in _NAMES.values() for name in names} | {"r_unit", "e_unit"}
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in wanted:
                    continue
                _check_member(path, archive, member)
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except DataError:
        raise
    except _BROKEN as error:
        raise CorruptDataError(
            f"{path}: is no complete npz archive ({error}); copy or download it again"
        ) from None
    except ValueError as error:
        raise DataError(
            f"{path}: an array cannot be read without running pickled code ({error}); "
            "save plain arrays with numpy.savez"
        ) from None
    return arrays


def _check_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    size = member.file_size
    if size > RATIO_FLOOR and size > MAX_RATIO * max(member.compress_size, 1):
        raise DataError(
            f"{path}: {member.filename} expands from {member.compress_size} to {size} bytes, more "
            f"than {MAX_RATIO} times; it is damaged or hostile and is not read"
        )
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if not dtype.hasobject and count * dtype.itemsize > size:
            raise CorruptDataError(
                f"{path}: {member.filename} announces {shape} of {dtype} but has {size} bytes; "
                "it is damaged or hostile and is not read"
            )


def _pick(arrays: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _per_frame(
    path: Path, array: NDArray[Any] | None, frames: int, what: str, *, shared_ndim: int = 0
) -> NDArray[Any] | None:
    """Return one entry per frame; a single shared one is repeated without copying."""
    if array is None:
        return None
    if array.ndim == shared_ndim:
        return np.broadcast_to(array, (frames, *array.shape))
    if frames == 1 and array.shape[0] != 1:
        return array[None]
    if len(array) != frames:
        raise DataError(
            f"{path}: {what} have {len(array)} entries, positions {frames} frames; "
            "the arrays do not belong together"
        )
    return array


def _factors(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    energy_unit: str | None,
    force_unit: str | None,
) -> tuple[float, float, float]:
    """Return the factors of length, energy and force into Å, eV and eV/Å."""
    length_unit = str(arrays["r_unit"]) if "r_unit" in arrays else "Ang"
    length = LENGTH.get(_SGDML_LENGTHS.get(length_unit.lower(), length_unit))
    if length is None:
        raise DataError(f"{path}: its r_unit is {length_unit!r}; expected Ang or bohr")
    source = "the options"
    if energy_unit is None and "e_unit" in arrays:
        energy_unit, source = str(arrays["e_unit"]), "its e_unit"
        if force_unit is None and length != 1.0:
            force_unit = f"{energy_unit}/bohr"
    if energy_unit is None:
        if not any(names <= set(arrays) for names in _KCAL_NAMES):
            raise DataError(
                f"{path}: the unit of its energies is not known (arrays {sorted(arrays)} are not "
                "rMD17's or sGDML's names); set data.energy_unit, e.g. eV or kcal/mol"
            )
        energy_unit, source = "kcal/mol", "the convention of rMD17 and sGDML"
    force_unit = force_unit or f"{energy_unit}/A"
    log.info("%s: energies in %s, forces in %s by %s", path, energy_unit, force_unit, source)
    return length, energy_factor(energy_unit), force_factor(force_unit)
