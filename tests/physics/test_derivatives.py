"""Forces, virial and stress are derivatives of the energy; their derivatives exist too."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, build, interaction_only, predict
from stencil import RELATIVE, STENCIL, STEP, slope, strained

from mlip.graph import AtomGraph


@pytest.mark.needs("conservative")
def test_forces(potential, atoms):
    potential = interaction_only(potential)
    moved = []
    for i in range(len(atoms)):
        for k in range(3):
            for step in STENCIL:
                a = atoms.copy()
                a.positions[i, k] += step * STEP
                moved.append(a)
    forces = predict(potential, atoms).forces.numpy()
    numeric = -slope(predict(potential, *moved).energy.numpy()).reshape(-1, 3)
    rms = np.sqrt(np.mean(forces**2))
    assert rms > 0.05, "forces are too small for the comparison to mean anything"
    np.testing.assert_allclose(forces, numeric, rtol=0, atol=RELATIVE * max(rms, 1.0))


@pytest.mark.needs("conservative")
def test_virial_and_stress(potential, atoms):
    potential = interaction_only(potential)
    axes = list(combinations_with_replacement(range(3), 2))
    moved = [strained(atoms, a, b, step * STEP) for a, b in axes for step in STENCIL]
    values = slope(predict(potential, *moved).energy.numpy())
    numeric = np.zeros((3, 3))
    for (a, b), value in zip(axes, values, strict=True):
        numeric[a, b] = numeric[b, a] = value
    out = predict(potential, atoms)
    virial = out.virial[0].numpy()
    scale = np.abs(virial).max()
    assert scale > 0.05, "no virial: this structure tests nothing"
    assert np.abs(virial - np.diag(np.diag(virial))).max() > 1e-2, "no shear: the same"
    np.testing.assert_allclose(virial, numeric, rtol=0, atol=RELATIVE * max(scale, 1.0))
    np.testing.assert_array_equal(virial, virial.T)
    if atoms.pbc.all():
        volume = atoms.get_volume()
        assert volume > 0
        np.testing.assert_allclose(out.stress[0].numpy(), virial / volume, rtol=1e-13)


def test_a_squeezed_crystal_has_negative_stress():
    """ASE's sign, on a crystal whose equilibrium is known: fcc Lennard-Jones at 1.54 σ."""
    from ase.build import bulk

    potential = build("lennard_jones")
    squeezed, stretched = (bulk("C", "fcc", a=a) for a in (1.5, 1.65))
    assert predict(potential, squeezed).stress[0].trace() < -0.1
    assert predict(potential, stretched).stress[0].trace() > 0.1


def test_no_net_force_and_no_torque(potential, atoms):
    forces = predict(potential, atoms).forces.numpy()
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    if not atoms.pbc.any() and potential.symmetry != "none":
        np.testing.assert_allclose(np.cross(atoms.positions, forces).sum(0), 0, atol=1e-9)


@pytest.mark.needs("conservative")
def test_force_and_virial_gradients(potential, small_atoms):
    """What training on forces and stresses differentiates: second derivatives, and symmetric."""
    graph = AtomGraph.from_atoms(small_atoms, potential.cutoff)
    potential.requires_grad_(False)

    def outputs(positions):
        graph.positions = positions
        out = potential(graph)
        return out.forces, out.virial

    x = graph.positions.clone().requires_grad_(True)
    # central differences at 1e-5: truncation 1e-10·E⁽⁴⁾/6, rounding 1e-14/1e-5
    assert torch.autograd.gradcheck(outputs, (x,), eps=1e-5, atol=1e-6, rtol=1e-6)
    rows = torch.autograd.functional.jacobian(outputs, x.detach())[0].reshape(x.numel(), -1)
    assert rows.abs().max() > 1e-2
    torch.testing.assert_close(rows, rows.T, atol=1e-9, rtol=0)


@pytest.mark.needs("conservative")
@pytest.mark.parametrize("structure", ["bulk", "molecule"])
def test_parameter_gradients_of_a_loss(potential, structure):
    """Double backward through energy, forces and virial, along a random direction of weights."""
    potential = interaction_only(potential)
    graph = AtomGraph.from_atoms(STRUCTURES[structure](), potential.cutoff)
    weights = [p for p in potential.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(3)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * (p.abs().mean() + 1e-3)
        for p in weights
    ]

    def loss() -> torch.Tensor:
        out = potential(graph)
        return out.energy.square().sum() + out.forces.square().sum() + out.virial.square().sum()

    def moved(shift: float) -> float:
        with torch.no_grad():
            for p, w, d in zip(weights, start, directions, strict=True):
                p.copy_(w + shift * d)
        return loss().item()

    start = [p.detach().clone() for p in weights]
    here = loss()
    gradients = torch.autograd.grad(here, weights, materialize_grads=True)
    exact = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    h = 1e-4
    m2, m1, p1, p2 = (moved(k * h) for k in STENCIL)
    numeric = (8 * (p1 - m1) - (p2 - m2)) / (12 * h)
    assert abs(exact) > 1e-3, "flat: this direction tests nothing"
    # rounding 1e-15·L/h and truncation h⁴L⁽⁵⁾/30, L being of the size of its derivatives
    assert exact == pytest.approx(numeric, rel=1e-6, abs=1e-9 * here.item())
