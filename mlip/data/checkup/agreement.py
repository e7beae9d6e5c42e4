"""Whether forces and stresses are the derivatives of the energies, and what they are if not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.checkup.findings import Finding
from mlip.units import energy_factor, force_factor, stress_factor

FEWEST: Final = 5  # pairs in which a label matters
EXPLAINED: Final = 0.3  # share of the changes of the energy that a label must explain to be judged
RIGHT: Final = 1.5  # slopes between 1/1.5 and 1.5 are right: the nearest wrong unit is 0.53
SURE: Final = (30, 2.5)  # with fewer pairs, a slope within this factor of 1 is not called wrong
NAMED: Final = 1.3  # a slope within this factor of a unit's is called by its name
UNRELATED: Final = (30, 0.05)  # pairs, and the share they explain, for labels that do not belong
_ENERGY_UNITS: Final = ("eV", "hartree", "kcal/mol", "kJ/mol", "rydberg")
_FORCE_UNITS: Final = (
    *("eV/A", "hartree/bohr", "kcal/mol/A", "kJ/mol/A", "kJ/mol/nm"),
    *("eV/bohr", "hartree/A", "rydberg/bohr"),
)
_STRESS_UNITS: Final = ("eV/A^3", "GPa", "kbar", "bar", "hartree/bohr^3")


@dataclass(frozen=True, slots=True)
class Slope:
    """What labels say against what energies say.

    Attributes:
        value: 1 if they agree; None if it cannot be told.
        pairs: pairs of neighbouring frames in which the label matters.
        explained: share of the typical change of the energy that the label explains.
        reason: why it cannot be told.
    """

    value: float | None
    pairs: int
    explained: float
    reason: str = ""

    @property
    def right(self) -> bool | None:
        """Whether unit and sign are right; None if it cannot be told."""
        return None if self.value is None else 1 / RIGHT < self.value < RIGHT

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values."""
        return asdict(self)


def slopes(pairs: NDArray[np.void]) -> tuple[Slope, Slope, float]:
    """Return the slopes of forces and of stresses, and the share that both explain together.

    The energies are fitted by both works at once with the least absolute deviation relative to the
    terms of a pair, so that neither jumps between calculations nor large steps decide.
    """
    terms = np.stack([pairs["by_forces"], pairs["by_stress"]], axis=1)
    scales = np.stack([pairs["force_scale"], pairs["stress_scale"]], axis=1)
    usable = scales.sum(axis=1) > 0
    terms, scales, energy = terms[usable], scales[usable], pairs["energy"][usable]
    if len(energy) < FEWEST:
        few = "too few neighbouring frames"
        return Slope(None, len(energy), 0.0, few), Slope(None, 0, 0.0, few), 0.0
    factor, fitted = np.ones(2), np.zeros(2)
    size = scales @ factor
    for _ in range(3):  # in wrong units one term outweighs the other until its factor is known
        fitted = _least_deviation(terms, energy, size)
        factor = np.where(fitted != 0, np.abs(fitted), factor)
        size = scales @ factor
    everything = np.ones(len(energy), dtype=bool)
    rest = (energy - terms @ fitted) / size
    together = _explained(rest, energy / size, everything)
    out = []
    for k, what in enumerate(("atoms", "volumes")):
        matters = scales[:, k] * factor[k] > 0.1 * size
        other = terms[:, [1 - k]]
        without = (energy - other @ _least_deviation(other, energy, size)) / size
        explained = _explained(rest, without, matters)
        if (count := int(matters.sum())) < FEWEST:
            out.append(Slope(None, count, explained, f"{what} hardly move between frames"))
        elif explained < EXPLAINED or fitted[k] == 0:
            share = f"they explain only {explained:.0%} of the changes of the energy"
            out.append(Slope(None, count, explained, share))
        else:
            out.append(_slope(float(1.0 / fitted[k]), count, explained))
    return out[0], out[1], together


