"""The graph contract: collating, labels, the torch-geometric door."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mlip.errors import DataError
from mlip.graph import SCHEMA, AtomGraph, add_edges, collate, structure_arrays


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


def test_torch_geometric_round_trip_shares_memory_and_batches(bulk_atoms, molecule_atoms):
    from torch_geometric.data import Batch

    graphs = [AtomGraph.from_atoms(x, 4.0) for x in (bulk_atoms, molecule_atoms)]
    data = [g.to_pyg() for g in graphs]
    assert data[0].positions.data_ptr() == graphs[0].positions.data_ptr()
    for d in data:
        del d["batch"], d["ptr"]
    batch = AtomGraph.from_pyg(Batch.from_data_list(data))
    ours = collate(graphs)
    for name in (*SCHEMA, "batch", "ptr"):
        torch.testing.assert_close(getattr(batch, name), getattr(ours, name), equal_nan=True)
    del data[0]["cell"]
    with pytest.raises(DataError, match="lacks"):
        AtomGraph.from_pyg(data[0])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.numbers.__setitem__(0, 0), "no elements"),
        (lambda a: a.info.__setitem__("charge", 0.5), "whole number"),
        (lambda a: labelled(a, forces=np.zeros((2, 3))), "shape"),
    ],
)
def test_what_is_no_structure_is_refused(molecule_atoms, change, word):
    change(molecule_atoms)
    with pytest.raises(DataError, match=word):
        AtomGraph.from_atoms(molecule_atoms, 4.0)
