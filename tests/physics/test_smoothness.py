"""Energy, forces and force constants are continuous where a neighbour comes or goes."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from conftest import predict

from mlip.graph import AtomGraph, collate

NEAR = np.array([[1.1, 0.2, 0.1], [-0.4, 1.2, 0.3], [0.1, -0.5, 1.3]])
DIRECTION = np.array([0.6, -0.64, 0.48])  # a unit vector


def kinks(values: np.ndarray, h: float) -> np.ndarray:
    """Size of the second difference over h², a bounded derivative if `values` is smooth."""
    return np.abs(np.diff(values, 2, axis=0)).reshape(len(values) - 2, -1).max(1) / h**2


def sticks_out(values: np.ndarray) -> float:
    """How far a value near the cutoff sticks out of those before it (15) and beyond it (10)."""
    return float(values[15:].max() / max(values[:15].max(), values[-10:].max()))


@pytest.mark.needs("conservative")
@pytest.mark.parametrize("neighbours", [0, 3], ids=["first neighbour", "one more neighbour"])
def test_an_atom_crosses_the_cutoff(potential, neighbours):
    """400 points across r_c: E, F and dF/dr may not jump.

    The measure is the third derivative of E along the path, by second differences of F. If E is
    C2 it is bounded and its size at the cutoff is that of its neighbourhood; a jump of dF/dr by J
    would raise it to J/h, a thousand times more.
    """
    cutoff = float(potential.model.cutoff)
    r = cutoff + np.linspace(-0.2, 0.2, 401)
    h = r[1] - r[0]
    symbols = "C" + "H" * neighbours + "O"
    scan = [ase.Atoms(symbols, [[0, 0, 0], *NEAR[:neighbours], x * DIRECTION]) for x in r]
    out = predict(potential.freeze(), *scan)
    energy = out.energy.numpy()
    force = out.forces.numpy().reshape(len(r), -1, 3)
    last = force[:, -1]
    assert np.abs(last[0]).max() > 1e-6, "the last atom must matter before it leaves"
    third = kinks(force, h)
    # its force is minus the slope of the energy along the path, on both sides and across;
    # central differences are off by h² E⁽³⁾/6
    slope = np.gradient(energy, h)[1:-1]
    np.testing.assert_allclose(-slope, (last @ DIRECTION)[1:-1], atol=h**2 * third.max())
    inside, across = third[:150].max(), third[195:205].max()
    assert across < 3 * inside
    if neighbours == 0 and potential.is_local:
        assert not force[r >= cutoff].any()


def test_an_atom_crosses_the_cutoff_of_a_crowded_site(potential):
    """A 65th neighbour enters a dense cluster: a cap on neighbours would drop another one."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), -1).reshape(-1, 3) * 1.35
    cluster = grid[np.argsort(np.linalg.norm(grid, axis=1))][:65]
    cluster = cluster + rng.normal(scale=0.03, size=cluster.shape)
    cutoff = float(potential.model.cutoff)
    assert np.linalg.norm(cluster - cluster[0], axis=1).max() < cutoff
    r = cutoff + np.linspace(-0.1, 0.1, 41)
    h = r[1] - r[0]
    scan = [ase.Atoms("C" * 65 + "O", [*cluster, cluster[0] + x * DIRECTION]) for x in r]
    graphs = [AtomGraph.from_atoms(a, potential.cutoff) for a in scan]
    with torch.no_grad():
        energy = potential.freeze()(collate(graphs), derivatives=False).node_energy
    energy = energy.numpy().reshape(len(r), -1)
    assert np.abs(np.diff(energy[:, 0]))[:10].max() > 1e-9, "the centre does not see the newcomer"
    steps = np.abs(np.diff(energy, axis=0)).max(1)
    assert sticks_out(steps) < 2, "E jumps where the newcomer comes in"
    assert sticks_out(kinks(energy, h)) < 2, "so does dE/dr"


@pytest.mark.needs("is_local")
def test_energy_vanishes_with_three_derivatives_at_the_cutoff(potential):
    """A pair just inside r_c: |E| falls like (r_c − r)³ or faster."""
    cutoff = float(potential.model.cutoff)
    potential.e0.nan_to_num_(0.0).zero_()
    gaps = np.array([0.2, 0.1, 0.05, 0.025, 0.0125])
    pairs = [ase.Atoms("CO", [[0, 0, 0], (cutoff - g) * DIRECTION]) for g in gaps]
    energy = predict(potential, *pairs).energy.abs()
    assert energy[0] > 1e-8
    order = torch.log2(energy[:-1] / energy[1:]).numpy()
    assert order[-1] > 2.8, f"E falls only like (r_c − r)^{order[-1]:.2f}"
