"""Where potentials break: isolated atoms, fragments, the cutoff, perfect crystals."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from conftest import E0, build, predict

from mlip.errors import DataError
from mlip.graph import AtomGraph, collate
from mlip.models.potential import check_species
from mlip.models.radial import BesselBasis, BSplineBasis, polynomial_envelope


@pytest.mark.parametrize("z", sorted(E0))
def test_an_isolated_atom_has_its_reference_energy(potential, z):
    for frozen in (False, True):
        if frozen:
            potential.freeze()
        out = predict(potential, ase.Atoms([z], [[0.3, 0.1, 0.2]]))
        assert out.energy.item() == pytest.approx(E0[z], abs=1e-11)  # rounding of a row of a GEMM
        assert not out.forces.any()
        assert not out.virial.any()


def test_frozen_and_training_paths_agree(potential, bulk_atoms):
    loose = predict(potential, bulk_atoms)
    frozen = predict(potential.freeze(), bulk_atoms)
    torch.testing.assert_close(frozen.energy, loose.energy, rtol=1e-14, atol=0)
    torch.testing.assert_close(frozen.forces, loose.forces, rtol=0, atol=1e-13)
    potential.train()
    assert potential._isolated is None


def test_far_fragments_add(potential, molecule_atoms):
    other = molecule_atoms.copy()
    other.rotate(40, "x")
    other.positions += [60.0, 0, 0]
    both = molecule_atoms + other
    e = [predict(potential, a).energy.item() for a in (molecule_atoms, other, both)]
    assert e[2] == pytest.approx(e[0] + e[1], abs=1e-10)


def test_charge_breaks_extensivity_only_where_declared(molecule_atoms):
    assert build("facet").extensive
    potential = build("facet-charge")
    assert not potential.extensive
    neutral = predict(potential, molecule_atoms).energy.item()
    for charge, spin, same in ((0, 1, True), (0, 0, True), (1, 2, False), (0, 3, False)):
        atoms = molecule_atoms.copy()
        atoms.info.update(charge=charge, spin=spin)
        energy = predict(potential, atoms).energy.item()
        assert (energy == neutral) is same, (charge, spin)


def test_nothing_leaks_between_graphs(potential, bulk_atoms, molecule_atoms):
    graph = collate(
        [AtomGraph.from_atoms(a, potential.cutoff) for a in (bulk_atoms, molecule_atoms)]
    )
    graph.positions.requires_grad_(True)
    energy = potential(graph, derivatives=False).energy
    (gradient,) = torch.autograd.grad(energy[0], graph.positions)
    assert gradient[: len(bulk_atoms)].abs().max() > 1e-2
    assert not gradient[len(bulk_atoms) :].any()


@pytest.mark.parametrize("neighbours", [0, 3], ids=["first neighbour", "one more neighbour"])
def test_smooth_when_an_atom_crosses_the_cutoff(potential, neighbours):
    cutoff = float(potential.model.cutoff)
    near = [[1.1, 0.2, 0.1], [-0.4, 1.2, 0.3], [0.1, -0.5, 1.3]][:neighbours]
    r = cutoff + np.linspace(-0.2, 0.2, 401)
    direction = np.array([0.6, -0.64, 0.48])
    scan = [ase.Atoms("C" + "H" * neighbours + "O", [[0, 0, 0], *near, x * direction]) for x in r]
    out = predict(potential, *scan)
    energy = out.energy.numpy()
    force = out.forces.numpy().reshape(len(r), -1, 3)[:, -1]  # on the atom that leaves
    second = np.abs(np.diff(energy, 2))
    assert np.ptp(energy[r < cutoff]) > 1e-9, "the last atom must matter before it leaves"
    # a jump in E, F or dF/dr would stand out of its neighbourhood by orders of magnitude
    h = r[1] - r[0]
    inside = slice(0, 100)
    assert second[195:206].max() <= 3 * max(second[inside].max(), 1e-12)
    slope = np.abs(np.diff(force, axis=0)).max(1) / h
    curvature = np.abs(np.diff(slope)) / h
    assert curvature[195:206].max() <= 3 * max(curvature[inside].max(), 1e-6)
    if neighbours == 0:
        assert np.abs(force[r > cutoff]).max() == 0.0


@pytest.mark.parametrize("basis", [BesselBasis, BSplineBasis])
def test_radial_basis_is_twice_differentiable_at_the_cutoff(basis):
    r = torch.tensor([4.999, 5.0, 5.001], dtype=torch.float64, requires_grad=True)
    values = basis(5.0).double()(r)
    for order in range(3):
        assert values.abs().max() < 1e-2 ** (2 - order), f"derivative {order} jumps"
        assert not values[1:].any()
        (values,) = torch.autograd.grad(values.sum(), r, create_graph=True)


def test_envelope_has_value_one_at_zero_and_two_flat_derivatives_at_one():
    x = torch.tensor([0.0, 1.0 - 1e-9], dtype=torch.float64, requires_grad=True)
    u = polynomial_envelope(x, 6)
    assert u[0] == 1
    (d1,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (d2,) = torch.autograd.grad(d1.sum(), x)
    assert max(u[1].abs(), d1[1].abs(), d2[1].abs()) < 1e-6


def test_force_constants_of_a_perfect_crystal_do_not_depend_on_the_step(potential, fcc):
    """Features above degree zero vanish on fcc sites; a singular normalisation shows here."""
    cell = fcc * (2, 2, 2)

    def constant(step):
        out = []
        for sign in (1, -1):
            a = cell.copy()
            a.positions[0, 0] += sign * step
            out.append(predict(potential, a).forces[0, 0].item())
        return (out[1] - out[0]) / (2 * step)

    small, large = constant(1e-4), constant(1e-2)
    assert abs(small) > 1e-3, "no restoring force: this crystal tests nothing"
    assert large == pytest.approx(small, rel=2e-2)  # anharmonicity ~ (0.01 Å / 1 Å)² × order ten


def test_forces_vanish_by_symmetry_on_a_perfect_crystal(symmetric_potential, fcc):
    assert predict(symmetric_potential, fcc * (2, 2, 2)).forces.abs().max() < 1e-11


def test_an_atom_beyond_reach_changes_nothing(potential, molecule_atoms):
    reach = 3 * potential.cutoff
    chain = molecule_atoms + ase.Atoms("O", [[reach + 12.0, 0, 0]])
    alone = predict(potential, molecule_atoms)
    out = predict(potential, chain)
    torch.testing.assert_close(out.forces[:-1], alone.forces, atol=1e-12, rtol=0)
    assert not out.forces[-1].any()


def test_training_step_on_graphs_without_edges(potential, bulk_atoms):
    lone = AtomGraph.from_atoms(ase.Atoms("H", [[0, 0, 0]]), potential.cutoff)
    pair = AtomGraph.from_atoms(bulk_atoms, potential.cutoff)
    for graphs in ([lone], [lone, lone], [lone, pair]):
        potential.zero_grad()
        out = potential(collate(graphs))
        (out.energy.square().sum() * 1e-6 + out.forces.square().sum()).backward()
        assert torch.isfinite(out.forces).all()
        for parameter in potential.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_unknown_elements_are_refused_by_name():
    with pytest.raises(DataError, match=r"U, .*trained|U.*knows H, C, O"):
        check_species([1, 92], (1, 6, 8))


def test_zbl_repels_and_ends_before_bonds(bulk_atoms):
    from ase.data import covalent_radii

    potential, bare = build("facet-zbl"), build("facet")
    assert predict(potential, ase.Atoms("CO", [[0, 0, 0], [0.3, 0, 0]])).forces[0, 0] < -100
    beyond = covalent_radii[6] + covalent_radii[8] + 0.01
    pair = ase.Atoms("CO", [[0, 0, 0], [beyond, 0, 0]])
    prior = potential.priors[0]
    from mlip.models.potential import Potential

    only = Potential(build("lennard_jones").model, E0, priors=[prior]).double()
    without = Potential(build("lennard_jones").model, E0).double()
    assert predict(only, pair).energy.item() == predict(without, pair).energy.item()
    assert bare.priors is not potential.priors


def test_facet_small_has_the_published_parameter_count():
    """270,383 by the published layout: all 34 couplings, 90 species, an MLP on the grid."""
    m, up, hidden, basis, species = (128, 32, 16, 8), 32, 16, 8, 90
    paths = [
        (a, b, c) for a in range(4) for b in range(4) for c in range(4) if abs(a - b) <= c <= a + b
    ]
    layers = [((0,), range(4)), (range(4), range(4)), (range(4), (0,))]
    total = species * m[0] + basis + 1  # embedding, frequencies, cutoff
    for degrees_in, degrees_out in layers:
        used = [p for p in paths if p[0] in degrees_in and p[2] in degrees_out]
        total += basis * sum(m[p[0]] for p in used)  # radial weights
        for c in degrees_out:
            total += sum(m[p[0]] for p in used if p[2] == c) * m[c]  # mixing after the sum
        total += sum(m[c] ** 2 for c in degrees_out if c in degrees_in)  # residual
        total += sum(m[c] for c in degrees_out)  # norm scales
        if len(degrees_out) > 1:
            total += sum(x * up for x in m) + 2 * (up // 2) * hidden
            total += (up + m[0]) * m[0] + sum(up * x for x in m[1:])
        else:
            total += 3 * m[0] ** 2
    total += m[0] + 2 * species + 2  # readout, scale and shift per species and global
    assert total == 270_383


def test_facet_uses_parity_even_paths_only():
    from mlip.models.harmonics import even_paths

    assert len(even_paths((0, 1, 2), 2, (0, 1, 2))) == 11
    assert len(even_paths((0, 1, 2, 3), 3, (0, 1, 2, 3))) == 23
