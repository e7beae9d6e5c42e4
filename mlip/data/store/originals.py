"""The files that a store in place is an index of: whether they are still those, and their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlip.data.progress import counted
from mlip.data.readers import Frames
from mlip.data.store.conversion import describe_source
from mlip.data.store.layout import COLUMNS, LEFT, digest
from mlip.errors import CorruptDataError, DataError

if TYPE_CHECKING:
    from mlip.data.store.reader import Store


_WORDS: Final = {"size": "size", "ends": "content", "mtime_ns": "time"}


class Originals:
    """The `LEFT` columns of a store, a structure at a time.

    Every process opens the files for itself, when it first needs them.
    """

    def __init__(
        self, folder: Path, sources: Sequence[Mapping[str, Any]], reading: Mapping[str, Any]
    ) -> None:
        """Say which files they are.

        Args:
            folder: of the store.
            sources: of each file what `describe_source` said when it was indexed.
            reading: options of the reader.
        """
        self._folder, self._sources = folder, sources
        self._files = [
            Frames(Path(s["path"]), s["size"], s["mtime_ns"], **reading) for s in sources
        ]

    def check(self) -> None:
        """Compare path, size, time and both ends of every file with what was indexed.

        Raises:
            DataError: one is gone or has changed.
        """
        for source in self._sources:
            try:
                found = describe_source(Path(source["path"]), in_place=True)
            except OSError as error:
                raise DataError(
                    f"{source['path']}: cannot be read ({error}), and {self._folder} is only an "
                    "index of it; put it back, or index the data again where they are now"
                ) from None
            if differ := [word for key, word in _WORDS.items() if found[key] != source[key]]:
                raise DataError(
                    f"{source['path']}: has changed since it was indexed in {self._folder} (other "
                    f"{', '.join(differ)}); restore it (cp -p keeps the time), or remove the index "
                    "and index the data again"
                )

    def read(
        self, source: int, number: int, numbers: np.ndarray, energy: float
    ) -> dict[str, np.ndarray]:
        """Return positions, forces and magmoms of a structure.

        Args:
            source: number of its file.
            number: of the frame in it.
            numbers: (N,) atomic numbers that it must have.
            energy: that it must have, eV; NaN for none.

        Raises:
            DataError: the file is gone or has changed.
            CorruptDataError: the frame is damaged or another one.
        """
        frame = self._files[source][number]
        found = frame.results.get("energy", np.nan)
        same = found == energy or (math.isnan(found) and math.isnan(energy))
        if not (same and np.array_equal(frame.numbers, numbers)):
            raise CorruptDataError(
                f"{self._sources[source]['path']}, frame {number}: is not the one that was indexed "
                f"in {self._folder}; restore the file, or remove the index and index it again"
            )
        out = {"positions": frame.positions}
        for name in ("forces", "magmoms"):
            shape = (len(numbers), *COLUMNS[name].shape)
            values = frame.results.get(name)
            out[name] = np.full(shape, np.nan) if values is None else values
        return out


def check_left(store: Store) -> None:
    """Compare the checksums of the `LEFT` columns of a store in place with those of its files.

    Raises:
        DataError: a file is gone or has changed.
        CorruptDataError: a row is damaged or another one.
    """
    for (rows, _), shard in zip(store.blocks("start"), store.manifest["shards"], strict=True):
        found = {name: digest() for name in LEFT}
        for k in counted(range(rows.start, rows.stop), shard["name"], "rows"):
            structure = store.arrays(k)
            for name in LEFT:
                found[name].update(structure[name].data)
        for name in LEFT:
            if found[name].hexdigest() != shard["blake2b"][name]:
                raise CorruptDataError(
                    f"{store.where(rows.start)} to {store.where(rows.stop - 1)}: their {name} have "
                    f"changed since they were indexed in {store.folder}; restore the files, or "
                    "remove the index and index them again"
                )
