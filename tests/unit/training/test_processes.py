"""Who is who among processes, and where they write."""

from __future__ import annotations

import pytest

from mlip.errors import ConfigError
from mlip.training.processes import RUN_FOLDER, number_of, rank_of, shared_folder

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", RUN_FOLDER)
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
