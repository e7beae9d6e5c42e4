"""A model without exact symmetry is validated on structures that were turned at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from anisotropic import Anisotropic
from conftest import CUTOFF, E0, SPECIES, build

from mlip.evaluate import ErrorSums
from mlip.graph import AtomGraph, collate
from mlip.models.potential import Potential
from mlip.symmetry import fixed_rotations, rotated
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


def test_several_rotations_of_each_structure(module_of, graph):
    """All errors, the loss and those by source are means over them."""
    torch.manual_seed(0)
    potential = Potential(Anisotropic(cutoff=CUTOFF, species=SPECIES), E0).double()
    labelled = replace(
        graph, energy=graph.energy.new_zeros(1), forces=torch.full_like(graph.forces, 0.1)
    )
    module = module_of(potential, sources=("a", "b"))
    module.rotations = 3
    labelled = replace(labelled, source=torch.tensor([1]))
    module.validation_step(labelled, 0)
    found = module.collected("val")
    alone = []
    for number in range(3):
        turned = rotated(labelled, fixed_rotations(labelled, number))
        errors = ErrorSums()
        errors.update(potential(turned), turned)
        loss = module.loss.combine(module.loss.sums(potential(turned), turned))
        alone.append(errors.compute() | {"loss": float(loss.detach())})
    assert len({a["forces_mae"] for a in alone}) == 3
    for name in ("energy_per_atom_mae", "forces_mae", "loss"):
        mean = sum(a[name] for a in alone) / 3
        assert found[f"val/{name}"] == pytest.approx(mean, rel=1e-9), name
        if name != "loss":
            assert found[f"val/b/{name}"] == pytest.approx(mean, rel=1e-9), name
    assert int(module._errors["val"].counts()["energy"]) == 3
    assert int(module._symmetry["frame"].counts()["energy"]) == 1


def test_batches_and_processes_do_not_change_how_a_structure_is_turned(graph):
    rows = [
        replace(graph, sample_id=torch.tensor([k]), source=torch.tensor([k % 2])) for k in (5, 9, 2)
    ]
    q = fixed_rotations(collate(rows), 1)
    for k, row in enumerate(rows):
        assert torch.equal(fixed_rotations(row, 1)[0], q[k])
    assert len({float(x) for x in q[:, 0, 0]}) == 3
    assert not torch.equal(fixed_rotations(rows[0], 0), fixed_rotations(rows[0], 1))


def test_exact_symmetry_needs_no_turning(module_of, graph):
    errors = validated(module_of, build("facet"), graph)
    assert errors["val/forces_mae"] < 1e-12
    assert not [name for name in errors if "rotation" in name or "frame" in name]
