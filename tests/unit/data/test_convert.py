"""`mlip data convert`: the command, its parts as a job array runs them, and training on a store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlip.cli.main import main
from mlip.data.store import COLUMNS, Store, open_store
from mlip.training.run import train

ROOT = Path(__file__).resolve().parents[3]
SHARDS = ROOT / "data" / "omol-mini"
CRYSTALS = ROOT / "data" / "emt-mini" / "emt-mini.extxyz"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))


def assert_same(one, other):
    for name in set(COLUMNS) - {"start"}:
        left, right = (np.asarray(store.column(name)) for store in (one, other))
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_a_folder_of_shards(tmp_path, capsys):
    store = tmp_path / "stores" / "omol"
    assert main(["data", "convert", str(SHARDS), str(store), "--expect-frames", "176"]) == 0
    assert "176 frames" in capsys.readouterr().out
    assert_same(Store(store), open_store(SHARDS))
    assert main(["data", "convert", str(SHARDS), str(store)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["data", "verify", str(store)]) == 0
    with next(store.glob("shards/*/cell.bin")).open("rb+") as file:
        file.write(b"x")
    assert main(["data", "verify", str(store)]) == 1
    assert "cell.bin: its content has changed" in capsys.readouterr().err


def test_tasks_of_an_array_and_a_merge(tmp_path, monkeypatch):
    """scripts/convert_array.sh as SLURM would start it, all tasks at the same time."""
    files = [str(path) for path in sorted(SHARDS.glob("*.aselmdb"))]
    store = tmp_path / "store"
    (tmp_path / "mlip").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; from mlip.cli.main import main; '
        'sys.exit(main())" "$@"\n'
    )
    (tmp_path / "mlip").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "SLURM_ARRAY_TASK_COUNT": "2",
    }
    tasks = [
        subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "convert_array.sh"), *files, str(store)],
            env={**environment, "SLURM_ARRAY_TASK_ID": str(task)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    said = [task.communicate(timeout=200)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert all("--merge" in text for text in said)
    assert main(["data", "convert", str(store), "--merge"]) == 0
    assert_same(Store(store), open_store(files))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a.extxyz", "s", "--shard", "2/2"], 2, "must be I/N with I from 0 to N-1"),
        (["s"], 2, "stands alone"),
        (["a", "s", "--merge"], 2, "--merge takes the store alone"),
        (["nothing.extxyz", "s"], 1, "no such file"),
        (["s", "--merge"], 1, "no conversion is under way"),
        ([str(CRYSTALS), "s", "--expect-frames", "7"], 1, "expected 7"),
        ([str(CRYSTALS), "s", "data.energy_unti=eV"], 2, "did you mean 'energy_unit'"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", *words]) == code
    assert message in capsys.readouterr().err


def test_training_takes_a_store(tmp_path):
    """It gives the same numbers as the file, reads nothing else, and says what it read."""
    store = tmp_path / "store"
    assert main(["data", "convert", str(CRYSTALS), str(store)]) == 0
    short = ["model=lennard_jones", "model.cutoff=3", "model.sigma=2.2", "trainer.max_steps=3"]
    runs = [
        train([f"data.train={source}", f"out_dir={tmp_path / name}", *short])
        for name, source in (("a", CRYSTALS), ("b", store))
    ]
    assert runs[0].metrics == runs[1].metrics
    assert len(list((tmp_path / "cache").glob("store-*"))) == 1
