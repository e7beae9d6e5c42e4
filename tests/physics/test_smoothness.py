"""Energy, forces and force constants are continuous where a neighbour comes or goes."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from conftest import interaction_only, predict

from mlip.graph import AtomGraph, collate

NEAR = np.array([[1.1, 0.2, 0.1], [-0.4, 1.2, 0.3], [0.1, -0.5, 1.3]])
DIRECTION = np.array([0.6, -0.64, 0.48])  # a unit vector


def kinks(values: np.ndarray, h: float) -> np.ndarray:
    """Size of the second difference over h², a bounded derivative if `values` is smooth."""
    return np.abs(np.diff(values, 2, axis=0)).reshape(len(values) - 2, -1).max(1) / h**2


def growth(values: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """How much larger the derivative of `order` becomes when it is taken with half the step.

    Args:
        values: (64 k + 1, atoms) along a path of equal steps.
        order: of the finite difference.

    Returns:
        (4 k, atoms) the largest difference quotient in each window of 16 steps over the largest
        there with twice the step; and where both are above rounding. If the derivative of order
        n − 1 is continuous and has a bounded slope, the quotient of order n converges and the
        growth goes to 1. A jump of the derivative of order n − 1 makes it 2, one of the derivative
        before it 4.
    """
    fine = np.abs(np.diff(values, order, axis=0))
    coarse = np.abs(np.diff(values[::2], order, axis=0)) / 2**order
    windows = len(coarse) // 8
    fine, coarse = (
        x[: windows * width].reshape(windows, width, -1).max(1)
        for x, width in ((fine, 16), (coarse, 8))
    )
    rounding = 1e-14 * np.abs(values).max() * 2**order  # of differences of `order`
    seen = fine > 100 * rounding
    return np.where(seen, fine, 0.0) / np.maximum(coarse, rounding), seen


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
    """A 65th neighbour enters a dense cluster: a cap on neighbours would drop another one.

    Every atom's energy is looked at for itself, along 0.08 Å about the cutoff of the first atom;
    others gain or lose the newcomer on the way. Halving the step tells a kink from curvature,
    whatever their sizes: E, dE/dr and d²E/dr² must be continuous for every atom at every point,
    where the difference quotient is above rounding. For E and dE/dr that is where the energy
    changes at all, in front of the first atom's cutoff in any case; the third difference is lost
    in rounding for those that feel the newcomer little.
    """
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), -1).reshape(-1, 3) * 1.35
    cluster = grid[np.argsort(np.linalg.norm(grid, axis=1))][:65]
    cluster = cluster + rng.normal(scale=0.03, size=cluster.shape)
    cutoff = float(potential.model.cutoff)
    assert np.linalg.norm(cluster - cluster[0], axis=1).max() < cutoff
    potential = interaction_only(potential).freeze()
    parts = []
    for some in np.split(cutoff + np.linspace(-0.04, 0.04, 65), 5):
        scan = [ase.Atoms("C" * 65 + "O", [*cluster, cluster[0] + x * DIRECTION]) for x in some]
        graph = collate([AtomGraph.from_atoms(a, potential.cutoff) for a in scan])
        with torch.no_grad():
            parts.append(potential(graph, derivatives=False).node_energy.view(len(some), -1))
    energy = torch.cat(parts).numpy()
    for order, what in ((1, "E"), (2, "dE/dr"), (3, "d²E/dr²")):
        ratio, seen = growth(energy, order)
        assert ratio.max() < 1.5, f"{what} jumps where the newcomer comes in"
        assert seen[0, 0] if order < 3 else seen.any(), "nothing depends on the newcomer"


@pytest.mark.parametrize(("jump", "order"), [(0, 1), (1, 2), (2, 3)])
def test_a_jump_of_a_derivative_is_seen_on_any_slope(jump, order):
    """One curve without and with a jump of its value, slope or curvature between two points."""
    x = np.linspace(-0.04, 0.04, 65)
    smooth = np.sin(3.0 * x + 0.4)[:, None]
    for n in (1, 2, 3):
        assert growth(smooth, n)[0].max() < 1.2
    kinked = smooth + 0.2 * np.clip(x - 0.0101, 0.0, None)[:, None] ** jump * (x > 0.0101)[:, None]
    assert growth(kinked, order)[0].max() > 1.8


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
