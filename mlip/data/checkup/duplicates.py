"""Structures that are there more than once, in one file or in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

TOLERANCE: Final = 2e-6  # relative difference of shapes; 8 decimals of positions give 1e-8
SAME_ENERGY: Final = 1e-3  # eV/atom


def states(frames: NDArray[np.void], *more: str) -> NDArray[np.int64]:
    """Number the distinct compositions, charges and multiplicities (and columns `more`)."""
    out = np.zeros(len(frames), dtype=np.int64)
    for name in ("composition", "charge", "spin", *more):
        column = frames[name].astype(np.int64)
        order = np.lexsort((column, out))
        new = (np.diff(column[order]) != 0) | (np.diff(out[order]) != 0)
        out[order] = np.concatenate([[0], np.cumsum(new)]) if len(frames) else []
    return out


def structure_classes(frames: NDArray[np.void]) -> NDArray[np.int64]:
    """Number the distinct structures: equal numbers for frames that are the same structure.

    Turned, shifted, mirrored and renumbered copies are the same; another charge or multiplicity is
    not. Sorted once per number of the shape, so a hundred million frames need no dictionary.

    Args:
        frames: the census, of type `mlip.data.checkup.frame.COLUMNS`.

    Returns:
        (n,) class of each frame; one of its own where the geometry could not be measured.
    """
    classes = states(frames, "pbc")
    logs = np.log1p(frames["shape"])
    for k in range(logs.shape[1]):
        order = np.lexsort((logs[:, k], classes))
        value, label = logs[order, k], classes[order]
        new = (np.diff(value) > TOLERANCE) | (np.diff(label) != 0)
        classes[order] = np.concatenate([[0], np.cumsum(new)]) if len(frames) else []
    unknown = np.flatnonzero(~np.isfinite(logs).all(axis=1))
    classes[unknown] = len(frames) + np.arange(len(unknown))
    return classes


def repeated(classes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the frames of every class that has more than one, in the order of the files."""
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order])) + 1
    groups = np.split(order, starts) if len(order) else []
    return sorted((g for g in groups if len(g) > 1), key=lambda g: int(g[0]))


def contradicting(
    frames: NDArray[np.void], groups: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """Return the groups of equal structures whose energies differ."""
    per_atom = frames["energy"] / np.maximum(frames["natoms"], 1)
    out = []
    for group in groups:
        energies = per_atom[group][np.isfinite(per_atom[group])]
        if len(energies) > 1 and np.ptp(energies) > SAME_ENERGY:
            out.append(group)
    return out
