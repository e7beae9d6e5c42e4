"""Who is who among processes, and where they write."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from mlip.errors import ConfigError
from mlip.training.callbacks import Interrupted, RunLimits
from mlip.training.module import Limits
from mlip.training.processes import (
    RUN_FOLDER,
    AveragedGradients,
    check_started,
    number_of,
    one_ends_all,
    processes,
    rank_of,
    shared_folder,
)

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME", RUN_FOLDER),
)
FOUR = {"devices": 2, "num_nodes": 2}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1"}, 1),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1"}, 3),
        ({"NODE_RANK": "1"}, 2),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_PROCID": "2"}, 2),
    ],
)
def test_ranks(environment, rank, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert number_of(FOUR) == 4
    assert rank_of(FOUR) == rank
    assert rank_of({"devices": 1, "num_nodes": 1}) == 0


def test_folders(monkeypatch):
    assert shared_folder("here", 3, FOUR) == "here"
    assert shared_folder(None, 0, FOUR) is None
    assert shared_folder(None, 0, {"devices": 1, "num_nodes": 1}) is None
    with pytest.raises(ConfigError, match="give out_dir"):
        shared_folder(None, 1, FOUR)
    monkeypatch.setenv(RUN_FOLDER, "told")
    assert shared_folder(None, 1, FOUR) == "told"
    assert shared_folder(None, 0, FOUR) is None, "the first process has its own name for a new run"
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="give out_dir"):
        shared_folder(None, 0, FOUR)


@pytest.mark.parametrize(
    ("environment", "trainer", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "is 1, but torchrun started 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"devices": 4}, "is 4, but torchrun started 2"),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"devices": 4}, "is 4, but SLURM .*started 1"),
        ({}, {"devices": 4}, None),
        ({"SLURM_NTASKS": "8"}, {}, None),  # one process may use an allocation for many
        ({"SLURM_NTASKS": "4"}, {"devices": 2, "num_nodes": 2}, None),
    ],
)
def test_other_numbers_than_were_started_are_refused(environment, trainer, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "cpu", **trainer}
    if words is None:
        check_started(trainer)
    else:
        with pytest.raises(ConfigError, match=words):
            check_started(trainer)


def test_nothing_is_left_in_the_environment():
    before = dict(os.environ)
    with processes({**FOUR, "num_threads": 3}):
        assert os.environ["OMP_NUM_THREADS"] == before.get("OMP_NUM_THREADS", "3")
        os.environ[RUN_FOLDER] = os.environ["LOCAL_RANK"] = "0"
    assert dict(os.environ) == before


def test_an_error_ends_the_others_and_theirs_is_said():
    killed = []

    class Launcher:
        def kill(self, number):
            killed.append(number)

    strategy = AveragedGradients()
    strategy._launcher = Launcher()
    trainer = SimpleNamespace(strategy=strategy)
    with pytest.raises(ValueError, match="mine"), one_ends_all(trainer):
        raise ValueError("mine")
    assert killed == [signal.SIGKILL]


def test_signals_are_taken_at_the_next_agreement():
    """One that comes while processes agree is not lost, and is not taken for the second."""
    guard = RunLimits(Limits(1, None, None), loader=None, last=None, steps_per_epoch=3)
    trainer = SimpleNamespace(is_global_zero=True)
    guard._agree(trainer)
    assert guard.signal is None
    guard._remember(signal.SIGTERM, None)
    assert guard.signal is None
    guard._agree(trainer)
    assert guard.signal == signal.SIGTERM
    with pytest.raises(Interrupted):
        guard._remember(signal.SIGTERM, None)


def test_progress_goes_on_where_epochs_have_another_length():
    first = RunLimits(Limits(4, None, None), loader=None, last=None, steps_per_epoch=20)
    first._steps = 30
    second = RunLimits(Limits(4, None, None), loader=None, last=None, steps_per_epoch=10)
    second.load_state_dict(first.state_dict())
    assert second.limits.progress(30, 10) == pytest.approx(1.5 / 4)
    assert second.limits.progress(55, 10) == pytest.approx(1.0)
    second._steps = 35
    third = RunLimits(Limits(4, None, None), loader=None, last=None, steps_per_epoch=20)
    third.load_state_dict(second.state_dict())
    assert third.limits.progress(35, 20) == pytest.approx(2.0 / 4)
    same = RunLimits(Limits(4, None, None), loader=None, last=None, steps_per_epoch=20)
    same.load_state_dict(first.state_dict())
    assert same.limits.before == (0, 0.0), "to the bit what it was"
