"""The loader: the same batches however they are made, shared, budgeted or repeated."""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip.data.batching import Budget, GraphLoader, collate_indices
from mlip.data.store import Store, edges, open_store
from mlip.errors import ConfigError, DataError
from mlip.training.run import train

N = 40


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Crystals and molecules of 2 to 12 atoms, so that budgets bind."""
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    frames = []
    for k in range(N):
        atoms = bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 1 + k % 6) if k % 2 else molecule("CH3OH")
        atoms.rattle(0.1, rng=rng)
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=forces)
        frames.append(atoms)
    write(tmp_path / "x.extxyz", frames, format="extxyz")
    return open_store(tmp_path / "x.extxyz")


def loader(store, **options):
    options = {"budget": Budget(None, max_atoms=24), "seed": 3, "shuffle": True, **options}
    return GraphLoader(store, np.arange(N), 4.0, **options)


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert a.dtype == b.dtype
            assert torch.equal(torch.nan_to_num(a, nan=9.0), torch.nan_to_num(b, nan=9.0)), (
                field.name
            )


@pytest.mark.parametrize(
    ("workers", "method"), [(0, "fork"), (1, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn")]
)
def test_workers_and_how_they_start_change_nothing(store, workers, method):
    made = list(loader(store, num_workers=workers, start_method=method))
    plan = loader(store).plan(0)
    expected = [collate_indices(store, plan[k], 4.0) for k in range(len(plan))]
    assert len(expected) > 8
    assert_equal(made, expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_see_every_structure_once_and_step_together(store, world_size):
    ranks = [loader(store, rank=r, world_size=world_size) for r in range(world_size)]
    alone = loader(store)
    for epoch in range(3):
        seen = []
        for one in ranks:
            batches = list(one)
            assert len(batches) == len(one) == len(ranks[0])
            assert one.epoch == epoch
            assert max(b.num_atoms.sum() for b in batches) <= 24
            seen += [int(i) for b in batches for i in b.sample_id]
        assert sorted(seen) == list(range(N))
        assert sorted(int(i) for b in alone for i in b.sample_id) == sorted(seen)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        loader(store, rank=2, world_size=2)


def test_a_process_of_several_goes_on_in_the_middle_of_an_epoch(store):
    options = {"rank": 1, "world_size": 2}
    whole = list(loader(store, **options))
    stopped = loader(store, **options)
    iterator = iter(stopped)
    first = [next(iterator) for _ in range(3)]
    resumed = loader(store, **options)
    resumed.load_state_dict(stopped.state_dict())
    assert_equal(first + list(resumed), whole)


def test_structures_beyond_the_budget_are_refused_or_left_out_and_counted(store, caplog):
    with pytest.raises(DataError, match=r"has 12 atoms.*\(6 of 40 structures have more\).*skip"):
        loader(store, budget=Budget(None, max_atoms=10))
    with caplog.at_level(logging.WARNING, "mlip"):
        left = loader(store, budget=Budget(None, max_atoms=10, oversized="skip"))
    assert "left out, with 5 others" in caplog.text
    assert left.skipped == 6
    seen = sorted(int(i) for b in left for i in b.sample_id)
    assert seen == [k for k in range(N) if store.num_atoms[k] <= 10]
    with pytest.raises(DataError, match="every structure"):
        loader(store, budget=Budget(None, max_atoms=1, oversized="skip"))
    with pytest.raises(ConfigError, match=r"data\.oversized=drop"):
        Budget(oversized="drop")


def test_edges_are_counted_once_and_kept(store, monkeypatch):
    counts = store.edge_counts(4.0)
    expected = [collate_indices(store, np.array([k]), 4.0).edge_index.shape[1] for k in range(N)]
    assert counts.tolist() == expected
    monkeypatch.setattr("mlip.data.store.edges.neighbor_list", None)
    np.testing.assert_array_equal(Store(store.folder).edge_counts(4.0), counts)
    with pytest.raises(TypeError):
        store.edge_counts(3.0)


def test_of_ranks_that_begin_together_one_counts_edges(store, monkeypatch):
    """Threads stand for processes: the lock is one of open files."""
    count, counting = edges._numbers, []

    def slowly(*arguments):
        counting.append(arguments)
        time.sleep(0.5)
        return count(*arguments)

    monkeypatch.setattr(edges, "_numbers", slowly)
    with ThreadPoolExecutor(3) as ranks:
        found = list(ranks.map(lambda _: Store(store.folder).edge_counts(4.0), range(3)))
    assert len(counting) == 1
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    for path in store.folder.glob("edges-*.bin"):
        path.unlink()
    monkeypatch.setattr(edges.os, "access", lambda *_: False)  # no lock where nothing can be kept
    assert store.edge_counts(4.0).tolist() == found[0].tolist()
    assert len(counting) == 2


@pytest.mark.parametrize(
    ("processes", "method", "stretch"),
    [(1, "spawn", 7), (2, "fork", 7), (3, "fork", 7), (3, "fork", 20), (2, "spawn", 39)],
)
def test_the_number_of_processes_that_count_edges_changes_nothing(
    store, monkeypatch, processes, method, stretch
):
    counts = store.edge_counts(4.0)
    (path,) = store.folder.glob("edges-4-*.bin")
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(edges, "STRETCH", stretch)
    np.testing.assert_array_equal(store.edge_counts(4.0, processes, method), counts)
    assert path.read_bytes() == content


def test_a_budget_of_edges_is_counted_by_the_workers_of_the_loader(store, monkeypatch):
    budget = Budget(None, max_edges=600)
    expected = list(loader(store, budget=budget))
    for path in store.folder.glob("edges-*.bin"):
        path.unlink()
    monkeypatch.setattr(edges, "STRETCH", 7)
    counting = []
    count = edges._count

    def here(*arguments):
        counting.append(arguments)
        return count(*arguments)

    monkeypatch.setattr(edges, "_count", here)
    assert_equal(list(loader(store, budget=budget, num_workers=2)), expected)
    assert not counting, "this process counts nothing"
    for path in store.folder.glob("edges-*.bin"):
        path.unlink()
    assert_equal(list(loader(store, budget=budget)), expected)
    assert len(counting) == 6


@pytest.mark.parametrize("processes", [1, 2])
def test_a_structure_whose_edges_cannot_be_counted_is_named(store, monkeypatch, processes):
    """Of two, the first, and nothing is kept."""
    find, bad = edges.neighbor_list, [store.arrays(k)["positions"].tobytes() for k in (17, 23)]

    def refusing(positions, *more):
        if positions.tobytes() in bad:
            raise DataError("there is no list")
        return find(positions, *more)

    monkeypatch.setattr(edges, "STRETCH", 5)
    monkeypatch.setattr(edges, "neighbor_list", refusing)
    with pytest.raises(DataError, match=r"x\.extxyz, frame 17: there is no list"):
        store.edge_counts(4.0, processes, "fork")
    assert not list(store.folder.glob("edges-*"))


def test_a_process_that_is_killed_while_it_counts_edges(store, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(edges, "STRETCH", 5)
    monkeypatch.setattr(edges, "neighbor_list", killed)
    with pytest.raises(DataError, match=r"counted edges was killed.*data\.num_workers"):
        store.edge_counts(4.0, 2, "fork")
    assert not list(store.folder.glob("edges-*"))


def test_repeats_are_what_the_loader_gives(store):
    repeats = np.where(np.arange(N) < 10, 2.0, np.where(np.arange(N) < 20, 0.0, 0.5))
    counts = np.zeros(N)
    one = loader(store, repeats=repeats)
    for epoch in range(200):
        plan = one.plan(epoch)
        counts += np.bincount(np.concatenate([plan[k] for k in range(len(plan))]), minlength=N)
    assert (counts[:10] == 400).all()
    assert (counts[10:20] == 0).all()
    np.testing.assert_allclose(counts[20:], 100, atol=5 * np.sqrt(200 * 0.25))
    for bad in (np.ones(3), np.full(N, -1.0), np.full(N, np.nan)):
        with pytest.raises(ValueError, match="finite numbers of zero or more"):
            loader(store, repeats=bad)


def test_training_leaves_out_what_no_batch_can_hold(store, tmp_path):
    file = Path(store.sources[0])
    words = [
        f"data.train={file}", "data.batch_size=null", "data.max_atoms=10", "loss.stress_weight=0",
        "model=lennard_jones", "model.cutoff=3", "model.sigma=2.2", "trainer.max_steps=2",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"more than data\.max_atoms=10"):
        train([*words, f"out_dir={tmp_path / 'a'}"])
    train([*words, "data.oversized=skip", f"out_dir={tmp_path / 'b'}"])
