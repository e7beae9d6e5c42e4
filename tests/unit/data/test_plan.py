"""Plans of epochs: what a plain loop over structures would give, shared by processes, repeated."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mlip.data import plan as module
from mlip.data.plan import Plan, draw_order, pack, share_evenly


def loop(order, batch_size, limits):
    """Fill a batch until the next structure would exceed a limit."""
    batches, current = [], []
    for k in order:
        sums = [(sizes[current].sum() + sizes[k], limit) for sizes, limit in limits]
        if current and (len(current) == batch_size or any(s > limit for s, limit in sums)):
            batches.append(current)
            current = []
        current.append(int(k))
    return [*batches, current]


@pytest.mark.parametrize("block", [4, 37, 1 << 20])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_batches_are_those_of_a_plain_loop(monkeypatch, block, batch_size, seed):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(seed)
    atoms, edges = rng.integers(1, 60, 500), rng.integers(0, 900, 500)
    order = draw_order(500, rng, shuffle=True)
    for limits in ([(atoms, 100)], [(atoms, 120), (edges, 1500)]):
        bounds = pack(order, batch_size, limits)
        batches = [order[a:b].tolist() for a, b in pairwise(bounds)]
        assert batches == loop(order, batch_size, limits)


def test_a_count_alone_cuts_evenly_and_keeps_the_rest():
    assert pack(np.arange(10), 4).tolist() == [0, 4, 8, 10]
    assert pack(np.arange(8), 4).tolist() == [0, 4, 8]
    assert pack(np.arange(5), None).tolist() == [0, 5]
    assert pack(np.arange(0), 4).tolist() == [0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [8, 9, 23, 100])
@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_processes_share_every_structure_once_in_equal_numbers_of_batches(
    n, batch_size, world_size
):
    order = draw_order(n, np.random.default_rng(0), shuffle=True)
    shared = share_evenly(order, pack(order, batch_size), world_size)
    plans = [Plan(*shared, rank, world_size) for rank in range(world_size)]
    assert len({len(p) for p in plans}) == 1
    batches = [p[k] for p in plans for k in range(len(p))]
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert all(1 <= len(b) <= batch_size for b in batches)


def test_single_structures_that_do_not_divide_come_once_more():
    order = np.array([3, 1, 0, 4, 2])
    order, bounds = share_evenly(order, pack(order, 1), 4)
    assert order.tolist() == [3, 1, 0, 4, 2, 3, 1, 0]
    assert np.diff(bounds).tolist() == [1] * 8


def test_a_plan_has_no_batch_before_the_first_or_after_the_last():
    plan = Plan(np.arange(10), np.array([0, 4, 8, 10]))
    for bad in (-1, 3):
        with pytest.raises(IndexError):
            plan[bad]


def test_repeats_are_exact_on_average_and_epochs_equally_long():
    wanted = np.array([0.0, 0.25, 1.0, 1.5, 3.1] * 20)
    counts = np.zeros(100)
    together = 0.0
    for epoch in range(2000):
        order = draw_order(100, np.random.default_rng((5, epoch)), shuffle=True, repeats=wanted)
        assert abs(len(order) - wanted.sum()) < 1
        n = np.bincount(order, minlength=100)
        assert ((n >= np.floor(wanted)) & (n <= np.ceil(wanted))).all()
        counts += n
        together += n[1] * n[6]
    sigma = np.sqrt(0.25 / 2000)  # of the mean of one drawn fraction, at most
    np.testing.assert_allclose(counts / 2000, wanted, atol=4.5 * sigma)
    assert 0.25**2 - 0.03 < together / 2000 < 0.25**2 + 0.03, "neighbours are drawn independently"


def test_repeated_structures_are_scattered():
    order = draw_order(50, np.random.default_rng(0), shuffle=True, repeats=np.full(50, 2.0))
    assert (np.diff(order) == 0).sum() < 10


def test_an_order_is_the_same_for_the_same_seed_and_one_of_int32():
    orders = [draw_order(1000, np.random.default_rng((1, 2)), shuffle=True) for _ in range(2)]
    np.testing.assert_array_equal(*orders)
    np.testing.assert_array_equal(orders[0], np.random.default_rng((1, 2)).permutation(1000))
    assert orders[0].dtype == np.int32
