"""TransIP beyond the physics every architecture shares: its attention, its modes, its sizes."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from conftest import CUTOFF, E0, SPECIES, build, predict
from saved import saved_tensors

from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph, collate
from mlip.models import attention
from mlip.models.attention import GlobalAttention, Molecules, NeighbourAttention, Neighbourhoods
from mlip.models.registry import PotentialSpec, build_potential, resolve_options
from mlip.models.transip import TransIP
from mlip.potential_file import load_potential
from mlip.training.config import load_config
from mlip.training.run import train

MOLECULES = [molecule(name) for name in ("CH3CH2OH", "H2O", "CO2", "CH3CHO", "CH4", "O2", "H")]
FREQUENCIES = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def geometry(*structures: ase.Atoms):
    """What a model that needs positions sees of a batch."""
    graphs = [AtomGraph.from_atoms(a, CUTOFF) for a in structures]
    return build("transip-global")._geometry(collate(graphs), differentiate=False)[0]


def layer(cls, *args) -> Any:
    torch.manual_seed(0)
    out = cls(12, 2, *args).double()
    for parameter in out.parameters():
        torch.nn.init.normal_(parameter)
    return out


def phase(r: torch.Tensor) -> torch.Tensor:
    """Rotations (H, F, 2, 2) by ω·r."""
    angle = FREQUENCIES @ r
    return torch.stack(
        [torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], -1
    ).unflatten(-1, (2, 2))


def turn(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (f, F + f) of x (H, 2 F) by ω·r, written out as matrices."""
    pairs = x.unflatten(1, (2, -1)).transpose(1, 2)
    return torch.einsum("hfab,hfb->hfa", phase(r), pairs).transpose(1, 2).flatten(1)


# -- global attention ----------------------------------------------------------------------------


