"""scripts/benchmark.py: what it measures is what it says, on the smallest models."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mlip.models.kernels import compiler

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts import one another, as Python lets them when one is run."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def rows(monkeypatch, folder: Path, measure: str, model: str) -> tuple[dict, list[dict]]:
    out = folder / "out.json"
    options = ["--measure", measure, "--models", model, "--repeats", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT))["main"]()
    document = json.loads(out.read_text())
    return document["about"], document["rows"]


def test_edge_blocks_are_compared_with_blocks_of_one_edge(monkeypatch, tmp_path):
    about, found = rows(monkeypatch, tmp_path, "edge-blocks", "facet-xs")
    assert about["command"] == (
        "python scripts/benchmark.py --measure edge-blocks --models facet-xs --repeats 1 "
        "--json FILE"
    )
    assert [row["block"] for row in found] == [1, 8, 16, 32] * 2
    assert [round(row["neighbours"]) for row in found] == [28] * 4 + [60] * 4
    for row in found:
        scatter = next(r for r in found if r["neighbours"] == row["neighbours"])
        ratio = scatter["forces_ms"] / row["forces_ms"]
        assert row["faster_than_scatter"] == pytest.approx(ratio, rel=0.01)


@pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")
def test_the_profile_adds_up(monkeypatch, tmp_path):
    monkeypatch.setenv("MLIP_KERNELS", "compiled")
    _, found = rows(monkeypatch, tmp_path, "profile", "facet-xs")
    for label, functions in (
        ("call", {"forward", "backward"}),
        ("training step", {"forward", "backward", "backward_twice"}),
    ):
        mine = [row for row in found if row["of"] == label]
        assert {r["part"].split(",")[0] for r in mine[:-2]} == functions
        assert sum(r["ms"] for r in mine[:-1]) == pytest.approx(mine[-1]["ms"], abs=0.1)
        assert all(r["ms"] > 0 for r in mine)


def test_every_objective_takes_a_step(monkeypatch, tmp_path):
    _, found = rows(monkeypatch, tmp_path, "objectives", "transip-tiny")
    assert [row["objective"] for row in found] == ["standard", "augmented", "latent_equivariance"]
    assert all(row["step_ms"] > 1 for row in found)


def test_relaxations_are_timed_alone_and_together(monkeypatch, tmp_path):
    _, found = rows(monkeypatch, tmp_path, "relaxations", "facet-xs")
    assert [row["atoms"] for row in found] == [2, 8, 16]
    for row in found:
        ratio = row["alone_step_ms"] / row["together_step_ms"]
        assert row["faster"] == pytest.approx(ratio, rel=0.05)


@pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")
def test_the_script_for_gpus_checks_before_it_times(monkeypatch, tmp_path, capsys):
    """On the CPU, where it compares compiled loops with PyTorch's."""
    script, out = SCRIPT.with_name("benchmark_gpu.py"), tmp_path / "out.json"
    options = [
        "--device",
        "cpu",
        "--models",
        "facet-xs",
        "--sizes",
        "8",
        "--repeats",
        "1",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", [str(script), *options, str(out)])
    monkeypatch.syspath_prepend(str(script.parent))
    space = runpy.run_path(str(script))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    space["main"]()
    checked, timed = (
        json.loads(out.read_text())["rows"][part] for part in (slice(2), slice(2, None))
    )
    assert [row["kernels"] for row in checked] == ["torch", "compiled"]
    assert all(0 < e < 1e-4 for row in checked for e in row["errors"].values())
    assert [row["of"] for row in timed] == ["call", "call", "training step", "training step"]
    assert all(row["ms"] > 0 for row in timed)

    real = space["errors"]
    wrong = lambda *args: real(*args) | {"forces": float("nan")}  # noqa: E731
    monkeypatch.setitem(space["main"].__globals__, "errors", wrong)
    with pytest.raises(SystemExit, match=r"facet-xs with torch: forces are wrong"):
        space["main"]()


def test_lists_are_compared_where_they_agree(monkeypatch, tmp_path):
    _, found = rows(monkeypatch, tmp_path, "neighbors", "none")
    assert [row["atoms"] for row in found] == [64, 64, 1000, 1000, 8000, 8000, 176, 176]
    assert [row["cutoff"] for row in found] == [5.0, 6.0] * 4
    for row in found:
        assert row["on"] == "cpu"
        ratio = row["vesin_us_per_atom"] / row["device_us_per_atom"]
        assert row["faster"] == pytest.approx(ratio, rel=0.05)


def test_a_device_that_would_be_ignored_is_refused(monkeypatch, capsys):
    options = ["--measure", "relaxations", "--device", "cuda"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]()
    assert "relaxations runs on the CPU" in capsys.readouterr().err


def test_both_optimisers_take_steps(monkeypatch, tmp_path):
    script, out = SCRIPT.with_name("benchmark_optimizer.py"), tmp_path / "out.json"
    options = ["--models", "facet-xs", "--repeats", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script))["main"]()
    document = json.loads(out.read_text())
    assert document["about"]["command"].startswith("python scripts/benchmark_optimizer.py --models")
    (row,) = document["rows"]
    assert row["matrices"] > 10
    assert min(row["gradients_ms"], row["pytorch_ms"], row["ours_ms"]) > 0
    assert row["faster"] == pytest.approx(row["pytorch_ms"] / row["ours_ms"], abs=0.1)
