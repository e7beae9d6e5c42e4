"""Structures out of files, each refused by file and frame if the potential does not know it.

Data readers hand over labels and leave the rest behind; relaxation and dynamics start from one
structure and need the rest: which atoms are fixed, and how they move. Labels of the start are
dropped, for they are not those of the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger("mlip")
ARRAYS = ("numbers", "positions", "momenta", "tags")
COINCIDENT = 1e-3  # Å; neighbour lists refuse atoms at one point, but do not know of files
INFO = ("charge", "spin", "id", "data_id", "group")


def read_known(paths: Any, species: Sequence[int], format: str, **options: Any) -> Iterator[Atoms]:
    """Read structures that a potential for `species` can be used on.

    Raises:
        DataError: one cannot be read, or holds another element; names its file and frame.
    """
    from mlip.data.readers import numbered_structures

    for path, index, atoms in numbered_structures(paths, format, **options):
        _check(atoms, species, path, index)
        yield atoms


def read_frame(path: Path | str, species: Sequence[int], index: int = 0) -> Atoms:
    """Read structure number `index` of a file (-1: the last) with constraints and momenta.

    Raises:
        DataError: the file cannot be read, has fewer structures, or that one holds an element which
            is not among `species`.
    """
    from mlip.data.readers import read_structures
    from mlip.errors import DataError

    count, found = 0, None
    for atoms in read_structures(path, keep_info=True):
        if index < 0 or count == index:
            found = atoms
        count += 1
        if index >= 0 and count > index + 1:
            break  # enough to know that there are more
    if found is None or index < -1:
        raise DataError(f"{path} has no structure number {index}; count from 0, or -1 for the last")
    if index == 0 and count > 1:
        log.info("%s holds several structures; taking the first (--frame chooses)", path)
    _check(found, species, path, index if index >= 0 else count - 1)
    found.calc = None
    for name in set(found.arrays) - set(ARRAYS):
        del found.arrays[name]
    found.info = {name: found.info[name] for name in INFO if name in found.info}
    return found


def _check(atoms: Atoms, species: Sequence[int], path: Path | str, index: int) -> None:
    from mlip.errors import DataError
    from mlip.models.potential import check_species
    from mlip.neighbors import neighbor_list

    try:
        check_species(atoms.numbers, species)
        neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, COINCIDENT)
    except DataError as error:
        raise DataError(f"{path}: frame {index}: {error}") from error
