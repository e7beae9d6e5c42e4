"""Numbers a model needs to know about its training set before it exists.

Computed once from the training part, passed to the model by name, saved in the potential file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_numbers, chemical_symbols

from mlip.data.sources import AnyStore
from mlip.data.store import Store
from mlip.errors import ConfigError, DataError
from mlip.neighbors import neighbor_list

RIDGE = 1e-3  # pull of one structure's thousandth towards the free-atom table
SAMPLE = 1000  # structures whose neighbours are counted
FORCE_SAMPLE = 100_000  # structures whose forces are averaged
BLOCK = 100_000  # structures whose compositions are in memory at once


@dataclass(frozen=True)
class ReferenceEnergies:
    """E0 per element and how it came about."""

    table: dict[int, float]  # eV
    method: str
    rank: int
    residual_mean: float  # mean |E − Σ E0| / atom, eV
    residual_max: float


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of a training set."""

    species: tuple[int, ...]
    references: Mapping[str, ReferenceEnergies]  # by head
    force_scale: float  # typical size of force components, eV/Å; see `_force_scale`
    avg_num_neighbors: float
    max_num_neighbors: int
    charge_range: tuple[int, int]
    spin_range: tuple[int, int]
    num_structures: int
    num_atoms: int
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # pool -> rule

    @property
    def e0(self) -> ReferenceEnergies:
        """Reference energies of the (first) head."""
        return next(iter(self.references.values()))

    @property
    def charge_spin(self) -> bool:
        """Whether the set has any state but the neutral singlet."""
        return self.charge_range != (0, 0) or self.spin_range[1] > 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values; `e0` is by head if there are several."""
        out = asdict(self)
        references = out.pop("references")
        return {**out, "e0": references if len(references) > 1 else next(iter(references.values()))}


def compute_stats(
    store: AnyStore,
    train: np.ndarray,
    *,
    cutoff: float,
    references: Mapping[str, ReferenceEnergies],
    repeats: np.ndarray | None = None,
    dropped: Mapping[str, Mapping[str, int]] | None = None,
) -> DatasetStats:
    """Compute the statistics of the structures `train`.

    Args:
        store: where they are.
        train: their indices.
        cutoff: of the model's graph, Å.
        references: E0 by head.
        repeats: (len(train),) how often each comes in an epoch; default: once.
        dropped: how many structures a filter left out, by source and part, and by rule.
    """
    species = {z for head in references.values() for z in head.table}
    sample = train[np.linspace(0, len(train) - 1, min(len(train), SAMPLE)).astype(int)]
    neighbors = np.concatenate([_neighbors(store, int(i), cutoff) for i in sample])
    charge, spin = store.column("charge")[train], store.column("spin")[train]
    return DatasetStats(
        species=tuple(sorted(species)),
        references=references,
        force_scale=_force_scale(store, train, repeats),
        avg_num_neighbors=float(neighbors.mean()),
        max_num_neighbors=int(neighbors.max()),
        charge_range=(int(charge.min()), int(charge.max())),
        spin_range=(int(spin.min()), int(spin.max())),
        num_structures=len(train),
        num_atoms=int(store.num_atoms[train].sum()),
        dropped=dropped or {},
    )


def reference_energies(
    store: AnyStore,
    train: np.ndarray,
    e0: Any,
    *,
    isolated: Mapping[int, float] | None = None,
    baseline: np.ndarray | None = None,
    reading: Mapping[str, Any] | None = None,
    format: str = "auto",
) -> ReferenceEnergies:
    """Find E0 of one head from its training structures.

    Args:
        store: where they are.
        train: their indices.
        e0: the option `data.e0`.
        isolated: energies of one-atom frames by atomic number, eV.
        baseline: (len(train),) energies of priors, subtracted before E0 is fitted.
        reading: options of the reader for a file of one-atom frames: its keys and units are
            those of the training data.
        format: of that file.
    """
    energies = store.column("energy")[train] - (0.0 if baseline is None else baseline)
    species = store.species(train)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in range(0, len(train), BLOCK):
            block = slice(begin, begin + BLOCK)
            found, own = store.compositions(train[block])
            counts = np.zeros((len(found), len(species)))
            counts[:, np.searchsorted(species, own)] = found
            yield counts, energies[block]

    read_table = partial(_read_table, reading=reading, format=format)
    return _fit(blocks, species, e0, isolated, read_table)


def element_sets(store: AnyStore, rows: np.ndarray) -> tuple[np.ndarray, list[frozenset[int]]]:
    """Return which set of elements each of some structures has (n,), and the sets."""
    numbers: dict[frozenset[int], int] = {}
    which = np.empty(len(rows), dtype=np.int32)
    for begin in range(0, len(rows), BLOCK):
        counts, species = store.compositions(rows[begin : begin + BLOCK])
        bits, inverse = np.unique(np.packbits(counts > 0, axis=1), axis=0, return_inverse=True)
        present = np.unpackbits(bits, axis=1, count=len(species)).astype(bool)
        sets = [frozenset(species[row].tolist()) for row in present]
        of_set = [numbers.setdefault(one, len(numbers)) for one in sets]
        which[begin : begin + BLOCK] = np.array(of_set)[inverse]
    return which, list(numbers)


def fit_reference_energies(
    counts: np.ndarray,
    species: np.ndarray,
    energies: np.ndarray,
    spec: Any = "auto",
    isolated: Mapping[int, float] | None = None,
    read_table: Callable[[Path], dict[int, float]] | None = None,
) -> ReferenceEnergies:
    """Find the energy of a free atom of each element.

    `auto` takes one-atom frames where there are any and fits the other elements by ridge least
    squares. What the data do not determine (one composition, elements that always come together)
    is decided by the table the ridge pulls to: for all-electron energies the Thomas-Fermi-Scott-
    Schwinger expansion, for valence-only energies (plane waves) the mean energy per atom.

    Args:
        counts: (structures, species) atoms of each element.
        species: (species,) atomic numbers.
        energies: (structures,) eV; NaN where unknown.
        spec: "auto", "lstsq", "isolated", a table {symbol: eV}, or a path to one.
        isolated: energies of one-atom frames by atomic number, eV.
        read_table: reads the file that `spec` names; default: one in eV, its format detected.

    Raises:
        DataError: an element has no energy, or none can be fitted.
        ConfigError: `spec` is none of these.
    """
    return _fit(lambda: [(counts, energies)], species, spec, isolated, read_table)


def _fit(
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    species: np.ndarray,
    spec: Any,
    isolated: Mapping[int, float] | None,
    read_table: Callable[[Path], dict[int, float]] | None,
) -> ReferenceEnergies:
    """See `fit_reference_energies`; counts and energies come in blocks that fit into memory."""
    isolated = dict(isolated or {})
    fixed: dict[int, float] = {}
    if isinstance(spec, Mapping):
        fixed, method = {_number(k): float(v) for k, v in spec.items()}, "table"
    elif spec == "auto":
        fixed = {z: e for z, e in isolated.items() if z in set(species.tolist())}
        method = "isolated atoms" if set(species.tolist()) <= set(fixed) else "ridge"
        if fixed and method == "ridge":
            method = "isolated atoms, the rest by ridge"
    elif spec == "isolated":
        fixed, method = isolated, "isolated atoms"
    elif spec == "lstsq":
        method = "least squares"
    elif isinstance(spec, str | Path) and Path(spec).exists():
        fixed, method = (read_table or _read_table)(Path(spec)), f"table {Path(spec).name}"
    else:
        raise ConfigError(
            f"data.e0={spec!r} must be auto, lstsq, isolated, a table such as {{H: -13.6}}, or an "
            "existing file"
        )
    free = [k for k, z in enumerate(species) if int(z) not in fixed]
    complete = method in ("isolated atoms",) or method.startswith("table")
    if free and complete and spec != "auto":
        missing = ", ".join(chemical_symbols[int(species[k])] for k in free)
        raise DataError(
            f"data.e0={spec!r} has no energy for {missing}; add it, or use data.e0=auto"
        )
    e0 = np.array([fixed.get(int(z), 0.0) for z in species])
    rank = len(species)
    if free:
        a, b = _equations(blocks(), free, e0)
        rank = int(np.linalg.matrix_rank(a)) + len(species) - len(free)
        if spec == "lstsq":
            e0[free] = np.linalg.lstsq(a, b, rcond=None)[0]
        else:
            prior, scale = _prior(blocks(), species)
            prior, scale = prior[free], scale[free]
            solve = np.concatenate([a * scale, np.sqrt(RIDGE) * np.eye(len(free))])
            right = np.concatenate([b - a @ prior, np.zeros(len(free))])
            e0[free] = prior + scale * np.linalg.lstsq(solve, right, rcond=None)[0]
    residual = np.concatenate([np.abs(e - n @ e0) / n.sum(1) for n, e in _known(blocks())])
    return ReferenceEnergies(
        table={int(z): float(e) for z, e in zip(species, e0, strict=True)},
        method=method,
        rank=rank,
        residual_mean=float(residual.mean()) if len(residual) else float("nan"),
        residual_max=float(residual.max()) if len(residual) else float("nan"),
    )


def free_atom_energy(z: np.ndarray) -> np.ndarray:
    """Total energy of a free atom, eV, within a few per cent: Thomas-Fermi-Scott-Schwinger.

    E = −0.768745 Z^(7/3) + Z²/2 − 0.269900 Z^(5/3) hartree. Source: J. Schwinger, Phys. Rev. A 24,
    2353 (1981), doi:10.1103/PhysRevA.24.2353.
    """
    z = np.asarray(z, dtype=float)
    hartree = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)
    return hartree * units.Hartree


def _known(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for counts, energies in blocks:
        known = np.isfinite(energies)
        yield counts[known], energies[known]


def _equations(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], free: Sequence[int], e0: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and b of the least squares |A x − b| for the energies of the elements `free`.

    Further blocks are merged into a triangle with the same solution and rank, by QR.

    Raises:
        DataError: no structure has an energy.
    """
    merged: tuple[np.ndarray, np.ndarray] | None = None
    for counts, energies in _known(blocks):
        n = counts.sum(1)
        block = counts[:, free] / np.sqrt(n)[:, None], (energies - counts @ e0) / np.sqrt(n)
        if merged is None:
            merged = block
        else:
            both = np.vstack([np.column_stack(merged), np.column_stack(block)])
            triangle = np.asarray(np.linalg.qr(both, mode="r"))
            merged = triangle[:, :-1], triangle[:, -1]
    if merged is None or not len(merged[1]):
        raise DataError("no structure has an energy: reference energies cannot be fitted")
    return merged


