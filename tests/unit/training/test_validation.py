"""A model without exact symmetry is validated on structures that were turned at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from anisotropic import Anisotropic
from conftest import CUTOFF, E0, SPECIES, build

from mlip.graph import AtomGraph
from mlip.models.potential import Potential
from mlip.symmetry import random_rotations, rotated
from mlip.training.module import SYMMETRY_COLUMNS


def validated(module_of, potential: Potential, graph: AtomGraph) -> dict[str, float]:
    """Errors of one validation pass over one batch whose labels are what the potential predicts."""
    own = potential(graph)
    labelled = replace(graph, energy=own.energy.detach(), forces=own.forces.detach())
    module = module_of(potential)
    module.validation_step(labelled, 0)
    first = module.collected("val")
    module._reset("val")
    module.validation_step(labelled, 0)
    assert module.collected("val") == first, "every epoch turns them the same way"
    return first


@pytest.fixture
def graph(molecule_atoms) -> AtomGraph:
    return AtomGraph.from_atoms(molecule_atoms, CUTOFF)


def test_orientation_is_no_shortcut(module_of, graph):
    """It knows its data by heart in one orientation; the errors that count are those in others."""
    torch.manual_seed(0)
    potential = Potential(Anisotropic(cutoff=CUTOFF, species=SPECIES), E0).double()
    errors = validated(module_of, potential, graph)
    assert {f"val/{name}" for name in SYMMETRY_COLUMNS} <= set(errors)
    assert errors["val/frame_forces_mae"] < 1e-12
    assert errors["val/forces_mae"] > 0.01
    # the labels are its own predictions, so its error is the change that turning makes
    for name in ("energy_per_atom_mae", "forces_mae"):
        assert errors[f"val/{name}"] == pytest.approx(errors[f"val/rotation_{name}"], rel=1e-9)


def test_several_rotations_of_each_structure(module_of, graph, monkeypatch):
    """The errors are means over all of them, counted so, and different rotations are taken."""
    torch.manual_seed(0)
    potential = Potential(Anisotropic(cutoff=CUTOFF, species=SPECIES), E0).double()
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        "mlip.training.module.random_rotations",
        lambda *a: drawn.append(random_rotations(*a)) or drawn[-1],
    )
    module = module_of(potential)
    module.rotations = 3
    module.validation_step(graph, 0)
    found = module.collected("val")["val/rotation_energy_per_atom_mae"]
    assert len(drawn) == 3
    with torch.no_grad():
        changes = [
            (potential(rotated(graph, q)).energy - potential(graph).energy).abs() for q in drawn
        ]
    assert len({float(c) for c in changes}) == 3
    mean = torch.stack(changes).mean() / len(graph.positions)
    assert found == pytest.approx(float(mean), rel=1e-9)


def test_exact_symmetry_needs_no_turning(module_of, graph):
    errors = validated(module_of, build("facet"), graph)
    assert errors["val/forces_mae"] < 1e-12
    assert not [name for name in errors if "rotation" in name or "frame" in name]
