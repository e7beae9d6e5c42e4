"""Several processes that train one potential make the steps that one process makes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlip.training.checkpoint import read_checkpoint
from mlip.training.module import cosine_factor

SMALL = [
    "data.train=data/mptrj-mini/mptrj-mini.json.gz", "data.group=task_id",
    "data.val_fraction=0.115",  # leaves 308 to train on: whole batches of 14
    "model=facet-xs", "model.channels=[8,4]",
    "trainer.precision=64-true", "trainer.accelerator=cpu", "data.num_workers=0",
    "trainer.max_epochs=2",
]  # fmt: skip


def command(*words):
    return [sys.executable, "-m", "mlip.cli.main", "train", *SMALL, *words]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "MLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory):
    """Run with one process and batches of 14, or with two and batches of 7; once each."""
    done = {}

    def run(devices):
        if devices not in done:
            out = tmp_path_factory.mktemp("runs") / f"{devices}"
            words = [f"trainer.devices={devices}", f"data.batch_size={14 // devices}"]
            subprocess.run(
                command(*words, f"out_dir={out}"), env=environment, check=True, timeout=300
            )
            done[devices] = out
        return done[devices]

    return run


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def assert_same_weights(one, other, tolerance):
    a, b = (load_file(run / "potential.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_two_processes_make_the_steps_of_one(trained):
    """Batches of N processes are the parts of one; losses are means over all labels."""
    one, two = trained(1), trained(2)
    assert_same_weights(one, two, 1e-9)
    for a, b in zip(rows(one), rows(two), strict=True):
        for name in a:
            if name.split("/")[0] in ("train", "val", "lr", "step"):
                assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), rel=1e-8), name
    log = (two / "train.log").read_text()
    assert log.count("Epoch    1/2") == 1, "one process writes"
    assert log.count("Report") == 1


@pytest.mark.slow
def test_two_processes_that_compile_make_the_same_steps(trained, environment, tmp_path):
    words = ["trainer.devices=2", "data.batch_size=7", "trainer.compile=true"]
    subprocess.run(
        command(*words, f"out_dir={tmp_path}/run"),
        env={**environment, "MLIP_KERNELS": "auto"}, check=True, timeout=280,
    )  # fmt: skip
    assert_same_weights(trained(1), tmp_path / "run", 1e-9)


def test_a_signal_to_one_process_stops_all_and_they_go_on_together(trained, environment, tmp_path):
    out = tmp_path / "run"
    words = ["trainer.devices=2", "data.batch_size=7", f"out_dir={out}"]
    process = subprocess.Popen(
        command(*words),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.time() + 200
    while not (out / "metrics.csv").exists() and process.poll() is None and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert len(rows(out)) == 1
    subprocess.run(command(*words, "resume=auto"), env=environment, check=True, timeout=300)
    assert len(rows(out)) == 2
    assert_same_weights(trained(2), out, 1e-12)


def test_batches_that_do_not_divide_and_a_limit_of_time(environment, tmp_path):
    """Eleven batches of 32 on two processes, stopped by the clock of the first."""
    out = tmp_path / "run"
    words = [
        "trainer.devices=2", "data.batch_size=32", "trainer.max_epochs=null",
        "trainer.max_time=4s", "data.val_fraction=0.005", "data.test_fraction=0", f"out_dir={out}",
    ]  # fmt: skip
    done = subprocess.run(
        command(*words), env=environment, check=True, timeout=300, capture_output=True, text=True
    )
    assert rows(out)[-1]["val/loss"]
    assert float(rows(out)[-1]["lr"]) == pytest.approx(1e-4, rel=0.5), "the schedule has ended"
    assert "ProcessGroup" not in done.stderr
    assert (out / "potential.safetensors").exists()


def test_another_number_of_processes_goes_on_within_an_epoch(environment, tmp_path):
    """The epoch is finished and validated, and the learning rate goes on from where it was."""
    out = tmp_path / "run"
    words = ["data.batch_size=7", "trainer.max_epochs=3", f"out_dir={out}"]
    code = (
        "import os, signal, sys\n"
        "from mlip.cli.main import main\n"
        "from mlip.training.module import PotentialModule\n"
        "real = PotentialModule.training_step\n"
        "def step(self, batch, index):\n"
        "    if self.global_step == 50: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, batch, index)\n"
        "PotentialModule.training_step = step\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    first = subprocess.run(
        [sys.executable, "-c", code, *SMALL, *words], env=environment, timeout=300
    )
    assert first.returncode == 143
    assert [int(r["step"]) for r in rows(out)] == [44], "44 batches of 7"
    stopped = int(read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"])
    assert 44 < stopped < 66
    second = stopped + 22 - (stopped - 44) // 2  # 22 batches of each of two processes
    again = ["trainer.devices=2", "resume=auto"]
    subprocess.run(command(*words, *again), env=environment, check=True, timeout=300)
    found = rows(out)
    assert [int(r["step"]) for r in found] == [44, second, second + 22]
    assert all(r["val/loss"] and r["val/loss"] != r["train/loss"] for r in found)
    for row, progress in zip(found, (1 / 3, 2 / 3, 1.0), strict=True):
        rate = 1e-2 * cosine_factor(progress, 0.02, 0.01)
        assert float(row["lr"]) == pytest.approx(rate, rel=0.06, abs=2e-5)
