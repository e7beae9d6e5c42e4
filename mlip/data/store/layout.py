"""What a store is on disk: columns, shards, and the manifest that makes them one.

    STORE/manifest.json              written last, atomically: without it there is no store
    STORE/shards/000-000012-0000/    rows of consecutive frames: one raw array per column ...
        energy.bin, positions.bin    ... little-endian, without header, and
        shard.json                   their sizes, checksums, label counts and statistics

A store in place is an index: it has no `LEFT` columns, which are read from the rows of the files
that it was made of, and the `SUMMARIES` of them instead. Their checksums are there all the same.

The manifest repeats what every shard.json says, so that opening a store reads one small file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlip.atomic import atomic_write
from mlip.errors import CorruptDataError, DataError

FORMAT: Final = "mlip-store"
VERSION: Final = 4  # of this layout and of the readers' meaning; raise it when either changes
MANIFEST: Final = "manifest.json"
CONVERSION: Final = "conversion.json"  # what is being made; gone when it is
SHARDS: Final = "shards"
SHARD: Final = "shard.json"
EDGE_CUTOFF: Final = 6.0  # Å; of the edge counts in the statistics, not of any model
LABELS: Final = ("energy", "forces", "stress", "magmoms")


@dataclass(frozen=True)
class Column:
    """One array of the store."""

    per: str  # "atom" or "graph"
    shape: tuple[int, ...]
    dtype: str
    missing: float = 0.0
    unit: str = ""


COLUMNS: Final[Mapping[str, Column]] = {
    "atomic_numbers": Column("atom", (), "|u1"),
    "positions": Column("atom", (3,), "<f8", unit="A"),
    "forces": Column("atom", (3,), "<f8", np.nan, "eV/A"),
    "magmoms": Column("atom", (), "<f8", np.nan, "mu_B"),
    "cell": Column("graph", (3, 3), "<f8", unit="A"),
    "pbc": Column("graph", (3,), "|b1"),
    "charge": Column("graph", (), "<i2", unit="e"),
    "spin": Column("graph", (), "<i2", unit="2S+1, 0 = unknown"),
    "energy": Column("graph", (), "<f8", np.nan, "eV"),
    "stress": Column("graph", (3, 3), "<f8", np.nan, "eV/A^3, negative under compression"),
    "weight": Column("graph", (), "<f8", 1.0),
    "sample_id": Column("graph", (), "<i8"),  # frame in its piece; the shard knows where that is
    "source": Column("graph", (), "<i4"),
    # bookkeeping that graphs do not carry
    "num_atoms": Column("graph", (), "<i4"),
    "start": Column("graph", (), "<i8"),  # first atom, counted from the beginning of the shard
    "group": Column("graph", (), "<u8"),  # hash of the split key; equal = never separated
    "config_type": Column("graph", (), "<u8"),  # hash of it (`hash_of`), 0 = none: for weights
}
INTERNAL: Final = ("num_atoms", "start", "group", "config_type")
LEFT: Final = ("positions", "forces", "magmoms")  # in the rows, where a store is in place
SUMMARIES: Final[Mapping[str, Column]] = {  # how they are computed: `store.summaries`
    "has_forces": Column("graph", (), "|b1"),
    "has_magmoms": Column("graph", (), "|b1"),
    "force_min": Column("graph", (), "<f8", np.nan, "eV/A"),  # of components
    "force_max": Column("graph", (), "<f8", np.nan, "eV/A"),
    "force_sum": Column("graph", (), "<f8", np.nan, "eV/A"),  # of their absolute values
    "force_square": Column("graph", (), "<f8", np.nan, "eV^2/A^2"),  # largest |F|^2 of an atom
}


def columns_in(in_place: bool) -> dict[str, Column]:
    """Return the columns that a store has as files."""
    if not in_place:
        return dict(COLUMNS)
    return {k: c for k, c in COLUMNS.items() if k not in LEFT} | dict(SUMMARIES)


def digest(data: Any = b"") -> Any:
    """Return the hash object that all checksums of a store are made with."""
    return hashlib.blake2b(data, digest_size=16)


def hash_of(text: bytes) -> int:
    """Return the 64 bits that stand for a text in a column."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a store.

    Raises:
        DataError: the conversion is not finished, or it is of another version.
        CorruptDataError: the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: the conversion into this store is not finished; give the same command of "
            "`mlip data convert` again (with --merge, if it ran in parts)"
        ) from None
    except (OSError, ValueError) as error:
        raise CorruptDataError(
            f"{path}: cannot be read ({error}); convert the data again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise DataError(
            f"{folder}: is no store of version {VERSION}, which this version of mlip reads; "
            "convert the data again"
        )
    return manifest


