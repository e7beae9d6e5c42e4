"""Loss and errors: missing labels, weights, independence of batching, rotation of labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import build

from mlip.evaluate import ErrorSums, SourceErrors, batches_of, evaluate_batches
from mlip.graph import AtomGraph, collate
from mlip.training.loss import HuberLoss
from mlip.training.module import Limits, cosine_factor
from mlip.training.objectives import Augmented

LOSS = HuberLoss(1.0, 2.0, 3.0, delta=0.5, force_scale=0.8)


def graphs(n=6):
    rng = np.random.default_rng(0)
    out = []
    for k in range(n):
        atoms = bulk("C", "fcc", a=3.3 + 0.05 * k, cubic=True)
        atoms.rattle(0.2, seed=k)
        results = {"energy": -4000.0 + rng.normal(), "forces": rng.normal(size=(4, 3))}
        if k % 2:
            results["stress"] = rng.normal(size=6) * 0.1
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(AtomGraph.from_atoms(atoms, 4.5))
    return out


def test_half_labelled_batches_have_finite_gradients_equal_to_the_labelled_half():
    potential = build("facet")
    both = collate(graphs(2))
    assert torch.isnan(both.stress[0]).all()
    assert torch.isfinite(both.stress[1]).all()
    potential.zero_grad()
    LOSS(potential(both), both).backward()
    gradient = potential.model.readout.weight.grad
    assert torch.isfinite(gradient).all()
    only_stress = HuberLoss(0.0, 0.0, 1.0, delta=0.5, force_scale=0.8)
    one = graphs(2)[1]
    torch.testing.assert_close(
        only_stress(potential(both), both), only_stress(potential(one), one), rtol=1e-10, atol=0
    )


def test_huber_by_hand():
    graph = graphs(1)[0]
    prediction = build("facet")(graph)
    prediction.energy = graph.energy + 4 * 0.8 * 0.3  # 0.3 in scaled units per atom: quadratic
    prediction.forces = graph.forces.clone()
    prediction.forces[0, 0] += 0.8 * 2.0  # 2.0: linear
    expected = 1.0 * 0.5 * 0.3**2 + 2.0 * (0.5 * (2.0 - 0.25)) / 12
    assert LOSS(prediction, graph).item() == pytest.approx(expected, rel=1e-9)


def test_a_nan_prediction_is_not_taken_for_a_missing_label():
    graph = graphs(1)[0]
    prediction = build("facet")(graph)
    prediction.forces = prediction.forces * torch.nan
    assert torch.isnan(LOSS(prediction, graph))


def test_weights_of_structures():
    potential, both = build("facet"), collate(graphs(2))
    both.weight[1] = 0.0
    sums = LOSS.sums(potential(both), both)
    alone = LOSS.sums(potential(graphs(1)[0]), graphs(1)[0])
    torch.testing.assert_close(sums["energy"][0], alone["energy"][0], rtol=1e-9, atol=0)


def test_errors_do_not_depend_on_the_batch_size():
    potential = build("facet").freeze()
    one = evaluate_batches(potential, graphs())
    three = evaluate_batches(potential, [collate(graphs()[:4]), collate(graphs()[4:])])
    assert one.counts == three.counts
    assert one.counts["stress"] == 27
    for name, value in one.metrics.items():
        assert three.metrics[name] == pytest.approx(value, rel=1e-12), name
    sums = ErrorSums()
    assert sums.compute() == {}


@pytest.mark.parametrize("max_atoms", [1, 8, 12, 1000])
def test_a_stream_of_structures_is_batched_whole_and_in_order(max_atoms, bulk_atoms, fcc):
    stream = [bulk_atoms * (k, 1, 1) for k in (1, 3, 2, 1, 4)] + [fcc]
    batches = list(batches_of(iter(stream), build("lennard_jones"), max_atoms))
    assert [a for structures, _ in batches for a in structures] == stream
    assert [n for _, g in batches for n in g.num_atoms.tolist()] == [len(a) for a in stream]
    for structures, _ in batches:
        assert len(structures) == 1 or sum(map(len, structures)) <= max_atoms


def test_augmentation_turns_labels_with_the_structure():
    torch.manual_seed(0)
    potential, graph = build("facet"), collate(graphs())
    turned = Augmented().view(graph)
    assert not torch.allclose(turned.positions, graph.positions)
    a, b = potential(graph), potential(turned)
    torch.testing.assert_close(a.energy, b.energy, atol=1e-9, rtol=0)
    for name in ("forces", "stress"):
        error = (getattr(a, name) - getattr(graph, name)).square().nansum()
        torch.testing.assert_close(
            error, (getattr(b, name) - getattr(turned, name)).square().nansum(), rtol=1e-9, atol=0
        )


def test_schedule():
    assert cosine_factor(0.0, 0.1, 0.01) < 0.02
    assert cosine_factor(0.1, 0.1, 0.01) == pytest.approx(1.0)
    assert cosine_factor(1.0, 0.1, 0.01) == pytest.approx(0.01)
    limits = Limits(max_epochs=10, max_steps=50, max_time=None)
    assert limits.progress(25, 10) == pytest.approx(0.5), "the limit nearest to its end counts"


def test_errors_are_those_of_numpy(molecule_atoms, bulk_atoms):
    """With labels missing, stress of a molecule, structures of no source, and a NaN prediction."""
    potential = build("facet")
    batch = collate(
        [AtomGraph.from_atoms(a, potential.cutoff) for a in (molecule_atoms, bulk_atoms) * 3]
    )
    generator = torch.Generator().manual_seed(0)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    batch.source = torch.tensor([0, 1, -1, 7, 1, 0])
    batch.energy, batch.forces, batch.stress = map(
        drawn, (batch.energy, batch.forces, batch.stress)
    )
    batch.energy[0] = batch.stress[1] = torch.nan
    batch.forces[2, 1] = torch.nan
    out = potential(batch)
    out.energy[4] = torch.nan  # of source 1
    errors = SourceErrors(("a", "b"))
    errors.update(out, batch)
    total = ErrorSums()
    total.update(out, batch)

    def expected(own: list[int]) -> dict[str, float]:
        atoms = np.isin(batch.batch.numpy(), own)
        per_atom = (out.energy - batch.energy).detach().numpy() / batch.num_atoms.numpy()
        forces, predicted = batch.forces.numpy()[atoms], out.forces.detach().numpy()[atoms]
        stress = (out.stress - batch.stress).detach().numpy()[[k for k in own if k % 2]]
        found = {}
        for name, x in (
            ("energy_per_atom", per_atom[own][~np.isnan(batch.energy.numpy()[own])]),
            ("forces", (predicted - forces)[~np.isnan(forces)]),
            ("stress", stress[~np.isnan(batch.stress.numpy()[[k for k in own if k % 2]])]),
        ):
            if x.size:
                found[f"{name}_mae"], found[f"{name}_rmse"] = abs(x).mean(), (x**2).mean() ** 0.5
        whole = ~np.isnan(forces).any(1)
        f, p = forces[whole], predicted[whole]
        found["forces_slope"] = (f * p).sum() / (f * f).sum()
        lengths = np.linalg.norm(f, axis=1) * np.linalg.norm(p, axis=1)
        found["forces_cos"] = ((f * p).sum(1) / lengths).mean()
        return found

    for own, found in (
        ([0, 5], errors.evaluations()["a"].metrics),
        ([1, 4], errors.evaluations()["b"].metrics),
        ([0, 1, 2, 3, 4, 5], total.compute()),
    ):
        for name, value in expected(own).items():
            assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), (own, name)
    assert math.isfinite(errors.compute()["a/energy_per_atom_mae"])
    assert math.isnan(errors.compute()["b/energy_per_atom_mae"])
    assert errors.evaluations()["b"].counts["structures"] == 2


def test_errors_of_a_source_are_those_of_its_structures():
    potential = build("facet")
    batch = collate(graphs(6))
    batch.source = torch.tensor([0, 1, 1, 0, 1, 1])
    errors = SourceErrors(("a", "b", "nobody"))
    errors.update(potential(batch), batch)
    found = errors.evaluations()
    for k, name in enumerate(("a", "b")):
        own = [graph for graph, source in zip(graphs(6), batch.source, strict=True) if source == k]
        alone = evaluate_batches(potential, own)
        assert found[name].counts == alone.counts
        assert found[name].metrics == pytest.approx(alone.metrics, rel=1e-9)
        assert errors.compute()[f"{name}/forces_mae"] == found[name].metrics["forces_mae"]
    assert found["a"].metrics["forces_mae"] != found["b"].metrics["forces_mae"]
    assert found["nobody"].metrics == {}


def test_the_score_is_made_of_mean_absolute_errors():
    """In the weights and units of the loss; what is unknown or has no weight does not count."""
    loss = HuberLoss(
        energy_weight=2.0, forces_weight=1.0, stress_weight=0.5, delta=0.1, force_scale=4.0
    )
    errors = {"energy_per_atom_mae": 0.3, "forces_mae": 0.2, "stress_mae": 0.01}
    assert loss.score(errors) == pytest.approx((2 * 0.3 + 0.2 + 0.5 * 10 * 0.01) / 4)
    del errors["stress_mae"]
    assert loss.score(errors) == pytest.approx((2 * 0.3 + 0.2) / 4)
    assert math.isnan(loss.score({}))
