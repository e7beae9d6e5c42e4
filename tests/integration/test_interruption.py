"""Signals at any moment: the run saves, says so by its exit code, and goes on as if nothing was."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import torch

from mlip.errors import CheckpointError
from mlip.potential_file import read_metadata
from mlip.training.callbacks import Interrupted
from mlip.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mlip.training.module import PotentialModule
from mlip.training.run import train

DATA = Path(__file__).resolve().parents[2] / "data" / "emt-mini" / "emt-mini.extxyz"
EPOCHS = 3  # of 4 steps and, for validation, 2 batches


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return [
        "model=facet-xs", "model.channels=[4,4]", "model.num_layers=1", f"data.train={DATA}",
        "data.batch_size=50", "data.val_fraction=0.25", f"trainer.max_epochs={EPOCHS}", "seed=3",
        "ema.decay=0.9", f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    train([*options, f"out_dir={out}"])
    return out


class Plan:
    """Sends signals to this process at given calls of a method of the module."""

    def __init__(self, monkeypatch, method: str, *calls: int, number: int = signal.SIGTERM):
        original = getattr(PotentialModule, method)
        self.count = 0

        def step(module, batch, batch_idx):
            out = original(module, batch, batch_idx)
            self.count += 1
            if self.count in calls:
                os.kill(os.getpid(), number)
            return out

        monkeypatch.setattr(PotentialModule, method, step)


def hash_of(run: Path) -> str:
    return read_metadata(run / "potential.safetensors")["sha256"]


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("training_step", 2),  # within an epoch
        ("training_step", 4),  # the last step of an epoch
        ("training_step", 12),  # the last step of all
        ("validation_step", 1),
        ("validation_step", 6),  # the last batch of the last pass
    ],
)
def test_an_interrupted_run_continues_to_the_same_bits(
    options, whole, tmp_path, monkeypatch, method, call
):
    broken = tmp_path / "broken"
    assert [row["step"] for row in rows(whole)] == ["4", "8", "12"], "or other calls are the last"
    with monkeypatch.context() as patch:
        Plan(patch, method, call)
        with pytest.raises(Interrupted) as caught:
            train([*options, f"out_dir={broken}"])
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "signals are given back"
    assert not (broken / "potential.safetensors").exists()
    train([*options, f"out_dir={broken}", "resume=auto"])
    assert hash_of(broken) == hash_of(whole)
    assert [row["epoch"] for row in rows(broken)] == ["1", "2", "3"]
    for ours, theirs in zip(rows(broken), rows(whole), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["val/loss"] == theirs["val/loss"]
        assert float(ours["time/epoch_s"]) < 300


@pytest.mark.parametrize("steps", [6, 8])
def test_a_signal_after_a_limit_of_steps(options, tmp_path, monkeypatch, steps):
    """Within the second epoch, or at its end."""
    limit = [*options, "trainer.max_epochs=null", f"trainer.max_steps={steps}"]
    train([*limit, f"out_dir={tmp_path / 'whole'}"])
    with monkeypatch.context() as patch:
        Plan(patch, "validation_step", 3, number=signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            train([*limit, f"out_dir={tmp_path / 'broken'}"])
    assert caught.value.exit_code == 130
    train([*limit, f"out_dir={tmp_path / 'broken'}", "resume=auto"])
    assert hash_of(tmp_path / "broken") == hash_of(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "broken")] == ["4", str(steps)]


def test_without_validation(options, tmp_path, monkeypatch):
    limit = [*options, "data.val_fraction=0"]
    train([*limit, f"out_dir={tmp_path / 'whole'}"])
    with monkeypatch.context() as patch:
        Plan(patch, "training_step", 5)  # the last of the first epoch
        with pytest.raises(Interrupted):
            train([*limit, f"out_dir={tmp_path / 'broken'}"])
    train([*limit, f"out_dir={tmp_path / 'broken'}", "resume=auto"])
    assert hash_of(tmp_path / "broken") == hash_of(tmp_path / "whole")
    assert [row["epoch"] for row in rows(tmp_path / "broken")] == ["1", "2", "3"]


def test_a_second_signal_ends_it_at_once(options, tmp_path, monkeypatch):
    original = PotentialModule.training_step
    count = 0

    def step(module, batch, batch_idx):
        nonlocal count
        count += 1
        if count == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on after the second signal")
        return original(module, batch, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", step)
    with pytest.raises(Interrupted) as caught:
        train([*options, f"out_dir={tmp_path / 'run'}"])
    assert caught.value.exit_code == 143
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4, "the checkpoint of the epoch before is untouched"


def test_a_finished_run_is_not_trained_further(options, tmp_path):
    limit = [*options, "trainer.max_epochs=null", "trainer.max_steps=6"]
    run = tmp_path / "run"
    train([*limit, f"out_dir={run}"])
    before = hash_of(run)
    train([*limit, f"out_dir={run}", "resume=auto"])
    assert hash_of(run) == before
    assert [row["step"] for row in rows(run)] == ["4", "6"]


@pytest.mark.parametrize("part", ["state_dict", "current_model_state", "optimizer_states"])
def test_no_checkpoint_holds_what_is_not_finite(tmp_path, part):
    path = tmp_path / "last.ckpt"
    good = {
        "state_dict": {"potential.model.w": torch.ones(2), "e0": torch.tensor([torch.nan])},
        "current_model_state": {"potential.model.w": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}}],
    }  # fmt: skip
    AtomicCheckpointIO().save_checkpoint(good, path)
    before = path.read_bytes()
    where = good[part][0]["state"][0] if part == "optimizer_states" else good[part]
    where[next(reversed(where)) if part != "state_dict" else "potential.model.w"][0] = torch.inf
    with pytest.raises(CheckpointError, match=rf"of {part}.* is not finite"):
        AtomicCheckpointIO().save_checkpoint(good, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be written.*bytes are free.*room"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert path.read_bytes() == before
