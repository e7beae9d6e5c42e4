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

SMALL = [
    "data.train=data/mptrj-mini/mptrj-mini.json.gz", "data.group=task_id",
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
    """Nine batches of 32 on two processes, stopped by the clock of the first."""
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
