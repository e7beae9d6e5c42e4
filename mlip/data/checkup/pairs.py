"""Neighbouring frames: whether energies, forces and stresses belong together.

From one structure to a nearby one of the same atoms, the energy changes by the work of forces and
stresses. With the mean of both ends (the trapezoid rule, exact for harmonic potentials)

    E_b - E_a = -1/2 sum_i (F_i,a . d_i,a + F_i,b . d_i,b) + 1/2 (V_a sigma_a:e_a + V_b sigma_b:e_b)

where d are the displacements at fixed cell, seen in each end's cell, and e the strain. The slope of
what the labels say against what the energies say is 1 if units and signs are right, -1 if the sign
is not, 160.2 for stresses in GPa, and so on. For strained crystals this is the regression of the
mean stress on dE/dV, generalised to cells and atoms that move at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from mlip.data.checkup.frame import labels_of

RECENT: Final = 6  # frames of one kind to look for a near one among
KINDS: Final = 256  # compositions remembered at once, the least recent forgotten
ENOUGH: Final = 1000  # pairs of a part, after which only every tenth frame is compared
THIN: Final = 10
NEAR: Final = 0.5  # Å; largest displacement of an atom for the rule to hold
STRAIN: Final = 0.1  # largest strain
STILL: Final = 1e-9  # strain below which the cell has not changed

PAIR: Final = np.dtype(
    [
        ("energy", "f8"),  # E_b - E_a, eV
        ("by_forces", "f8"),
        ("by_stress", "f8"),
        ("force_scale", "f8"),  # sum of the absolute terms
        ("stress_scale", "f8"),
        ("volume", "f8"),  # mean, Å³
    ]
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A frame that has a neighbour's energy to explain: plain arrays, which processes exchange."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    charge: int
    spin: int
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None  # (6,)


def labelled(atoms: Atoms) -> Labelled | None:
    """Return what the rule needs of a structure, None for one without energy, forces or company."""
    results = labels_of(atoms)
    if "energy" not in results or "forces" not in results or len(atoms) < 2:
        return None
    state = atoms.info.get("charge", 0), atoms.info.get("spin", 0)
    geometry = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
    return Labelled(*geometry, *state, results["energy"], results["forces"], results.get("stress"))


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the rule needs of a frame."""

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    positions: NDArray[np.float64]  # relative to the centre; fractional if periodic
    cell: NDArray[np.float64]
    volume: float


class PairFinder:
    """Looks, for every frame of a part, for a near one among the recent ones of the same atoms.

    What it finds depends on the frames before, so it must see them all in their order.
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[tuple[bytes, bytes, int, int], deque[_Frame]] = OrderedDict()
        self._rows: list[tuple[float, ...]] = []
        self._offered = 0

    def offer(self, given: Labelled | None) -> None:
        """Take the next frame; None is of no use."""
        if given is None:
            return
        self._offered += 1
        if len(self._rows) >= ENOUGH and self._offered % THIN > 1:
            return
        key = (given.numbers.tobytes(), given.pbc.tobytes(), given.charge, given.spin)
        frame = _take(given)
        recent = self._recent.pop(key, deque(maxlen=RECENT))
        if recent and (row := _nearest(list(recent), frame, given.pbc)) is not None:
            self._rows.append(row)
        recent.append(frame)
        self._recent[key] = recent
        if len(self._recent) > KINDS:
            self._recent.popitem(last=False)

    def pairs(self) -> NDArray[np.void]:
        """Return what was found, of type `PAIR`."""
        return np.array(self._rows, dtype=PAIR)


def _take(given: Labelled) -> _Frame:
    cell, periodic = np.array(given.cell), given.pbc
    if periodic.any():
        if not periodic.all():
            cell = np.array(Cell(given.cell).complete().array)
        positions: NDArray[Any] = np.linalg.solve(cell.T, given.positions.T).T
    else:
        positions = given.positions - given.positions.mean(axis=0)
    return _Frame(
        energy=given.energy,
        forces=given.forces,
        stress=None if given.stress is None else voigt_6_to_full_3x3_stress(given.stress),
        positions=positions,
        cell=cell,
        volume=abs(float(np.linalg.det(cell))) if periodic.all() else np.nan,
    )


def _nearest(
    recent: list[_Frame], frame: _Frame, periodic: NDArray[np.bool_]
) -> tuple[float, ...] | None:
    """Return the row of the nearest of the recent frames, None if none is near."""
    others = np.stack([other.positions for other in recent])
    if periodic.any():
        cells = np.stack([other.cell for other in recent])
        steps = frame.positions - others
        steps -= np.round(steps) * periodic
        steps -= steps.mean(axis=1, keepdims=True)
        at_other, at_frame = steps @ cells, steps @ frame.cell
        change = frame.cell - cells
        strains = np.linalg.solve(cells, change), np.linalg.solve(frame.cell, change)
    else:
        turn = _rotations(frame.positions, others)
        at_other = frame.positions @ turn - others
        at_frame = at_other @ turn.transpose(0, 2, 1)
        strains = (np.zeros((len(recent), 3, 3)),) * 2
    moved = np.sqrt((at_other**2).sum(axis=2)).max(axis=1)
    strained = np.abs(strains[0]).max(axis=(1, 2))
    usable = (moved < NEAR) & (strained < STRAIN) & ((moved > 1e-4) | (strained > 1e-5))
    for k, other in enumerate(recent):
        if strained[k] > STILL and (other.stress is None or frame.stress is None):
            usable[k] = False
    if not usable.any():
        return None
    k = int(np.where(usable, moved + 3 * strained, np.inf).argmin())
    other = recent[k]
    forces = [
        -0.5 * float((other.forces * at_other[k]).sum()),
        -0.5 * float((frame.forces * at_frame[k]).sum()),
    ]
    stress = [0.0, 0.0]
    if strained[k] > STILL and other.stress is not None and frame.stress is not None:
        stress = [
            0.5 * other.volume * float((other.stress * strains[0][k]).sum()),
            0.5 * frame.volume * float((frame.stress * strains[1][k]).sum()),
        ]
    return (
        frame.energy - other.energy,
        sum(forces),
        sum(stress),
        sum(map(abs, forces)),
        sum(map(abs, stress)),
        0.5 * (frame.volume + other.volume),
    )


def _rotations(x: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return proper rotations (K, 3, 3) that bring x (N, 3) nearest to each of others (Kabsch)."""
    u, _, vt = np.linalg.svd(np.einsum("nc,knd->kcd", x, others))
    mirror = np.linalg.det(u @ vt) < 0
    u[mirror, :, -1] *= -1
    return u @ vt
