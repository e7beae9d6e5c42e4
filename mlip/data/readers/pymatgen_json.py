"""Structures as pymatgen writes them in JSON, decoded with msgspec into exactly what is needed.

pymatgen's own decoder is not used: it imports whatever module a file names, and takes a hundred
times as long. MPtrj and MatPES hold such structures; what they hold beside is theirs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from itertools import chain, starmap
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlip.data.readers.frames import parts_of
from mlip.data.readers.stacked import Doubtful
from mlip.errors import CorruptDataError, DataError
from mlip.units import stress_factor

KBAR_VASP: Final = -stress_factor("kbar")  # to eV/Å³, ASE's sign
MANY_SPECIES: Final = 10_000  # a file has some 90
Vector = tuple[float, float, float]
_PACKED: Final = struct.Struct("3d")  # a quarter faster than numpy's own way
_ELEMENT: Final = re.compile(r"[A-Z][a-z]?(?=$|[0-9+-])")  # "Fe2+" is iron


class Species(msgspec.Struct, gc=False):
    """An element on a site."""

    element: str
    occu: float = 1.0


class Properties(msgspec.Struct, gc=False):
    """What a site has beside its place."""

    magmom: Any = None


class Site(msgspec.Struct, gc=False):
    """A site as published files have it; what differs is an `UnusualSite`, at half the speed."""

    species: msgspec.Raw  # text of a list of one: few differ, so they are looked up
    abc: Vector


class UnusualSite(msgspec.Struct, gc=False):
    """A site in any of pymatgen's forms."""

    species: list[Species]
    abc: Vector | None = None
    xyz: Vector | None = None
    properties: Properties | None = None


S = TypeVar("S", bound=Site | UnusualSite)


class Lattice(msgspec.Struct, gc=False):
    """Lattice vectors as rows, Å."""

    matrix: list[Vector]
    pbc: tuple[bool, bool, bool] = (True, True, True)


class Structure(msgspec.Struct, Generic[S], gc=False):
    """A crystal."""

    lattice: Lattice
    sites: list[S]


_SPECIES: Final = msgspec.json.Decoder(list[Species])
_known: dict[bytes, int] = {}  # atomic numbers of species, by their text


def geometry(structure: Structure[Any], place: str) -> dict[str, Any]:
    """Return numbers (N,), positions (N, 3) in Å, cell (3, 3) and pbc, as a `RawFrame` has them.

    Raises:
        DataError: a site is disordered or holds no element.
        CorruptDataError: the text of a site is damaged.
    """
    sites = structure.sites
    matrix = np.array(structure.lattice.matrix, dtype=np.float64)
    if matrix.shape != (3, 3):
        raise DataError(f"{place}: its lattice has {len(matrix)} vectors, expected 3; correct it")
    fractional = [site.abc for site in sites if site.abc is not None]
    if len(fractional) == len(sites):
        positions = vectors(fractional) @ matrix
    else:
        positions = numbers_of([site.xyz for site in sites], "the xyz of its sites", place)
    return {
        "numbers": _atomic_numbers(sites, place),
        "positions": positions,
        "cell": matrix,
        "pbc": structure.lattice.pbc,
    }


def geometries_of(structures: Sequence[Structure[Any]]) -> dict[str, Any]:
    """Return what `geometry` does for all, behind one another as a `RawBlock` has them.

    Raises:
        Doubtful: one of them has to be looked at, or there is none.
    """
    if not structures:
        raise Doubtful
    counts = [len(structure.sites) for structure in structures]
    lattices = [structure.lattice for structure in structures]
    cells = vectors_of([lattice.matrix for lattice in lattices], [3] * len(lattices))
    cells = cells.reshape(-1, 3, 3)
    try:
        numbers = _numbers_of_each(structures)
    except (TypeError, DataError):  # `UnusualSite`s, or no elements
        raise Doubtful from None
    fractional = vectors([site.abc for structure in structures for site in structure.sites])
    return {
        "counts": np.array(counts),
        "numbers": numbers,
        "positions": np.concatenate(
            [abc @ cell for abc, cell in zip(parts_of(fractional, counts), cells, strict=True)]
        ),
        "cell": cells,
        "pbc": np.array([lattice.pbc for lattice in lattices]),
    }