def dense(block: GlobalAttention, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One molecule, one pair at a time, from relative vectors."""
    q, k, v = block.project(h)
    rows = []
    for i in range(len(h)):
        pairs = [(j, x[j] - x[i]) for j in range(len(h))]
        logits = torch.stack([(q[i] * turn(k[j], r)).sum(1) for j, r in pairs])  # (n, H)
        values = torch.stack([turn(v[j], r) for j, r in pairs])  # (n, H, C)
        if block.num_basis:
            seen = torch.stack([waves(r, block.num_basis) for _, r in pairs])  # (n, K)
            logits = logits + block.bias(seen)
            values = values * (1.0 + block.filter(seen).view(len(h), 2, -1).repeat(1, 1, 2))
        weights = torch.softmax(logits, dim=0)
        rows.append((weights[:, :, None] * values).sum(0).flatten())
    return block.out(torch.stack(rows))


def waves(r: torch.Tensor, num_basis: int) -> torch.Tensor:
    """sin(k π e^(-r/2 Å)) of a vector, nothing of an atom and itself."""
    order = torch.arange(1, num_basis + 1, dtype=r.dtype)
    return torch.sin(np.pi * order * torch.exp(-r.norm() / 2.0)) * (r.norm() > 0)


@pytest.mark.parametrize("num_basis", [4, 0], ids=["distances", "phases"])
@pytest.mark.parametrize("budget", [2**24, 1000, 7], ids=["whole", "molecules", "rows"])
def test_packed_attention_is_dense_attention(monkeypatch, budget, num_basis):
    """Molecules of many sizes in one batch, however small the pieces, against a plain loop."""
    monkeypatch.setattr(attention, "MAX_WEIGHTS", budget)
    block, g = layer(GlobalAttention, num_basis), geometry(*MOLECULES, *MOLECULES[:3])
    h = torch.randn(len(g.batch), 12, dtype=torch.float64, requires_grad=True)
    context = Molecules.build(g, g.positions, FREQUENCIES, num_basis)
    assert sorted(x.shape[1] for x in context.groups) == [1, 2, 3, 5, 7, 9]
    packed = block(h[context.order], context)[context.inverse]
    parts = [dense(block, h[g.batch == b], g.positions[g.batch == b]) for b in range(g.num_graphs)]
    torch.testing.assert_close(packed, torch.cat(parts), atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(y.square().sum(), h)[0] for y in (packed, torch.cat(parts)))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("budget", [1000, 7])
def test_pieces_change_no_force_and_no_gradient(monkeypatch, budget):
    """Recomputed pieces go through both derivatives: the loss of forces has the same gradient."""
    potential = build("transip-global")
    graph = collate([AtomGraph.from_atoms(a, CUTOFF) for a in MOLECULES])

    def gradients() -> list[torch.Tensor]:
        out = potential(graph)
        loss = out.energy.sum() + out.forces.square().sum()
        weights = list(potential.parameters())
        return [out.forces, *torch.autograd.grad(loss, weights, materialize_grads=True)]

    whole = gradients()
    monkeypatch.setattr(attention, "MAX_WEIGHTS", budget)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kept", [0, 2], ids=["all recomputed", "two kept"])
@pytest.mark.parametrize("budget", [1000, 1], ids=["some atoms", "one atom"])
def test_pieces_of_neighbourhoods_change_no_force_and_no_gradient(monkeypatch, budget, kept):
    """Of molecules and a crystal in one batch, isolated atoms among them."""
    potential = build("transip")
    structures = [*MOLECULES, bulk("Cu"), *MOLECULES[-2:]]
    for atoms in structures:
        atoms.symbols = ["O" if s == "Cu" else s for s in atoms.symbols]
    graph = collate([AtomGraph.from_atoms(a, CUTOFF) for a in structures])

    def gradients() -> list[torch.Tensor]:
        out = potential(graph)
        loss = out.energy.sum() + out.forces.square().sum() + out.virial.square().sum()
        weights = list(potential.parameters())
        return [out.forces, *torch.autograd.grad(loss, weights, materialize_grads=True)]

    whole = gradients()
    monkeypatch.setattr(attention, "PIECE", {"cpu": budget})
    monkeypatch.setattr(attention, "KEPT", kept)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def kept_in_training(name: str) -> list[torch.Tensor]:
    """What is kept for the loss when forces of 125 atoms have been computed."""
    potential = build(name)
    grid = 1.3 * np.indices((5, 5, 5)).reshape(3, -1).T
    graph = collate([AtomGraph.from_atoms(ase.Atoms("O125", grid), CUTOFF)])
    with saved_tensors() as saved:
        out = potential(graph)
    assert out.forces.requires_grad
    return saved()


def test_training_keeps_the_arguments_of_neighbourhoods(monkeypatch):
    def size() -> int:
        storages = [x.untyped_storage() for x in kept_in_training("transip")]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    whole = size()
    monkeypatch.setattr(attention, "PIECE", {"cpu": 10_000})
    monkeypatch.setattr(attention, "KEPT", 0)
    assert size() < 0.3 * whole


def test_training_keeps_no_more_weights_than_it_may(monkeypatch):
    def weights() -> int:
        """Of two heads; expanded distances are shared by all layers and have none."""
        kept = (x for x in kept_in_training("transip-global") if x.ndim == 4)
        return sum(x.shape[1] == 2 and x.shape[3] == 125 for x in kept)

    assert weights() > 0
    for room in (100_000, 1000):  # for distances, 6 * 125**2, and not even for those
        monkeypatch.setattr(attention, "MAX_WEIGHTS", room)
        assert weights() == 0


def test_pieces_bound_the_number_of_weights(monkeypatch):
    seen = []
    whole = attention._attention

    def recording(q, k, v, distances, shared):
        functions = 1 if distances is None else 1 + distances.shape[1]
        seen.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * functions)
        return whole(q, k, v, distances, shared)

    monkeypatch.setattr(attention, "_attention", recording)
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 150)
    predict(build("transip-global"), *MOLECULES)
    assert 100 < max(seen) <= 150


def test_global_attention_sees_what_is_far_and_neighbours_do_not():
    one, far = molecule("H2O"), molecule("CO2")
    far.positions += [12.0, 0, 0]
    for name, sees in (("transip-global", True), ("transip", False)):
        potential = build(name)
        alone, both = (predict(potential, a).forces[:3] for a in (one, one + far))
        assert ((alone - both).abs().max().item() > 1e-3) is sees
        assert potential.is_local is not sees
        assert potential.extensive is not sees


@pytest.mark.parametrize("name", ["transip-global", "transip-phases"])
def test_a_fragment_keeps_its_forces_far_from_the_others(name):
    """Tokens do not know where they are: nothing in them grows with the size of a system."""
    potential, forces = build(name), {}
    for separation in (10.0, 1000.0):
        one, other = molecule("CH3CH2OH"), molecule("CH3CHO")
        other.positions += [separation, 0, 0]
        forces[separation] = predict(potential, one + other).forces[: len(one)].square().mean()
    assert forces[1000.0] > 0.1 * forces[10.0]


@pytest.mark.parametrize("name", ["transip-global", "transip-global-charge"])
def test_global_attention_refuses_periodic_structures(name, bulk_atoms, molecule_atoms):
    potential = build(name)
    assert not potential.accepts_periodic
    with pytest.raises(DataError, match=r"has 1 periodic .*attention=neighbours.*pbc=False"):
        predict(potential, molecule_atoms, bulk_atoms)
    bulk_atoms.pbc = False
    assert torch.isfinite(predict(potential, bulk_atoms).energy).all()


def test_precision_does_not_depend_on_the_origin(molecule_atoms):
    """Positions are centred before they are cast: 10,000 Å away single precision has 5e-4 Å."""
    potential = build("transip-global").float()
    here = predict(potential, molecule_atoms).forces
    molecule_atoms.positions += 10_000.0
    there = predict(potential, molecule_atoms).forces
    torch.testing.assert_close(there, here, rtol=0, atol=2e-5 * here.abs().max().item())


# -- attention to neighbours ---------------------------------------------------------------------


def test_neighbour_attention_is_what_its_formula_says():
    """Against a loop over atoms and their edges, without the shift of the logits."""
    block, g = layer(NeighbourAttention, 24, 5.0), geometry(MOLECULES[0], MOLECULES[1])
    basis = build("transip").model.basis
    context = Neighbourhoods.build(g, basis, FREQUENCIES)
    h = torch.randn(len(g.batch), 12, dtype=torch.float64)
    q, k, v = block.project(h)
    rows = []
    for i in range(len(h)):
        total = torch.exp(block.null) + torch.exp((q[i] * k[i]).sum(1))
        summed = torch.exp((q[i] * k[i]).sum(1))[:, None] * v[i]
        for e in torch.nonzero(context.centre == i)[:, 0]:
            j, r = context.source[e], g.edge_vectors[e]
            logit = (q[i] * turn(k[j], r)).sum(1) + block.bias(context.features[e])
            weight = context.envelope[e] * torch.exp(logit)
            total = total + weight
            scale = 1.0 + block.filter(context.features[e]).view(2, -1)
            summed = summed + weight[:, None] * scale * turn(v[j], r)
        rows.append((summed / total[:, None]).flatten())
    want = block.out(5.0**0.5 * torch.stack(rows))
    torch.testing.assert_close(block(h, context), want, atol=1e-12, rtol=1e-12)


def test_a_first_neighbour_enters_smoothly_whatever_the_logits(monkeypatch):
    """Without the null key an only neighbour would get all the weight at once.

    The scale of the logits is raised until softmax is nearly a maximum; the energy at r_c − δ still
    falls like the envelope, δ³.
    """
    potential = build("transip")
    potential.e0.nan_to_num_(0.0).zero_()
    with torch.no_grad():
        for block in potential.model.layers:
            block.attention.norm_k.weight.mul_(4.0)
    gaps = np.array([0.02, 0.01, 0.005])
    pairs = [ase.Atoms("CO", [[0, 0, 0], [CUTOFF - gap, 0, 0]]) for gap in gaps]
    out = predict(potential, *pairs)
    order = torch.log2(out.energy[:-1] / out.energy[1:]).numpy()
    np.testing.assert_allclose(order, 3.0, atol=0.2)
    assert out.energy[-1].abs() < 1e-4


def test_weights_do_not_overflow():
    """Logits of ±1000 in single precision: the shift keeps every exponential at most one."""
    block = layer(NeighbourAttention, 24, 5.0).float()
    with torch.no_grad():
        block.norm_q.weight.fill_(300.0)
    g = geometry(*MOLECULES)
    context = Neighbourhoods.build(g, build("transip").model.basis, FREQUENCIES)
    for name in ("envelope", "radial", "unit", "features", "cos", "sin"):
        setattr(context, name, getattr(context, name).float())
    h = torch.randn(len(g.batch), 12, requires_grad=True)
    out = block(h, context)
    assert torch.isfinite(out).all()
    assert torch.isfinite(torch.autograd.grad(out.sum(), h)[0]).all()


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8])
def test_a_dominant_neighbour_at_the_cutoff_has_finite_second_derivatives(gap):
    """Where its weight is small times huge, the denominator must not be: 1/x² would overflow."""
    block = layer(NeighbourAttention, 24, 5.0).float()
    with torch.no_grad():
        block.norm_q.weight.fill_(300.0)
    graph = AtomGraph.from_atoms(ase.Atoms("CO", [[0, 0, 0], [CUTOFF - gap, 0, 0]]), CUTOFF)
    potential = build("transip").float()
    g = potential._geometry(graph, differentiate=True)[0]
    context = Neighbourhoods.build(g, potential.model.basis, FREQUENCIES.float())
    h = torch.randn(2, 12, generator=torch.Generator().manual_seed(4), requires_grad=True)
    with torch.no_grad():
        logits = (block.project(h)[0] * block.project(h)[1].flip(0)).sum(2)
    assert logits.max() > 100, "no neighbour dominates"
    (first,) = torch.autograd.grad(block(h, context).sum(), g.edge_vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), h)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


# -- direct forces -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transip-direct", "transip-global-direct"])
def test_direct_forces_say_that_they_are_no_gradient(name, molecule_atoms):
    potential = build(name)
    assert not potential.conservative
    out = predict(potential, molecule_atoms, ase.Atoms("C", [[1.0, 2.0, 3.0]]))
    assert out.forces[:-1].abs().max() > 1e-2
    np.testing.assert_allclose(out.forces[:-1].sum(0), 0, atol=1e-12)
    assert not out.forces[-1].any()
    assert torch.isnan(out.virial).all()


# -- options and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "millions"), [("tiny", 0.098), ("s", 14.2), ("m", 31.5), ("l", 84.9)]
)
def test_presets_have_twelve_layers_dim_squared_parameters(preset, millions):
    """4 D² of attention and 8 D² of the feed-forward network per layer; the rest is small."""
    options = dict(load_config([f"model=transip-{preset}"])["model"])
    own = inspect.signature(TransIP).parameters
    options = {key: value for key, value in options.items() if key in own}
    dim, layers = options["dim"], options["num_layers"]
    assert 12 * layers * dim**2 == pytest.approx(1e6 * millions, rel=0.01)
    for mode in ("global", "neighbours"):
        options["attention"] = mode
        with torch.device("meta"):
            model = TransIP(species=range(1, 90), avg_num_neighbors=40.0, **options)
        size = sum(p.numel() for p in model.parameters())
        assert size == pytest.approx(12 * layers * dim**2, rel=0.25 if preset == "tiny" else 0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "locale"},
        {"forces": "both"},
        {"distances": "some"},
        {"dim": 30, "num_heads": 4},
        {"num_layers": 0},
    ],
)
def test_options_out_of_range_are_named(options):
    spec = PotentialSpec("transip", {"cutoff": 4.0, **options}, SPECIES, (E0,), 10.0)
    with pytest.raises(ConfigError, match=f"model.{next(iter(options))}|{next(iter(options))}"):
        build_potential(spec)


def test_attention_is_chosen_by_the_data():
    auto = {"cutoff": 4.0, "attention": "auto"}
    assert resolve_options("transip", auto, periodic=True)["attention"] == "neighbours"
    assert resolve_options("transip", auto, periodic=False)["attention"] == "global"
    local = {"cutoff": 4.0, "attention": "neighbours"}
    assert resolve_options("transip", local, periodic=False) == local
    with pytest.raises(DataError, match=r"model\.attention=neighbours"):
        resolve_options("transip", {"attention": "global"}, periodic=True)
    assert resolve_options("facet", {"cutoff": 4.0}, periodic=True) == {"cutoff": 4.0}


def labelled(*, periodic: bool) -> list[ase.Atoms]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(8):
        atoms = molecule("CH3CH2OH" if rng.random() < 0.5 else "H2O")
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        if periodic:
            atoms.set_cell(8 * np.eye(3))
            atoms.pbc = True
        forces = rng.normal(size=atoms.positions.shape)
        results = {"energy": rng.normal() - 100.0 * len(atoms), "forces": forces}
        if periodic:
            results["stress"] = rng.normal(scale=0.01, size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


@pytest.mark.parametrize(
    ("periodic", "forces", "want"),
    [(False, "gradient", "global"), (True, "gradient", "neighbours"), (True, "direct", None)],
)
def test_training_stores_the_attention_it_chose(tmp_path, caplog, periodic, forces, want):
    caplog.set_level(logging.INFO, "mlip")
    write(tmp_path / "data.extxyz", labelled(periodic=periodic))
    run = train(
        [
            "model=transip-tiny",
            "model.dim=16",
            f"model.forces={forces}",
            f"data.train={tmp_path / 'data.extxyz'}",
            "data.num_workers=0",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
            f"out_dir={tmp_path / 'run'}",
        ]
    )
    potential = load_potential(run.potential)
    options = potential.spec.hyperparameters
    assert options["attention"] == (want or "neighbours")
    assert potential.conservative is (forces == "gradient")
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"model.attention={options['attention']}: the data have" in log
    assert ("direct forces have no stress" in log) is (forces == "direct")
    assert all(np.isfinite(v) for k, v in run.metrics.items() if "stress" not in k)
