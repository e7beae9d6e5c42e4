"""The Huber loss of energies, forces and stresses, with missing labels selected out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlip.graph import AtomGraph
from mlip.models.potential import Prediction

ATOM_VOLUME = 10.0  # Å³: brings stress (eV/Å³) to the size of an energy per atom


@dataclass(frozen=True)
class HuberLoss:
    """Weighted Huber losses in units of the training set's force scale.

    With s = force_scale: energy term on (E − Ê)/(N s Å), force term on (F − F̂)/s by component,
    stress term on 10 Å³ (σ − σ̂)/(s Å) by component. NaN labels are selected out, never multiplied.
    """

    energy_weight: float
    forces_weight: float
    stress_weight: float
    delta: float
    force_scale: float

    def sums(self, prediction: Prediction, graph: AtomGraph) -> dict[str, Tensor]:
        """Return per label (2,): the weighted sum of losses and the number of known components."""
        weight = graph.weight
        inverse = 1.0 / self.force_scale
        out = {}
        if self.energy_weight:
            residual = (prediction.energy - graph.energy) / graph.num_atoms * inverse
            out["energy"] = self._sum(residual, graph.energy, weight)
        if self.forces_weight:
            residual = (prediction.forces - graph.forces) * inverse
            out["forces"] = self._sum(residual, graph.forces, weight[graph.batch, None])
        if self.stress_weight:
            residual = (prediction.stress - graph.stress) * (ATOM_VOLUME * inverse)
            out["stress"] = self._sum(residual, graph.stress, weight[:, None, None])
        return out

    def combine(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of means; a label that did not occur adds nothing."""
        terms = [
            getattr(self, f"{name}_weight") * total / count.clamp(min=1.0)
            for name, (total, count) in sums.items()
        ]
        return torch.stack(terms).sum()

    def score(self, errors: Mapping[str, float]) -> float:
        """Return mean absolute errors with the weights and in the units of the loss.

        This chooses the best weights. A validation set is small and its loss is mostly that of its
        worst structures, which says little about the others.

        Args:
            errors: of those of `energy_per_atom_mae`, `forces_mae`, `stress_mae` that are known.
        """
        terms = (
            ("energy_per_atom_mae", self.energy_weight),
            ("forces_mae", self.forces_weight),
            ("stress_mae", self.stress_weight * ATOM_VOLUME),
        )
        known = [weight * errors[name] for name, weight in terms if weight and name in errors]
        return sum(known) / self.force_scale if known else float("nan")

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a term that an objective adds."""
        return values.mean()

    def __call__(self, prediction: Prediction, graph: AtomGraph) -> Tensor:
        """Return the loss of a batch."""
        return self.combine(self.sums(prediction, graph))

    def _sum(self, residual: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        known = ~torch.isnan(label)  # labels decide: a prediction that is NaN must stay visible
        # not residual[known], for whose size an accelerator would be waited for
        residual = residual.where(known, 0.0)
        size = residual.abs()
        delta = self.delta
        loss = torch.where(size < delta, 0.5 * residual.square(), delta * (size - 0.5 * delta))
        return torch.stack([(weight * loss).sum(), known.sum().to(loss.dtype)])


class LossTotal:
    """The loss of many batches as one: sums over counts, whatever the batches."""

    def __init__(self, loss: HuberLoss) -> None:
        self.loss = loss
        self.sums: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add the sums of a batch."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def mean(self) -> float:
        """Return the loss; NaN before the first batch."""
        return float(self.loss.combine(self.sums)) if self.sums else float("nan")
