"""Writing one shard: blocks of frames in, columns and a description out."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlip.data.readers import Block, Piece
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
from mlip.data.store.overlaps import MIN_DISTANCE, find_overlap
from mlip.data.store.summaries import COMPUTED
from mlip.errors import DataError
from mlip.neighbors import neighbor_list

BUFFER: Final = 512  # frames that are written together
SAMPLE: Final = 200  # one structure in so many has its edges counted
_VOIGT: Final = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


class ShardWriter:
    """Appends frames to the columns of one shard; memory stays flat."""

    def __init__(self, folder: Path, *, in_place: bool = False) -> None:
        """Open the columns in an empty folder.

        Args:
            folder: of the shard.
            in_place: write the summaries of the large columns instead of these.
        """
        self.folder, self._in_place = folder, in_place
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
        }

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        """Frames of this shard so far."""
        return self._record["structures"] + self._waiting

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._blocks))

    def add(self, block: Block, source: int, first: int, piece: Piece) -> None:
        """Append frames.

        Args:
            block: the frames.
            source: number of their file.
            first: number in the piece of the first of them.
            piece: what they were read from.

        Raises:
            DataError: two atoms of one of these frames or of those just before sit on one another.
        """
        self._blocks.append(block)
        self._places.append((source, range(first, first + len(block)), piece))
        if self._waiting >= BUFFER:
            self._flush()

    def finish(self, **more: Any) -> None:
        """Write what is left and the description, with `more` entries; all is on disk then."""
        if self._blocks:
            self._flush()
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        self._record["sizes"] = {name: handle.tell() for name, handle in self._files.items()}
        self._record["blake2b"] = {name: d.hexdigest() for name, d in self._digests.items()}
        write_json(self.folder / SHARD, {**self._record, **more})

    def _flush(self) -> None:
        block = Block.joined(self._blocks)
        self._refuse_overlaps(block)
        columns = self._columns(block)
        if self._in_place:
            for name, (of, summary) in COMPUTED.items():
                columns[name] = summary(columns[of], block.first, block.counts)
        for name, column in columns.items():
            data = np.ascontiguousarray(column, dtype=self._specs[name].dtype).data
            self._digests[name].update(data)
            if name in self._files:
                self._files[name].write(data)
        self._measure(block)
        self._blocks, self._places = [], []

    def _refuse_overlaps(self, block: Block) -> None:
        if (pair := find_overlap(block)) is None:
            return
        k, i, j, distance = pair
        index, piece = next(
            islice(((n, p) for _, numbers, p in self._places for n in numbers), k, None)
        )
        raise DataError(
            f"{piece.frame(index)}: atoms {i} and {j} are {distance:.3f} A apart, closer than "
            f"{MIN_DISTANCE} A; remove the frame or mend it"
        )

    def _columns(self, block: Block) -> dict[str, np.ndarray]:
        """Return the array that a block adds to each column."""
        sources, numbers, _ = zip(*self._places, strict=True)
        out = {
            "atomic_numbers": block.numbers,
            "positions": block.positions,
            "forces": block.forces,
            "magmoms": block.magmoms,
            "cell": block.cell,
            "pbc": block.pbc,
            "energy": block.energy,
            "stress": block.stress[:, _VOIGT],
            "source": np.repeat(sources, list(map(len, numbers))),
            "sample_id": np.concatenate(numbers),
            "num_atoms": block.counts,
            "start": self._record["atoms"] + block.first,
            "group": np.array(_groups(block), dtype=np.uint64),
            "config_type": np.array(_config_types(block), dtype=np.uint64),
        }
        for name in ("charge", "spin", "weight"):
            missing = COLUMNS[name].missing
            out[name] = np.array([info.get(name, missing) for info in block.info])
        return out

    def _measure(self, block: Block) -> None:
        record, done = self._record, self._record["structures"]
        record["structures"] += len(block)
        record["atoms"] += len(block.numbers)
        record["num_atoms"]["min"] = min(record["num_atoms"]["min"], int(block.counts.min()))
        record["num_atoms"]["max"] = max(record["num_atoms"]["max"], int(block.counts.max()))
        for label in LABELS:
            record["labels"][label] += int(block.has(label).sum())
        for k in range(-done % SAMPLE, len(block), SAMPLE):
            one = block.part(k, k + 1)
            edges, _ = neighbor_list(one.positions, one.cell[0], one.pbc[0], EDGE_CUTOFF)
            record["edges"]["structures"] += 1
            record["edges"]["sum"] += edges.shape[1]
            record["edges"]["max"] = max(record["edges"]["max"], edges.shape[1])


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
