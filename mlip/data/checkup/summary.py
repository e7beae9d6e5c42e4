"""What a data set holds, in numbers: a description, not a judgement."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlip.data.checkup.census import Census
from mlip.data.checkup.energies import Composition, residuals
from mlip.data.readers.checks import hill_formula
from mlip.units import GPA

MOST = 10  # compositions that are named


def summarize(census: Census, number: int) -> dict[str, Any]:
    """Describe one part as plain values: eV, Å, GPa; ranges are [least, median, largest].

    Args:
        census: of all parts.
        number: which of them.
    """
    part = census.parts[number]
    frames = census.frames[census.part == number]
    atoms = np.maximum(frames["natoms"], 1)
    out: dict[str, Any] = {
        "name": part.name,
        "files": [str(file) for file in part.files],
        "frames": part.usable,
        "not_usable": part.frames - part.usable,
        "atoms": int(part.atoms.sum()),
        "labels": dict(part.labels),
        "elements": {chemical_symbols[z]: int(part.atoms[z]) for z in np.flatnonzero(part.atoms)},
    }
    if not len(frames):
        return out
    ids, counts = np.unique(frames["composition"], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST]
    out |= {
        "compositions": len(ids),
        "most_common": {formula(census.compositions[ids[k]]): int(counts[k]) for k in most},
        "groups": len(set(frames["group"].tolist()) - {-1}),
        "without_group": int((frames["group"] < 0).sum()),
        "periodic_axes": _table(sum(frames["pbc"] >> k & 1 for k in range(3))),
        "charge": _table(frames["charge"]),
        "multiplicity": _table(frames["spin"]),
        "atoms_per_frame": spread(frames["natoms"]),
        "volume_per_atom": spread(frames["volume"] / atoms),
        "energy_per_atom": spread(frames["energy"] / atoms),
        "energy_less_elements": spread(_less_elements(census, frames)),
        "force_rms": _rms(frames["force_rms"], frames["natoms"]),
        "force_largest": spread(frames["largest_force"]),
        "mean_stress_GPa": spread(frames["stress"] / GPA),
        "closest_contact": spread(frames["contact"]),
    }
    return out


def spread(values: NDArray[Any]) -> list[float] | None:
    """Return the least, the median and the largest of the finite values; None without any."""
    finite = values[np.isfinite(values)]
    return [float(np.quantile(finite, q)) for q in (0.0, 0.5, 1.0)] if len(finite) else None


def formula(composition: Composition) -> str:
    """Return a composition in Hill order."""
    return hill_formula(np.repeat(*composition))


def _less_elements(census: Census, frames: NDArray[np.void]) -> NDArray[np.float64]:
    per_atom = frames["energy"] / np.maximum(frames["natoms"], 1)
    per_atom = np.where((frames["natoms"] > 1) | (frames["pbc"] > 0), per_atom, np.nan)
    return residuals(per_atom, frames["composition"].astype(np.int64), census.compositions)


def _rms(rms: NDArray[Any], atoms: NDArray[Any]) -> float | None:
    known = np.isfinite(rms)
    if not known.any():
        return None
    squares = np.square(rms[known].astype(float))
    return float(np.sqrt(np.average(squares, weights=atoms[known])))


def _table(values: Any) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(int(name)): int(count) for name, count in zip(names, counts, strict=True)}
