"""From files to findings: the census, then every judgement on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlip.data.checkup.agreement import Slope, judge_forces, judge_relation, judge_stress, slopes
from mlip.data.checkup.census import Census, Part, take_census
from mlip.data.checkup.coverage import judge_elements, judge_labels
from mlip.data.checkup.duplicates import contradicting, repeated, states, structure_classes
from mlip.data.checkup.energies import (
    SCATTER,
    all_electron_unit,
    outliers,
    residuals,
    robust_spread,
)
from mlip.data.checkup.findings import ERROR, EXAMPLES, Finding, ordered

USUAL_FORCES: Final = (1e-4, 20.0)  # eV/Å, mean of a part; beyond both a comment is due
USUAL_STRESS: Final = 0.3  # eV/Å³ (48 GPa), median of |trace/3|


@dataclass
class Examination:
    """What was found, and on what it rests.

    Attributes:
        census: the numbers of every frame.
        findings: errors first.
        force_slopes: per part, forces against energies.
        stress_slopes: per part, stresses against energies.
        energy_units: per part, the unit that all-electron energies are in; None if not such.
        residuals: (n,) eV/atom, energies less a sum over elements.
    """

    census: Census
    findings: list[Finding] = field(default_factory=list)
    force_slopes: list[Slope] = field(default_factory=list)
    stress_slopes: list[Slope] = field(default_factory=list)
    energy_units: list[tuple[str, float] | None] = field(default_factory=list)
    residuals: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == ERROR for finding in self.findings)


def examine(
    paths: Sequence[str | os.PathLike[str]],
    format: str = "auto",
    *,
    expected: int | None = None,
    processes: int = 1,
    **options: Any,
) -> Examination:
    """Read data and say what is wrong with it.

    Args:
        paths: each is one part (training, validation, ...): a file, a folder or a glob.
        format: of the files.
        expected: how many frames there must be; None if that is not known.
        processes: how many read at the same time. They are started afresh, so a script that
            calls this needs `if __name__ == "__main__":`.
        **options: of the reader, as `read_structures` takes them.

    Raises:
        DataError: a path does not exist or holds nothing readable.
        ConfigError: an option is unknown.
    """
    census = take_census(paths, format, processes=processes, **options)
    out = Examination(census)
    found = census.notes.findings(census.total)
    if expected not in (None, census.total):
        evidence = f"{census.total} were read, {expected} are expected"
        found.append(Finding("frames-missing", census.total, expected or 0, (), evidence))
    for number, part in enumerate(census.parts):
        found += judge_labels(part)
        found += _judge_part(out, part, number)
    found += judge_elements(census)
    found += _judge_energies(out)
    found += _judge_copies(census)
    out.findings = ordered(found)
    return out


def _judge_part(out: Examination, part: Part, number: int) -> Iterator[Finding]:
    """Judge units and signs of one part, and keep what the judgement rests on."""
    census = out.census
    frames = census.frames[census.part == number]
    pairs = part.pairs.pairs()
    forces, stress, together = slopes(pairs)
    out.force_slopes.append(forces)
    out.stress_slopes.append(stress)
    unit = all_electron_unit(frames["energy"], census.compositions, frames["composition"])
    out.energy_units.append(unit)
    if unit is not None and unit[0] != "eV":
        evidence = (
            f"{part.name}: {unit[1]:.4g} times the energies of the free atoms in eV, as total "
            f"energies in {unit[0]} are"
        )
        yield Finding("energy-unit", len(frames), len(frames), (), evidence)
    yield from judge_forces(part.name, forces)
    volume = float(np.median(pairs["volume"])) if stress.pairs else 1.0
    yield from judge_stress(part.name, stress, volume)
    yield from judge_relation(part.name, len(pairs), together)
    yield from _judge_sizes(part.name, frames, forces, stress)


def _judge_sizes(
    name: str, frames: NDArray[np.void], forces: Slope, stress: Slope
) -> Iterator[Finding]:
    """Judge sizes where nothing better is known."""
    sizes = frames["forces"][np.isfinite(frames["forces"]) & (frames["natoms"] > 1)]
    if forces.value is None and len(sizes):
        mean = float(sizes.mean())
        if not USUAL_FORCES[0] < mean < USUAL_FORCES[1] and mean > 0:
            evidence = f"{name}: the mean |component| is {mean:.3g} eV/A"
            yield Finding("force-size", len(sizes), len(frames), (), evidence)
    traces = np.abs(frames["stress"][np.isfinite(frames["stress"])])
    if stress.value is None and len(traces) and (median := float(np.median(traces))) > USUAL_STRESS:
        evidence = f"{name}: the median |trace/3| is {median:.3g} eV/A^3 ({median * 160.2:.3g} GPa)"
        yield Finding("stress-size", len(traces), len(frames), (), evidence)


def _judge_energies(out: Examination) -> Iterator[Finding]:
    """Judge energies against composition, over all parts."""
    census = out.census
    frames = census.frames
    bound = (frames["natoms"] > 1) | (frames["pbc"] > 0)  # a free atom lies on another line
    per_atom = np.where(bound, frames["energy"] / np.maximum(frames["natoms"], 1), np.nan)
    composition = frames["composition"].astype(np.int64)
    out.residuals = residuals(per_atom, composition, census.compositions)
    known = out.residuals[np.isfinite(out.residuals)]
    if (spread := robust_spread(known)) > SCATTER:
        evidence = f"a robust deviation of {spread:.3g} eV/atom from the sum over elements"
        yield Finding("energy-scatter", len(known), len(frames), (), evidence)
    far = outliers(out.residuals, composition, states(frames), census.compositions)
    if len(far):
        examples = [
            census.example(int(r), f"{out.residuals[r]:+.3f} eV/atom") for r in far[:EXAMPLES]
        ]
        evidence = f"most are within {spread:.2g} eV/atom of the sum over elements"
        yield Finding("energy-outlier", len(far), len(known), tuple(examples), evidence)


def _judge_copies(census: Census) -> Iterator[Finding]:
    """Find structures that are there twice: in one part, in two, with two energies."""
    frames, part = census.frames, census.part
    groups = repeated(structure_classes(frames))
    copies = [g for g in groups if len(np.unique(part[g])) < len(g)]
    leaks = [g for g in groups if len(np.unique(part[g])) > 1]
    for kind, found in (
        ("duplicate", copies),
        ("leak", leaks),
        ("contradiction", contradicting(frames, groups)),
    ):
        if not found:
            continue
        examples = []
        for group in found[:EXAMPLES]:
            first = int(group[0])
            other = int(group[part[group] != part[first]][0] if kind == "leak" else group[1])
            detail = f"is also {census.example(other)}"
            if kind == "contradiction":
                energies = frames["energy"][group]
                detail += f"; energies differ by {np.nanmax(energies) - np.nanmin(energies):.3g} eV"
            examples.append(census.example(first, detail))
        if kind == "duplicate":
            count = sum(len(g) - len(np.unique(part[g])) for g in found)
        else:
            count = len(found)
        yield Finding(kind, count, len(frames), tuple(examples), _what(kind, count))


def _what(kind: str, count: int) -> str:
    return f"{count} superfluous frames" if kind == "duplicate" else f"{count} structures"
