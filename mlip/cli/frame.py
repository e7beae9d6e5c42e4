"""One structure out of a file, with what a simulation needs beside positions.

Data readers hand over labels and leave the rest behind; relaxation and dynamics need the rest:
which atoms are fixed, and how they move. Labels of the start are dropped, for they are not those of
the result.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ase

log = logging.getLogger("mlip")
ARRAYS = ("numbers", "positions", "momenta", "tags")
INFO = ("charge", "spin", "id", "data_id", "group")


def read_frame(path: Path | str, index: int = 0) -> ase.Atoms:
    """Read structure number `index` of a file (-1: the last) with constraints and momenta.

    Raises:
        DataError: the file cannot be read or has fewer structures.
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
    found.calc = None
    for name in set(found.arrays) - set(ARRAYS):
        del found.arrays[name]
    found.info = {name: found.info[name] for name in INFO if name in found.info}
    return found