def _slope(value: float, pairs: int, explained: float) -> Slope:
    slope = Slope(value, pairs, explained)
    if slope.right or pairs >= SURE[0] or not 1 / SURE[1] < value < SURE[1]:
        return slope
    return Slope(None, pairs, explained, f"{value:.2g} times, but from {pairs} pairs only")


def _explained(
    rest: NDArray[np.float64], without: NDArray[np.float64], where: NDArray[np.bool_]
) -> float:
    """Return the share by which a term reduces the typical (median) deviation."""
    typical = float(np.median(np.abs(without[where]))) if where.any() else 0.0
    return max(1.0 - float(np.median(np.abs(rest[where]))) / typical, 0.0) if typical > 0 else 0.0


def _least_deviation(
    terms: NDArray[np.float64], energy: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Minimise sum |energy - terms @ x| / size by reweighted least squares; unused terms get 0."""
    scaled, right = terms / size[:, None], energy / size
    length = np.linalg.norm(scaled, axis=0)
    used = length > 0
    out = np.zeros(terms.shape[1])
    if not used.any():
        return out
    columns = scaled[:, used] / length[used]
    weight = np.ones(len(energy))
    solution = np.zeros(int(used.sum()))
    for _ in range(60):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(columns * root[:, None], right * root, rcond=None)[0]
        deviation = np.abs(right - columns @ solution)
        weight = 1.0 / np.maximum(deviation, 1e-4 * max(float(np.median(np.abs(right))), 1e-300))
    out[used] = solution / length[used]
    return out


def judge_forces(part: str, slope: Slope) -> Iterator[Finding]:
    """Find forces that are no derivatives of the energies."""
    if slope.right is False:
        names = [
            (energy_factor(e) / force_factor(f), f"forces in {f} with energies in {e}")
            for e in _ENERGY_UNITS
            for f in _FORCE_UNITS
        ]
        yield _finding("force-unit", part, slope, names, "gradients instead of forces")


def judge_stress(part: str, slope: Slope, volume: float) -> Iterator[Finding]:
    """Find stresses that are no derivatives of the energies.

    Args:
        part: name of the data.
        slope: of the stresses.
        volume: the typical one, Å³, by which a virial differs from a stress.
    """
    if slope.right is False:
        names = [
            (energy_factor(e) / stress_factor(s), f"stresses in {s} with energies in {e}")
            for e in _ENERGY_UNITS
            for s in _STRESS_UNITS
        ]
        names.append((volume, "virials instead of stresses"))
        yield _finding("stress-unit", part, slope, names, "positive under compression")


def _finding(
    kind: str, part: str, slope: Slope, names: list[tuple[float, str]], opposite: str
) -> Finding:
    value = slope.value or math.nan
    near = sorted(
        (abs(math.log(abs(value) / factor)), factor, name)
        for factor, name in names
        if abs(math.log(abs(value) / factor)) < math.log(NAMED)
    )
    sign = f", {opposite}" if value < 0 else ""
    said = " or ".join(
        f"{name} ({math.copysign(factor, value):.4g})" for _, factor, name in near[:3]
    )
    said = said or "no unit that is known here"
    evidence = (
        f"{part}: {value:.4g} times what the energies say, from {slope.pairs} pairs of "
        f"neighbouring frames that explain {slope.explained:.0%} of the changes of the energy; as "
        f"of {said}{sign}"
    )
    return Finding(kind, slope.pairs, slope.pairs, (), evidence)


def judge_relation(part: str, pairs: int, together: float) -> Iterator[Finding]:
    """Find labels of which neither forces nor stresses explain anything."""
    if pairs >= UNRELATED[0] and together < UNRELATED[1]:
        evidence = f"{part}: {pairs} pairs of neighbouring frames, {max(together, 0):.0%} explained"
        yield Finding("unrelated", pairs, pairs, (), evidence)
