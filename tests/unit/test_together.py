"""Relaxations side by side are those one after another, in fewer predictions."""

from __future__ import annotations

import weakref

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from conftest import build

from mlip import MLIPCalculator, Relaxer
from mlip.errors import ConfigError, DataError

STEPS = 6


@pytest.fixture(scope="module")
def relaxer():
    potential = build("facet").double()
    return Relaxer(MLIPCalculator(potential, dtype="float64"), fmax=1e-4, steps=STEPS)


def structures():
    """Crystals and molecules of different sizes, so that they end at different times."""
    out = [bulk("C", "diamond", a=3.6), bulk("C", "diamond", a=3.5) * (2, 1, 1), molecule("CO")]
    out += [molecule("CH4"), bulk("C", "fcc", a=3.4), ase.Atoms("H", [(0, 0, 0)])]
    for seed, atoms in enumerate(out):
        atoms.rattle(0.05, seed=seed)
    return out


def assert_same(one, other):
    assert one.n_steps == other.n_steps
    assert one.converged == other.converged
    assert one.energy == pytest.approx(other.energy, abs=1e-9)
    a, b = one.final_structure, other.final_structure
    np.testing.assert_allclose(a.positions, b.positions, atol=1e-9)
    np.testing.assert_allclose(a.cell.array, b.cell.array, atol=1e-9)
    np.testing.assert_allclose(one.forces, other.forces, atol=1e-8)
    assert (one.stress is None) == (other.stress is None)
    assert len(one.trajectory) == len(other.trajectory)


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_each_takes_the_steps_it_would_take_alone(relaxer, at_once):
    alone = [relaxer.relax(atoms) for atoms in structures()]
    side_by_side = relaxer.relax_many(structures(), at_once=at_once)
    for one, other in zip(alone, side_by_side, strict=True):
        assert_same(one, other)


def test_predictions_are_batches(relaxer, monkeypatch):
    sizes = []
    real = MLIPCalculator.evaluate

    def counted(self, graphs):
        sizes.append(len(graphs))
        return real(self, graphs)

    monkeypatch.setattr(MLIPCalculator, "evaluate", counted)
    given = [atoms for atoms in structures() if len(atoms) > 1]
    relaxer.relax_many(given, at_once=len(given))
    assert sizes[0] == len(given)
    assert len(sizes) <= STEPS + 1


def test_an_error_of_one_stays_in_its_place(relaxer):
    given = structures()
    given.insert(1, molecule("SiH4"))
    given.insert(3, "no structure")
    results = relaxer.relax_many(given)
    assert isinstance(results[1], DataError)
    assert "Si" in str(results[1])
    assert isinstance(results[3], DataError)
    good = [r for r in results if not isinstance(r, DataError)]
    for one, other in zip([relaxer.relax(a) for a in structures()], good, strict=True):
        assert_same(one, other)


def test_other_errors_are_raised_and_nothing_waits_for_ever(relaxer, monkeypatch):
    def fail(self, graphs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MLIPCalculator, "evaluate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        relaxer.relax_many(structures(), at_once=3)


def test_what_is_too_much_at_a_time_is_predicted_one_by_one(relaxer, monkeypatch):
    """And without what the attempt had taken: its traceback would hold it."""
    real, taken = MLIPCalculator.evaluate, []

    def small(self, graphs):
        assert all(there() is None for there in taken), "memory of the attempt is still held"
        if len(graphs) > 1:
            memory = torch.zeros(1)
            taken.append(weakref.ref(memory))
            raise torch.OutOfMemoryError("out of memory")
        return real(self, graphs)

    alone = [relaxer.relax(atoms) for atoms in structures()]
    monkeypatch.setattr(MLIPCalculator, "evaluate", small)
    for one, other in zip(alone, relaxer.relax_many(structures()), strict=True):
        assert_same(one, other)


def test_steps_are_kept_unless_they_are_not_wanted(relaxer):
    brief = Relaxer(relaxer.calculator, fmax=1e-4, steps=STEPS, keep_trajectory=False)
    for one, other in zip(
        relaxer.relax_many(structures()), brief.relax_many(structures()), strict=True
    ):
        assert len(one.trajectory) == one.n_steps + 1
        assert other.trajectory == []
        assert other.energy == one.energy


def test_nothing_and_wrong_numbers(relaxer):
    assert relaxer.relax_many([]) == []
    with pytest.raises(ConfigError, match="at_once=0"):
        relaxer.relax_many(structures(), at_once=0)


def test_committees_and_charges_are_kept():
    members = [build("facet").double() for _ in range(2)]
    calculator = MLIPCalculator(members, dtype="float64")
    atoms = molecule("CO")
    atoms.calc = calculator
    atoms.get_potential_energy()
    assert calculator.results["forces_committee"].shape == (2, 2, 3)
    assert calculator.results["energies_committee"].shape == (2,)
