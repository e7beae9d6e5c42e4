"""Splits of millions of groups are what a plain loop over groups gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip.data.splits import _fill, _keep_elements_in_train, make_splits


def filled(part, label, target, order, sizes):
    """The definition of `_fill`, one group after another."""
    free = [g for g in order if part[g] == 0]
    got = int(sizes[part == label].sum())
    for group in free[:-1]:
        if got < target and got + sizes[group] / 2 <= target:
            part[group] = label
            got += sizes[group]
    if not got and len(free) > 1:
        part[min(free, key=lambda g: sizes[g])] = label


def kept(part, member, elements, order):
    """The definition of `_keep_elements_in_train`; returns how many groups it moves."""
    of_group = [set() for _ in range(len(part))]
    for group, k in zip(member, elements[0], strict=True):
        of_group[group] |= elements[1][k]
    seen = set().union(*(of_group[g] for g in np.flatnonzero(part == 0)), set())
    moved = 0
    for group in order:
        if part[group] != 0 and not of_group[group] <= seen:
            part[group] = 0
            seen |= of_group[group]
            moved += 1
    return moved


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    target=st.integers(1, 200),
    given_before=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_filling_a_part_is_greedy(sizes, target, given_before, seed):
    sizes = np.array(sizes)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    part = np.zeros(len(sizes), dtype=np.int8)
    part[rng.integers(0, len(sizes), given_before)] = rng.integers(1, 3)
    want = part.copy()
    filled(want, 1, target, order, sizes)
    _fill(part, 1, target, order, sizes)
    np.testing.assert_array_equal(part, want)


@settings(max_examples=300, deadline=None)
@given(groups=st.integers(1, 12), structures=st.integers(1, 60), seed=st.integers(0, 2**16))
def test_elements_are_kept_as_by_a_loop_over_groups(groups, structures, seed):
    rng = np.random.default_rng(seed)
    member = np.unique(rng.integers(0, groups, structures), return_inverse=True)[1]
    part = rng.integers(0, 3, member.max() + 1).astype(np.int8)
    sets = [frozenset(rng.choice(9, rng.integers(1, 4)).tolist()) for _ in range(7)]
    elements = rng.integers(0, 7, structures), sets
    order = rng.permutation(len(part))
    want, notes = part.copy(), []
    moved = kept(want, member, elements, order)
    _keep_elements_in_train(part, member, elements, order, notes)
    np.testing.assert_array_equal(part, want)
    assert [note.split()[0] for note in notes] == ([str(moved)] if moved else [])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_million_structures_are_split_in_a_moment(grouped):
    """Each a group of its own, or in two hundred thousand; with an element that is rare."""
    n = 1_000_000
    groups = np.arange(n) // (5 if grouped else 1)
    which = np.zeros(n, dtype=np.int32)
    which[::100_000] = 1
    elements = which, [frozenset([1, 8]), frozenset([1, 92])]
    s = make_splits(groups, elements, val_fraction=0.1, test_fraction=0.05, seed=3)
    assert [len(p) for p in (s.train, s.val, s.test)] == [850_000, 100_000, 50_000]
    assert which[s.train].any()
