"""The neighbour list against a loop over atoms and images that nobody can get wrong."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from images import ALL, MASKS, OPEN, brute_force, multiset, random_cell

from mlip.errors import DataError
from mlip.neighbors import _tree_list, complete_cell, neighbor_list


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
def test_equals_brute_force(mask):
    """40 cells per mask of periodic axes: triclinic, tiny, left-handed, atoms far outside."""
    rng = np.random.default_rng(sum(2**k * m for k, m in enumerate(mask)))
    pbc, hands, edges_seen = np.array(mask), set(), 0
    for k in range(40):
        cell = random_cell(rng)
        cutoff = rng.uniform(1.5, 4.5)
        outside = 0.0 if k % 2 else 1.5
        positions = rng.uniform(-outside, 1 + outside, (rng.integers(1, 5), 3)) @ cell
        expected, margin = brute_force(positions, cell, pbc, cutoff)
        if margin < 1e-9:
            continue  # a tie: whether |r| < r_c is a matter of rounding
        edges, shift = neighbor_list(positions, cell, pbc, cutoff)
        assert multiset(edges, shift) == expected
        i, j, n, _ = _tree_list(positions, complete_cell(cell, pbc), pbc, cutoff)
        assert multiset((j, i), n) == expected
        assert (np.diff(edges[1]) >= 0).all(), "edges are sorted by centre"
        assert not shift[:, ~pbc].any(), "there are no images along an open axis"
        hands.add(np.sign(np.linalg.det(cell)))
        edges_seen += edges.shape[1]
    assert hands == {-1.0, 1.0}
    assert edges_seen > 50


def test_the_oracle_counts_a_lattice_it_can_look_up():
    """fcc coordination shells: 12, 6 and 24 neighbours at a/√2, a and a√1.5."""
    cell = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 0.5 * 4.0
    for cutoff, count in ((2.9, 12), (4.1, 18), (4.95, 42)):
        assert sum(brute_force(np.zeros((1, 3)), cell, ALL, cutoff)[0].values()) == count
        assert neighbor_list(np.zeros((1, 3)), cell, ALL, cutoff)[0].shape[1] == count


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
def test_wrapping_moves_shifts_only(mask):
    """x → x + m·cell along periodic axes turns S_ij into S_ij + m_i − m_j, and nothing else."""
    rng = np.random.default_rng(7)
    cell, pbc = np.array([[3.0, 0.2, 0.1], [-0.5, 3.5, 0.3], [0.4, 0.1, 4.0]]), np.array(mask)
    positions = rng.uniform(0, 1, (6, 3)) @ cell
    m = rng.integers(-5, 6, (6, 3)) * pbc
    edges, shift = neighbor_list(positions, cell, pbc, 4.0)
    assert edges.shape[1] > 10
    moved = shift + m[edges[1]] - m[edges[0]]
    assert multiset(*neighbor_list(positions + m @ cell, cell, pbc, 4.0)) == multiset(edges, moved)


def test_every_edge_has_its_reverse():
    rng = np.random.default_rng(1)
    cell = random_cell(rng)
    edges, shift = neighbor_list(rng.uniform(0, 1, (5, 3)) @ cell, cell, ALL, 4.0)
    forward = multiset(edges, shift)
    assert forward == Counter({(i, j, -a, -b, -c): n for (j, i, a, b, c), n in forward.items()})


def test_the_cutoff_is_exclusive_and_edges_are_never_capped():
    positions = np.array([[0.0, 0, 0], [1.5, 0, 0]])
    assert neighbor_list(positions, np.eye(3), OPEN, 1.5)[0].shape[1] == 0
    assert neighbor_list(positions, np.eye(3), OPEN, np.nextafter(1.5, 2))[0].shape[1] == 2
    crowd = np.random.default_rng(0).normal(scale=0.5, size=(300, 3))
    assert neighbor_list(crowd, np.eye(3), OPEN, 20.0)[0].shape[1] == 300 * 299


def test_types_and_the_callers_arrays():
    cell, positions = np.diag([3.0, 0.0, 3.0]), np.array([[0, 0, 0], [1, 0, 0]])
    pbc = [True, False, True]
    before = cell.copy(), positions.copy()
    edges, shift = neighbor_list(positions, cell, pbc, 2.5)
    assert (edges.dtype, shift.dtype) == (np.int64, np.int32)
    assert edges.shape[0] == 2
    assert shift.shape == (edges.shape[1], 3)
    np.testing.assert_array_equal(cell, before[0])
    np.testing.assert_array_equal(positions, before[1])
    edges, shift = neighbor_list(np.zeros((0, 3)), cell, pbc, 2.5)
    assert edges.shape == (2, 0)
    assert shift.shape == (0, 3)


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
@pytest.mark.parametrize("box", [(1e4, 1e4, 1e4), (1e4, 1e4, 3.0), (3.0, 3.0, 1e7)])
def test_a_huge_vacuum_costs_nothing(mask, box):
    """A millimetre of nothing, thin or thick: no memory, no minutes, no crash."""
    pbc, box = np.array(mask), np.array(box)
    far = np.array([[0.2, 0, 0], [1.2, 0, 0], 0.6 * box, box - [0.3, 0, 0]])
    tracemalloc.start()
    start = time.perf_counter()
    edges, shift = neighbor_list(far, np.diag(box), pbc, 1.5)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert multiset(edges, shift) == brute_force(far, np.diag(box), pbc, 1.5)[0]
    assert seconds < 1.0
    assert peak < 1e7


def test_one_atom_that_left_a_layer_of_thousands():
    """A thin layer and a stray atom once divided by zero; so did an exploding cell."""
    layer = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0), [0.0]), -1).reshape(-1, 3)
    alone = neighbor_list(layer, np.eye(3), OPEN, 1.2)[0]
    assert alone.shape[1] == 4 * 60 * 59
    stray = np.concatenate([layer, [[1e5, 1e5, 0.5]]])
    np.testing.assert_array_equal(neighbor_list(stray, np.eye(3), OPEN, 1.2)[0][1], alone[1])


@pytest.mark.parametrize("mask", MASKS[:-1], ids=lambda m: "".join("FT"[p] for p in m))
def test_open_axes_are_completed_at_right_angles(mask):
    rng = np.random.default_rng(3)
    cell, pbc = random_cell(rng), np.array(mask)
    cell[~pbc] = 0.0
    box = complete_cell(cell, pbc)
    np.testing.assert_array_equal(box[pbc], cell[pbc])
    np.testing.assert_allclose(box[~pbc] @ box[pbc].T, 0, atol=1e-12)
    np.testing.assert_allclose(box[~pbc] @ box[~pbc].T, np.eye((~pbc).sum()), atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), [True] * 3, r"axes \[0, 1, 2\] are periodic .*set `atoms.cell`"),
        (np.diag([5.0, 5.0, 0.0]), [True] * 3, r"axes \[2\] are periodic"),
        ([[1, 0, 0], [2, 0, 0], [0, 0, 1]], [True] * 3, "linearly dependent"),
        ([[1, 0, 0], [-3, 0, 0], [0, 0, 1]], [True, True, False], "linearly dependent"),
        ([[3, 0, 0], [0, 3, 0], [3, 3, 1e-8]], [True] * 3, "linearly dependent"),
        ([[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]], [True] * 3, "not finite"),
        ([[np.inf, 0, 0], [0, 1, 0], [0, 0, 1]], [True, False, False], "not finite"),
    ],
)
def test_a_cell_that_is_none_is_refused(cell, pbc, message):
    with pytest.raises(DataError, match=message):
        neighbor_list(np.zeros((1, 3)), np.array(cell, float), np.array(pbc), 3.0)


def test_what_an_open_axis_holds_is_ignored():
    cell = np.array([[3.0, 0, 0], [np.nan, np.inf, 0], [6.0, 0, 0]])
    edges, _ = neighbor_list(np.zeros((1, 3)), cell, np.array([True, False, False]), 3.5)
    assert edges.shape[1] == 2


def test_bad_positions_are_refused():
    with pytest.raises(DataError, match=r"atoms (0 and 1|1 and 0) are at the same point"):
        neighbor_list(np.zeros((2, 3)), np.eye(3), OPEN, 3.0)
    images = np.array([[0.5, 0, 0], [3.5, 0, 0]])
    with pytest.raises(DataError, match="at the same point"):
        neighbor_list(images, 3.0 * np.eye(3), ALL, 2.0)
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match=r"atoms \[1\] are not finite"):
            neighbor_list(np.array([[0, 0, 0], [bad, 0, 0]]), np.eye(3), OPEN, 3.0)


def test_absurd_geometry_is_refused_instead_of_searched():
    two = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    with pytest.raises(DataError, match=r"atoms \[1\] are more than 1e\+08 A"):
        neighbor_list(two * 1e200, np.eye(3), OPEN, 5.0)
    flat = np.diag([4.0, 4.0, 0.01])
    with pytest.raises(DataError, match=r"axis 2 are 0\.01 A apart"):
        neighbor_list(two, flat, ALL, 5.0)
    neighbor_list(two, flat, np.array([True, True, False]), 5.0)  # vacuum may be anything
