"""What happens around the steps: averaging, limits, signals, one line per epoch."""

from __future__ import annotations

import csv
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from mlip.data.batching import GraphLoader
from mlip.quantities import MILLI, QUANTITIES
from mlip.training.module import Limits
from mlip.training.processes import largest, summed, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger("mlip")


class WarmEMA(WeightAveraging):
    """Exponential moving average of weights with decay min(decay, (1 + n)/(10 + n))."""

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self.decay = decay
        self._swapped = False  # the module holds the average, as it does during validation
        self._tensors: list[list[Tensor]] = []  # parameters averaged, trained; buffers of both

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin with the weights; the number of steps is asked for after each, so it stays here."""
        super().setup(trainer, pl_module, stage)
        self._tensors = []
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Average after a step, without waiting for an accelerator.

        `AveragedModel.update_parameters` goes through the modules and copies its count every time.
        """
        model: Any = self._average_model
        if trainer.global_step <= self._latest_update_step:
            return
        if not self._tensors:
            modules = (model.module, pl_module)
            self._tensors = [[p.detach() for p in m.parameters()] for m in modules]
            self._tensors += [list(m.buffers()) for m in modules]
        n = float(model.n_averaged)
        share = 1.0 if n == 0 else 1.0 - min(self.decay, (1.0 + n) / (10.0 + n))
        averaged, trained, old, new = self._tensors
        with torch.no_grad():
            torch._foreach_lerp_(averaged, trained, share)
            if old:
                torch._foreach_copy_(old, new)
        model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back to the weights that are trained."""
        if self._swapped:
            super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False


class RunLimits(L.Callback):
    """Stop at the limits, keep the loader's epoch, and turn signals into a clean end.

    Comes after weight averaging in the list of callbacks: its checkpoint has the step's average.
    """

    def __init__(
        self, limits: Limits, loader: GraphLoader, last: Path, steps_per_epoch: int
    ) -> None:
        self.limits, self.loader, self.last = limits, loader, last
        self.steps_per_epoch = steps_per_epoch
        self._steps = 0
        self.asked: int | None = None  # a signal of this process ...
        self.signal: int | None = None  # ... and the one that all processes know of
        self._process = os.getpid()
        # Here and not at the start of training, when Lightning has put its own in their place.
        self._old = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; from now on the first signal asks for an end, the second forces it."""
        self.limits.started = time.monotonic()
        self._agree(trainer)
        for number in SIGNALS:
            try:
                signal.signal(number, self._remember)
            except ValueError:  # not the main thread: signals are the caller's business
                break
        self._tell_length(trainer)  # a run that continues within an epoch does not start it
        if (done := self.loader.regrouped) is not None:  # Lightning counts in batches of before
            count: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            before = count.ready
            for name in ("ready", "started", "processed", "completed"):  # completed may lag by one
                setattr(count, name, getattr(count, name) + done - before)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell the loader which epoch's order to use, and Lightning how many batches that makes.

        Under a budget of atoms or edges the number differs from epoch to epoch; Lightning asks
        once, and would drop the batches beyond, or never reach the one it validates after.
        """
        self.loader.start_epoch(trainer.current_epoch)
        self._tell_length(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """End the run in an orderly way if the time is up or somebody asked.

        After the last step of an epoch a signal waits for validation: a checkpoint from here would
        be continued without it.
        """
        self._steps = trainer.global_step
        self._agree(trainer)
        if self._reached(trainer.global_step, self.limits.elapsed()):
            trainer.should_stop = True  # asked for here, so that a last validation runs
        if self.signal is not None and not (trainer.is_last_batch or trainer.should_stop):
            self._save_and_leave(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Leave a validation pass; the resumed run does it again from its beginning.

        The one pass that is finished first is that after a limit of steps or time: a resumed run
        has nothing left to train and would not come by here again. Several processes finish it too,
        for here they have not agreed on leaving.
        """
        if world_size() > 1:
            return
        self._agree(trainer)
        if self.signal is None or trainer.should_stop:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WarmEMA):
                callback.on_validation_epoch_end(trainer, pl_module)
        progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        for count in (progress.total, progress.current):  # what Lightning takes as interrupted
            count.ready = count.started = 1
            count.processed = count.completed = 0
        self._save_and_leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave between two epochs."""
        self._agree(trainer)
        if self.signal is not None:
            self._save_and_leave(trainer)

    def _agree(self, trainer: L.Trainer) -> None:
        """Go by the clock of the first process, and leave if one of them has been asked to."""
        asked = self.asked  # may change while the others are waited for
        if world_size() == 1:
            self.signal = asked
            return
        first = self.limits.own_clock() if trainer.is_global_zero else 0.0
        self.limits.agreed, number = largest([first, float(asked or 0)])
        self.signal = int(number) or None

    def _tell_length(self, trainer: L.Trainer) -> None:
        batches = len(self.loader)
        loop = trainer.fit_loop
        loop.max_batches = trainer.val_check_batch = batches
        if loop._combined_loader is not None:
            loop._combined_loader.limits = [batches]

    def _save_and_leave(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.last)
        raise Interrupted(self.signal or 0)

    def used_up(self, checkpoint: dict[str, Any]) -> bool:
        """Whether a run was saved after its last step, so that going on would exceed its limits."""
        spent = checkpoint["callbacks"].get(self.state_key, {}).get("spent", 0.0)
        return self._reached(checkpoint["global_step"], spent)

    def _reached(self, steps: int, seconds: float) -> bool:
        limits = self.limits
        out_of_time = limits.max_time and seconds > limits.max_time
        out_of_steps = limits.max_steps and steps >= limits.max_steps
        return bool(out_of_time or out_of_steps)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give signals back."""
        for number, handler in self._old.items():
            with suppress(ValueError, TypeError):  # not the main thread, or not set by Python
                signal.signal(number, handler)

    def state_dict(self) -> dict[str, Any]:
        """What has been used up, so that a resumed run keeps its limits and schedule."""
        return {
            "spent": self.limits.elapsed(),
            "steps": self._steps,
            "steps_per_epoch": self.steps_per_epoch,
            "before": self.limits.before,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the clock, and the count of epochs if they had another length."""
        self.limits.spent = float(state_dict["spent"])
        self.limits.before = tuple(state_dict.get("before", (0, 0.0)))  # type: ignore[assignment]
        length = int(state_dict.get("steps_per_epoch", self.steps_per_epoch))
        if length != self.steps_per_epoch:
            steps = int(state_dict["steps"])
            self.limits.before = (steps, self.limits.epochs(steps, length))

    def _remember(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker of the loader, which its parent looks after
            return
        if self.asked is not None:
            raise Interrupted(number)
        self.asked = number
        log.warning("stopping after this step (again to stop at once)")


class Interrupted(Exception):  # noqa: N818  not an error
    """A signal ended the run; the checkpoint is written, unless a second signal came first."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class EpochLog(L.Callback):
    """One line per epoch on the console, one row per epoch in metrics.csv."""

    METRICS = (
        "train/loss", "train/energy_per_atom_mae", "train/forces_mae", "train/stress_mae",
        "val/loss", "val/score", "val/energy_mae", "val/energy_rmse", "val/energy_per_atom_mae",
        "val/energy_per_atom_rmse", "val/forces_mae", "val/forces_rmse", "val/forces_cos",
        "val/stress_mae", "val/stress_rmse",
    )  # fmt: skip
    OTHERS = ("lr", "time/epoch_s", "time/data_s", "data/atoms_per_s")

    def __init__(
        self,
        path: Path,
        limits: Limits,
        steps_per_epoch: int,
        more: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> None:
        self.metrics, self.sources = (*self.METRICS, *more), tuple(sources)
        self.path, self.max_epochs, self.limits = path, limits.max_epochs, limits
        self.steps_per_epoch = steps_per_epoch
        self.best = float("inf")
        self._start = self._waiting = self._data = 0.0
        self._atoms = 0

    def state_dict(self) -> dict[str, Any]:
        """Remember the best score, so that a resumed run does not announce a worse one."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue."""
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks, also in the middle of an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the clocks."""
        self._start = self._waiting = time.perf_counter()
        self._data, self._atoms = 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time spent waiting for data."""
        self._data += time.perf_counter() - self._waiting
        self._atoms += len(batch.atomic_numbers)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Waiting begins."""
        self._waiting = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row and print the line."""
        seconds = time.perf_counter() - self._start
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        values |= pl_module.collected("train")  # type: ignore[operator]  not logged yet
        (atoms,) = summed([torch.tensor(self._atoms)])
        if not trainer.is_global_zero:
            return
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **{k: values[k] for k in self.metrics if k in values},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "time/epoch_s": round(seconds, 3),
            "time/data_s": round(self._data, 3),
            "data/atoms_per_s": round(float(atoms) / seconds, 1),
        }
        new = not self.path.exists()
        with self.path.open("a", newline="") as handle:
            writer = csv.DictWriter(
                handle, ["epoch", "step", *self.metrics, *self.OTHERS], restval=""
            )
            if new:
                writer.writeheader()
            writer.writerow(row)
        log.info(self._line(row, seconds))
        for source in self.sources:
            if errors := _errors(row, f"val/{source}/"):
                log.info(f"{'':10} {source:>20}{errors}")

    def _line(self, row: dict[str, Any], seconds: float) -> str:
        total = f"/{self.max_epochs}" if self.max_epochs else ""
        loss = row.get("val/loss", row.get("train/loss", float("inf")))
        score = row.get("val/score", loss)
        best = score < self.best
        self.best = min(score, self.best)
        return (
            f"Epoch {row['epoch']:>4}{total} | loss {row.get('train/loss', float('nan')):.4f} | "
            f"val {loss:.4f}{_errors(row, 'val/')} | lr {row['lr']:.1e} | {seconds:.1f} s "
            f"(data {self._data / seconds:.0%}) | ETA {self._eta(row['step'])}"
            f"{' | best' if best else ''}"
        )

    def _eta(self, step: int) -> str:
        done = self.limits.progress(step, self.steps_per_epoch)
        left = self.limits.elapsed() * (1.0 - done) / max(done, 1e-9)
        return f"{left / 60:.0f}m" if left >= 120 else f"{left:.0f}s"


def _errors(row: dict[str, Any], prefix: str) -> str:
    """Show the mean absolute errors whose names start with `prefix`."""
    letters = {"energy_per_atom": "E", "forces": "F", "stress": "S"}
    return "".join(
        f"  {letter} {MILLI * row[key]:.1f} {QUANTITIES[name].ascii_unit}"
        for name, letter in letters.items()
        if (key := f"{prefix}{name}_mae") in row
    )
