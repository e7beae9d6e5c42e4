"""The wheel: configuration and data are inside, and found from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mlip.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["trainer.max_epochs=null", "trainer.max_steps=3", "model.channels=[4,4]"]


def test_shipped_data_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(load_config(["experiment=quickstart"])["data"]["train"])
    assert path.is_absolute()
    assert path.exists()
    own = tmp_path / "data" / "mptrj-mini" / path.name
    own.parent.mkdir(parents=True)
    own.touch()
    assert load_config(["experiment=quickstart"])["data"]["train"] == f"data/mptrj-mini/{path.name}"
    typed = "data/mptrj-mini/absent.json.gz"
    given = load_config(["experiment=quickstart", f"data.train={typed}"])
    assert given["data"]["train"] == typed, "what a user types is taken as it is"


@pytest.mark.slow
def test_the_wheel_runs_elsewhere(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("mlip_trainer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder in ("conf", "data"):
        tracked = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        assert tracked
        assert {f"mlip/_{name}" for name in tracked} <= inside
    assert not [n for n in inside if n.startswith("tests/") or "__pycache__" in n]

    installed = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", installed, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ, "PYTHONPATH": str(installed), "MLIP_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def python(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], cwd=elsewhere, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    names = "MLIPCalculator, Relaxer, load_potential, train"
    code = f"import mlip; from mlip import {names}; print(mlip.__file__)"
    assert python("-c", code).strip() == str(installed / "mlip" / "__init__.py")
    out = python("-m", "mlip.cli.main", "train", "experiment=quickstart", *STEPS, "out_dir=run")
    assert str(installed / "mlip" / "_data" / "mptrj-mini" / "mptrj-mini.json.gz") in out
    assert (elsewhere / "run" / "potential.safetensors").exists()
