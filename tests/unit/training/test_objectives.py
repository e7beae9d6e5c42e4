"""What a step is taught from: views, the latent term, its warm-up and its gradient."""

from __future__ import annotations

import pytest
import torch
from conftest import CUTOFF, E0, SPECIES, build
from torch import Tensor, nn

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.pair import LennardJones
from mlip.models.potential import Potential
from mlip.training.loss import HuberLoss
from mlip.training.objectives import (
    Augmented,
    LatentEquivariance,
    Standard,
    make_objective,
    resolve_objective,
)

LOSS = HuberLoss(1.0, 3.0, 0.0, delta=0.5, force_scale=1.0)
OPTIONS = {
    "name": "latent_equivariance", "weight": None, "warmup": 0.1, "level": "pooled",
    "stop_gradient": True,
}  # fmt: skip


class Arrows(nn.Module):
    """A latent that turns with the structure: sums of weighted edge vectors; energy of LJ."""

    symmetry = "O(3)"
    is_local = True
    cutoff = CUTOFF
    species = SPECIES

    def __init__(self) -> None:
        super().__init__()
        self.pair = LennardJones(cutoff=CUTOFF, species=SPECIES, epsilon=0.5, sigma=1.0)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, geometry: Geometry) -> NodeOutput:
        _, centre = geometry.edge_index
        arrows = geometry.edge_vectors * geometry.edge_lengths[:, None] * self.scale
        zero = arrows.new_zeros(len(geometry.atomic_numbers), 3)
        weight = geometry.atomic_numbers[centre, None].to(arrows)
        features = zero.index_add(0, centre, arrows * weight)
        return NodeOutput(self.pair(geometry).energy, features)


class Turn(nn.Module):
    """The exact T of `Arrows`: the first three numbers are a vector, the last nine its rotation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bxy,by->bx", x[:, 3:].reshape(-1, 3, 3), x[:, :3])


@pytest.fixture
def batch(molecule_atoms) -> AtomGraph:
    other = molecule_atoms[:5]
    graphs = [AtomGraph.from_atoms(a, CUTOFF) for a in (molecule_atoms, other)]
    batch = collate(graphs)
    generator = torch.Generator().manual_seed(0)
    batch.energy = torch.tensor(
        [sum(E0[int(z)] for z in a.numbers) for a in (molecule_atoms, other)]
    )
    batch.energy = batch.energy.double()
    batch.forces = torch.randn(
        len(batch.atomic_numbers), 3, dtype=torch.float64, generator=generator
    )
    return batch


def arrows() -> Potential:
    return Potential(Arrows(), E0).double()


def latent(**options) -> LatentEquivariance:
    objective = LatentEquivariance(3, **{"weight": 2.0, "warmup": 0.0, "level": "pooled",
                                         "stop_gradient": True, **options})  # fmt: skip
    return objective.double()


def test_what_auto_means():
    assert resolve_objective("auto", "facet") == "standard"
    assert resolve_objective("auto", "transip") == "latent_equivariance"
    assert resolve_objective("augmented", "transip") == "augmented"
    with pytest.raises(ConfigError, match="must be auto or one of standard, augmented"):
        resolve_objective("augment", "facet")


def test_rotations_change_what_is_seen_and_not_an_invariant_loss(batch):
    potential = build("facet")
    torch.manual_seed(1)
    plain = Standard()(potential, batch, LOSS, 0.0)
    turned = Augmented()(potential, batch, LOSS, 0.0)
    assert plain.graph is batch
    assert (turned.graph.positions - batch.positions).abs().max() > 0.1
    assert (turned.graph.forces - batch.forces).abs().max() > 0.1
    # Huber's loss by component is not invariant; inside its quadratic part it is
    quadratic = HuberLoss(1.0, 3.0, 0.0, delta=1e6, force_scale=1.0)
    assert turned.loss != plain.loss
    torch.testing.assert_close(
        quadratic(turned.prediction, turned.graph),
        quadratic(plain.prediction, plain.graph),
        rtol=1e-10,
        atol=0.0,
    )


@pytest.mark.parametrize("level", ["pooled", "atom"])
def test_a_latent_that_turns_is_predicted_by_turning_it(level, batch):
    """Fixes what T is told: the rotation from the first view to the second, not its inverse."""
    objective = latent(level=level)
    objective.transform = Turn()
    lesson = objective(arrows(), batch, LOSS, 1.0)
    assert float(lesson.monitors["latent_variance"]) > 0.1
    assert float(lesson.monitors["latent_loss"]) < 1e-20
    torch.testing.assert_close(lesson.loss, LOSS.combine(lesson.sums))


def test_weight_and_warm_up(batch):
    objective = latent(warmup=0.2)

    def terms(progress: float) -> tuple[float, float]:
        torch.manual_seed(3)
        lesson = objective(arrows(), batch, LOSS, progress)
        task = LOSS.combine(lesson.sums).item()
        return lesson.loss.item() - task, float(lesson.monitors["latent_loss"])

    for progress, share in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)):
        added, size = terms(progress)
        assert size > 0.01
        assert added == pytest.approx(2.0 * share * size, rel=1e-9)


def test_a_collapsed_latent_shows(batch):
    """A latent a tenth the size is predicted a hundred times better, and its error is the same."""
    objective, monitors = latent(), []
    for linear in objective.transform[::2]:  # T predicts zero
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    for size in (1.3, 0.13):
        potential = arrows()
        nn.init.constant_(potential.model.scale, size)
        torch.manual_seed(3)
        monitors.append(objective(potential, batch, LOSS, 1.0).monitors)
    whole, collapsed = monitors
    for name, share in (("latent_loss", 0.01), ("latent_variance", 0.01), ("latent_error", 1.0)):
        assert float(whole[name]) > 0.01
        assert float(collapsed[name]) == pytest.approx(share * float(whole[name]), rel=1e-9)


@pytest.mark.parametrize("stop", [True, False])
def test_where_the_gradient_goes(stop, batch):
    """With T equal to zero the first view drops out, and what is left is the target's gradient."""
    potential, objective = arrows(), latent(stop_gradient=stop)
    nn.init.zeros_(objective.transform[2].weight)
    nn.init.zeros_(objective.transform[2].bias)
    silent = HuberLoss(0.0, 1e-12, 0.0, delta=1.0, force_scale=1.0)
    objective(potential, batch, silent, 1.0).loss.backward()
    gradient = potential.model.scale.grad
    assert objective.transform[2].weight.grad.abs().max() > 0.01
    if stop:
        assert gradient is None or abs(float(gradient)) < 1e-9
    else:
        assert abs(float(gradient)) > 0.01


def test_made_from_a_configuration():
    objective = make_objective(OPTIONS, arrows(), LOSS)
    assert isinstance(objective, LatentEquivariance)
    assert objective.weight == 1.0  # a third of the weight of forces
    without = Potential(LennardJones(cutoff=CUTOFF, species=SPECIES, epsilon=0.5, sigma=1.0), E0)
    with pytest.raises(ConfigError, match="has not; use objective=augmented"):
        make_objective(OPTIONS, without, LOSS)
    with pytest.raises(ConfigError, match=r"objective\.level='atoms' must be one of pooled, atom"):
        make_objective({**OPTIONS, "level": "atoms"}, arrows(), LOSS)
