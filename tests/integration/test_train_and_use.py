"""The whole path on the command line: train, resume, evaluate, predict, relax, dynamics."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlip.models.kernels import compiler

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "emt-mini" / "emt-mini.extxyz"
SMALL = ["model=facet-xs", "model.channels=[8,4]", f"data.train={DATA}", "data.batch_size=32"]


@pytest.fixture
def mlip(tmp_path):
    def run(*args, check=None, **options):
        environment = {
            **os.environ,
            "MLIP_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            **options.pop("env", {}),
        }
        done = subprocess.run(
            [sys.executable, "-m", "mlip.cli.main", *map(str, args)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, **options,
        )  # fmt: skip
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        return done

    return run


def test_train_then_use(mlip, tmp_path):
    out = tmp_path / "run"
    done = mlip("train", *SMALL, "trainer.max_epochs=3", f"out_dir={out}", "seed=1", check=0)
    assert "Epoch    3/3" in done.stdout
    assert "stress    " in done.stdout
    wanted = """config.yaml train.log metrics.csv splits.json stats.json environment.json
        checkpoints/last.ckpt checkpoints/best.ckpt report/report.md report/report.html
        report/learning_curves.png report/parity_val.png"""
    for name in wanted.split():
        assert (out / name).stat().st_size > 0, name
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3]
    assert float(rows[-1]["val/loss"]) < float(rows[0]["val/loss"])
    splits = json.loads((out / "splits.json").read_text())
    assert sum(len(v) for part in ("train", "val") for v in splits[part].values()) == 240

    potential = out / "potential.safetensors"
    assert "Cu" in mlip("info", out, check=0).stdout
    document = json.loads(mlip("info", out, "--json", check=0).stdout)
    card = document["training"]
    assert card["parts"]["val"]["structures"] == len(next(iter(splits["val"].values())))
    low, high = card["label_ranges"]["forces"]
    assert low < 0 < high
    assert card["recipe"]["seed"] == 1
    last = rows[-1]
    assert document["metrics"]["train/loss"] == pytest.approx(float(last["train/loss"]))
    best = min(rows, key=lambda row: float(row["val/score"]))  # the file holds the best weights
    assert document["metrics"]["val/loss"] == pytest.approx(float(best["val/loss"]), rel=1e-5)
    for operation in ("rotation", "inversion"):  # float32: 7 digits of forces of 1 eV/Å
        errors = document["symmetry_errors"][operation]
        assert 0 < errors["forces_rmse"] < 1e-5
        assert errors["structures"] == card["parts"]["val"]["structures"]
    mlip("evaluate", potential, DATA, "--output", tmp_path / "e.json", check=0)
    table = json.loads((tmp_path / "e.json").read_text())
    assert table["counts"]["structures"] == 240
    assert 0 < table["metrics"]["forces_mae"] < 2
    mlip("predict", potential, DATA, tmp_path / "p.extxyz", check=0)
    text = (tmp_path / "p.extxyz").read_text()
    assert "mlip_energy" in text
    assert " energy=" in text, "labels stay"
    cif = ROOT / "data" / "emt-mini" / "cu-distorted.cif"
    relaxed = mlip("relax", potential, cif, tmp_path / "r.cif", "--steps", 3)
    assert relaxed.returncode == 3, relaxed.stderr
    assert (tmp_path / "r.cif").exists(), "the file is written even when not converged"
    again = mlip("relax", potential, cif, tmp_path / "r.cif", check=2)
    assert "exists" in again.stderr
    mlip(
        "md",
        potential,
        cif,
        "--steps",
        20,
        "--timestep",
        1,
        "--output",
        tmp_path / "m.traj",
        check=0,
    )
    assert (tmp_path / "m.csv").read_text().count("\n") == 4

    refused = mlip("train", *SMALL, f"out_dir={out}", check=2)
    assert "not empty" in refused.stderr
    more = mlip(
        "train", *SMALL, "trainer.max_epochs=4", f"out_dir={out}", "seed=1", "resume=auto", check=0
    )
    assert "Epoch    4/4" in more.stdout
    assert "Epoch    3/4" not in more.stdout
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3, 4]
    other = mlip("train", *SMALL, f"out_dir={out}", "resume=auto", "ema.decay=0", check=1)
    assert "weight averaging" in other.stderr


def test_same_seed_same_bits(mlip, tmp_path):
    hashes = []
    for name in ("a", "b"):
        mlip("train", *SMALL, "trainer.max_epochs=1", f"out_dir={tmp_path / name}", check=0)
        document = json.loads(mlip("info", tmp_path / name, "--json", check=0).stdout)
        hashes.append(document["sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")
def test_compiled_kernels_learn_what_torch_learns(mlip, tmp_path):
    """The same losses in every epoch but for rounding, which training amplifies."""
    found = {}
    for kernels in ("torch", "compiled"):
        out = tmp_path / kernels
        mlip(
            "train", *SMALL, "data.batch_size=8", "trainer.max_epochs=3", "seed=3",
            f"out_dir={out}", check=0, env={"MLIP_KERNELS": kernels},
        )  # fmt: skip
        rows = csv.DictReader((out / "metrics.csv").read_text().splitlines())
        found[kernels] = [float(r[k]) for r in rows for k in ("train/loss", "val/loss")]
    assert len(found["torch"]) == 6
    assert found["compiled"] == pytest.approx(found["torch"], rel=1e-3)
    assert found["torch"][-1] < 0.8 * found["torch"][1], "it learns"


def test_a_step_limit_still_validates(mlip, tmp_path):
    out = tmp_path / "run"
    mlip(
        "train", *SMALL, "trainer.max_epochs=null", "trainer.max_steps=4", f"out_dir={out}", check=0
    )
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert int(rows[-1]["step"]) == 4
    assert rows[-1]["val/loss"]


def test_sigterm_saves_and_exits_143(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlip.cli.main", "train", *SMALL, "trainer.max_epochs=500",
         f"out_dir={out}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "MLIP_CACHE": str(tmp_path / "c"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.time() + 120
    while not (out / "metrics.csv").exists() and time.time() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert (out / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train", "data.train=absent.extxyz"], 1, ["absent.extxyz"]),
        (["train"], 2, ["data.train is missing"]),
        (["train", "model.cuttoff=4", "data.train=x"], 2, ["did you mean model.cutoff"]),
        (["info", "absent.safetensors"], 1, ["no such file"]),
        (["evaluate", "absent.safetensors", "x"], 1, ["no such file"]),
    ],
)
def test_wrong_input_is_one_clear_error(mlip, tmp_path, args, code, words):
    done = mlip(*args, check=code)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "outputs").exists(), "nothing half-written"


@pytest.mark.parametrize("fault", ["no energies", "nan force", "empty", "zero cell"])
def test_bad_data_is_one_clear_error(mlip, tmp_path, fault):
    lattice = 'Lattice="0 0 0 0 0 0 0 0 0" pbc="T T T"' if fault == "zero cell" else 'pbc="F F F"'
    force = "nan" if fault == "nan force" else "0.1"
    energy = "dft_total=-1.0" if fault == "no energies" else "energy=-1.0"
    frame = (
        f"2\n{lattice} Properties=species:S:1:pos:R:3:forces:R:3 {energy}\n"
        f"H 0 0 0 {force} 0 0\nH 0 0 0.8 0 0 0\n"
    )
    path = tmp_path / "bad.extxyz"
    path.write_text("" if fault == "empty" else frame * 4)
    done = mlip("train", f"data.train={path}", check=1)
    assert done.stderr.count("\n") == 1
    expected = {
        "no energies": ["dft_total", "data.keys.energy"],
        "nan force": ["frame 0", "forces"],
        "empty": ["bad.extxyz"],
        "zero cell": ["frame 0", "cell"],
    }
    for word in expected[fault]:
        assert word in done.stderr, done.stderr
    assert not (tmp_path / "outputs").exists()


def test_help_needs_no_torch():
    code = (
        "import sys; from mlip.cli.main import build_parser; build_parser().format_help(); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'ase', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_using_a_potential_imports_no_trainer():
    code = (
        "import sys; from mlip import MLIPCalculator; "
        "bad = [m for m in ('lightning', 'hydra', 'wandb', 'torch_geometric', 'pymatgen', "
        "'matplotlib') if m in sys.modules]; sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
