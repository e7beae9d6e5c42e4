"""What one frame shows by itself, as numbers to keep and faults to note."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

from mlip.data.readers.canonical import SEARCH
from mlip.data.readers.checks import check_cell
from mlip.data.readers.frames import RawFrame
from mlip.data.readers.options import VIRIAL_KEYS
from mlip.errors import DataError
from mlip.neighbors import complete_cell, neighbor_list

Fault = tuple[str, str]  # kind, detail
CUTOFF: Final = 4.0  # Å; pairs that make a structure's fingerprint
LARGEST: Final = 1e12  # eV, eV/Å, ...; a million uranium atoms have less
FARTHEST: Final = 1e6  # Å; 0.1 mm: neighbour lists of atoms farther out may never end
FLAT: Final = 0.3  # Å between lattice planes; a neighbour list of less has no end either
OVERLAP: Final = 0.3  # Å; the store refuses closer atoms
CLOSE: Final = 0.5  # of the sum of covalent radii; the closest of genuine MPtrj is 0.59
BONDED: Final = 1.15  # of the sum of covalent radii
NET_FORCE: Final = (0.02, 0.01)  # eV/Å and of the sum of |F|; genuine data have 1e-3 and 8e-3
SAME_LABEL: Final = 1e-4  # relative and absolute; two spellings of one label differ by less

# What is kept of a frame. NaN: the frame does not have it.
COLUMNS: Final = np.dtype(
    [
        ("file", "i4"),
        ("frame", "i8"),
        ("composition", "i4"),
        ("natoms", "i4"),
        ("charge", "i2"),
        ("spin", "i2"),
        ("pbc", "u1"),  # bit k: axis k is periodic
        ("group", "i4"),  # -1: none
        ("energy", "f8"),
        ("content", "u8"),  # hash of elements, positions, cell and state
        ("forces", "f4"),  # mean |component|, eV/Å
        ("force_rms", "f4"),
        ("largest_force", "f4"),
        ("stress", "f4"),  # trace/3, eV/Å³
        ("volume", "f8"),
        ("contact", "f4"),  # smallest distance over the sum of covalent radii
        ("shape", "f8", (3,)),
    ]
)
SIZES: Final = np.linspace(-8, 4, 121)  # edges of the histogram of log10 |force component|


def labels_of(atoms: Atoms) -> dict[str, Any]:
    """Return the labels of a structure as they are: constraints zero nothing."""
    return atoms.calc.results if atoms.calc is not None else {}


def absurdity(atoms: Atoms) -> str:
    """Say which number of a structure is beyond its limit; empty if none is."""
    lengths = {"positions": atoms.positions, "cell": atoms.cell.array}
    for numbers, limit in ((lengths, FARTHEST), (labels_of(atoms), LARGEST)):
        for name, values in numbers.items():
            if (size := float(np.max(np.abs(values), initial=0.0))) > limit:
                return f"{name} reach {size:.3g}"
    if atoms.pbc.all():
        apart = 1.0 / float(np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0).max())
        if apart < FLAT:
            return f"lattice planes are {apart:.2g} A apart"
    return ""


def content(atoms: Atoms) -> int:
    """Return a hash of elements, positions (to 1e-6 Å), cell, charge and multiplicity."""
    state = f"{atoms.info.get('charge', 0)} {atoms.info.get('spin', 0)} {atoms.pbc}"
    arrays = (atoms.numbers, np.round(atoms.positions, 6) + 0.0, atoms.cell.array)
    data = state.encode() + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def contacts(atoms: Atoms) -> tuple[float, float, NDArray[np.float64], str]:
    """Return the smallest distance (Å), the smallest in covalent radii, the shape, the pair.

    The shape is three numbers that turning, shifting, mirroring or renumbering the structure do not
    change, and nearly any other change does: two sums over pairs closer than `CUTOFF`, and the
    volume or, of molecules, the spread around the centre, which also sees atoms far apart.

    Raises:
        DataError: two atoms are at the same point.
    """
    x, cell, pbc, z = atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
    (j, i), shift = neighbor_list(x, cell, pbc, CUTOFF)
    vectors = x[j] - x[i]
    if pbc.any():
        vectors += shift @ cell
        size = abs(np.linalg.det(cell if pbc.all() else complete_cell(cell, pbc)))
    else:
        size = float(z @ ((x - x.mean(axis=0)) ** 2).sum(axis=1))
    if not len(i):
        return np.inf, np.inf, np.array([0.0, 0.0, size]), ""
    squared = (vectors**2).sum(axis=1)
    weight = z[i].astype(float) * z[j]
    fall = (1.0 - squared / CUTOFF**2) ** 2
    shape = np.array([weight @ fall, weight @ fall**2, size])
    distance = np.sqrt(squared)
    ratio = distance / (covalent_radii[z[i]] + covalent_radii[z[j]])
    e = int(ratio.argmin())
    pair = f"atoms {min(i[e], j[e])} and {max(i[e], j[e])} are {distance[e]:.3f} A apart"
    return float(distance.min()), float(ratio[e]), shape, pair


def geometry_faults(atoms: Atoms, distance: float, ratio: float, pair: str) -> Iterator[Fault]:
    """Yield (kind, detail) of what is wrong with where the atoms are."""
    if distance < OVERLAP:
        yield "overlap", pair
    elif ratio < CLOSE:
        yield "close", f"{pair}, {ratio:.2f} of the sum of their covalent radii"
    if not atoms.pbc.any() and abs(np.linalg.det(atoms.cell.array)) > 1e-3:
        z, cell = atoms.numbers, atoms.cell.array
        try:
            (j, i), shift = neighbor_list(atoms.positions, cell, np.ones(3, dtype=bool), CUTOFF)
        except DataError:  # an atom lies on an image of another
            yield "pbc-lost", "atoms coincide across the cell"
            return
        lengths = np.linalg.norm(atoms.positions[j] + shift @ cell - atoms.positions[i], axis=1)
        bonded = lengths < BONDED * (covalent_radii[z[i]] + covalent_radii[z[j]])
        if (bonded & shift.any(axis=1)).any():
            yield "pbc-lost", "atoms are bonded across the cell"


def force_faults(
    forces: NDArray[np.float64], atoms: Atoms, fixed: NDArray[np.int64]
) -> Iterator[Fault]:
    """Yield (kind, detail) of what is wrong with forces (N, 3), eV/Å.

    Args:
        forces: the labels.
        atoms: their structure.
        fixed: atoms that the file says are constrained.
    """
    zero = np.flatnonzero((forces == 0).all(axis=1))
    if len(zero) == len(forces):
        if len(forces) > 1 and not atoms.pbc.any():
            yield "zero-filled", "all forces are exactly zero"
        return
    net = float(np.linalg.norm(forces.sum(axis=0)))
    total = float(np.linalg.norm(forces, axis=1).sum())
    if net < NET_FORCE[0] or net < NET_FORCE[1] * total:
        return
    if len(zero):
        said = ", which the file says are fixed" if set(zero) <= set(fixed.tolist()) else ""
        some = ", ".join(map(str, zero[:5])) + (", ..." if len(zero) > 5 else "")
        yield "forces-zeroed", f"{len(zero)} atoms ({some}){said}; the others sum to {net:.3g} eV/A"
    else:
        yield "net-force", f"{net:.3g} eV/A, of {total:.3g} in all"


def state_faults(atoms: Atoms) -> Iterator[Fault]:
    """Yield (kind, detail) if charge and multiplicity are impossible."""
    spin = atoms.info.get("spin", 0)
    charge = atoms.info.get("charge", 0)
    electrons = int(atoms.numbers.sum()) - charge
    if spin > 0 and ((electrons - spin + 1) % 2 or spin > electrons + 1):
        yield "parity", f"charge {charge}, multiplicity {spin}, {electrons} electrons"


def label_faults(raw: RawFrame, atoms: Atoms) -> Iterator[Fault]:
    """Yield (kind, detail) of labels that contradict one another or were filled in."""
    results = labels_of(atoms)
    if len(atoms) > 1 and results.get("energy") == 0.0:
        yield "zero-filled", "the energy is exactly 0"
    if "stress" in results and not results["stress"].any() and np.any(results.get("forces", 0)):
        yield "zero-filled", "the stress is exactly zero and forces are not"
    given = {label: _spellings(raw, label) for label in SEARCH}
    if given["stress"] and not atoms.pbc.all():
        yield "stress-not-periodic", f"pbc is {_flags(atoms.pbc)}"
    for label, found in given.items():
        values = _one_scale(found, raw) if label == "stress" else found
        if len(values) < 2:
            continue
        (first, value), *others = values.items()
        for name, other in others:
            if other.shape != value.shape:
                continue
            difference = np.abs(other - value)
            if (difference > SAME_LABEL * (1 + np.abs(value))).any():
                yield "two-labels", f"{first} and {name} differ by up to {difference.max():.3g}"


def _spellings(raw: RawFrame, label: str) -> dict[str, NDArray[np.float64]]:
    """Return every value that the frame has for a label, in the order of search."""
    found: dict[str, NDArray[np.float64]] = {}
    for name in SEARCH[label]:
        value = raw.get(name)
        if value is None or name.removeprefix("calc:") in found:
            continue
        try:
            found[name.removeprefix("calc:")] = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            continue  # text: the reader refuses it if it is the one that counts
    return found


def _one_scale(
    found: dict[str, NDArray[np.float64]], raw: RawFrame
) -> dict[str, NDArray[np.float64]]:
    """Return stresses and virials, W = -V sigma, as comparable stresses (3, 3)."""
    volume = abs(np.linalg.det(np.zeros((3, 3)) if raw.cell is None else np.asarray(raw.cell)))
    out = {}
    for name, value in found.items():
        if value.size == 9 and volume > 0:
            factor = -1.0 / volume if name in VIRIAL_KEYS else 1.0
            out[name] = value.reshape(3, 3) * factor
    return out


def fixed_atoms(raw: RawFrame) -> NDArray[np.int64]:
    """Return the indices of the atoms that the file says are constrained."""
    indices = [np.ravel(c.get_indices()) for c in raw.constraints if hasattr(c, "get_indices")]
    return np.unique(np.concatenate(indices)).astype(np.int64) if indices else np.zeros(0, int)


def why_refused(raw: RawFrame) -> str:
    """Return the kind of fault for which a reader refused the frame."""
    numbers = [raw.positions, *((raw.cell,) if raw.cell is not None else ())]
    numbers += [value for label in SEARCH for value in _spellings(raw, label).values()]
    for value in numbers:
        try:
            if not np.isfinite(np.asarray(value, dtype=float)).all():
                return "not-finite"
        except (TypeError, ValueError):
            return "refused"
    pbc = np.empty(3, dtype=bool)
    try:
        pbc[:] = raw.pbc
        check_cell(np.zeros((3, 3)) if raw.cell is None else np.asarray(raw.cell, float), pbc, "")
    except (DataError, ValueError, IndexError):
        return "cell"
    return "refused"


def _flags(pbc: NDArray[np.bool_]) -> str:
    return " ".join("T" if flag else "F" for flag in pbc)
