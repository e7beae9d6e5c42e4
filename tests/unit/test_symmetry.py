"""Rotated batches, and the measured symmetry error: none where exact, seen where not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from anisotropic import Anisotropic
from conftest import STRUCTURES, build
from scipy.spatial.transform import Rotation

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.potential import Potential
from mlip.symmetry import (
    fixed_rotations,
    group_averaged,
    random_rotations,
    rotated,
    rotation_group,
    symmetry_errors,
)


def graphs(potential) -> list[AtomGraph]:
    structures = [STRUCTURES[name]() for name in ("molecule", "bulk", "slab")]
    return [AtomGraph.from_atoms(a, potential.cutoff) for a in structures]


def batch(potential) -> AtomGraph:
    return collate(graphs(potential))


def fixed(count: int) -> torch.Tensor:
    rows = torch.arange(count)
    graph = SimpleNamespace(sample_id=rows, source=0 * rows, num_graphs=count)
    return fixed_rotations(graph, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rotations",
    [lambda n: random_rotations(n, torch.Generator().manual_seed(0)), fixed],
    ids=["random", "fixed"],
)
def test_rotations_are_proper_and_cover_the_sphere(rotations):
    q = rotations(4000)
    torch.testing.assert_close(q @ q.transpose(1, 2), torch.eye(3).double().expand_as(q))
    torch.testing.assert_close(torch.linalg.det(q), torch.ones(4000).double())
    # the mean of n isotropic components of variance 1/3, within 5 standard errors
    assert q.mean(0).abs().max() < 5 / (3 * 4000) ** 0.5
    # uniform: the trace is 1 + 2 cos(angle), and its mean square is 1
    assert float(q.diagonal(dim1=1, dim2=2).sum(1).square().mean()) == pytest.approx(1.0, abs=0.1)


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
    for part in symmetry_errors(exact, [batch(exact)]).values():
        assert part["forces_rmse"] < 1e-9
        assert part["energy_per_atom_rmse"] < 1e-9
    measured = symmetry_errors(aliasing, [batch(aliasing)])
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

    error = symmetry_errors(tilted, [graph])["inversion"]["forces_rmse"]  # type: ignore[arg-type]
    assert error == pytest.approx(0.02 / 3**0.5)


def test_errors_are_those_of_all_batches_together():
    """One structure after another, or all at once: the means are of the same differences."""
    potential = build("transip").freeze()
    whole = batch(potential)
    apart = graphs(potential)
    inversion = symmetry_errors(potential, [whole])["inversion"]
    assert inversion["structures"] == len(apart) == 3
    assert inversion["operations"] == 1
    assert symmetry_errors(potential, apart)["inversion"] == pytest.approx(inversion, rel=1e-9)
    rotation = symmetry_errors(potential, apart, rotations=3)["rotation"]
    assert (rotation["structures"], rotation["operations"]) == (3, 3)
    assert rotation["forces_rmse"] > 1e-3


# -- averages over finite groups -----------------------------------------------------------------

ORDERS = [12, 24, 60]
# One prediction is good to ~1e-14 of its largest term; a mean of up to 60 of them is not worse.
ROUNDING = 1e-10
OFF_GROUP = torch.from_numpy(Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix())


def tilted_potential() -> Potential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Anisotropic(cutoff=4.0, species=(1, 6, 8))
    return Potential(model, {1: -13.6, 6: -1030.1, 8: -2043.7}).double().freeze()


def change(potential: Potential, graph: AtomGraph, q: torch.Tensor, order: int) -> list[float]:
    """Largest change of energy, forces and virial when structures are turned by q."""
    reference = group_averaged(potential, graph, order)
    turned = group_averaged(potential, rotated(graph, q.expand(graph.num_graphs, 3, 3)), order)
    return [
        (turned.energy - reference.energy).abs().max().item(),
        (turned.forces - reference.forces @ q.T).abs().max().item(),
        (turned.virial - q @ reference.virial @ q.T).abs().max().item(),
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_a_group_is_closed_and_proper(order):
    group = rotation_group(order)
    assert group.shape == (order, 3, 3)
    torch.testing.assert_close(torch.linalg.det(group), torch.ones(order).double())
    products = torch.einsum("axy,byz->abxz", group, group).reshape(-1, 9)
    distance = torch.cdist(
        products, group.reshape(-1, 9), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert distance.min(1).values.max() < 1e-14, "a product is not in the group"
    assert torch.pdist(group.reshape(-1, 9)).min() > 0.1, "one is there twice"
    # no direction is left over: vectors and traceless tensors average to zero
    assert group.mean(0).abs().max() < 1e-15
    tensor = torch.diag(torch.tensor([1.0, 0.0, -1.0])).double()
    assert (group @ tensor @ group.transpose(1, 2)).mean(0).abs().max() < 1e-15


@pytest.mark.parametrize("order", ORDERS)
def test_the_average_is_equivariant_under_its_group(order):
    potential = tilted_potential()
    graph = batch(potential)
    for q in rotation_group(order)[[1, order // 2, -1]]:
        assert min(change(potential, graph, q, 1)) > 1e-2, "the model is symmetric without it"
        assert max(change(potential, graph, q, order)) < ROUNDING


def test_other_rotations_change_less_and_least_with_the_largest_group():
    """12 rotations remove all of degrees 1 and 2 in the dependence on orientation, 60 up to 5."""
    potential = tilted_potential()
    graph = batch(potential)
    one, *groups, largest = (change(potential, graph, OFF_GROUP, k) for k in (1, 12, 24, 60))
    for k, error in enumerate(one):
        assert max(g[k] for g in groups) < 0.5 * error
        assert largest[k] < 0.1 * min(g[k] for g in groups)


def test_many_rotations_in_parts_are_the_same_average(monkeypatch):
    potential = tilted_potential()
    graph = batch(potential)
    at_once = group_averaged(potential, graph, 24)
    monkeypatch.setattr("mlip.symmetry.MAX_EDGES", 5 * graph.edge_index.shape[1])
    in_parts = group_averaged(potential, graph, 24)
    for name in ("energy", "node_energy", "forces", "virial", "stress"):
        a, b = getattr(at_once, name), getattr(in_parts, name)
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING, equal_nan=True)
    assert at_once.node_energy.sum().item() == pytest.approx(at_once.energy.sum().item())


@pytest.mark.parametrize("order", [2, 0, 48, 24.5, True, "24", None])
def test_other_orders_are_refused(order):
    with pytest.raises(ConfigError, match=r"must be the order of a group: .*24 \(octahedral\)"):
        rotation_group(order)
