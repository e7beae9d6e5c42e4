"""A run folder belongs to one run, and is continued only as the run it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlip.errors import CheckpointError, ConfigError
from mlip.training.run import train
from mlip.training.run_folder import claim_folder

DATA = Path(__file__).resolve().parents[3] / "data" / "emt-mini" / "emt-mini.extxyz"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return [
        "model=facet-xs", "model.channels=[4,4]", "model.num_layers=1", f"data.train={DATA}",
        "data.batch_size=80", "seed=3", f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def begun(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train([*options, "trainer.max_epochs=1", f"out_dir={out}"])
    return out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=5", "another train part"),
        ("data.val_fraction=0.2", "another train part"),
        ("model.channels=[8,4]", r"model.channels=\[4, 4\]"),
        ("optimizer=adamw", "optimizer=muon"),
        ("trainer.precision=64-true", "trainer.precision=32-true"),
    ],
)
def test_another_run_is_not_continued(options, begun, change, named):
    before = {p: p.read_bytes() for p in begun.glob("*.*") if p.is_file()}
    with pytest.raises(CheckpointError, match=named):
        train([*options, "trainer.max_epochs=2", f"out_dir={begun}", "resume=auto", change])
    assert {p: p.read_bytes() for p in begun.glob("*.*") if p.is_file()} == before


def test_the_same_run_is_continued_with_other_limits(options, begun):
    train(
        [*options, "trainer.max_epochs=2", f"out_dir={begun}", "resume=auto", "optimizer.lr=1e-3"]
    )
    assert (begun / "metrics.csv").read_text().count("\n") == 3


def test_a_folder_goes_to_the_run_that_comes_first(tmp_path):
    fixed = {"resume": False, "out_dir": str(tmp_path / "a")}
    assert claim_folder(fixed, tmp_path / "a", None) == tmp_path / "a"
    with pytest.raises(ConfigError, match="another run"):
        claim_folder(fixed, tmp_path / "a", None)
    timed = {"resume": False, "out_dir": None}
    folders = [claim_folder(timed, tmp_path / "10-30-00", None) for _ in range(3)]
    assert [f.name for f in folders] == ["10-30-00", "10-30-00-2", "10-30-00-3"]
