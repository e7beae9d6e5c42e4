"""The neighbour list against a double loop over atoms and images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlip.errors import DataError
from mlip.neighbors import neighbor_list


def brute_force(positions, cell, pbc, cutoff):
    """Every (j, i, image) closer than the cutoff, by trying all images that could be."""
    full = np.array(cell, dtype=float)
    spread = np.ptp(positions, axis=0).max() + cutoff
    reach = [0, 0, 0]
    for k in range(3):
        if pbc[k]:
            others = [full[m] for m in range(3) if m != k and pbc[m]]
            v = full[k].copy()
            for w in np.linalg.qr(np.array(others).T)[0].T if others else []:
                v -= (v @ w) * w
            reach[k] = int(np.ceil(2 * spread / np.linalg.norm(v))) + 1
    out = set()
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))))
    shifts = images @ np.where(np.array(pbc)[:, None], full, 0.0)
    for i, j in itertools.product(range(len(positions)), repeat=2):
        d = np.linalg.norm(positions[j] + shifts - positions[i], axis=1)
        for k in np.flatnonzero(d < cutoff):
            if i != j or images[k].any():
                out.add((j, i, *images[k].tolist()))
    return out


def as_set(edges, shift):
    out = [(int(j), int(i), *map(int, n)) for j, i, n in zip(*edges, shift, strict=True)]
    assert len(out) == len(set(out)), "an edge occurs twice"
    return set(out)


@pytest.mark.parametrize("mask", list(itertools.product([True, False], repeat=3)))
def test_equals_brute_force(mask):
    """Triclinic, left-handed, tiny and unwrapped, for every mask of periodic axes."""
    rng = np.random.default_rng(sum(2**k * m for k, m in enumerate(mask)))
    for _ in range(12):
        cell = rng.normal(size=(3, 3)) + np.diag(rng.uniform(1.5, 4.0, 3))
        if abs(np.linalg.det(cell)) < 3:
            continue
        positions = rng.uniform(-1.5, 2.5, (rng.integers(1, 5), 3)) @ cell
        pbc = np.array(mask)
        found = as_set(*neighbor_list(positions, cell, pbc, 3.3))
        assert found == brute_force(positions, cell, mask, 3.3)


def test_edges_are_sorted_by_centre_and_survive_wrapping():
    rng = np.random.default_rng(0)
    cell = np.array([[3.0, 0.2, 0.1], [-0.5, 3.5, 0.3], [0.4, 0.1, 4.0]])
    positions = rng.uniform(0, 1, (6, 3)) @ cell
    edges, shift = neighbor_list(positions, cell, np.ones(3, bool), 5.0)
    assert (np.diff(edges[1]) >= 0).all()
    vectors = positions[edges[0]] + shift @ cell - positions[edges[1]]
    assert np.linalg.norm(vectors, axis=1).max() < 5.0
    moved = positions + rng.integers(-3, 4, (6, 3)) @ cell
    edges2, shift2 = neighbor_list(moved, cell, np.ones(3, bool), 5.0)
    other = moved[edges2[0]] + shift2 @ cell - moved[edges2[1]]
    for i in range(6):
        key = np.round(np.sort(np.linalg.norm(vectors[edges[1] == i], axis=1)), 9)
        np.testing.assert_array_equal(
            key, np.round(np.sort(np.linalg.norm(other[edges2[1] == i], axis=1)), 9)
        )


def test_huge_vacuum_costs_nothing():
    cell = np.diag([1e4, 1e4, 1e4])
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [9999.0, 0, 0]])
    edges, _ = neighbor_list(positions, cell, np.ones(3, bool), 1.5)
    assert edges.shape[1] == 4


@pytest.mark.parametrize(
    ("cell", "pbc", "word"),
    [
        (np.zeros((3, 3)), [True] * 3, "zero"),
        ([[1, 0, 0], [2, 0, 0], [0, 0, 1]], [True] * 3, "dependent"),
        ([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]], [True] * 3, "not finite"),
    ],
)
def test_cells_that_are_none(cell, pbc, word):
    with pytest.raises(DataError, match=word):
        neighbor_list(np.zeros((1, 3)), np.array(cell, float), np.array(pbc), 3.0)


def test_bad_positions():
    none = np.zeros(3, bool)
    with pytest.raises(DataError, match="same point"):
        neighbor_list(np.zeros((2, 3)), np.eye(3), none, 3.0)
    with pytest.raises(DataError, match=r"atoms \[1\] are not finite"):
        neighbor_list(np.array([[0, 0, 0], [np.inf, 0, 0]]), np.eye(3), none, 3.0)
