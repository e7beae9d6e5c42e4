"""A frame as its file has it, and in canonical form; and many of them as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, compress, pairwise
from typing import Any, ParamSpec

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlip.errors import CorruptDataError, DataError

P = ParamSpec("P")


@dataclass(slots=True)
class RawFrame:
    """One frame as its file has it: nothing converted, nothing checked.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3), Å.
        cell: (3, 3) lattice vectors as rows, Å.
        pbc: (3,) which axes repeat.
        results: calculator results, units as in the file, 6-vectors in ASE's Voigt order.
        info: everything else that belongs to the frame.
        arrays: everything else that belongs to its atoms.
        constraints: ASE constraints; only kept with `keep_info`.
        where: the source's own name for the frame, for messages.
        fault: why it is none, though those behind it can be read; it has nothing else then.
    """

    numbers: Any
    positions: Any
    cell: Any = None
    pbc: Any = (False, False, False)
    results: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    constraints: list[Any] = field(default_factory=list)
    where: str = ""
    fault: DataError | None = None

    @classmethod
    def unless_misshapen(
        cls, make: Callable[P, RawFrame], *args: P.args, **kw: P.kwargs
    ) -> RawFrame:
        """Return what `make` does, or a frame that says what `make` complains about.

        Raises:
            CorruptDataError: by `make`; nobody knows then what else is damaged.
        """
        try:
            return make(*args, **kw)
        except CorruptDataError:
            raise
        except DataError as error:
            return cls((), (), fault=error)

    @classmethod
    def from_atoms(cls, atoms: Atoms) -> RawFrame:
        """Take an ASE frame apart; results are the raw ones, which constraints cannot zero."""
        arrays = dict(atoms.arrays)
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        return cls(
            numbers=arrays.pop("numbers"),
            positions=arrays.pop("positions"),
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            results=results,
            info=dict(atoms.info),
            arrays=arrays,
            constraints=list(atoms.constraints),
        )

    def get(self, name: str) -> Any:
        """Return the entry called `name` ("calc:NAME" for a result), or None."""
        if name.startswith("calc:"):
            return self.results.get(name[5:])
        value = self.info.get(name)
        return self.arrays.get(name) if value is None else value


@dataclass(frozen=True, slots=True)
class Column:
    """A label of those frames of a block that have it.

    Attributes:
        has: (F,) which frames these are.
        values: one for each of them; or an array of all, atoms behind one another.
        names: where each of them has it: "calc:NAME" for a result.
    """

    has: NDArray[np.bool_]
    values: Any
    names: Sequence[str]


@dataclass(slots=True, kw_only=True)
class Stacked:
    """Many frames without their labels, the arrays of all behind one another.

    Attributes:
        counts: (F,) atoms of each frame.
        numbers: (N,) int64 atomic numbers of all.
        positions: (N, 3), Å.
        cell: (F, 3, 3) lattice vectors as rows, Å.
        pbc: (F, 3) which axes repeat.
        info: as of a `RawFrame` or a `Frame`, of each.
    """

    counts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    info: list[dict[str, Any]]

    def __len__(self) -> int:
        """Frames."""
        return len(self.counts)

    @property
    def first(self) -> NDArray[np.int64]:
        """First atom of each frame, (F,)."""
        return np.cumsum(self.counts) - self.counts

    def parts(self, of_atoms: NDArray[Any]) -> list[NDArray[Any]]:
        """Cut an array of all atoms into that of each frame."""
        return parts_of(of_atoms, self.counts.tolist())


@dataclass(slots=True, kw_only=True)
class RawBlock(Stacked):
    """Many frames as their file has them.

    Attributes:
        labels: energy, forces, stress and magmoms, as far as some have them.
        where: as of a `RawFrame`, of each.
    """

    labels: dict[str, Column]
    where: list[str] = field(default_factory=list)

    def frames(self) -> Iterator[RawFrame]:
        """Yield the frames, whose arrays are views, with all labels as results."""
        numbers, positions = self.parts(self.numbers), self.parts(self.positions)
        labels = {}
        for label, column in self.labels.items():
            values = column.values
            if label in _PER_ATOM:
                values = parts_of(values, self.counts[column.has].tolist())
            labels[label] = column.has.tolist(), iter(values)
        for k, info in enumerate(self.info):
            results = {label: next(values) for label, (has, values) in labels.items() if has[k]}
            yield RawFrame(
                numbers[k],
                positions[k],
                self.cell[k],
                self.pbc[k],
                results,
                info,
                where=self.where[k],
            )


@dataclass(slots=True)
class Frame:
    """One canonical frame as arrays: what an `ase.Atoms` would hold, at a tenth of its cost.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        positions: (N, 3), Å.
        cell: (3, 3) lattice vectors as rows, Å.
        pbc: (3,) which axes repeat.
        results: those of energy (eV), forces (N, 3) eV/Å, stress (6,) eV/Å³ in ASE's order and
            sign, and magmoms (N,) that the source has.
        info: those of charge, spin, group, id, data_id, source, config_type and weights that the
            source has.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    results: dict[str, Any]
    info: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Block(Stacked):
    """Many canonical frames as one. A label that a frame does not have is NaN.

    Attributes:
        energy: (F,) eV.
        forces: (N, 3) eV/Å.
        stress: (F, 6) eV/Å³ in ASE's order and sign.
        magmoms: (N,); one alone may be NaN, for unknown.
    """

    energy: NDArray[np.float64]
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    magmoms: NDArray[np.float64]

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> Block:
        """Put frames, of which there is one at least, behind one another."""
        counts = np.array([len(frame.numbers) for frame in frames])
        empty = np.full((int(counts.max()), 3), np.nan)
        return cls(
            counts=counts,
            numbers=np.concatenate([frame.numbers for frame in frames]),
            positions=np.concatenate([frame.positions for frame in frames]),
            cell=np.array([frame.cell for frame in frames]),
            pbc=np.array([frame.pbc for frame in frames]),
            energy=np.array([frame.results.get("energy", np.nan) for frame in frames]),
            forces=np.concatenate(
                [frame.results.get("forces", empty[: len(frame.numbers)]) for frame in frames]
            ),
            stress=np.array([frame.results.get("stress", [np.nan] * 6) for frame in frames]),
            magmoms=np.concatenate(
                [frame.results.get("magmoms", empty[: len(frame.numbers), 0]) for frame in frames]
            ),
            info=[frame.info for frame in frames],
        )

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """Make one of several."""
        arrays = {
            name: np.concatenate([getattr(block, name) for block in blocks])
            for name in (*_PER_FRAME, *_PER_ATOM)
        }
        return cls(**arrays, info=list(chain.from_iterable(block.info for block in blocks)))

    def part(self, begin: int, end: int) -> Block:
        """Return the frames from `begin` to before `end`, which are views."""
        rows = slice(begin, end)
        before = int(self.counts[:begin].sum())
        atoms = slice(before, before + int(self.counts[rows].sum()))
        parts = {name: getattr(self, name)[rows] for name in _PER_FRAME}
        parts |= {name: getattr(self, name)[atoms] for name in _PER_ATOM}
        return Block(**parts, info=self.info[rows])

    def without(self, frames: Sequence[int]) -> Block:
        """Return the other frames."""
        stays = np.ones(len(self), dtype=bool)
        stays[frames] = False
        atoms = np.repeat(stays, self.counts)
        parts = {name: getattr(self, name)[stays] for name in _PER_FRAME}
        parts |= {name: getattr(self, name)[atoms] for name in _PER_ATOM}
        return Block(**parts, info=list(compress(self.info, stays)))

    def has(self, label: str) -> NDArray[np.bool_]:
        """Return which frames have a label, (F,)."""
        known = ~np.isnan(getattr(self, label))
        if label == "magmoms":
            return np.logical_or.reduceat(known, self.first)
        known = known.reshape(len(known), -1)[:, 0]
        return known[self.first] if label in _PER_ATOM else known

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, whose arrays are views."""
        numbers, positions, forces, magmoms = (
            self.parts(getattr(self, name)) for name in _PER_ATOM
        )
        labels = {
            "energy": self.energy.tolist(),
            "forces": forces,
            "stress": self.stress,
            "magmoms": magmoms,
        }
        has = {label: self.has(label).tolist() for label in labels}
        for k, info in enumerate(self.info):
            results = {label: values[k] for label, values in labels.items() if has[label][k]}
            yield Frame(numbers[k], positions[k], self.cell[k], self.pbc[k], results, info)


_PER_FRAME = ("counts", "cell", "pbc", "energy", "stress")
_PER_ATOM = ("numbers", "positions", "forces", "magmoms")


def parts_of(flat: NDArray[Any], lengths: Iterable[int]) -> list[NDArray[Any]]:
    """Cut an array into consecutive parts, which are views."""
    return [flat[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]
