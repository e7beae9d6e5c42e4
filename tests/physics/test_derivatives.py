"""Forces and stress are the derivatives of the energy; their derivatives exist too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build, predict

from mlip.graph import AtomGraph

STEP = 1e-3
# a fourth-order stencil: truncation ~ h⁴ E⁽⁵⁾/30, rounding ~ 1e-13·|E|/h with |E| ~ 1e4 eV
RELATIVE = 1e-7


def stencil(energies):
    """Derivative from E(−2h), E(−h), E(h), E(2h)."""
    m2, m1, p1, p2 = np.moveaxis(energies.reshape(-1, 4), 1, 0)
    return (8 * (p1 - m1) - (p2 - m2)) / (12 * STEP)


def interaction(out, structures, potential):
    """Energies without E0, so that rounding of 1e4 eV does not hide the derivative."""
    offset = torch.tensor([sum(potential.e0[0, int(z)] for z in a.numbers) for a in structures])
    return (out.energy - offset).numpy()


def test_forces(potential, atoms):
    moved = []
    for i in range(len(atoms)):
        for k in range(3):
            for step in (-2, -1, 1, 2):
                a = atoms.copy()
                a.positions[i, k] += step * STEP
                moved.append(a)
    forces = predict(potential, atoms).forces.numpy()
    numeric = -stencil(interaction(predict(potential, *moved), moved, potential))
    rms = np.sqrt(np.mean(forces**2))
    assert rms > 0.05, "forces are too small for the comparison to mean anything"
    np.testing.assert_allclose(numeric.reshape(-1, 3), forces, atol=RELATIVE * max(rms, 1.0))
    assert not np.allclose(numeric.reshape(-1, 3), 1.001 * forces, atol=RELATIVE * max(rms, 1.0))


@pytest.mark.parametrize("handed", ["right", "left"])
def test_stress(potential, bulk_atoms, handed):
    atoms = bulk_atoms
    if handed == "left":
        atoms.set_cell(atoms.cell.array[[1, 0, 2]], scale_atoms=False)
        assert np.linalg.det(atoms.cell.array) < 0
    moved = []
    for a in range(3):
        for b in range(3):
            for step in (-2, -1, 1, 2):
                strain = np.zeros((3, 3))
                strain[a, b] += 0.5 * step * STEP
                strain[b, a] += 0.5 * step * STEP
                s = atoms.copy()
                s.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                moved.append(s)
    numeric = stencil(interaction(predict(potential, *moved), moved, potential)).reshape(3, 3)
    out = predict(potential, atoms)
    stress = out.stress[0].numpy()
    scale = np.abs(stress).max()
    assert scale > 1e-3, "no stress: this crystal tests nothing"
    np.testing.assert_allclose(numeric / atoms.get_volume(), stress, atol=RELATIVE * max(scale, 1))
    np.testing.assert_allclose(stress, stress.T, atol=1e-14)
    np.testing.assert_allclose(out.virial[0] / atoms.get_volume(), stress, rtol=1e-12)


def test_compression_gives_negative_stress():
    """ASE's sign, checked on a Lennard-Jones crystal squeezed below its equilibrium."""
    from ase.build import bulk

    potential = build("lennard_jones")
    squeezed, stretched = (bulk("C", "fcc", a=a) for a in (1.5, 1.9))
    assert predict(potential, squeezed).stress[0].trace() < 0
    assert predict(potential, stretched).stress[0].trace() > 0


def test_no_net_force_and_no_torque(symmetric_potential, molecule_atoms):
    forces = predict(symmetric_potential, molecule_atoms).forces.numpy()
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cross(molecule_atoms.positions, forces).sum(0), 0, atol=1e-9)


def test_second_derivatives(potential, bulk_atoms):
    """What force training needs: gradients of forces with respect to positions are right."""
    graph = AtomGraph.from_atoms(bulk_atoms, potential.cutoff)
    potential.requires_grad_(False)

    def forces(positions):
        graph.positions = positions
        return potential(graph).forces

    x = graph.positions.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(forces, (x,), eps=1e-5, atol=1e-6, rtol=1e-6)
    hessian = torch.autograd.functional.jacobian(forces, x.detach()).reshape(x.numel(), -1)
    assert hessian.abs().max() > 1e-2
    torch.testing.assert_close(hessian, hessian.T, atol=1e-9, rtol=0)


def test_parameter_gradients_of_a_force_loss(bulk_atoms):
    """Double backward: dL(F)/dw against finite differences in w."""
    potential = build("facet")
    graph = AtomGraph.from_atoms(bulk_atoms, potential.cutoff)
    weight = potential.model.readout.weight

    def loss():
        out = potential(graph)
        return out.forces.square().sum() + out.virial.square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        weight[0, 2] += 1e-6
        up = loss().item()
        weight[0, 2] -= 2e-6
        down = loss().item()
    assert gradient[0, 2].item() == pytest.approx((up - down) / 2e-6, rel=1e-6)


def test_float32_agrees_with_float64(potential, atoms):
    exact = predict(potential, atoms)
    single = predict(potential.float(), atoms)
    assert (single.energy - exact.energy).abs().item() < 1e-4 * len(atoms) * 0.1
    rms = exact.forces.square().mean().sqrt()
    assert ((single.forces - exact.forces).abs().max() / rms) < 1e-3
    assert potential.e0.dtype == torch.float64
