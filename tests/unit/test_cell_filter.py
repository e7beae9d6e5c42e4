"""Our cell filter is ASE's, number for number, and cheaper."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from ase.units import GPa

from mlip import cell_filter
from mlip.cell_filter import CellFilter


def crystal():
    atoms = bulk("Cu", cubic=True, a=3.5)
    rng = np.random.default_rng(3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), True)
    atoms.rattle(0.05, seed=2)
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("pressure", [0.0, 5 * GPa])
def test_coordinates_forces_and_stress(pressure):
    """At the start, after a step, and after somebody else changed the cell."""
    ours, theirs = crystal(), crystal()
    a, b = (
        CellFilter(ours, scalar_pressure=pressure),
        FrechetCellFilter(theirs, scalar_pressure=pressure),
    )
    offset = b.get_positions() - a.get_positions()  # of log(F), in some versions of ASE
    assert not offset[:4].any()
    rng = np.random.default_rng(0)
    for step in range(4):
        np.testing.assert_allclose(a.get_positions() + offset, b.get_positions(), atol=1e-10)
        np.testing.assert_allclose(a.get_forces(), b.get_forces(), atol=1e-10)
        np.testing.assert_allclose(a.stress, b.stress, atol=1e-12)
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=1e-10)
        if step == 2:
            for atoms in (ours, theirs):
                atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
        else:
            new = b.get_positions() + rng.normal(scale=0.1, size=(7, 3))
            a.set_positions(new - offset)
            b.set_positions(new)


def test_forces_are_the_derivative_of_the_energy():
    atoms = crystal()
    target = CellFilter(atoms, scalar_pressure=3 * GPa)
    start = target.get_positions() + np.random.default_rng(1).normal(scale=0.2, size=(7, 3))
    target.set_positions(start)
    forces = target.get_forces()
    h = 1e-4
    for index in np.ndindex(7, 3):
        energies = []
        for sign in (1, -1):
            moved = start.copy()
            moved[index] += sign * h
            target.set_positions(moved)
            energies.append(target.get_potential_energy())
        assert -(energies[0] - energies[1]) / (2 * h) == pytest.approx(forces[index], abs=1e-6)


@pytest.mark.parametrize("optimizer", [FIRE, BFGS])
def test_a_relaxation_takes_the_same_path(optimizer):
    ends = []
    for make in (CellFilter, FrechetCellFilter):
        atoms = crystal()
        run = optimizer(make(atoms), logfile=None)
        run.run(fmax=1e-3, steps=30)
        ends.append((run.nsteps, atoms))
    (ours, a), (theirs, b) = ends
    assert ours == theirs
    np.testing.assert_allclose(a.cell.array, b.cell.array, atol=1e-8)
    np.testing.assert_allclose(a.positions, b.positions, atol=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("constraint", [lambda a: FixAtoms([0]), FixSymmetry], ids=["atom", "spg"])
def test_constraints_are_honoured(constraint):
    ends = []
    for make in (CellFilter, FrechetCellFilter):
        atoms = bulk("Cu", cubic=True, a=3.4)
        atoms.calc = EMT()
        atoms.set_constraint(constraint(atoms))
        target = make(atoms)
        new = target.get_positions()
        new[0, 0] += 0.1
        new[4:] += 0.03 * np.arange(9).reshape(3, 3)
        target.set_positions(new)
        ends.append((atoms.cell.array, atoms.positions, target.get_forces()))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_a_step_takes_two_exponentials_and_no_logarithm(monkeypatch):
    """ASE's takes nine derivatives of the exponential and several logarithms."""
    target = CellFilter(crystal())
    target.set_positions(target.get_positions() + 0.01)
    calls = []
    for name in ("expm", "logm"):
        function = getattr(cell_filter, name)
        monkeypatch.setattr(
            cell_filter, name, lambda x, f=function, n=name: (calls.append(n), f(x))[1]
        )
    target.set_positions(target.get_positions() + 0.01)
    target.get_forces()
    target.get_positions()
    assert calls == ["expm", "expm"]
