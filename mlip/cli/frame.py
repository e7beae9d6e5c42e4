"""Structures out of files, each refused by file and frame if the potential does not know it.

Data readers hand over labels and leave the rest behind; relaxation and dynamics start from one
structure and need the rest: which atoms are fixed, and how they move. Labels of the start are
dropped, for they are not those of the result.
"""

from __future__ import annotations

import logging
import warnings
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

    With `on_bad="skip"` those are left out, too, whose atoms are as close as training refuses.

    Raises:
        DataError: one cannot be read, holds another element or has two atoms at one point; names
            its file and frame.
    """
    from mlip.data.readers import numbered_structures
    from mlip.data.readers.refused import check_share, skipped_words
    from mlip.data.store.overlaps import MIN_DISTANCE
    from mlip.errors import DataError

    skip = options.get("on_bad") == "skip"
    total, refused = 0, dict[Path, list[str]]()
    for path, index, atoms in numbered_structures(paths, format, **options):
        total += 1
        _check(atoms, species, path, index)
        if why := _too_close(atoms, MIN_DISTANCE if skip else COINCIDENT):
            if not skip:
                raise DataError(f"{path}: frame {index}: {why}")
            refused.setdefault(path, []).append(f"{path}: frame {index}: {why}")
            continue
        yield atoms
    for path, some in refused.items():
        warnings.warn(skipped_words(path, len(some), some[0]), stacklevel=2)
    if refused:
        check_share(sum(map(len, refused.values())), total, next(iter(refused.values()))[0])


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

    try:
        check_species(atoms.numbers, species)
    except DataError as error:
        raise DataError(f"{path}: frame {index}: {error}") from error


def _too_close(atoms: Atoms, limit: float) -> str:
    """Say which atoms are closer than a limit (Å); empty if none are."""
    from mlip.errors import DataError
    from mlip.neighbors import neighbor_list

    try:
        edges, _ = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, limit)
    except DataError as error:  # two at one point, for which there is no list
        return str(error)
    if not edges.shape[1]:
        return ""
    i, j = sorted(edges[:, 0].tolist())
    return f"atoms {i} and {j} are closer than {limit:g} A; remove the frame or mend it"
