"""The graph contract: SCHEMA, collating, labels, the torch-geometric door."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mlip.errors import DataError
from mlip.graph import LABELS, SCHEMA, AtomGraph, add_edges, collate, structure_arrays
from mlip.models.potential import edge_vectors


def labelled(atoms: ase.Atoms, **results) -> ase.Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_collate_equals_from_arrays(bulk_atoms, molecule_atoms):
    a, b = (AtomGraph.from_atoms(x, 4.0) for x in (bulk_atoms, molecule_atoms))
    joined = collate([a, b])
    direct = AtomGraph.from_arrays(
        [add_edges(structure_arrays(x), 4.0) for x in (bulk_atoms, molecule_atoms)]
    )
    for name, field in SCHEMA.items():
        value = getattr(joined, name)
        assert value.dtype == field.dtype, name
        torch.testing.assert_close(value, getattr(direct, name), equal_nan=True)
    assert joined.ptr.tolist() == [0, 2, 11]
    assert joined.num_graphs == 2
    assert (joined.batch[joined.edge_index[0]] == joined.batch[joined.edge_index[1]]).all()


def test_missing_labels_are_nan_and_present_ones_survive_constraints(molecule_atoms):
    bare = AtomGraph.from_atoms(molecule_atoms, 4.0)
    assert all(torch.isnan(getattr(bare, k)).all() for k in ("energy", "forces", "stress"))
    forces = np.ones((9, 3))
    atoms = labelled(molecule_atoms, energy=-1e5 - 1e-7, forces=forces)
    atoms.set_constraint(FixAtoms([0, 1]))
    graph = AtomGraph.from_atoms(atoms, 4.0)
    assert graph.energy.item() == -1e5 - 1e-7, "energies keep every digit"
    np.testing.assert_array_equal(graph.forces, forces)


def test_every_field_has_the_shape_and_type_of_the_schema(atoms):
    graphs = [AtomGraph.from_atoms(x, 4.0) for x in (atoms, ase.Atoms("H"), atoms)]
    batch = collate(graphs)
    size = {"atom": 2 * len(atoms) + 1, "edge": batch.edge_index.shape[1], "graph": 3}
    assert size["edge"] == 2 * graphs[0].edge_index.shape[1] > 0
    for name, field in SCHEMA.items():
        value = getattr(batch, name)
        want = (2, size["edge"]) if name == "edge_index" else (size[field.per], *field.shape)
        assert tuple(value.shape) == want, name
        assert value.dtype == field.dtype, name
        assert value.is_contiguous(), name
    assert batch.num_graphs == 3
    assert batch.num_atoms.tolist() == [len(atoms), 1, len(atoms)]
    assert {f.name for f in fields(AtomGraph)} == {*SCHEMA, "batch", "ptr"}


def test_edge_vectors_are_those_of_the_convention(atoms):
    """r_ij = x_j + n·cell − x_i; j in row 0, i in row 1 and sorted."""
    graph = AtomGraph.from_atoms(atoms, 4.0)
    j, i = graph.edge_index.numpy()
    vectors = atoms.positions[j] + graph.edge_shift.numpy() @ atoms.cell.array - atoms.positions[i]
    torch.testing.assert_close(
        edge_vectors(graph, graph.positions, graph.cell), torch.from_numpy(vectors)
    )
    assert np.linalg.norm(vectors, axis=1).max() < 4.0
    assert (np.diff(i) >= 0).all()


def test_positions_are_taken_as_they_are(bulk_atoms):
    bulk_atoms.positions += 37.0
    graph = AtomGraph.from_atoms(bulk_atoms, 4.0)
    np.testing.assert_array_equal(graph.positions, bulk_atoms.positions)
    graph.positions += 1.0
    assert bulk_atoms.positions.max() < graph.positions.max().item(), "a copy, not a view"


def test_collating_batches_is_associative(bulk_atoms, molecule_atoms):
    a, b = (AtomGraph.from_atoms(x, 4.0) for x in (bulk_atoms, molecule_atoms))
    once, twice = collate([a, b, a]), collate([collate([a, b]), collate([a])])
    for name in (*SCHEMA, "batch", "ptr"):
        torch.testing.assert_close(
            getattr(once, name), getattr(twice, name), rtol=0, atol=0, equal_nan=True
        )


def test_charge_spin_and_weight_come_from_info(bulk_atoms, molecule_atoms):
    bulk_atoms.info.update(charge=-1, spin=2.0, weight=0.5)
    batch = collate([AtomGraph.from_atoms(x, 4.0) for x in (bulk_atoms, molecule_atoms)])
    assert batch.charge.tolist() == [-1, 0]
    assert batch.spin.tolist() == [2, 0], "0 is unknown"
    assert batch.head.tolist() == [0, 0]
    assert batch.with_head(1).head.tolist() == [1, 1]
    assert batch.weight.tolist() == [0.5, 1.0]
    assert batch.sample_id.tolist() == batch.source.tolist() == [-1, -1]


def test_voigt_and_matrix_stresses_agree(bulk_atoms):
    voigt = np.arange(1.0, 7.0)
    full = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    for stress in (voigt, full):
        graph = AtomGraph.from_atoms(labelled(bulk_atoms, stress=stress), 4.0)
        np.testing.assert_array_equal(graph.stress[0], full)


def test_some_labels_missing_in_a_batch(bulk_atoms, molecule_atoms):
    a = labelled(bulk_atoms, energy=-3.0, magmoms=np.array([1.0, 0.0]))
    batch = collate([AtomGraph.from_atoms(x, 4.0) for x in (a, molecule_atoms)])
    assert batch.energy[0] == -3.0
    assert torch.isnan(batch.energy[1])
    assert torch.isfinite(batch.magmoms[:2]).all()
    assert torch.isnan(batch.magmoms[2:]).all()
    assert torch.isnan(batch.forces).all()
    assert set(LABELS) == {"energy", "forces", "stress", "magmoms"}


def test_moving_moves_everything(bulk_atoms):
    graph = AtomGraph.from_atoms(bulk_atoms, 4.0)
    moved = graph.to("meta")
    assert {getattr(moved, f.name).device.type for f in fields(AtomGraph)} == {"meta"}
    assert graph.positions.device.type == "cpu"


def test_misspelt_fields_are_refused(bulk_atoms):
    graph = AtomGraph.from_atoms(bulk_atoms, 4.0)
    with pytest.raises(AttributeError):
        graph.position = graph.positions


def test_torch_geometric_round_trip_shares_memory(bulk_atoms):
    graph = AtomGraph.from_atoms(bulk_atoms, 4.0)
    data = graph.to_pyg()
    back = AtomGraph.from_pyg(data)
    for f in fields(AtomGraph):
        ours, theirs, again = (getattr(x, f.name) for x in (graph, data, back))
        assert ours.data_ptr() == theirs.data_ptr() == again.data_ptr(), f.name
    assert data.num_nodes == 2
    assert data.num_edges == graph.edge_index.shape[1]
    del data["cell"]
    with pytest.raises(DataError, match=r"lacks \['cell'\]; make it with AtomGraph.to_pyg"):
        AtomGraph.from_pyg(data)


def test_torch_geometric_batches_like_we_do(bulk_atoms, molecule_atoms):
    """Its rules go by name: "index" adds node counts and joins along the last axis."""
    from torch_geometric.data import Batch
    from torch_geometric.loader import DataLoader

    lone = ase.Atoms("H", [[1.0, 2.0, 3.0]])  # no edges: PyG must not guess its size from them
    graphs = [AtomGraph.from_atoms(x, 4.0) for x in (lone, bulk_atoms, molecule_atoms)]
    data = [g.to_pyg() for g in graphs]
    whole = Batch.from_data_list(data)
    for d in data:
        del d["batch"], d["ptr"]  # it makes its own when it collates
    ours = collate(graphs)
    (loaded,) = DataLoader(data, batch_size=3)
    for batch in (whole, Batch.from_data_list(data), loaded):
        theirs = AtomGraph.from_pyg(batch)
        for name in (*SCHEMA, "batch", "ptr"):
            torch.testing.assert_close(
                getattr(theirs, name), getattr(ours, name), rtol=0, atol=0, equal_nan=True
            )
    one = AtomGraph.from_pyg(data[1])
    assert one.ptr.tolist() == [0, 2]
    assert one.batch.tolist() == [0, 0]


def test_torch_geometric_is_not_imported_before_it_is_asked_for():
    """It costs two seconds at start-up of every calculator."""
    code = "import sys, mlip.graph, mlip.models.potential; print('torch_geometric' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.numbers.__setitem__(0, 0), "no elements"),
        (lambda a: a.info.__setitem__("charge", 0.5), "whole number"),
        (lambda a: a.numbers.__setitem__(0, 119), r"\[119\] are no elements"),
        (lambda a: labelled(a, forces=np.zeros((2, 3))), r"forces must have shape \(9, 3\)"),
        (lambda a: labelled(a, stress=np.zeros(5)), "stress must have shape"),
        (lambda a: a.positions.__setitem__(0, np.nan), "not finite"),
        (lambda a: a.positions.__setitem__(0, a.positions[1]), "same point"),
    ],
)
def test_what_is_no_structure_is_refused(molecule_atoms, change, word):
    change(molecule_atoms)
    with pytest.raises(DataError, match=word):
        AtomGraph.from_atoms(molecule_atoms, 4.0)
