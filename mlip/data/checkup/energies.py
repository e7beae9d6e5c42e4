"""Whether energies make sense: their unit, and frames that are far from all others.

Total energies are nearly a sum over elements. What is left after fitting that sum, in which a few
wrong frames have no say, is chemistry: some tenths of an eV per atom, in strange crystals a few eV.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mlip.data.stats import free_atom_energy
from mlip.units import energy_factor

FAR: Final = (12.0, 1.5)  # robust standard deviations and eV/atom: both must be exceeded
SCATTER: Final = 5.0  # eV/atom; robust deviation beyond which energies are not of one kind
TRUSTED: Final = 3  # compositions per element
MANY: Final = 8  # frames of a composition that have a middle of their own
_UNITS: Final = ("eV", "hartree", "rydberg", "kcal/mol", "kJ/mol", "meV")
_UNIFORM: Final = 1.08  # a ratio to free atoms within this factor names the unit

Composition = tuple[NDArray[np.int64], NDArray[np.int64]]  # elements, counts


def all_electron_unit(
    energies: NDArray[np.float64], compositions: list[Composition], of: NDArray[np.int64]
) -> tuple[str, float] | None:
    """Return the unit in which the energies are those of all electrons, and their ratio in eV.

    Energies of all electrons are within a few per cent those of free atoms (Thomas-Fermi-Scott-
    Schwinger), so their ratio to them names the unit. None for energies of valence electrons.

    Args:
        energies: (n,) finite.
        compositions: elements and counts.
        of: (n,) the composition of each frame.
    """
    atoms = np.array([float(n @ free_atom_energy(z)) for z, n in compositions])
    heavy = np.array([z.max() >= 6 for z, _ in compositions], dtype=bool)
    known = np.isfinite(energies) & heavy[of]
    if not known.any():
        return None
    ratios = energies[known] / atoms[of[known]]
    low, ratio, high = (float(np.quantile(ratios, q)) for q in (0.1, 0.5, 0.9))
    if low <= 0 or high / low > _UNIFORM:
        return None
    for unit in _UNITS:
        expected = 1.0 / energy_factor(unit)
        if 1 / _UNIFORM < ratio / expected < _UNIFORM:
            return unit, ratio
    return None


def residuals(
    per_atom: NDArray[np.float64],
    composition: NDArray[np.int64],
    compositions: list[Composition],
) -> NDArray[np.float64]:
    """Return what energies per atom (n,) differ from a sum over elements, eV/atom; NaN stays NaN.

    Elements are fitted to the medians of compositions: by least squares where these are few, else
    by least absolute deviations and from there with bounded influence (Tukey's bisquare), so that
    a tenth of wrong ones changes nothing.
    """
    known = np.isfinite(per_atom)
    if not known.any():
        return np.full(len(per_atom), np.nan)
    middle = _medians(per_atom[known], composition[known], len(compositions))
    present = np.flatnonzero(np.isfinite(middle))
    fractions = _fractions(compositions, present)
    target = middle[present]
    weight = np.ones(len(present))
    e0 = np.zeros(fractions.get_shape()[1])
    for step in range(40):
        normal = (fractions.T @ sparse.diags(weight) @ fractions).toarray()
        e0 = np.linalg.lstsq(normal, fractions.T @ (weight * target), rcond=1e-10)[0]
        left = target - fractions @ e0
        spread = robust_spread(left)
        if spread == 0 or not _trusted(fractions):
            break
        if step < 25:
            weight = 1 / np.maximum(np.abs(left), spread)
        else:
            weight = np.clip(1 - (left / (6 * spread)) ** 2, 0, None) ** 2
    predicted = np.full(len(compositions), np.nan)
    predicted[present] = fractions @ e0
    return per_atom - predicted[composition]


def outliers(
    residual: NDArray[np.float64],
    composition: NDArray[np.int64],
    state: NDArray[np.int64],
    compositions: list[Composition],
) -> NDArray[np.int64]:
    """Return the frames whose energy is far from the rest, the farthest first.

    A frame is compared with the others of its composition, charge and multiplicity where there are
    enough of them, else with all, where there are enough compositions for the elements.

    Args:
        residual: (n,) eV/atom, of `residuals`.
        composition: (n,) number of each frame's composition.
        state: (n,) equal numbers for equal composition, charge and multiplicity, from 0.
        compositions: elements and counts.
    """
    known = np.flatnonzero(np.isfinite(residual))
    if len(known) == 0:
        return known
    of, value = state[known], residual[known]
    states = int(of.max()) + 1
    own = np.bincount(of, minlength=states)[of] >= MANY
    middle = _medians(value, of, states)[of]
    spread = 1.4826 * _medians(np.abs(value - middle), of, states)[of]
    trusted = _trusted(_fractions(compositions, np.unique(composition[known])))
    distance = np.where(own, value - middle, value - np.median(value))
    scale = np.where(own, spread, robust_spread(value))
    far = (np.abs(distance) > np.maximum(FAR[0] * scale, FAR[1])) & (own | trusted)
    return known[far][np.argsort(-np.abs(distance[far]))]


def robust_spread(values: NDArray[np.float64]) -> float:
    """Return 1.4826 times the median absolute deviation: the standard deviation if normal."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def _trusted(fractions: sparse.csr_matrix) -> bool:
    """Whether there are enough compositions for the fit to say anything about one of them."""
    return fractions.get_shape()[0] >= TRUSTED * fractions.get_shape()[1]


def _medians(
    values: NDArray[np.float64], groups: NDArray[np.int64], number: int
) -> NDArray[np.float64]:
    """Return the median of each of `number` groups; NaN where there is none."""
    order = np.lexsort((values, groups))
    sizes = np.bincount(groups, minlength=number)
    ends = np.cumsum(sizes)
    out = np.full(number, np.nan)
    some = sizes > 0
    starts = (ends - sizes)[some]
    low, high = starts + (sizes[some] - 1) // 2, starts + sizes[some] // 2
    sorted_values = values[order]
    out[some] = 0.5 * (sorted_values[low] + sorted_values[high])
    return out


def _fractions(compositions: list[Composition], rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the shares (rows, elements) of the elements in some compositions."""
    chosen = [compositions[k] for k in rows]
    elements, columns = np.unique(np.concatenate([z for z, _ in chosen]), return_inverse=True)
    data = np.concatenate([n / n.sum() for _, n in chosen])
    starts = np.concatenate([[0], np.cumsum([len(z) for z, _ in chosen])])
    return sparse.csr_matrix((data, columns, starts), shape=(len(chosen), len(elements)))
