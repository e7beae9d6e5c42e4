"""How a potential is taught, independently of which one it is.

An objective takes a batch and returns what one step minimises. Each is a module: it may have
weights of its own (`LatentEquivariance` has), which are trained and checkpointed with the
potential's and never reach the potential file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, mean_of_graphs
from mlip.models.potential import Potential, Prediction
from mlip.symmetry import random_rotations, rotated
from mlip.training.loss import HuberLoss

DEFAULTS: Final = {"transip": "latent_equivariance"}  # `standard` for the other architectures
LEVELS: Final = ("pooled", "atom")


@dataclass(slots=True)
class Lesson:
    """One step: what is minimised, and what the errors of the step are computed from."""

    loss: Tensor
    sums: dict[str, Tensor]  # of the task, as `HuberLoss.sums` returns them
    prediction: Prediction
    graph: AtomGraph  # as the potential saw it, labels included
    monitors: dict[str, Tensor] = field(default_factory=dict)  # averaged over an epoch and logged


class Standard(nn.Module):
    """Learn from the data as they are."""

    monitors: tuple[str, ...] = ()

    def forward(
        self, potential: Potential, graph: AtomGraph, loss: HuberLoss, progress: float
    ) -> Lesson:
        """Return the task loss of a batch; `progress` is the fraction of the run that is done."""
        graph = self.view(graph)
        prediction = potential(graph)
        sums = loss.sums(prediction, graph)
        return Lesson(loss.combine(sums), sums, prediction, graph)

    def view(self, graph: AtomGraph) -> AtomGraph:
        """Return the batch as the potential is to see it."""
        return graph


class Augmented(Standard):
    """Learn from a random rotation of every structure, labels included (TransIP's control)."""

    def view(self, graph: AtomGraph) -> AtomGraph:
        """Return each structure turned at random."""
        return rotated(graph, random_rotations(graph.num_graphs))


class LatentEquivariance(nn.Module):
    """The augmented task, and a latent whose rotation can be predicted.

    With z the latent of a structure and R1, R2 uniform rotations, a two-layer network T is trained
    with the potential to take z(R1 X) and R2 R1ᵀ to z(R2 X):

        L = L_task(R1 X) + w mean_b |T(z(R1 X_b), R2 R1ᵀ) − z(R2 X_b)|² / dim z

    The target carries no gradient unless asked: with one the latent shrinks instead of turning.
    Its variance over structures is logged, because a latent that has collapsed is predicted
    perfectly. T is dropped after training; a step costs one more forward pass without forces, 5 to
    26 % of its time on molecules (data/results/objective-cost.json).

    Source: TransIP, arXiv:2510.00027; what T is conditioned on, arXiv 2026 (Zatom-2), section 3.1;
    pooling, stop-gradient and the rotated task are choices, all options but the last.
    """

    monitors: tuple[str, ...] = ("latent_loss", "latent_error", "latent_variance")

    def __init__(
        self, dim: int, weight: float, warmup: float, level: str, stop_gradient: bool
    ) -> None:
        """Make T for latents of `dim` numbers.

        Args:
            dim: C of `Prediction.features` (N, C).
            weight: w above, reached linearly after the fraction `warmup` of the run.
            warmup: a fraction of the run, 0 for the full weight at once.
            level: `pooled`, one latent a structure (mean over atoms), or `atom`, one an atom.
            stop_gradient: whether the target is a constant.
        """
        super().__init__()
        self.weight, self.warmup = weight, warmup
        self.pooled, self.stop_gradient = level == "pooled", stop_gradient
        self.transform = nn.Sequential(
            nn.Linear(dim + 9, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)
        )

    def forward(
        self, potential: Potential, graph: AtomGraph, loss: HuberLoss, progress: float
    ) -> Lesson:
        """Return the weighted sum of both losses of a batch."""
        first, second = (random_rotations(graph.num_graphs) for _ in range(2))
        seen = rotated(graph, first)
        prediction = potential(seen)
        sums = loss.sums(prediction, seen)
        with torch.set_grad_enabled(not self.stop_gradient):
            other = potential(rotated(graph, second), derivatives=False)
        here, target = (self._latent(p, graph) for p in (prediction, other))
        relative = (second @ first.transpose(1, 2)).flatten(1).to(here)
        if not self.pooled:
            relative = relative[graph.batch]
        residual = self.transform(torch.cat([here, relative], dim=1)) - target
        latent = loss.mean(residual.square())
        ramp = min(1.0, progress / self.warmup) if self.warmup else 1.0
        monitors = {"latent_loss": latent.detach()}
        if len(target) > 1:
            variance = target.detach().var(dim=0).mean()
            monitors["latent_variance"] = variance
            monitors["latent_error"] = latent.detach() / variance.clamp(min=1e-12)
        total = loss.combine(sums) + self.weight * ramp * latent
        return Lesson(total, sums, prediction, seen, monitors)

    def _latent(self, prediction: Prediction, graph: AtomGraph) -> Tensor:
        features = prediction.features
        if features is None:
            raise ConfigError("the potential returned no latent features")
        if not self.pooled:
            return features
        return mean_of_graphs(features, graph.batch, graph.num_graphs)


def resolve_objective(name: str, architecture: str) -> str:
    """Return the objective that `name` means for an architecture.

    Raises:
        ConfigError: no such objective.
    """
    if name == "auto":
        return DEFAULTS.get(architecture, "standard")
    if name not in OBJECTIVES:
        raise ConfigError(f"objective={name!r} must be auto or one of {', '.join(OBJECTIVES)}")
    return name


def make_objective(
    options: Mapping[str, Any], potential: Potential, loss: HuberLoss
) -> Standard | LatentEquivariance:
    """Build the objective that `options` (the `objective` group) describes.

    Raises:
        ConfigError: no such objective, or the potential has no latent for it.
    """
    name = options["name"]
    if name != "latent_equivariance":
        return {"standard": Standard, "augmented": Augmented}[name]()
    dim = potential.feature_dim()
    if dim is None:
        raise ConfigError(
            "objective=latent_equivariance needs a model with latent features, which this one has "
            "not; use objective=augmented"
        )
    if options["level"] not in LEVELS:
        raise ConfigError(
            f"objective.level={options['level']!r} must be one of {', '.join(LEVELS)}"
        )
    weight = options["weight"]
    return LatentEquivariance(
        dim,
        weight=loss.forces_weight / 3 if weight is None else float(weight),
        warmup=float(options["warmup"]),
        level=options["level"],
        stop_gradient=bool(options["stop_gradient"]),
    )


OBJECTIVES: Final = ("standard", "augmented", "latent_equivariance")