def _numbers_of_each(structures: Sequence[Structure[Any]]) -> NDArray[np.int64]:
    """Return their atomic numbers behind one another; equal sites in turn are looked up once."""
    found: list[bytes] = []
    before, numbers = b"", b""
    for structure in structures:
        # No text of a species holds a NUL, which JSON forbids.
        text = b"\0".join([site.species for site in structure.sites])
        if text != before or not found:
            try:
                numbers = bytes(map(_known.__getitem__, text.split(b"\0")))
            except KeyError:  # learns them
                numbers = bytes(_atomic_numbers(structure.sites, "").tolist())
            before = text
        found.append(numbers)
    return np.frombuffer(b"".join(found), np.uint8).astype(np.int64)


def vectors_of(
    lists: Sequence[Sequence[Sequence[float]]], lengths: list[int]
) -> NDArray[np.float64]:
    """Return lists of these lengths behind one another, (N, 3), read-only.

    Raises:
        Doubtful: one has another length, or a row has not three numbers.
    """
    if list(map(len, lists)) != lengths:
        raise Doubtful
    try:
        return vectors(chain.from_iterable(lists))
    except struct.error:
        raise Doubtful from None


def vectors(rows: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    """Return (N, 3), read-only.

    Raises:
        struct.error: a row has not three numbers.
    """
    return np.frombuffer(b"".join(starmap(_PACKED.pack, rows))).reshape(-1, 3)


def kbar_of_vasp(stress: Any, place: str) -> NDArray[np.float64] | None:
    """Convert kbar, compression positive, to eV/Å³ in ASE's sign, whatever the shape.

    Raises:
        DataError: it is no array.
    """
    return None if stress is None else numbers_of(stress, "its stress", place) * KBAR_VASP


def numbers_of(value: Any, what: str, place: str) -> NDArray[np.float64]:
    """Return an array; None is NaN.

    Raises:
        DataError: it is ragged, or holds something else.
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or np.asarray(value).dtype.kind in "US":
        raise DataError(f"{place}: {what} is ragged or holds more than numbers; correct it")
    return array


def _atomic_numbers(sites: list[Any], place: str) -> NDArray[np.int64]:
    try:
        numbers = [_known[bytes(site.species)] for site in sites]
    except (KeyError, TypeError):  # something is new or unusual: look closely, and say where
        numbers = [_number_at(site, f"{place}: site {i}") for i, site in enumerate(sites)]
    return np.array(numbers, dtype=np.int64)


def _number_at(site: Site | UnusualSite, place: str) -> int:
    if isinstance(site, UnusualSite):
        return _atomic_number(site.species, place)
    text = bytes(cast(Any, site.species))
    if (number := _known.get(text)) is None:
        try:
            number = _atomic_number(_SPECIES.decode(text), place)
        except msgspec.ValidationError as error:
            raise DataError(f"{place}: species: {error}; correct the file") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptDataError(
                f"{place}: is damaged ({error}); copy or download the file again"
            ) from None
        if len(_known) > MANY_SPECIES:
            _known.clear()
        _known[text] = number
    return number


def _atomic_number(species: list[Species], place: str) -> int:
    if len(species) != 1 or abs(species[0].occu - 1.0) > 1e-6:
        occupation = ", ".join(f"{s.element} {s.occu:g}" for s in species)
        raise DataError(
            f"{place} is disordered ({occupation}); a training structure has one whole element on "
            "every site; remove this frame"
        )
    element = species[0].element
    if (number := atomic_numbers.get(element)) is not None:
        return number
    symbol = _ELEMENT.match(element)
    number = atomic_numbers.get(symbol.group()) if symbol else None
    if number is None:
        raise DataError(f"{place} holds {element!r}, which is no element; correct or remove it")
    return number
