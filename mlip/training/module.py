"""The Lightning module: one step of training and validation, optimiser and schedule."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L  # noqa: N812  Lightning's own name for itself
import torch
from torch import Tensor

from mlip.errors import TrainingError
from mlip.evaluate import ErrorSums, SourceErrors, structure_errors
from mlip.graph import AtomGraph
from mlip.models.potential import Potential
from mlip.symmetry import fixed_rotations, rotated
from mlip.training.loss import HuberLoss, LossTotal
from mlip.training.objectives import LatentEquivariance, Lesson, Standard
from mlip.training.optimizers import make_optimizer
from mlip.training.processes import AveragedGradients, SharedLoss, gathered, summed

log = logging.getLogger("mlip")
LABELS = ("energy", "forces", "stress")
MAX_BAD_STEPS = 3
# Beside the errors on turned structures: those as given, and the change that turning makes.
SYMMETRY_COLUMNS = (
    "frame_energy_per_atom_mae", "frame_forces_mae",
    "rotation_energy_per_atom_mae", "rotation_forces_mae",
)  # fmt: skip


@dataclass
class Limits:
    """When a run ends; progress is the largest fraction used up."""

    max_epochs: int | None
    max_steps: int | None
    max_time: float | None  # s
    started: float = 0.0
    spent: float = 0.0  # s, in earlier sessions of a resumed run
    agreed: float | None = None  # s, by the clock that several processes share
    before: tuple[int, float] = (0, 0.0)  # steps and epochs of earlier sessions

    def elapsed(self) -> float:
        """Seconds of training, earlier sessions included."""
        return self.own_clock() if self.agreed is None else self.agreed

    def own_clock(self) -> float:
        """Seconds by the clock of this process."""
        return self.spent + (time.monotonic() - self.started if self.started else 0.0)

    def epochs(self, step: int, steps_per_epoch: int) -> float:
        """Epochs done after a step; those of earlier sessions may have had other lengths."""
        steps, epochs = self.before
        return epochs + (step - steps) / max(steps_per_epoch, 1)

    def progress(self, step: int, steps_per_epoch: int) -> float:
        """Fraction of the run that is done, 0 to 1."""
        parts = [0.0]
        if self.max_epochs:
            parts.append(self.epochs(step, steps_per_epoch) / self.max_epochs)
        if self.max_steps:
            parts.append(step / self.max_steps)
        if self.max_time:
            parts.append(self.elapsed() / self.max_time)
        return min(1.0, max(parts))


def cosine_factor(progress: float, warmup: float, final: float) -> float:
    """Learning rate over its peak: linear warm-up, then a half cosine to `final`."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    x = (progress - warmup) / max(1.0 - warmup, 1e-9)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(x, 1.0)))


