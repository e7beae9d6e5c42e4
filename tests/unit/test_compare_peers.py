"""scripts/compare_peers.py: what is compared with what, and what cannot be measured is said."""

from __future__ import annotations

import importlib
import io
import json
import stat
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
OURS, STUBBED = "facet-xs (torch)", "chgnet-0.3.0"  # needs no compiler
TASKS = (
    "calls:si8", "calls:oxide40", "calls:si64", "training:crystals", "relaxation:cells",
    "memory:training-crystals", "start-up",
)  # fmt: skip
STUB = """
import os
from ase.calculators.lj import LennardJones
from torch import nn


class CHGNet(nn.Linear):
    @classmethod
    def load(cls, **options):
        print("a package may print what it likes")
        return cls(2, 3)


class CHGNetCalculator(LennardJones):
    def __init__(self, model, **options):
        super().__init__()

    def calculate(self, atoms, *args):
        if len(atoms) == 40:
            raise ValueError("forty atoms are too many\\nsays line two")
        if len(atoms) == 64:
            os._exit(7)
        super().calculate(atoms, *args)
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """Make what is in scripts/ importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture
def report(scripts):
    return importlib.import_module("peer_report")


def compare(*options: str) -> str:
    """What the script prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.delenv("MLIP_REAL_DATA", raising=False)
        patch.setattr(sys, "argv", ["compare_peers.py", *options])
        importlib.import_module("compare_peers").main()
    return said.getvalue()


def install_stub(folder: Path) -> None:
    """A package called chgnet, of an environment that is ours otherwise."""
    package = folder / "stub" / "chgnet"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(STUB)
    about = folder / "stub" / "chgnet-9.9.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: chgnet\nVersion: 9.9\n")
    python = folder / "chgnet" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/stub exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def comparison(scripts, tmp_path_factory) -> tuple[dict, str, Path]:
    """One round of ours, of a package that fails in some tasks, and of one that is not there."""
    folder = tmp_path_factory.mktemp("peers")
    install_stub(folder)
    said = compare(
        "--peers", str(folder), "--rounds", "1", "--json", str(folder / "out.json"),
        "--models", OURS, STUBBED, "mace-small", "--tasks", *TASKS,
    )  # fmt: skip
    return json.loads((folder / "out.json").read_text()), said, folder


@pytest.fixture
def rows(comparison) -> dict:
    return {(row["task"], row["model"]): row for row in comparison[0]["rows"]}


def test_the_file_says_how_it_was_made(comparison):
    document, _, folder = comparison
    about = document["about"]
    assert about["command"] == (
        f"python scripts/compare_peers.py --tasks {' '.join(TASKS)} --models '{OURS}' {STUBBED} "
        "mace-small --rounds 1 --peers FOLDER --json FILE"
    )
    assert str(folder) not in json.dumps(document)
    assert (about["rounds"], about["threads"], about["reference"]) == (1, 1, OURS)
    assert about["versions"]["chgnet"]["chgnet"] == "9.9"
    assert set(about["machine"]) == {"processor", "cores", "system"}
    assert document["models"][OURS]["cutoff"] == 4.5
    assert document["targets"] == []  # they are of facet-s


def test_a_missing_peer_and_missing_data_are_said(comparison, rows):
    document, said, _ = comparison
    data, peer = document["left_out"]
    assert "MLIP_REAL_DATA" in data
    assert peer.startswith("mace-small: ")
    assert "make peers" in peer
    assert peer in said
    assert not any(model == "mace-small" for _, model in rows)


def test_ratios_and_least_times_are_recorded(rows):
    ours, stub = rows["calls:si8", OURS], rows["calls:si8", STUBBED]
    assert ours["ratio"] == 1.0
    assert (ours["atoms"], ours["unit"]) == (8, "call")
    assert stub["cpu_ms"] > 0
    assert stub["ratio_range"] == [stub["ratio"]] * 2
    relaxed = rows["relaxation:cells", OURS]
    assert (relaxed["atoms"], relaxed["unit"]) == (5 + 6 + 8 + 8 + 12, "step")
    assert relaxed["cpu_ms"] < 20 * ours["cpu_ms"]  # of one step of one cell


def test_a_peer_that_fails_in_one_task_goes_on_with_the_next(comparison, rows):
    failed = rows["calls:oxide40", STUBBED]
    assert failed["error"] == "ValueError: forty atoms are too many"
    assert "ratio" not in failed
    assert "process ended (7)" in rows["calls:si64", STUBBED]["error"]
    assert "graph_converter" in rows["training:crystals", STUBBED]["error"]  # by a new process
    assert rows["relaxation:cells", STUBBED]["cpu_ms"] > 0
    assert all(rows[task, OURS]["ratio"] == 1.0 for task in TASKS)
    assert f"{STUBBED} cannot do calls:oxide40: ValueError: forty atoms" in comparison[1]


def test_start_up_is_of_a_whole_process_and_memory_of_a_new_one(rows):
    assert rows["start-up", OURS]["wall_ms"] > 500  # an import of torch is in it
    assert rows["start-up", OURS]["cpu_ms"] > rows["start-up", STUBBED]["cpu_ms"]
    memory = rows["memory:training-crystals", OURS]
    assert memory["kib_per_atom"] == pytest.approx(1024 * memory["memory_mib"] / 112, abs=0.5)
    assert 1 < memory["memory_mib"] < 2000


def test_a_file_is_shown_as_it_was_when_it_was_measured(comparison):
    _, said, folder = comparison
    assert compare("--summary", str(folder / "out.json")) in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "mace"], "no model 'mace'"),
        (["--models", "mace-small (6 Å)"], "no model 'mace-small (6 Å)'"),
        (["--tasks", "calls:3bpa27"], "MLIP_REAL_DATA"),
        (["--models", "mace-small"], "none of the models is installed"),
        (["--rounds", "0"], "must be 1 or more"),
    ],
)
def test_what_cannot_be_asked_for(scripts, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        compare("--peers", str(tmp_path), *options)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_models_of_ours_have_variants(scripts, monkeypatch):
    processes = importlib.import_module("peer_processes")
    monkeypatch.setenv("MLIP_KERNELS", "torch")  # the caller's does not count
    names = "facet-s", "facet-s (6.5 Å)", "facet-s (torch)", "facet-s (compiled)"
    plain, cut, torch, compiled = map(processes.Model.named, names)
    assert compiled.options == {"name": "facet-s", "compile": True}
    assert (plain.options, cut.options["cutoff"]) == ({"name": "facet-s"}, 6.5)
    assert "MLIP_KERNELS" not in processes.environment(plain)
    assert processes.environment(torch)["MLIP_KERNELS"] == "torch"
    assert processes.environment(plain)["OMP_NUM_THREADS"] == "1"


def test_ratios_are_taken_round_by_round(report):
    ours, theirs = [10.0, 20.0, 10.0], [50.0, 60.0, 70.0]  # the second round was slow for us
    assert report.ratios(theirs, ours) == (5.0, 3.0, 7.0)


def test_equal_cutoffs_are_compared_where_they_were_measured(report):
    models = {name: {"cutoff": c} for name, c in (
        ("facet-s", 5.0), ("facet-s (6 Å)", 6.0), ("six", 6.0), ("five", 5.0), ("four", 4.0),
    )}  # fmt: skip
    times = {"facet-s": [2.0], "facet-s (6 Å)": [4.0], "six": [12.0], "five": [10.0], "four": [1.0]}
    rows = [{"model": name, "per_round": value} for name, value in times.items()]
    rows.append({"model": "broken", "error": "ValueError"})
    report.compared(rows, models, "facet-s")
    assert [row.get("ratio") for row in rows] == [1, 2, 6, 5, 0.5, None]
    assert [row.get("equal_cutoff_ratio") for row in rows] == [1, 1, 3, 5, None, None]


def test_targets_are_met_missed_or_not_measured(report):
    rows = [
        {"task": "calls:si64", "model": "mace-small", "ratio": 5.0, "ratio_range": [4, 6]},
        {"task": "calls:si64", "model": "sevennet-0", "ratio": 8.99},
        {"task": "start-up", "model": "mace-small", "ratio": 1.0},  # as fast is not faster
        {"task": "calls:si64", "model": "chgnet-0.3.0", "error": "ValueError"},
    ]
    assert report.targets(rows)[0]["range"] == [4, 6]
    found = {(t["task"], t["peer"]): t["met"] for t in report.targets(rows)}
    assert found.pop(("calls:si64", "mace-small")) is True
    assert found.pop(("calls:si64", "sevennet-0")) is False
    assert found.pop(("start-up", "mace-small")) is False
    assert set(found.values()) == {None}


def test_time_per_atom_is_flat_from_500_atoms_on(report):
    def rows(*per_atom):
        sizes = (64, 512, 4096)
        return [
            {"task": f"sizes:si{n}", "model": "facet-s", "atoms": n, "cpu_ms": n * us / 1e3}
            for n, us in zip(sizes, per_atom, strict=True)
        ]

    (flat,) = report.flatness(rows(900, 100, 119))
    assert flat["us_per_atom"] == {"512": 100.0, "4096": 119.0}
    assert (flat["spread"], flat["met"]) == (0.19, True)
    assert not report.flatness(rows(100, 100, 121))[0]["met"]


def test_the_figure_shows_what_was_measured(report, tmp_path):
    rows = []
    for model, ms in (("facet-s", 10.0), ("mace-small", 55.0)):
        for task, atoms in (("calls:si8", 8), ("calls:si64", 64), ("training:crystals", 112)):
            row = {"task": task, "model": model, "atoms": atoms, "cpu_ms": ms * atoms}
            rows.append(row | {"ratio": ms / 10, "ratio_range": [ms / 11, ms / 9]})
    rows.append({"task": "calls:si512", "model": "mace-small", "atoms": 512, "error": "killed"})
    report.draw({"rows": rows, "about": {"reference": "facet-s"}}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
