"""Where potentials break: isolated atoms, fragments, neighbours far and near, perfect crystals."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from conftest import E0, SPECIES, VARIANTS, build, predict

from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph, collate
from mlip.models.potential import Potential, check_species
from mlip.models.registry import PotentialSpec, build_potential


@pytest.mark.parametrize("z", sorted(E0))
def test_an_isolated_atom_has_its_reference_energy(potential, z):
    lone = ase.Atoms([z], [[0.3, 0.1, 0.2]])
    boxed = ase.Atoms([z], [[0.3, 0.1, 0.2]], cell=20.0 * np.eye(3), pbc=True)
    for frozen in (False, True):
        if frozen:
            potential.freeze()
        for atoms in (lone, boxed) if potential.accepts_periodic else (lone,):
            out = predict(potential, atoms)
            # exact, but for a row of a matrix product that rounds differently in a batch of two
            assert out.energy.item() == pytest.approx(E0[z], abs=1e-12 * abs(E0[z]))
            assert not out.forces.any()
            if potential.conservative:
                assert not out.virial.any()
                assert not (atoms is boxed and out.stress.any())


def test_the_isolated_atom_tests_can_fail():
    """The models do have an energy for a lone atom, which the potential takes out."""
    potential = build("facet")
    with torch.no_grad():
        alone = potential.edgeless(
            torch.tensor(SPECIES), torch.zeros(len(SPECIES), dtype=torch.int64)
        )
        raw = potential.model(alone).energy
    assert raw.abs().min() > 1e-3


def test_frozen_and_training_paths_agree(potential, small_atoms):
    loose = predict(potential, small_atoms)
    frozen = predict(potential.freeze(), small_atoms)
    torch.testing.assert_close(frozen.energy, loose.energy, rtol=1e-14, atol=0)
    torch.testing.assert_close(frozen.forces, loose.forces, rtol=0, atol=1e-12)
    potential.train()
    assert potential._isolated is None


def test_far_fragments_add(potential, molecule_atoms):
    other = molecule_atoms.copy()
    other.rotate(40, "x")
    other.positions += [60.0, 0, 0]
    if not potential.is_local:
        pytest.skip("atoms interact beyond the graph")
    both = predict(potential, molecule_atoms + other)
    one, two = (predict(potential, a) for a in (molecule_atoms, other))
    assert both.energy.item() == pytest.approx(one.energy.item() + two.energy.item(), abs=1e-10)
    torch.testing.assert_close(both.forces, torch.cat([one.forces, two.forces]), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("charge", "spin"), [(1, 2), (-1, 0), (0, 3)])
def test_charged_fragments_add_or_the_potential_says_so(potential, molecule_atoms, charge, spin):
    """The charge of a pair cannot be told from that of one of them without saying which."""
    far = molecule_atoms.copy()
    far.rotate(40, "x")  # turned alike, both would have the same frame
    far.positions += [60.0, 0, 0]
    ion = molecule_atoms.copy()
    ion.info.update(charge=charge, spin=spin)
    pair = molecule_atoms + far
    pair.info.update(charge=charge, spin=spin)
    separate = predict(potential, ion).energy.item() + predict(potential, far).energy.item()
    error = abs(predict(potential, pair).energy.item() - separate)
    if potential.extensive:
        assert error < 1e-10
    else:
        assert potential.uses_charge_spin or not potential.is_local
        assert error > 1e-3, "it is extensive after all, and should say so"


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.charge_spin])
def test_charge_and_spin_are_exactly_neutral_for_the_reference_state(name, molecule_atoms):
    potential, blind = build(name), build(name)
    blind.model.embed.charge_spin = False
    without = predict(blind, molecule_atoms).energy.item()
    for charge, spin, same in ((0, 1, True), (0, 0, True), (1, 2, False), (0, 3, False)):
        molecule_atoms.info.update(charge=charge, spin=spin)
        energy = predict(potential, molecule_atoms).energy.item()
        assert (energy == without) is same, (charge, spin)
        assert predict(blind, molecule_atoms).energy.item() == without


def test_nothing_leaks_between_graphs(potential, small_atoms, molecule_atoms):
    graph = collate(
        [AtomGraph.from_atoms(a, potential.cutoff) for a in (small_atoms, molecule_atoms)]
    )
    graph.positions.requires_grad_(True)
    energy = potential(graph, derivatives=False).energy
    (gradient,) = torch.autograd.grad(energy[0], graph.positions)
    # Of direct forces, which are scaled to order one, this is no derivative: it may be small.
    assert gradient[: len(small_atoms)].abs().max() > (1e-2 if potential.conservative else 1e-4)
    assert not gradient[len(small_atoms) :].any()


def test_an_atom_outside_every_neighbourhood_changes_nothing(potential, molecule_atoms):
    if not potential.is_local:
        pytest.skip("atoms interact beyond the graph")
    out = predict(potential, molecule_atoms + ase.Atoms("O", [[40.0, 0, 0]]))
    alone = predict(potential, molecule_atoms)
    torch.testing.assert_close(out.forces[:-1], alone.forces, atol=1e-12, rtol=0)
    assert not out.forces[-1].any()


@pytest.mark.needs("is_local")
def test_reach_is_layers_times_cutoff(potential):
    """Along a chain, the energy of an atom depends on the next L·r_c and on nothing beyond."""
    if not hasattr(potential.model, "layers"):
        pytest.skip("this architecture passes no messages")
    layers, spacing = len(potential.model.layers), 0.55 * potential.cutoff
    n = 2 * layers + 3  # one neighbour on either side, so L layers reach L atoms far
    rng = np.random.default_rng(4)
    positions = rng.normal(scale=0.1, size=(n, 3)) + spacing * np.arange(n)[:, None] * [1, 0, 0]
    graph = AtomGraph.from_atoms(ase.Atoms([6] * n, positions), potential.cutoff)
    assert torch.bincount(graph.edge_index[1]).tolist() == [1, *[2] * (n - 2), 1]
    graph.positions.requires_grad_(True)
    first = potential(graph, derivatives=False).node_energy[0]
    (gradient,) = torch.autograd.grad(first, graph.positions)
    influence = gradient.abs().amax(1)
    assert (influence[: layers + 1] > 1e-12).all()
    assert not influence[layers + 1 :].any()


def test_force_constants_of_a_perfect_crystal_do_not_depend_on_the_step(potential, fcc):
    """Features above degree zero vanish on fcc sites; a singular normalisation shows here."""
    cell = fcc * (2, 2, 2)

    def constant(step):
        moved = []
        for sign in (1, -1):
            a = cell.copy()
            a.positions[0, 0] += sign * step
            moved.append(a)
        forces = predict(potential, *moved).forces[[0, len(cell)], 0]
        return (forces[1] - forces[0]).item() / (2 * step)

    small, large = constant(1e-4), constant(1e-2)
    assert abs(small) > 1e-3, "no restoring force: this crystal tests nothing"
    assert large == pytest.approx(small, rel=2e-2)  # anharmonicity ~ (0.01 Å / 1 Å)² × order ten


def test_training_step_on_graphs_without_edges(potential, small_atoms):
    potential.train()
    lone = AtomGraph.from_atoms(ase.Atoms("H", [[0, 0, 0]]), potential.cutoff)
    crystal = AtomGraph.from_atoms(small_atoms, potential.cutoff)
    for graphs, learns in (([lone], False), ([lone, lone], False), ([lone, crystal], True)):
        potential.zero_grad()
        out = potential(collate(graphs))
        target = out.energy.detach() + 1.0
        loss = (out.energy - target).square().sum() + out.forces.square().sum()
        (loss + out.virial.square().sum()).backward()
        assert torch.isfinite(out.forces).all()
        gradients = [p.grad for p in potential.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert any(g.abs().max() > 1e-8 for g in gradients) is learns


def test_node_energies_and_reference_energies_add_up(potential, atoms):
    out = predict(potential, atoms)
    assert out.node_energy.dtype == out.energy.dtype == torch.float64
    assert out.node_energy.sum().item() == pytest.approx(out.energy.item(), abs=1e-10)
    before = out.energy.item()
    potential.e0[:, 6] += 0.125  # a power of two
    after = predict(potential, atoms).energy.item()
    assert after - before == pytest.approx(0.125 * (atoms.numbers == 6).sum(), abs=1e-11)


def test_each_level_of_theory_has_its_own_reference_energies(bulk_atoms):
    tables = ({1: -1.0, 6: -2.0, 8: -4.0}, {1: 1.0, 6: 16.0, 8: 64.0})
    spec = PotentialSpec(
        "lennard_jones", {"cutoff": 4.0}, SPECIES, tables, 1.0, head_names=("pbe", "scan")
    )
    potential = build_potential(spec).double()
    energies = []
    for head in (0, 1):
        graph = AtomGraph.from_atoms(bulk_atoms, potential.cutoff).with_head(head)
        energies.append(potential(graph).energy.item())
    assert energies[1] - energies[0] == pytest.approx(80.0 + 6.0, abs=1e-9)


@pytest.mark.needs("conservative")
def test_where_there_are_no_derivatives_forces_are_refused_not_zero(potential, small_atoms):
    graph = AtomGraph.from_atoms(small_atoms, potential.cutoff)
    with torch.inference_mode():
        with pytest.raises(ConfigError, match=r"inference_mode.*no_grad"):
            potential(graph)
        assert torch.isfinite(potential(graph, derivatives=False).energy).all()


@pytest.mark.needs("conservative")
def test_without_derivatives_forces_are_missing_not_zero(potential, small_atoms):
    graph = AtomGraph.from_atoms(small_atoms, potential.cutoff)
    with torch.no_grad():
        full, quick = potential(graph), potential(graph, derivatives=False)
    torch.testing.assert_close(full.energy, quick.energy, rtol=1e-14, atol=0)
    assert torch.isnan(quick.forces).all()
    assert torch.isnan(quick.virial).all()


def test_unknown_elements_are_refused_by_name(potential):
    with pytest.raises(DataError, match=r"has U, .*not trained on .*knows H, C, O"):
        check_species([1, 92], potential.species)
    out = predict(potential, ase.Atoms("UC", [[0, 0, 0], [1.5, 0, 0]]))
    assert torch.isnan(out.energy).all(), "nobody asked, and still no number comes back"


@pytest.mark.parametrize("distance", [0.1, 1e-3])
def test_close_contacts_are_finite(potential, distance):
    out = predict(potential, ase.Atoms("CO", [[0, 0, 0], [0.0, 0.6 * distance, 0.8 * distance]]))
    assert torch.isfinite(out.energy).all()
    assert torch.isfinite(out.forces).all()
    assert torch.isfinite(out.virial).all() or not potential.conservative


def test_a_prior_adds_its_energy_and_nothing_else(bulk_atoms):
    both, prior = build("facet-zbl"), build("facet-zbl").priors[0]
    model_only = Potential(both.model, E0).double()
    zero = dict.fromkeys(SPECIES, 0.0)
    prior_only = Potential(prior, zero).double()
    for scale in (1.0, 0.6):
        bulk_atoms.set_cell(scale * bulk_atoms.cell.array, scale_atoms=True)
        parts = [predict(p, bulk_atoms) for p in (model_only, prior_only)]
        out = predict(both, bulk_atoms)
        assert parts[1].forces.abs().max() > 1e-3, "the prior does not act here"
        for name in ("energy", "forces", "virial"):
            a, b = (getattr(p, name) for p in parts)
            torch.testing.assert_close(getattr(out, name), a + b, rtol=1e-10, atol=1e-10)
