"""Writing one shard: frames in, columns and a description out."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlip.data.readers import Frame, Piece
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
        self._frames: list[Frame] = []
        self._places: list[tuple[int, int, Piece]] = []  # source, frame in its piece, the piece
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
        return self._record["structures"] + len(self._frames)

    def add(self, frame: Frame, source: int, index: int, piece: Piece) -> None:
        """Append a frame.

        Args:
            frame: the frame.
            source: number of its file.
            index: its number in the piece.
            piece: what it was read from.

        Raises:
            DataError: two atoms of this frame or of one just before it sit on one another.
        """
        self._frames.append(frame)
        self._places.append((source, index, piece))
        if len(self._frames) == BUFFER:
            self._flush()

    def finish(self, **more: Any) -> None:
        """Write what is left and the description, with `more` entries; all is on disk then."""
        if self._frames:
            self._flush()
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        self._record["sizes"] = {name: handle.tell() for name, handle in self._files.items()}
        self._record["blake2b"] = {name: d.hexdigest() for name, d in self._digests.items()}
        write_json(self.folder / SHARD, {**self._record, **more})

    def _flush(self) -> None:
        self._refuse_overlaps()
        columns = self._packed()
        if self._in_place:
            begin = columns["start"] - self._record["atoms"]
            for name, (of, summary) in COMPUTED.items():
                columns[name] = summary(columns[of], begin, columns["num_atoms"])
        for name, column in columns.items():
            data = np.ascontiguousarray(column, dtype=self._specs[name].dtype).data
            self._digests[name].update(data)
            if name in self._files:
                self._files[name].write(data)
        self._measure(columns)
        self._frames, self._places = [], []

    def _refuse_overlaps(self) -> None:
        if (pair := find_overlap(self._frames)) is None:
            return
        k, i, j, distance = pair
        _, index, piece = self._places[k]
        raise DataError(
            f"{piece.frame(index)}: atoms {i} and {j} are {distance:.3f} A apart, closer than "
            f"{MIN_DISTANCE} A; remove the frame or mend it"
        )

    def _packed(self) -> dict[str, np.ndarray]:
        """Return the waiting frames as one array per column."""
        frames = self._frames
        counts = np.array([len(f.numbers) for f in frames])
        out = {
            "atomic_numbers": np.concatenate([f.numbers for f in frames]),
            "positions": np.concatenate([f.positions for f in frames]),
            "cell": np.array([f.cell for f in frames]),
            "pbc": np.array([f.pbc for f in frames]),
            "stress": np.array([f.results.get("stress", _NO_STRESS) for f in frames])[:, _VOIGT],
            "source": np.array([place[0] for place in self._places]),
            "sample_id": np.array([place[1] for place in self._places]),
            "num_atoms": counts,
            "start": self._record["atoms"] + np.cumsum(counts) - counts,
            "group": np.array([_group(f) for f in frames], dtype=np.uint64),
            "config_type": np.array([_config_type(f) for f in frames], dtype=np.uint64),
        }
        for name in ("forces", "magmoms"):
            empty = np.full((int(counts.max()), *COLUMNS[name].shape), np.nan)
            parts = [f.results.get(name) for f in frames]
            out[name] = np.concatenate(
                [empty[:n] if p is None else p for p, n in zip(parts, counts, strict=True)]
            )
        out["energy"] = np.array([f.results.get("energy", np.nan) for f in frames])
        for name in ("charge", "spin", "weight"):
            out[name] = np.array([f.info.get(name, COLUMNS[name].missing) for f in frames])
        return out

    def _measure(self, columns: dict[str, np.ndarray]) -> None:
        record, counts = self._record, columns["num_atoms"]
        done = record["structures"]
        record["structures"] += len(counts)
        record["atoms"] += int(counts.sum())
        record["num_atoms"]["min"] = min(record["num_atoms"]["min"], int(counts.min()))
        record["num_atoms"]["max"] = max(record["num_atoms"]["max"], int(counts.max()))
        for label in LABELS:
            record["labels"][label] += sum(label in f.results for f in self._frames)
        for frame in self._frames[-done % SAMPLE :: SAMPLE]:
            edges, _ = neighbor_list(frame.positions, frame.cell, frame.pbc, EDGE_CUTOFF)
            record["edges"]["structures"] += 1
            record["edges"]["sum"] += edges.shape[1]
            record["edges"]["max"] = max(record["edges"]["max"], edges.shape[1])


_NO_STRESS = np.full(6, np.nan)


def _group(frame: Frame) -> int:
    """Hash the split key; a structure without one is grouped with its exact duplicates."""
    if "group" in frame.info:
        text = f"group:{frame.info['group']}".encode()
    else:
        text = b"".join(
            np.ascontiguousarray(a).tobytes()
            for a in (frame.numbers, np.round(frame.positions, 6) + 0.0, frame.cell)
        )
    return hash_of(text)


def _config_type(frame: Frame) -> int:
    name = frame.info.get("config_type")
    return 0 if name is None else hash_of(str(name).encode())
