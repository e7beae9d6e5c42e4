"""Who is trained on and who is held out: a pure function of (groups, elements, seed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlip.errors import DataError


@dataclass
class Splits:
    """Indices into a store."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    seed: int
    notes: list[str] = field(default_factory=list)


def make_splits(
    groups: np.ndarray,
    elements: Sequence[frozenset[int]],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Splits:
    """Split so that no group is cut and every element occurs in the training part.

    Args:
        groups: (n,) equal numbers stay together (a material, exact duplicates).
        elements: which elements each structure has.
        val_fraction: share of structures to validate on, at least one group if above zero.
        test_fraction: share to test on.
        seed: of the shuffle.

    Raises:
        DataError: the fractions leave nothing to train on.
    """
    n = len(groups)
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be "
            "fractions whose sum is below one"
        )
    notes = []
    names, member = np.unique(groups, return_inverse=True)
    wanted = (val_fraction > 0) + (test_fraction > 0)
    if len(names) <= wanted and n > wanted:
        notes.append(
            f"only {len(names)} group(s): split by structure, so parts are not independent"
        )
        names, member = np.arange(n), np.arange(n)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(member, minlength=len(names))
    part = np.zeros(len(names), dtype=np.int8)  # 0 train, 1 val, 2 test
    for label, fraction in ((1, val_fraction), (2, test_fraction)):
        if fraction > 0:
            _fill(part, label, max(round(fraction * n), 1), order, sizes)
    _keep_elements_in_train(part, member, elements, order, notes)
    for label, fraction, name in ((1, val_fraction, "val"), (2, test_fraction, "test")):
        if fraction > 0 and not (part == label).any():
            notes.append(f"nothing is left for {name}: give data.{name}=FILE to measure errors")
    of_structure = part[member]
    train, val, test = (np.flatnonzero(of_structure == label) for label in range(3))
    if len(train) == 0:
        raise DataError(f"{n} structures are too few for a split; give data.val=FILE")
    return Splits(train, val, test, seed, notes)


def _fill(part: np.ndarray, label: int, target: int, order: np.ndarray, sizes: np.ndarray) -> None:
    """Give `label` to groups in `order` until about `target` structures have it.

    A group that would overshoot by more than half of itself is left to training, so one giant
    group never becomes the validation set.
    """
    free = [g for g in order if part[g] == 0]
    filled = 0
    for group in free[:-1]:
        if filled < target and filled + sizes[group] / 2 <= target:
            part[group] = label
            filled += sizes[group]
    if not filled and len(free) > 1:
        part[min(free, key=lambda g: sizes[g])] = label


def _keep_elements_in_train(
    part: np.ndarray,
    member: np.ndarray,
    elements: Sequence[frozenset[int]],
    order: np.ndarray,
    notes: list[str],
) -> None:
    """Move whole groups to the training part until it has every element."""
    of_group: list[set[int]] = [set() for _ in range(len(part))]
    for structure, group in enumerate(member):
        of_group[group] |= elements[structure]
    seen: set[int] = set().union(*(of_group[g] for g in np.flatnonzero(part == 0)), set())
    moved = 0
    for group in order:
        if part[group] != 0 and not of_group[group] <= seen:
            part[group] = 0
            seen |= of_group[group]
            moved += 1
    if moved:
        notes.append(f"{moved} group(s) moved to train, which would have lacked their elements")
