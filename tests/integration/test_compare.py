"""`mlip compare`: what files say, what is measured, and when the comparison is not fair."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import STRUCTURES, build

from mlip.calculator import MLIPCalculator
from mlip.errors import ConfigError, DataError, PotentialFileError
from mlip.potential_file import add_metadata, read_metadata, save_potential
from mlip.report.compare import compare_runs, comparison_text
from mlip.report.measure import GAP, microseconds_per_atom, nve_ratio, three_sizes
from mlip.training.run import train

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "emt-mini" / "emt-mini.extxyz"
RUNS = {
    "facet": ["model=facet-xs", "model.channels=[8,4]", "model.num_layers=1"],
    "lj": ["model=lennard_jones", "model.sigma=2.3"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two runs of one epoch on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    common = [f"data.train={DATA}", "data.batch_size=64", "data.test_fraction=0.1"]
    common += [f"data.cache_dir={folder / 'cache'}", "trainer.max_epochs=1"]
    for name, options in RUNS.items():
        train([*options, *common, f"out_dir={folder / name}"])
    return folder


def compare(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlip.cli.main", "compare", *map(str, args)],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_one_table_one_figure_one_file(runs):
    out = runs / "out"
    paths = ["facet", str(runs / "lj" / "potential.safetensors")]
    done = compare(runs, *paths, "--output", out)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "compare.json").read_text())
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "compare.txt").read_text()
    assert done.stdout.startswith(table)
    assert document["notes"] == []
    assert document["measured_on"]["structure"] == str(DATA)
    first, second = document["runs"]
    assert (first["label"], second["architecture"]) == ("A", "lennard_jones")
    for run, folder in ((first, "facet"), (second, "lj")):
        saved = read_metadata(runs / folder / "potential.safetensors")
        assert run["part"] == "test"
        assert run["metrics"]["forces_mae"] == saved["metrics"]["test/forces_mae"]
        assert run["counts"] == saved["metric_counts"]["test"]
        assert run["counts"]["structures"] == 24
        assert run["num_parameters"] == saved["num_parameters"]
        assert run["rotation_error"] == saved["symmetry_errors"]["rotation"]
        assert [size["atoms"] for size in run["speed"]] == [4, 72, 256]
        assert all(1 < size["us_per_atom"] < 1e6 for size in run["speed"])
        assert run["training"]["atoms_per_s"] > 1
        # torch alone is 100 MB; 64 GB would be a mistake in the unit
        assert 1e8 < run["training"]["peak_memory_bytes"] < 64e9
        assert run["nve"]["ratio"] == pytest.approx(4.0, abs=0.1)
    for words in ("A  facet", "B  lennard_jones", "us/atom and step, 256 atoms", "NVE ratio"):
        assert words in table
    assert f"{1e3 * first['metrics']['forces_mae']:.2f} (288)" in table
    again = compare(runs, *paths, "--output", out)
    assert again.returncode == 2
    assert again.stderr == (
        f"error: {out / 'compare.json'} exists; give another --output or --force\n"
    )


@pytest.mark.parametrize("change", ["split", "data", "part"])
def test_unequal_data_are_said(runs, tmp_path, change):
    """Another split of the same file, another file, or another part: named, run by run."""
    other = tmp_path / "other.safetensors"
    shutil.copy(runs / "facet" / "potential.safetensors", other)
    document = read_metadata(other)
    if change == "part":
        metrics = {k: v for k, v in document["metrics"].items() if not k.startswith("test/")}
        counts = {"val": document["metric_counts"]["val"]}
        add_metadata(other, {"metrics": metrics, "metric_counts": counts})
    else:
        for part in document["training"]["parts"].values():
            part["rows" if change == "split" else "hash"] = "another"
        add_metadata(other, {"training": document["training"]})
    comparison = compare_runs([runs / "facet", other, runs / "lj"], measured=False)
    trained = [note for note in comparison.notes if "not all were trained on" in note]
    judged = "".join(note for note in comparison.notes if "not all were judged on" in note)
    assert len(trained) == (change != "part")
    assert "their errors cannot be compared" in judged
    assert f"A, C: 24 structures of {DATA} (test); B: 24" in judged
    assert ("split differently" in judged) == (change == "split")
    text = comparison_text(comparison)
    assert "note: unequal data" in text
    assert "us/atom" not in text, "nothing was to be measured"
    assert comparison.measured_on is None


def test_equal_data_need_no_note(runs):
    assert compare_runs([runs / "facet", runs / "lj"], measured=False).notes == []


def test_wrong_paths_are_named(runs, tmp_path):
    done = compare(runs, "facet", "absent")
    assert (done.returncode, done.stderr) == (1, "error: absent: there is no such file\n")
    for path, error, code, words in (
        (tmp_path, ConfigError, 2, r"no potential\.safetensors: not a run folder"),
        (DATA, PotentialFileError, 1, "not a potential file"),
    ):
        with pytest.raises(error, match=words) as caught:
            compare_runs([runs / "facet", path])
        assert caught.value.exit_code == code
    with pytest.raises(ConfigError, match="give 1 to 26"):
        compare_runs([runs / "facet"] * 27)


def test_data_that_moved_leave_a_table_without_speed(tmp_path):
    """And a structure can be given instead, if its elements are known."""
    path = tmp_path / "p.safetensors"
    save_potential(path, build("lennard_jones"))
    comparison = compare_runs([path])
    assert "--structure gives one" in comparison.notes[0]
    text = comparison_text(comparison)
    assert "parameters" in text
    assert "errors on" not in text
    STRUCTURES["molecule"]().write(tmp_path / "m.xyz", format="extxyz")
    given = compare_runs([path], structure=tmp_path / "m.xyz")
    assert [size["atoms"] for size in given.runs[0]["speed"]] == [9, 72, 261]
    molecule("SO2").write(tmp_path / "s.xyz", format="extxyz")
    with pytest.raises(DataError, match="has S"):
        compare_runs([path], structure=tmp_path / "s.xyz")


def test_unsymmetric_models_say_what_their_errors_are_of(tmp_path):
    path = tmp_path / "p.safetensors"
    save_potential(path, build("facet-silu-L3"))
    add_metadata(path, {"metrics": {"val/loss": 1.0}, "metric_counts": {"val": {"forces": 3}}})
    comparison = compare_runs([path], measured=False)
    assert any("turned at random" in note for note in comparison.notes)


@pytest.mark.parametrize(
    "atoms",
    [bulk("Al", "fcc", a=4.05), molecule("H2O"), STRUCTURES["slab"](), molecule("C60")],
    ids=["primitive", "water", "slab", "large"],
)
def test_sizes_are_copies(atoms):
    sizes = three_sizes(atoms)
    counts = [len(size) for size in sizes]
    assert counts[0] == len(atoms)
    assert counts[1] >= max(64, 2 * len(atoms))
    assert counts[2] >= max(256, 4 * len(atoms))
    for size in sizes:
        assert len(size) % len(atoms) == 0
        assert (size.pbc == atoms.pbc).all()
        distances = size.get_all_distances(mic=True)[np.triu_indices(len(size), 1)]
        if len(size) > len(atoms) and not atoms.pbc.any():
            own = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
            assert distances.min() >= min(own.min(), GAP) - 1e-9, "copies overlap"
    if atoms.pbc.all():
        assert sizes[2].get_volume() / counts[2] == pytest.approx(atoms.get_volume() / len(atoms))


def test_the_ratio_tells_a_gradient_from_what_is_none():
    atoms = STRUCTURES["molecule"]()
    exact = nve_ratio(MLIPCalculator(build("facet")), atoms)
    assert exact["ratio"] == pytest.approx(4.0, abs=0.1)
    direct = MLIPCalculator(build("transip-direct"))
    assert not direct.conservative
    assert nve_ratio(direct, atoms)["ratio"] < 1.5


def test_timing_leaves_threads_and_structures_alone():
    import torch

    atoms = STRUCTURES["molecule"]()
    before, threads = atoms.positions.copy(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calculators = [MLIPCalculator(build(name)) for name in ("facet", "lennard_jones")]
        slow, fast = microseconds_per_atom(calculators, atoms, repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert slow > fast > 0
    np.testing.assert_array_equal(atoms.positions, before)
    assert isinstance(atoms, ase.Atoms)
    assert atoms.calc is None
