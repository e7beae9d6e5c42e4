"""Writing one shard: blocks of frames in, columns and a description out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlip.data.readers import Block, Piece, Refused
from mlip.data.readers.refused import check_hope
from mlip.data.store.layout import (
    COLUMNS,
    EDGE_CUTOFF,
    LABELS,
    SHARD,
    columns_in,
    digest,
    hash_of,
    write_json,
)
from mlip.data.store.overlaps import find_overlaps
from mlip.data.store.summaries import COMPUTED
from mlip.errors import DataError
from mlip.neighbors import neighbor_list

BUFFER: Final = 512  # frames that are written together
SAMPLE: Final = 200  # one structure in so many has its edges counted
_VOIGT: Final = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


class ShardWriter:
    """Appends frames to the columns of one shard; memory stays flat."""

    def __init__(self, folder: Path, *, in_place: bool = False, skip: bool = False) -> None:
        """Open the columns in an empty folder.

        Args:
            folder: of the shard.
            in_place: write the summaries of the large columns instead of these.
            skip: leave out structures whose atoms sit on one another.
        """
        self.folder, self._in_place, self._skip = folder, in_place, skip
        self._specs = dict(COLUMNS) | columns_in(in_place)
        self._blocks: list[Block] = []
        # of each block: source, which frames of their piece they are, the piece
        self._places: list[tuple[int, range, Piece]] = []
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / f"{name}.bin").open("wb"))
            for name in columns_in(in_place)
        }
        self._digests = {name: digest() for name in self._specs}
        self._record: dict[str, Any] = {
            "structures": 0,
            "atoms": 0,
            "labels": dict.fromkeys(LABELS, 0),
            "num_atoms": {"min": 2**31, "max": 0},
            "edges": {"structures": 0, "sum": 0, "max": 0},
            "refused": [],  # source, number in its piece, why
        }

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        """Frames that this shard was made of so far, those that were left out included."""
        return self._record["structures"] + len(self._record["refused"]) + self._waiting

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._blocks))

    def add(self, frames: Block | Refused, source: int, first: int, piece: Piece) -> None:
        """Append frames, or note that one cannot be used.

        Args:
            frames: the frames.
            source: number of their file.
            first: number in the piece of the first of them.
            piece: what they were read from.

        Raises:
            DataError: two atoms of one of these frames or of those just before sit on one another,
                or nearly all frames cannot be used.
        """
        if isinstance(frames, Refused):
            self._record["refused"].append([source, first, frames.why])
            self._check_hope()
            return
        self._blocks.append(frames)
        self._places.append((source, range(first, first + len(frames)), piece))
        if self._waiting >= BUFFER:
            self._flush()

    def finish(self, **more: Any) -> None:
        """Write what is left and the description, with `more` entries; all is on disk then."""
        if self._blocks:
            self._flush()
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        self._record["refused"].sort()  # overlaps are found behind what readers refuse
        self._record["sizes"] = {name: handle.tell() for name, handle in self._files.items()}
        self._record["blake2b"] = {name: d.hexdigest() for name, d in self._digests.items()}
        write_json(self.folder / SHARD, {**self._record, **more})

    def _flush(self) -> None:
        block = Block.joined(self._blocks)
        source = np.repeat([k for k, _, _ in self._places], list(map(len, self._blocks)))
        number = np.concatenate([numbers for _, numbers, _ in self._places])
        faults = find_overlaps(block)
        edges = self._sampled_edges(block, faults)
        if faults:
            self._leave_out(faults)
            rows = list(faults)
            source, number = np.delete(source, rows), np.delete(number, rows)
            block = block.without(rows)
        self._blocks, self._places = [], []
        if len(block):
            self._write(self._columns(block) | {"source": source, "sample_id": number}, block)
            self._measure(block, edges)
        self._check_hope()

    def _write(self, columns: dict[str, np.ndarray], block: Block) -> None:
        if self._in_place:
            for name, (of, summary) in COMPUTED.items():
                columns[name] = summary(columns[of], block.first, block.counts)
        for name, column in columns.items():
            data = np.ascontiguousarray(column, dtype=self._specs[name].dtype).data
            self._digests[name].update(data)
            if name in self._files:
                self._files[name].write(data)

    def _sampled_edges(self, block: Block, faults: dict[int, str]) -> list[int]:
        """Count the edges of some of the frames without faults; add faults that this finds."""
        found = []
        for k in range(-self._record["structures"] % SAMPLE, len(block), SAMPLE):
            if k in faults:
                continue
            one = block.part(k, k + 1)
            try:
                edges, _ = neighbor_list(one.positions, one.cell[0], one.pbc[0], EDGE_CUTOFF)
            except DataError as error:
                faults[k] = str(error)
                continue
            found.append(edges.shape[1])
        return found

    def _leave_out(self, faults: Mapping[int, str]) -> None:
        """Note what is wrong with some of the frames that wait, by their place among these.

        Raises:
            DataError: they may not be left out.
        """
        places = [(s, index, piece) for s, numbers, piece in self._places for index in numbers]
        for k, fault in sorted(faults.items()):
            source, index, piece = places[k]
            why = f"{piece.frame(index)}: {fault}; remove the frame or mend it"
            if not self._skip:
                raise DataError(why)
            self._record["refused"].append([source, index, why])

    def _check_hope(self) -> None:
        if refused := self._record["refused"]:
            check_hope(len(refused), len(self), refused[-1][2])

    def _columns(self, block: Block) -> dict[str, np.ndarray]:
        """Return the array that a block adds to each column but those that say where it is from."""
        out = {
            "atomic_numbers": block.numbers,
            "positions": block.positions,
            "forces": block.forces,
            "magmoms": block.magmoms,
            "cell": block.cell,
            "pbc": block.pbc,
            "energy": block.energy,
            "stress": block.stress[:, _VOIGT],
            "num_atoms": block.counts,
            "start": self._record["atoms"] + block.first,
            "group": np.array(_groups(block), dtype=np.uint64),
            "config_type": np.array(_config_types(block), dtype=np.uint64),
        }
        for name in ("charge", "spin", "weight"):
            missing = COLUMNS[name].missing
            out[name] = np.array([info.get(name, missing) for info in block.info])
        return out

    def _measure(self, block: Block, edges: list[int]) -> None:
        record = self._record
        record["structures"] += len(block)
        record["atoms"] += len(block.numbers)
        record["num_atoms"]["min"] = min(record["num_atoms"]["min"], int(block.counts.min()))
        record["num_atoms"]["max"] = max(record["num_atoms"]["max"], int(block.counts.max()))
        for label in LABELS:
            record["labels"][label] += int(block.has(label).sum())
        record["edges"]["structures"] += len(edges)
        record["edges"]["sum"] += sum(edges)
        record["edges"]["max"] = max([record["edges"]["max"], *edges])


def _groups(block: Block) -> list[int]:
    """Hash the split keys; a structure without one is grouped with its exact duplicates."""
    named = {info["group"] for info in block.info if "group" in info}
    hashes = {name: hash_of(f"group:{name}".encode()) for name in named}
    return [
        hashes[info["group"]] if "group" in info else _geometry_hash(block.part(k, k + 1))
        for k, info in enumerate(block.info)
    ]


def _geometry_hash(one: Block) -> int:
    arrays = one.numbers, np.round(one.positions, 6) + 0.0, one.cell
    return hash_of(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def _config_types(block: Block) -> list[int]:
    names = [info.get("config_type") for info in block.info]
    hashes = {name: hash_of(str(name).encode()) for name in set(names) - {None}}
    return [hashes.get(name, 0) for name in names]
