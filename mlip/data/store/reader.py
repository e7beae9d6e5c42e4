"""Read-only random access to a packed store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlip.data.processes import StartMethod
from mlip.data.store.columns import JoinedColumn, ReadColumn
from mlip.data.store.edges import edge_counts
from mlip.data.store.layout import (
    COLUMNS,
    INTERNAL,
    LEFT,
    SHARDS,
    SUMMARIES,
    Column,
    read_manifest,
)
from mlip.data.store.mapping import map_file
from mlip.data.store.originals import Originals
from mlip.data.store.summaries import COMPUTED, atoms_of

NUM_ELEMENTS = 119  # atomic numbers from 0 to 118


class Store:
    """Read-only random access to packed structures.

    Holds paths, not arrays, when copied to another process. Files are mapped when first used. Where
    the store is an index of files in place, large columns are read from these.
    """

    def __init__(self, folder: Path, sources: Sequence[str] | None = None) -> None:
        """Open a store.

        Args:
            folder: where it is.
            sources: names of its files as the caller knows them; default those at its making,
                which may be relative to another folder.

        Raises:
            DataError: there is no finished store of this version.
        """
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_manifest(self.folder)
        self.sources: list[str] = list(sources or [s["path"] for s in self.manifest["sources"]])
        self.originals: Originals | None = None  # where the store is in place
        if self.manifest.get("in_place"):
            about = self.manifest["sources"], self.manifest["reading"]
            self.originals = Originals(self.folder, *about)
        self._shards = [
            _Shard(self.folder / SHARDS / s["name"], s, self.originals)
            for s in self.manifest["shards"]
        ]
        self._first = _bounds([s.structures for s in self._shards])
        self._columns: dict[str, Any] = {}

    def __len__(self) -> int:
        """Number of structures."""
        return int(self._first[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "sources": self.sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["sources"])

    @property
    def refused(self) -> dict[str, dict[int, str]]:
        """Frames of each file that could not be used and are left out, and why, by number."""
        out: dict[str, dict[int, str]] = {}
        for bad in self.manifest.get("refused", ()):
            out.setdefault(self.sources[bad["source"]], {})[bad["frame"]] = bad["why"]
        return out

    @cached_property
    def num_atoms(self) -> np.ndarray:
        """Atoms per structure, (structures,) int32."""
        return self.column("num_atoms")

    @cached_property
    def atom_starts(self) -> np.ndarray:
        """Where the atoms of each structure begin in per-atom columns, (structures + 1,) int64."""
        return _bounds(self.num_atoms)

    def column(self, name: str) -> Any:
        """Return a whole column: (structures or atoms, *shape).

        Numbers per structure come as one numpy array. Columns that may not fit into memory
        (everything per atom, and matrices) come as a `JoinedColumn`, which takes the same indices
        and reads what they ask for.
        """
        if name not in self._columns:
            spec = COLUMNS.get(name) or SUMMARIES[name]
            if spec.per == "graph" and not spec.shape:
                self._columns[name] = np.concatenate([s.column(name) for s in self._shards])
            else:
                self._columns[name] = JoinedColumn([s.mapped(name) for s in self._shards])
        return self._columns[name]

    def atoms_of(self, index: int) -> slice:
        """Return where the atoms of a structure lie in per-atom columns.

        Raises:
            IndexError: there is no such structure (negative numbers do not wrap).
        """
        k, row = self._locate(index)
        shard = self._shards[k]
        begin = int(self._first_atom[k]) + int(shard.mapped("start")[row])
        return slice(begin, begin + int(shard.mapped("num_atoms")[row]))

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return the SCHEMA fields of a structure, without neighbours.

        Raises:
            IndexError: there is no such structure (negative numbers do not wrap).
        """
        k, row = self._locate(index)
        return self._shards[k].arrays(row)

    def blocks(self, *names: str) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Yield the columns `names` shard by shard, with the structures that each covers."""
        for k, shard in enumerate(self._shards):
            rows = slice(int(self._first[k]), int(self._first[k + 1]))
            yield rows, [shard.column(name) for name in names]

    def summary(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Return one of the `SUMMARIES` of some structures, (n,)."""
        if self.originals is not None:
            return self.column(name)[indices]
        of, compute = COMPUTED[name]
        out = np.empty(len(indices), SUMMARIES[name].dtype)
        for shard, places, rows in self._by_shard(indices):
            values, start, num_atoms = (shard.column(c) for c in (of, "start", "num_atoms"))
            out[places] = compute(values, start[rows], num_atoms[rows])
        return out

    def compositions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count elements: (structures, species) counts and the sorted species."""
        counts = np.zeros((len(indices), NUM_ELEMENTS))
        for shard, places, rows in self._by_shard(indices):
            start, num_atoms, numbers = shard.elements()
            lengths = num_atoms[rows]
            of_row = NUM_ELEMENTS * np.repeat(np.arange(len(rows)), lengths)
            found = np.bincount(
                of_row + numbers[atoms_of(start[rows], lengths)],
                minlength=NUM_ELEMENTS * len(rows),
            )
            counts[places] = found.reshape(-1, NUM_ELEMENTS)
        species = np.flatnonzero(counts.any(0))
        return counts[:, species], species

    def species(self, indices: np.ndarray) -> np.ndarray:
        """Return the atomic numbers that some structures have, sorted."""
        present = np.zeros(NUM_ELEMENTS, dtype=bool)
        for shard, _, rows in self._by_shard(indices):
            start, num_atoms, numbers = shard.elements()
            present[numbers[atoms_of(start[rows], num_atoms[rows])]] = True
        return np.flatnonzero(present)

    def _by_shard(self, indices: np.ndarray) -> Iterator[tuple[_Shard, np.ndarray, np.ndarray]]:
        """Yield shards that have some of `indices`, their places among these, and their rows."""
        number = np.searchsorted(self._first, indices, side="right") - 1
        order = np.argsort(number, kind="stable")  # does next to nothing if they rise already
        shards, begin = np.unique(number[order], return_index=True)
        for k, places in zip(shards.tolist(), np.split(order, begin[1:]), strict=False):
            yield self._shards[k], places, indices[places] - int(self._first[k])

    def edge_counts(
        self, cutoff: float, processes: int = 1, start_method: StartMethod = "spawn"
    ) -> np.ndarray:
        """Return the edges of every structure within a cutoff (Å), (structures,)."""
        return edge_counts(self, cutoff, processes, start_method)

    def where(self, index: int) -> str:
        """Say which frame of which file a structure is, for messages."""
        k, row = self._locate(index)
        source, frame = self._shards[k].place(row)
        return f"{self.sources[source]}, frame {frame}"

    @cached_property
    def _first_atom(self) -> np.ndarray:
        return _bounds([s.atoms for s in self._shards])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)}")
        k = int(self._first.searchsorted(index, "right")) - 1
        return k, index - int(self._first[k])


class _Shard:
    """The columns of one shard, mapped when first used, or read from the originals."""

    def __init__(self, folder: Path, record: dict[str, Any], originals: Originals | None) -> None:
        self.folder, self._originals = folder, originals
        self._fields = _FIELDS if originals is None else _FIELDS_IN_PLACE
        self.structures, self.atoms = int(record["structures"]), int(record["atoms"])
        self.first_frame = int(record["first_frame"])
        self._maps: dict[str, Any] = {}

    def length(self, spec: Column) -> int:
        return self.atoms if spec.per == "atom" else self.structures

    def mapped(self, name: str) -> Any:
        """Return a column as it is in its file: an array, or what reads it."""
        found = self._maps.get(name)
        if found is None:
            left = self._originals if name in LEFT else None
            found = self._map(name) if left is None else self._reading(left, name)
            self._maps[name] = found
        return found

    def _map(self, name: str) -> np.ndarray:
        spec = COLUMNS.get(name) or SUMMARIES[name]
        shape = (self.length(spec), *spec.shape)
        return map_file(self.folder / f"{name}.bin", spec.dtype, shape)

    def _reading(self, originals: Originals, name: str) -> ReadColumn:
        starts = np.append(self.mapped("start"), self.atoms)
        return ReadColumn(lambda row: self._left(originals, row)[name], starts, COLUMNS[name].shape)

    def arrays(self, row: int) -> dict[str, np.ndarray]:
        """Return the SCHEMA fields of a structure, without neighbours."""
        atoms, graph = self.atoms_of(row), slice(row, row + 1)
        out = {
            name: self.mapped(name)[atoms if per_atom else graph] for name, per_atom in self._fields
        }
        if self.first_frame:
            out["sample_id"] = out["sample_id"] + self.first_frame
        return out if self._originals is None else out | self._left(self._originals, row)

    def atoms_of(self, row: int) -> slice:
        """Return where the atoms of a structure lie in the shard."""
        begin = int(self.mapped("start")[row])
        return slice(begin, begin + int(self.mapped("num_atoms")[row]))

    def place(self, row: int) -> tuple[int, int]:
        """Return the number of the file that a structure is of, and that of its frame there."""
        frame = int(self.mapped("sample_id")[row]) + self.first_frame
        return int(self.mapped("source")[row]), frame

    def _left(self, originals: Originals, row: int) -> dict[str, np.ndarray]:
        numbers = self.mapped("atomic_numbers")[self.atoms_of(row)]
        return originals.read(*self.place(row), numbers, float(self.mapped("energy")[row]))

    def elements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where the atoms of structures begin, how many they are, and atomic numbers."""
        return self.column("start"), self.column("num_atoms"), self.column("atomic_numbers")

    def column(self, name: str) -> np.ndarray:
        """Return a column as the store shows it."""
        values = self.mapped(name)
        return values + self.first_frame if name == "sample_id" and self.first_frame else values


_FIELDS = [(name, spec.per == "atom") for name, spec in COLUMNS.items() if name not in INTERNAL]
_FIELDS_IN_PLACE = [(name, per_atom) for name, per_atom in _FIELDS if name not in LEFT]


def _bounds(lengths: Any) -> np.ndarray:
    """Return where each of several consecutive ranges begins, and the end of the last."""
    out = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=out[1:])
    return out
