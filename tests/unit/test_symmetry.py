"""Rotated batches, and the measured symmetry error: none where exact, seen where not."""

from __future__ import annotations

import pytest
import torch
from conftest import STRUCTURES, build

from mlip.graph import AtomGraph, collate
from mlip.symmetry import random_rotations, rotated, symmetry_errors


def batch(potential) -> AtomGraph:
    structures = [STRUCTURES[name]() for name in ("molecule", "bulk", "slab")]
    return collate([AtomGraph.from_atoms(a, potential.cutoff) for a in structures])


def test_rotations_are_proper_and_cover_the_sphere():
    q = random_rotations(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q @ q.transpose(1, 2), torch.eye(3).double().expand_as(q))
    torch.testing.assert_close(torch.linalg.det(q), torch.ones(4000).double())
    # the mean of n isotropic components of variance 1/3, within 5 standard errors
    assert q.mean(0).abs().max() < 5 / (3 * 4000) ** 0.5


def test_distances_survive_a_rotation():
    potential = build("facet")
    graph = batch(potential)
    turned = rotated(graph, random_rotations(graph.num_graphs))
    i, j = graph.ptr[0], graph.ptr[0] + 3
    before = (graph.positions[j] - graph.positions[i]).norm()
    assert (turned.positions[j] - graph.positions[j]).norm() > 0.1, "nothing was turned"
    torch.testing.assert_close((turned.positions[j] - turned.positions[i]).norm(), before)
    torch.testing.assert_close(turned.cell.det(), graph.cell.det())


def test_an_exact_model_has_no_error_and_an_aliasing_one_has():
    exact, aliasing = build("facet").freeze(), build("facet-silu-L3").freeze()
    for part in symmetry_errors(exact, batch(exact)).values():
        assert part["forces_rmse"] < 1e-9
        assert part["energy_per_atom_rmse"] < 1e-9
    measured = symmetry_errors(aliasing, batch(aliasing))
    assert measured["rotation"]["forces_rmse"] > 1e-6, "a grid with SiLU aliases"
    assert measured["inversion"]["forces_rmse"] < 1e-9, "its grid is its own antipode"


def test_a_tilted_model_is_caught():
    """A term along z moves with the structure: its error is the size of the term."""
    potential = build("lennard_jones").freeze()
    graph = batch(potential)

    def tilted(g: AtomGraph):
        out = potential(g)
        out.forces = out.forces + 0.01 * torch.tensor([0.0, 0.0, 1.0]).double()
        return out

    error = symmetry_errors(tilted, graph)["inversion"]["forces_rmse"]  # type: ignore[arg-type]
    assert error == pytest.approx(0.02 / 3**0.5)
