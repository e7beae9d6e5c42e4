"""Who is trained on and who is held out: a pure function of (groups, elements, seed).

Groups may be as many as structures, and these a hundred million: nothing here is done one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    elements: tuple[np.ndarray, Sequence[frozenset[int]]],
    *,
    val_fraction: float | Sequence[float],
    test_fraction: float | Sequence[float],
    seed: int,
    sources: np.ndarray | None = None,
) -> Splits:
    """Split so that no group is cut and every element occurs in the training part.

    Each source gets its share, and a group that several sources have is in one part for all.

    Args:
        groups: (n,) equal numbers stay together (a material, exact duplicates).
        elements: which set of elements each structure has (n,), and the sets; what is no element
            but must also occur in the training part (an element of a certain head) may be coded as
            another number.
        val_fraction: share of structures to validate on, at least one group if above zero; one
            number, or one a source.
        test_fraction: share to test on.
        seed: of the shuffle.
        sources: (n,) number of each structure's source; default: there is one.

    Raises:
        DataError: the fractions leave nothing to train on.
    """
    n = len(groups)
    of_source = np.zeros(n, dtype=np.int64) if sources is None else sources
    count = int(of_source.max(initial=0)) + 1
    val, test = (np.broadcast_to(f, (count,)) for f in (val_fraction, test_fraction))
    if not ((val >= 0) & (test >= 0) & (val + test < 1)).all():
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be "
            "fractions whose sum is below one"
        )
    notes = []
    member = _groups_to_split(groups, of_source, (val > 0).astype(int) + (test > 0), notes)
    order = np.random.default_rng(seed).permutation(int(member.max(initial=-1)) + 1)
    part = np.zeros(len(order), dtype=np.int8)  # 0 train, 1 val, 2 test
    for label, fractions in ((1, val), (2, test)):
        for k in np.flatnonzero(fractions > 0):
            sizes = np.bincount(member[of_source == k], minlength=len(order))
            target = max(round(float(fractions[k]) * int(sizes.sum())), 1)
            _fill(part, label, target, order[sizes[order] > 0], sizes)
    _keep_elements_in_train(part, member, elements, order, notes)
    for label, fractions, name in ((1, val, "val"), (2, test, "test")):
        if (fractions > 0).any() and not (part == label).any():
            notes.append(f"nothing is left for {name}: give data.{name}=FILE to measure errors")
    of_structure = part[member]
    train, held, tested = (np.flatnonzero(of_structure == label) for label in range(3))
    if len(train) == 0:
        raise DataError(f"{n} structures are too few for a split; give data.val=FILE")
    return Splits(train, held, tested, seed, notes)


def trained_on(held: np.ndarray, trained: Iterable[np.ndarray]) -> np.ndarray:
    """Return which held-out structures are of a group that is trained on, (n,).

    Args:
        held: (n,) their groups.
        trained: those of the training structures, in any number of arrays.
    """
    groups, of_structure = np.unique(held, return_inverse=True)
    seen = np.zeros(len(groups), dtype=bool)
    for some in trained:
        place = np.minimum(np.searchsorted(groups, some), len(groups) - 1)
        seen[place[groups[place] == some]] = True
    return seen[of_structure]


def _groups_to_split(
    groups: np.ndarray, of_source: np.ndarray, wanted: np.ndarray, notes: list[str]
) -> np.ndarray:
    """Number the groups (n,); a source with too few of them is split by structure."""
    _, member = np.unique(groups, return_inverse=True)
    cut = False
    for k, parts in enumerate(wanted):
        own = of_source == k
        found = len(np.unique(member[own]))
        if found <= parts and own.sum() > parts:
            notes.append(f"only {found} group(s): split by structure, so parts are not independent")
            member[own] = len(member) + np.arange(own.sum()) + int(member.max())
            cut = True
    return np.unique(member, return_inverse=True)[1] if cut else member


def _fill(part: np.ndarray, label: int, target: int, order: np.ndarray, sizes: np.ndarray) -> None:
    """Give `label` to groups in `order` until about `target` structures have it.

    A group that would overshoot by more than half of itself is left to training, so one giant
    group never becomes the validation set.
    """
    free = order[part[order] == 0]
    room = target - int(sizes[part == label].sum())  # another source has already given groups
    empty = room == target
    left = free[:-1]
    while room > 0 and len(left):
        left = left[sizes[left] <= 2 * room]
        before = np.cumsum(sizes[left]) - sizes[left]
        fits = (before < room) & (2 * before + sizes[left] <= 2 * room)
        count = len(left) if fits.all() else int(np.argmin(fits))
        part[left[:count]] = label
        room -= int(sizes[left[:count]].sum())
        empty = empty and not count
        left = left[count + 1 :]  # the first that does not fit never will
    if empty and len(free) > 1:
        part[free[np.argmin(sizes[free])]] = label


def _keep_elements_in_train(
    part: np.ndarray,
    member: np.ndarray,
    elements: tuple[np.ndarray, Sequence[frozenset[int]]],
    order: np.ndarray,
    notes: list[str],
) -> None:
    """Move whole groups to the training part until it has every element."""
    which, sets = elements
    trained = part[member] == 0
    seen = _union(sets, which[trained])
    missing = _union(sets, which) - seen
    if not missing:
        return
    lacking = [k for k, one in enumerate(sets) if one & missing]
    structures = np.flatnonzero(np.isin(which, lacking) & ~trained)
    of_group: dict[int, set[int]] = {}
    for group, k in zip(member[structures].tolist(), which[structures].tolist(), strict=True):
        of_group.setdefault(group, set()).update(sets[k])
    moved = 0
    for group in order[np.isin(order, list(of_group))].tolist():
        if not of_group[group] <= seen:
            part[group] = 0
            seen |= of_group[group]
            moved += 1
    if moved:
        notes.append(f"{moved} group(s) moved to train, which would have lacked their elements")


def _union(sets: Sequence[frozenset[int]], which: np.ndarray) -> set[int]:
    """Return all elements of the sets that are in `which`."""
    return set().union(*(sets[k] for k in np.unique(which)))
