"""Two levels of theory in one potential: they share the backbone and nothing after it."""

from __future__ import annotations

from dataclasses import replace

import ase
import pytest
import torch
from anisotropic import Anisotropic
from conftest import CUTOFF, E0, HEADED, OTHER_E0, SMALL, SPECIES, _bulk, _molecule

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.potential import Potential
from mlip.models.registry import PotentialSpec, build_potential

TABLES = (OTHER_E0, E0)


@pytest.fixture(params=[*HEADED, "transip-direct"])
def two_heads(request) -> Potential:
    name, _, direct = request.param.partition("-")
    options = {"cutoff": CUTOFF, **SMALL[name], **({"forces": "direct"} if direct else {})}
    spec = PotentialSpec(name, options, SPECIES, TABLES, 40.0, head_names=("pbe", "wb97m"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        potential = build_potential(spec).double()
    for parameter in potential.parameters():
        if parameter.numel() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter)
    return potential


def graph_of(atoms: ase.Atoms, head: int) -> AtomGraph:
    return AtomGraph.from_atoms(atoms, CUTOFF).with_head(head)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_of_both_heads_is_each_alone(two_heads, frozen):
    """Crystals and molecules of both, in training and in use."""
    if frozen:
        two_heads.freeze()
    parts = [graph_of(a, h) for h in (0, 1) for a in (_bulk(), _molecule())]
    with torch.no_grad():
        together = two_heads(collate(parts))
        alone = [two_heads(part) for part in parts]
    torch.testing.assert_close(
        together.energy, torch.cat([p.energy for p in alone]), rtol=1e-13, atol=0
    )
    torch.testing.assert_close(
        together.forces, torch.cat([p.forces for p in alone]), rtol=0, atol=1e-11
    )
    for a, b in ((0, 2), (1, 3)):  # and they do differ
        size = float(alone[a].forces.abs().max())
        assert (alone[a].forces - alone[b].forces).abs().max() > 0.01 * size


@pytest.mark.parametrize("frozen", [False, True])
def test_an_isolated_atom_is_exactly_the_energy_of_its_head(two_heads, frozen):
    if frozen:
        two_heads.freeze()
    atoms = [(z, head) for head in (1, 0) for z in SPECIES]
    graphs = [graph_of(ase.Atoms(numbers=[z], positions=[[0, 0, 0]]), head) for z, head in atoms]
    with torch.no_grad():
        energies = two_heads(collate(graphs)).energy
    assert energies.tolist() == [pytest.approx(TABLES[h][z], rel=1e-12) for z, h in atoms]


def test_a_head_is_trained_by_its_structures_alone(two_heads):
    """The backbone by both; and every weight has a gradient, as data-parallel training needs."""
    out = two_heads(collate([graph_of(_bulk(), 0), graph_of(_molecule(), 0)]))
    (out.energy.sum() + out.forces.square().sum()).backward()
    gradients = {name: p.grad for name, p in two_heads.named_parameters()}
    assert all(g is not None for g in gradients.values())
    for name, gradient in gradients.items():
        kind, index = f"{name}.".split(".")[1:3]
        if kind in ("readout", "force_head"):
            assert bool(gradient.any()) is (index == "0"), name
    assert two_heads.model.embed.species.weight.grad.any()


def test_heads_are_asked_for_by_name(two_heads):
    assert [two_heads.head_index(name) for name in ("pbe", "wb97m")] == [0, 1]
    for name in (None, "scan"):
        with pytest.raises(ConfigError, match=r"pbe, wb97m"):
            two_heads.head_index(name)


def test_a_head_knows_the_elements_of_its_own_data():
    tables = ({1: -1.0, 6: -2.0}, {6: -3.0, 8: -4.0})
    spec = PotentialSpec("facet", {"cutoff": CUTOFF, **SMALL["facet"]}, SPECIES, tables, 9.0)
    potential = build_potential(replace(spec, head_names=("a", "b")))
    assert [potential.species_of(head) for head in (0, 1)] == [(1, 6), (6, 8)]
    with torch.no_grad():
        out = potential(graph_of(_molecule(), 1))
    assert torch.isnan(out.energy).all(), "hydrogen is unknown there"
    for bad in (("a",), ("a", "a"), ()):
        with pytest.raises(ConfigError):
            build_potential(replace(spec, head_names=bad))


def test_an_architecture_without_readouts_serves_one_head(monkeypatch):
    monkeypatch.setattr("mlip.models.registry._architecture_class", lambda name: Anisotropic)
    spec = PotentialSpec("anisotropic", {"cutoff": 4.0}, SPECIES, (E0,), 9.0)
    build_potential(spec)
    with pytest.raises(ConfigError, match="one read-out"):
        build_potential(replace(spec, reference_energies=TABLES, head_names=("a", "b")))