def is_store(path: Path) -> bool:
    """Whether a path is a store, finished or not."""
    begun = (path / MANIFEST).exists() or (path / CONVERSION).exists()
    return begun and (path / SHARDS).is_dir()


def check_sizes(folder: Path, shards: Iterable[Mapping[str, Any]]) -> None:
    """Compare the length of every file with what was written.

    Raises:
        CorruptDataError: a file is missing or has another length.
    """
    for shard in shards:
        for name, size in shard["sizes"].items():
            path = folder / SHARDS / shard["name"] / f"{name}.bin"
            try:
                found = os.stat(path).st_size
            except OSError:
                found = None
            if found != size:
                there = "is missing" if found is None else f"has {found} bytes"
                raise CorruptDataError(f"{path}: {there}, expected {size}; convert the data again")


def check_content(folder: Path, shards: Iterable[Mapping[str, Any]]) -> None:
    """Compare the checksum of every file with that of what was written.

    Raises:
        CorruptDataError: a file has changed since.
    """
    for shard in shards:
        for name in shard["sizes"]:
            expected = shard["blake2b"][name]
            path = folder / SHARDS / shard["name"] / f"{name}.bin"
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, digest).hexdigest()
            if found != expected:
                raise CorruptDataError(
                    f"{path}: its content has changed since it was written; convert the data again"
                )


def make_manifest(
    sources: Sequence[Mapping[str, Any]],
    reading: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    *,
    in_place: bool = False,
    refused: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Describe a finished store.

    Its own checksum is that of the data, whether they were left in place or not.

    Args:
        sources: of each file what `describe_source` says.
        reading: the options of the reader that were not left at their defaults.
        shards: what the shards say of themselves, in their order.
        in_place: whether the `LEFT` columns are in the files.
        refused: source, number in it and fault of the frames that were left out.
    """
    structures = sum(s["structures"] for s in shards)
    atoms = sum(s["atoms"] for s in shards)
    sampled = max(sum(s["edges"]["structures"] for s in shards), 1)
    return {
        "format": FORMAT,
        "version": VERSION,
        "structures": structures,
        "atoms": atoms,
        "sources": list(sources),
        "in_place": in_place,
        "reading": dict(reading),
        "columns": {
            name: {"per": c.per, "shape": c.shape, "dtype": c.dtype, "unit": c.unit}
            for name, c in columns_in(in_place).items()
        },
        "labels": {label: sum(s["labels"][label] for s in shards) for label in LABELS},
        "num_atoms": {
            "min": min(s["num_atoms"]["min"] for s in shards),
            "mean": atoms / structures,
            "max": max(s["num_atoms"]["max"] for s in shards),
        },
        "edges": {  # of a sample of structures
            "cutoff": EDGE_CUTOFF,
            "structures": sum(s["edges"]["structures"] for s in shards),
            "mean": sum(s["edges"]["sum"] for s in shards) / sampled,
            "max": max(s["edges"]["max"] for s in shards),
        },
        "refused": list(refused),
        "blake2b": digest(
            "".join(s["blake2b"][name] for s in shards for name in sorted(COLUMNS)).encode()
        ).hexdigest(),
        "shards": list(shards),
    }
