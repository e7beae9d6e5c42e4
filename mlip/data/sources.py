"""Several data sets in one run: what each is, and one store made of theirs.

A source is an entry of `data.sources`: files, how to read them, the level of theory (head) that
their labels are of, and how much they count. `data.train` alone is one source whose head is
called "default". `JoinedStore` has the interface of `Store` over several of them, and is what
tells a batch which source and which head its structures are of.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlip.data.filters import Filter
from mlip.data.processes import StartMethod
from mlip.data.store import SUMMARIES, JoinedColumn, Store, open_store
from mlip.data.weights import parse_weights
from mlip.errors import ConfigError

DEFAULT_HEAD: Final = "default"
READER_OPTIONS: Final = (
    "energy", "energy_unit", "force_unit", "stress_unit", "stress_sign", "stress_voigt", "group",
    "on_bad",
)  # fmt: skip
# What a source may say for itself; `data.KEY` is the default of those that exist there.
OWN: Final = ("name", "path", "val", "test", "head", "sampling", "weight", "labels")
SHARED: Final = (
    "val_fraction", "test_fraction", "format", "e0", "keys", "filter", "weights", "in_place",
    *READER_OPTIONS,
)  # fmt: skip
LABELS: Final = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Source:
    """One entry of `data.sources`, checked."""

    name: str
    paths: Mapping[str, Any]  # train, val, test; those that are given
    head: str = DEFAULT_HEAD
    format: str = "auto"
    reading: Mapping[str, Any] = field(default_factory=dict)  # options of the reader
    e0: Any = "auto"
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    sampling: float = 1.0  # how often each structure comes in an epoch, on average
    weight: float = 1.0  # of its structures in the loss
    weights: Mapping[str, float] = field(default_factory=dict)  # times it, by config_type
    labels: tuple[str, ...] = LABELS  # what is expected of it, of those that are trained on
    filter: Filter = field(default_factory=Filter)
    in_place: bool = False  # index files instead of converting them

    def open(self, part: str, cache_dir: Path | str | None = None) -> Store:
        """Return the store of a part, building it on first use."""
        return open_store(
            self.paths[part],
            format=self.format,
            options=self.reading,
            cache_dir=cache_dir,
            in_place=self.in_place,
        )


def parse_sources(options: Mapping[str, Any]) -> list[Source]:
    """Return the sources that the `data` group of a configuration describes.

    Raises:
        ConfigError: there is none, or an entry has an unknown, missing or contradictory key.
    """
    entries = options.get("sources")
    if entries is None:
        if not options.get("train"):
            raise ConfigError("data.train is missing: mlip train data.train=FILE")
        plain = {**{k: options[k] for k in SHARED if k in options}, "path": options["train"]}
        plain |= {part: options.get(part) for part in ("val", "test")}
        return [_source({"name": "data", **plain}, "data", options)]
    if given := [f"data.{part}" for part in ("train", "val", "test") if options.get(part)]:
        raise ConfigError(
            f"{', '.join(given)} and data.sources both say what to train on; give each source its "
            "path, val and test"
        )
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"data.sources={entries!r} must be a list of tables such as "
            "[{path: a.extxyz, head: pbe}, {path: b.extxyz, head: wb97m}]"
        )
    sources = [_source(entry, f"data.sources[{k}]", options) for k, entry in enumerate(entries)]
    _check_names([source.name for source in sources])
    return _with_energies_of_heads(sources, [entry.get("e0") for entry in entries])


def head_names(sources: Sequence[Source]) -> tuple[str, ...]:
    """Return the heads in the order in which sources name them."""
    return tuple(dict.fromkeys(source.head for source in sources))


def _source(entry: Any, place: str, options: Mapping[str, Any]) -> Source:
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{place}={entry!r} must be a table such as {{path: a.extxyz, head: pbe}}"
        )
    for key in entry:
        if key not in (*OWN, *SHARED):
            near = difflib.get_close_matches(str(key), (*OWN, *SHARED), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join((*OWN, *SHARED))}"
            raise ConfigError(f"{place} has no option {key!r}; {hint}")
    if not entry.get("path"):
        raise ConfigError(f"{place}.path is missing: the file, directory, glob or list to read")
    shared = {key: options[key] for key in SHARED if key in options}
    value = {"val_fraction": 0.1, "test_fraction": 0.0, **shared, **entry}
    paths = {"train": entry["path"]}
    paths |= {part: entry[part] for part in ("val", "test") if entry.get(part)}
    head = str(entry.get("head") or DEFAULT_HEAD)
    keys = {k: v for k, v in (value.get("keys") or {}).items() if v not in (None, "auto")}
    reading = {k: value[k] for k in READER_OPTIONS if value.get(k) is not None}
    return Source(
        name=str(entry.get("name") or _short_name(entry["path"])),
        paths=paths,
        head=head,
        format=value.get("format") or "auto",
        reading={**reading, "keys": keys} if keys else reading,
        e0=value.get("e0", "auto"),
        val_fraction=0.0 if "val" in paths else _number(value, "val_fraction", place, below=1.0),
        test_fraction=0.0 if "test" in paths else _number(value, "test_fraction", place, below=1.0),
        sampling=_number({"sampling": 1.0, **entry}, "sampling", place, above=0.0),
        weight=_number({"weight": 1.0, **entry}, "weight", place, above=0.0),
        weights=parse_weights(value.get("weights"), f"{place}.weights"),
        labels=_labels(entry.get("labels"), place),
        filter=Filter.parse(value.get("filter"), f"{place}.filter"),
        in_place=_switch(value, "in_place", place),
    )


def _short_name(path: Any) -> str:
    first = path[0] if isinstance(path, list) else path
    return Path(str(first)).name.split(".")[0] or str(first)


def _number(
    value: Mapping[str, Any],
    key: str,
    place: str,
    above: float | None = None,
    below: float = np.inf,
) -> float:
    given = value.get(key)
    try:
        number = float(given)  # type: ignore[arg-type]  YAML leaves 1e-3 as text
    except (TypeError, ValueError):
        number = np.nan
    good = number < below and (number >= 0 if above is None else number > above)
    if isinstance(given, bool) or not good or not np.isfinite(number):
        wanted = "a positive number" if above is not None else "a fraction from 0 to below 1"
        raise ConfigError(f"{place}.{key}={given!r} must be {wanted}")
    return number


def _switch(value: Mapping[str, Any], key: str, place: str) -> bool:
    given = value.get(key, False)
    if not isinstance(given, bool):
        raise ConfigError(f"{place}.{key}={given!r} must be true or false")
    return given


def _labels(given: Any, place: str) -> tuple[str, ...]:
    if given is None:
        return LABELS
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not words or set(words) - set(LABELS):
        raise ConfigError(f"{place}.labels={given!r} must list some of {', '.join(LABELS)}")
    return tuple(words)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1 or "/" in name:
            raise ConfigError(
                f"data.sources: the name {name!r} occurs {names.count(name)} times or has a slash; "
                "metrics are logged by it, so give each source its own `name`"
            )


def _with_energies_of_heads(sources: Sequence[Source], given: Sequence[Any]) -> list[Source]:
    """A head has one table of reference energies: what one of its sources says goes for all."""
    chosen: dict[str, tuple[str, Any]] = {}
    for source, e0 in zip(sources, given, strict=True):
        if e0 is None:
            continue
        name, other = chosen.setdefault(source.head, (source.name, e0))
        if other != e0:
            raise ConfigError(
                f"data.sources: {name} and {source.name} are of head {source.head!r} and have "
                f"e0={other!r} and {e0!r}; a head has one set of reference energies"
            )
    return [replace(s, e0=chosen[s.head][1]) if s.head in chosen else s for s in sources]


@dataclass(frozen=True)
class Piece:
    """A store of one source, and what it means to the whole."""

    store: Store
    source: int  # number in `data.sources`
    head: int
    name: str  # of the source
    weight: np.ndarray | float = 1.0  # of the loss; a number, or one a structure


class JoinedStore:
    """The structures of several stores behind one another, with the interface of `Store`.

    Batches made from it carry `source`, the number of the source, `head`, and the loss weights of
    the stores times those of the pieces. Nothing is copied but per-structure sizes.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.num_atoms = np.concatenate([piece.store.num_atoms for piece in self.pieces])
        sizes = [len(piece.store) for piece in self.pieces]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])  # of pieces, in structures
        self.atom_starts = np.concatenate([[0], np.cumsum(self.num_atoms)])
        self._columns: dict[str, JoinedColumn] = {}

    def __len__(self) -> int:
        """Number of structures."""
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"pieces": self.pieces}  # stores go to other processes as paths

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["pieces"])

    @property
    def sources(self) -> list[str]:
        """Names of all files."""
        return [file for piece in self.pieces for file in piece.store.sources]

    @property
    def manifest(self) -> dict[str, Any]:
        """What is recorded of the content: sizes, and the checksums of each store."""
        return {
            "structures": len(self),
            "atoms": int(self.atom_starts[-1]),
            "blake2b": {
                f"{piece.name}:{k}": piece.store.manifest["blake2b"]
                for k, piece in enumerate(self.pieces)
            },
        }

    def column(self, name: str) -> JoinedColumn:
        """Return a view of a column of all stores; it reads what is asked of it."""
        if name not in self._columns:
            self._columns[name] = JoinedColumn([piece.store.column(name) for piece in self.pieces])
        return self._columns[name]

    def atoms_of(self, index: int) -> slice:
        """Return where the atoms of a structure lie in per-atom columns.

        Raises:
            IndexError: there is no such structure (negative numbers do not wrap).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)}")
        return slice(int(self.atom_starts[index]), int(self.atom_starts[index + 1]))

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Return the SCHEMA fields of a structure, without neighbours."""
        piece, row = self._find(index)
        out = piece.store.arrays(row)
        factor = piece.weight[row] if isinstance(piece.weight, np.ndarray) else piece.weight
        return {
            **out,
            "weight": out["weight"] * factor,
            "source": np.array([piece.source]),
            "head": np.array([piece.head]),
        }

    def compositions(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count elements: (structures, species) counts and the sorted species."""
        owner = self.piece_of(indices)
        found = {
            int(k): self.pieces[k].store.compositions(indices[owner == k] - self.starts[k])
            for k in np.unique(owner)
        }
        none = np.zeros(0, dtype=np.int64)
        species = np.unique(np.concatenate([none, *(s for _, s in found.values())]))
        counts = np.zeros((len(indices), len(species)))
        for k, (part, own) in found.items():
            counts[np.ix_(owner == k, np.searchsorted(species, own))] = part
        return counts, species

    def species(self, indices: np.ndarray) -> np.ndarray:
        """Return the atomic numbers that some structures have, sorted."""
        owner = self.piece_of(indices)
        found = [
            self.pieces[k].store.species(indices[owner == k] - self.starts[k])
            for k in np.unique(owner)
        ]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    def summary(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Return one of the `SUMMARIES` of some structures, (n,)."""
        owner = self.piece_of(indices)
        out = np.empty(len(indices), SUMMARIES[name].dtype)
        for k in np.unique(owner):
            chosen = owner == k
            out[chosen] = self.pieces[k].store.summary(name, indices[chosen] - self.starts[k])
        return out

    def edge_counts(
        self, cutoff: float, processes: int = 1, start_method: StartMethod = "spawn"
    ) -> np.ndarray:
        """Return the edges of every structure within a cutoff (Å), (structures,)."""
        how = (cutoff, processes, start_method)
        return np.concatenate([piece.store.edge_counts(*how) for piece in self.pieces])

    def where(self, index: int) -> str:
        """Say which frame of which file a structure is, for messages."""
        piece, row = self._find(index)
        return f"{piece.name}: {piece.store.where(row)}"

    def piece_of(self, indices: np.ndarray) -> np.ndarray:
        """Return which piece each structure belongs to."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def source_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of the source of each structure."""
        return np.array([piece.source for piece in self.pieces])[self.piece_of(indices)]

    def _find(self, index: int) -> tuple[Piece, int]:
        k = bisect_right(self.starts, index) - 1
        return self.pieces[k], index - int(self.starts[k])


AnyStore = Store | JoinedStore