class PotentialModule(L.LightningModule):
    """A potential being trained."""

    def __init__(
        self,
        potential: Potential,
        loss: HuberLoss,
        objective: Standard | LatentEquivariance,
        *,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        limits: Limits,
        steps_per_epoch: int,
        seed: int,
        sources: Sequence[str] = (),
        rotations: int = 1,
    ) -> None:
        super().__init__()
        self.potential, self.loss, self.objective = potential, loss, objective
        self.shared_loss = SharedLoss(**asdict(loss))
        self.optimizer_options, self.scheduler_options = optimizer, scheduler
        self.limits, self.steps_per_epoch, self.seed = limits, steps_per_epoch, seed
        self.sources = tuple(sources)  # whose errors are also logged apart
        self.rotations = rotations  # of a validation structure, without exact symmetry
        self.bad_steps = 0
        self.last_batch: AtomGraph | None = None
        self._lessons: list[Lesson] = []  # that of a step, between forward and optimiser
        self._reset("train")
        self._reset("val")

    def transfer_batch_to_device(
        self, batch: AtomGraph, device: torch.device, dataloader_idx: int
    ) -> AtomGraph:
        """Move a batch; Lightning does not know our data class."""
        return batch.to(device, non_blocking=True)

    def training_step(self, batch: AtomGraph, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        # no generator state to restore; processes draw different numbers for different structures
        seed = (self.seed * 1_000_003 + self.global_step + (self.global_rank << 40)) % 2**63
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks up the stack
        self.last_batch = batch
        progress = self.limits.progress(self.global_step, self.steps_per_epoch)
        lesson = self.objective(self.potential, batch, self.shared_loss, progress)
        self._lessons = [lesson]
        return lesson.loss

    def validation_step(self, batch: AtomGraph, batch_idx: int) -> None:
        """Add one batch to the validation errors.

        Without exact symmetry they are those on structures turned at random, the same way in every
        epoch: data sets have preferred orientations, which such a model learns as a short cut.
        """
        plain = self.potential(batch)
        if self.potential.symmetry != "none":
            self._add("val", self.loss.sums(plain, batch), plain, batch)
            return
        self._symmetry["frame"].update(plain, batch)
        labels = {name: getattr(plain, name) for name in LABELS}
        for number in range(self.rotations):
            q = fixed_rotations(batch, number)
            turned, as_if = rotated(batch, q), rotated(replace(batch, **labels), q)
            prediction = self.potential(turned)
            self._symmetry["rotation"].update(prediction, as_if)
            self._add("val", self.loss.sums(prediction, turned), prediction, turned)

    def on_validation_epoch_end(self) -> None:
        """Log exact errors of the whole validation set."""
        if not self.trainer.sanity_checking:
            self.log_dict(self.collected("val"), prog_bar=False, sync_dist=False)
        self._reset("val")

    def on_train_epoch_end(self) -> None:
        """Log the errors of the epoch's steps, as they were seen."""
        self.log_dict(self.collected("train"), prog_bar=False, sync_dist=False)
        self._reset("train")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose gradient is not finite; stop after three in a row."""
        sums = [p.grad.sum() for p in self.parameters() if p.grad is not None]
        lesson = self._lessons.pop()
        # the one look at numbers in a step, for which an accelerator is waited for
        loss_is, gradient_is = _finite(lesson.loss.detach(), sums)
        if loss_is:  # else skipped: it must not spoil the means
            self._learnt(lesson)
        if gradient_is:
            self.bad_steps = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.bad_steps += 1
        strategy = self.trainer.strategy
        guilty = not isinstance(strategy, AveragedGradients) or not strategy.finite
        found = gathered(self._frames(self.last_batch) if guilty else "")
        frames = "; ".join(filter(None, found)) or "no process by itself"
        if self.bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite (last "
                f"at {frames}); check those labels, or lower optimizer.lr"
            )
        if self.global_rank == 0:
            log.warning(
                "step %d: gradient is not finite, step skipped (%s)", self.global_step, frames
            )

    def _learnt(self, lesson: Lesson) -> None:
        """Add the errors of the step."""
        self._add("train", lesson.sums, lesson.prediction, lesson.graph)
        for name, value in lesson.monitors.items():
            self._monitors.setdefault(name, []).append(value)

    def _frames(self, batch: AtomGraph | None) -> str:
        """Say which structures a batch is made of, by source where there are several."""
        if batch is None:
            return "no frames"
        ids: dict[int, list[int]] = {}
        for source, row in zip(batch.source.tolist(), batch.sample_id.tolist(), strict=True):
            ids.setdefault(source, []).append(row)
        # without names the numbers are those of files, which the report lists in this order
        names = {k: self.sources[k] if self.sources else f"file {k}" for k in ids if k >= 0}
        return "; ".join(
            f"{names[k]}: frames {rows}" if k in names else f"frames {rows}"
            for k, rows in sorted(ids.items())
        )

    def configure_optimizers(self) -> Any:
        """The configured optimiser, learning rate by progress."""
        optimizer = make_optimizer(self, self.optimizer_options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def collected(self, part: str) -> dict[str, float]:
        """Return loss and errors of all processes since the last reset; all must call it."""
        nothing = torch.zeros(2)
        own = {f"loss {k}": self._totals[part].sums.get(k, nothing) for k in LABELS}
        own |= {f"errors {k}": e.state() for k, e in self._accumulated(part).items()}
        for name in self.objective.monitors if part == "train" else ():
            values = self._monitors.get(name, [])
            own[name] = torch.tensor([float(sum(values)), len(values)], dtype=torch.float64)
        shared = dict(zip(own, summed(list(own.values())), strict=True))

        total = LossTotal(self.loss)
        total.add({k: v for k in LABELS if (v := shared[f"loss {k}"])[1] > 0})
        out = {f"{part}/loss": total.mean()} if total.sums else {}
        for name in self.objective.monitors if part == "train" else ():
            value, count = shared[name].tolist()
            if count:
                out[f"train/{name}"] = value / count
        for name in self._accumulated(part):
            merged = ErrorSums()
            merged.load(shared[f"errors {name}"])
            out |= {f"{part}/{name}{k}": v for k, v in merged.compute().items()}
            if part == "val" and not name:
                out["val/score"] = self.loss.score(merged.compute())
        return out

    def _accumulated(self, part: str) -> dict[str, ErrorSums]:
        """Return errors by what their names begin with."""
        out = {"": self._errors[part]}
        out |= {f"{source}/": errors for source, errors in self._by_source[part].sums.items()}
        if part == "val" and self.potential.symmetry == "none":
            out |= {f"{name}_": errors for name, errors in self._symmetry.items()}
        return out

    def _factor(self, step: int) -> float:
        progress = self.limits.progress(step, self.steps_per_epoch)
        options = self.scheduler_options
        return cosine_factor(progress, options["warmup"], options["final"])

    def _add(self, part: str, sums: dict[str, Tensor], prediction: Any, batch: AtomGraph) -> None:
        errors = structure_errors(prediction, batch)
        self._errors[part].add(errors)
        self._by_source[part].add(errors, batch)
        self._totals[part].add(sums)

    def _reset(self, part: str) -> None:
        if not hasattr(self, "_totals"):
            self._totals: dict[str, LossTotal] = {}
            self._errors: dict[str, ErrorSums] = {}
            self._by_source: dict[str, SourceErrors] = {}
        if part == "train":
            self._monitors: dict[str, list[Tensor]] = {}
        else:
            self._symmetry = {"frame": ErrorSums(), "rotation": ErrorSums()}
        self._totals[part], self._errors[part] = LossTotal(self.loss), ErrorSums()
        self._by_source[part] = SourceErrors(self.sources)


def _finite(loss: Tensor, gradients: Sequence[Tensor]) -> tuple[bool, bool]:
    """Say whether a loss is finite, and whether there are gradients and all of them are."""
    whole = torch.stack(list(gradients)) if gradients else torch.full_like(loss, math.nan)
    first, second = torch.stack([torch.isfinite(x).all() for x in (loss, whole)]).tolist()
    return first, second
