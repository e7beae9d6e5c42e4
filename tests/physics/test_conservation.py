"""Energy conservation: its error falls with the square of the time step, or forces are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from conftest import SPECIES

from mlip.graph import AtomGraph
from mlip.models.pair import LennardJones
from mlip.models.potential import Potential


def fluctuation(potential, atoms, velocities, step, steps, every=1) -> float:
    """Standard deviation of the total energy along velocity Verlet with `step` (fs).

    `every` samples a run of shorter steps at the times of one of longer steps.
    """
    x, v = atoms.positions.copy(), velocities.copy()
    mass, dt = atoms.get_masses()[:, None], step * units.fs
    work = atoms.copy()

    def evaluate(positions):
        work.positions = positions
        with torch.no_grad():
            out = potential(AtomGraph.from_atoms(work, potential.cutoff))
        return out.energy.item(), out.forces.numpy()

    _, force = evaluate(x)
    total = []
    for _ in range(steps):
        v = v + 0.5 * dt * force / mass
        x = x + dt * v
        energy, force = evaluate(x)
        v = v + 0.5 * dt * force / mass
        total.append(energy + 0.5 * float((mass * v**2).sum()))
    return float(np.std(total[every - 1 :: every]))


def thermal(atoms, temperature) -> np.ndarray:
    """Velocities without net drift, ASE units."""
    velocities = np.random.default_rng(0).normal(size=(len(atoms), 3))
    velocities *= np.sqrt(units.kB * temperature / atoms.get_masses())[:, None]
    return velocities - velocities.mean(0)


@pytest.mark.needs("conservative")
def test_every_architecture_conserves_energy(potential, small_atoms):
    """std(H) at dt over std(H) at dt/2 is 4, whatever the model: its forces are its gradient.

    Forces that are no gradient, or an energy that is not smooth, change H by an amount that does
    not shrink with the time step.
    """
    velocities = thermal(small_atoms, 600.0)
    coarse = fluctuation(potential.freeze(), small_atoms, velocities, 0.2, 80)
    fine = fluctuation(potential, small_atoms, velocities, 0.1, 160, every=2)
    kinetic = 1.5 * len(small_atoms) * units.kB * 600.0
    assert 1e-6 * kinetic < coarse < 1e-2 * kinetic, "nothing moves, or everything flies apart"
    assert coarse / fine == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("cutoff", [2.6])
def test_energy_error_is_second_order_in_the_time_step(cutoff):
    """A hard cutoff, a capped neighbour list or forces that are no gradient give 1 to 3.9.

    Neighbours cross this short cutoff all the time, so the end of the potential is what is tested.
    Velocity Verlet conserves a modified energy that differs by O(dt²): std(H) at dt over std(H) at
    dt/2 is 4 up to O(dt²) of itself.
    """
    model = LennardJones(cutoff=cutoff, species=SPECIES, epsilon=0.05, sigma=1.0)
    potential = Potential(model, dict.fromkeys(SPECIES, 0.0)).double().freeze()
    atoms = bulk("C", "fcc", a=1.6, cubic=True) * 2
    velocities = thermal(atoms, 400.0)
    coarse = fluctuation(potential, atoms, velocities, 1.0, 300)
    fine = fluctuation(potential, atoms, velocities, 0.5, 600, every=2)
    kinetic = 1.5 * len(atoms) * units.kB * 400.0
    assert 1e-7 * kinetic < coarse < 1e-2 * kinetic
    assert coarse / fine == pytest.approx(4.0, abs=0.15)