def _prior(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], species: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Table the ridge pulls to, and the size of the deviations it allows."""
    atomic = free_atom_energy(species)
    found = [(e / (n @ atomic), e / n.sum(1)) for n, e in _known(blocks)]
    ratio, per_atom = (np.concatenate(values) for values in zip(*found, strict=True))
    if 0.7 < np.median(ratio) < 1.3:  # all-electron: heavy atoms carry the energy
        return atomic, np.abs(atomic)
    mean = float(np.median(per_atom))
    return np.full(len(species), mean), np.ones(len(species))


def energies_of_atoms(store: Store, indices: np.ndarray) -> dict[int, float]:
    """Return the energy of each element from one-atom frames, eV."""
    out: dict[int, float] = {}
    for i in indices:
        z = int(store.column("atomic_numbers")[store.atoms_of(int(i))][0])
        charged = int(store.column("charge")[i]) != 0
        energy = float(store.column("energy")[i])
        if not charged and np.isfinite(energy):
            out[z] = min(energy, out.get(z, np.inf))  # the ground state of several
    return out


def _force_scale(store: AnyStore, indices: np.ndarray, repeats: np.ndarray | None = None) -> float:
    """Return sqrt(π/2)·mean |F| over components, eV/Å; 1 if there are no forces.

    It is the RMS of normally distributed components. The RMS itself is no measure of relaxation
    trajectories: in 1,000 frames of MPtrj it is 1.27 eV/Å where the median is 0.03, because of a
    few forces of up to 70 eV/Å.
    """
    total, labels = 0.0, 0.0
    some = np.linspace(0, len(indices) - 1, min(len(indices), FORCE_SAMPLE)).astype(int)
    sums, counts = store.summary("force_sum", indices[some]), store.num_atoms[indices[some]]
    for k, size, count in zip(some, sums.tolist(), counts.tolist(), strict=True):
        if np.isfinite(size):
            times = 1.0 if repeats is None else float(repeats[k])
            total += times * size
            labels += times * 3 * count
    return float(np.sqrt(np.pi / 2) * total / labels) if total > 0 else 1.0


def _neighbors(store: AnyStore, index: int, cutoff: float) -> np.ndarray:
    arrays = store.arrays(index)
    edges, _ = neighbor_list(arrays["positions"], arrays["cell"][0], arrays["pbc"][0], cutoff)
    return np.bincount(edges[1], minlength=len(arrays["positions"]))


def _number(key: Any) -> int:
    text = str(key)
    if text.isdigit():
        return int(text)
    if text not in atomic_numbers:
        raise ConfigError(f"data.e0: {text!r} is no element")
    return atomic_numbers[text]


def _read_table(
    path: Path, reading: Mapping[str, Any] | None = None, format: str = "auto"
) -> dict[int, float]:
    """Read {symbol: eV} from JSON, or neutral one-atom frames from any readable file."""
    if path.suffix == ".json":
        table = json.loads(path.read_text())
        if not all(isinstance(v, int | float) for v in table.values()):
            raise DataError(f"{path}: expected one JSON object of element: energy in eV")
        return {_number(k): float(v) for k, v in table.items()}
    from mlip.data.readers import read_structures

    out: dict[int, float] = {}
    # Free atoms belong to no material, have no correction and are needed, every one: data.group,
    # data.energy and data.on_bad are not for them.
    given = {k: v for k, v in (reading or {}).items() if k not in ("group", "energy", "on_bad")}
    for frame, atoms in enumerate(read_structures(path, format, **given)):
        if len(atoms) != 1 or atoms.calc is None or "energy" not in atoms.calc.results:
            raise DataError(f"{path}, frame {frame}: expected one atom with an energy")
        z, energy = int(atoms.numbers[0]), float(atoms.calc.results["energy"])
        if atoms.info.get("charge", 0) == 0:
            out[z] = min(energy, out.get(z, np.inf))  # the ground state of several
    return out
