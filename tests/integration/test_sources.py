"""Crystals at PBE and molecules at ωB97M-V in one run, from the files that ship to two heads."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path

import ase
import numpy as np
import pytest

from mlip.calculator import MLIPCalculator
from mlip.cli.main import main
from mlip.data.readers import read_structures
from mlip.errors import CheckpointError, ConfigError
from mlip.potential_file import load_potential, read_metadata
from mlip.training.run import train

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "pbe": str(ROOT / "data" / "mptrj-mini" / "mptrj-mini.json.gz"),
    "wb97m": str(ROOT / "data" / "omol-mini"),
}
SOURCES = [
    {"name": "crystals", "path": FILES["pbe"], "head": "pbe", "sampling": 0.5},
    {"name": "molecules", "path": FILES["wb97m"], "head": "wb97m", "weight": 2.0},
]


def settings(out, *more, sources=SOURCES):
    listed = json.dumps(sources)
    return [
        f"data.sources={listed}", "model=facet-xs", "model.channels=[16,8]", "model.prior=zbl",
        "data.filter.max_force=8", "data.num_workers=0", f"out_dir={out}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLIP_CACHE", str(folder / "cache"))
        train(settings(folder / "run", "trainer.max_epochs=1"))
        yield train(settings(folder / "run", "trainer.max_epochs=2", "resume=auto"))


def rows_of(run):
    return list(csv.DictReader((run.out_dir / "metrics.csv").read_text().splitlines()))


def test_what_the_run_leaves_behind(run):
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for source in ("crystals", "molecules"):
        for part in ("train", "val"):
            assert float(rows[-1][f"{part}/{source}/forces_mae"]) > 0
    assert rows[-1]["val/molecules/stress_mae"] == "", "molecules have none"
    report = (run.out_dir / "report" / "report.md").read_text()
    assert "val/crystals" in report
    stats = json.loads((run.out_dir / "stats.json").read_text())
    splits = json.loads((run.out_dir / "splits.json").read_text())
    assert sum(stats["dropped"]["crystals"].values()) > 0, "some forces are above 8 eV/A"
    assert "structures of crystals: |F| above 8.0 eV/A" in report
    dropped = splits["dropped"]["max_force"]
    assert sum(map(len, dropped.values())) == sum(v["max_force"] for v in stats["dropped"].values())
    parts = [splits[part] for part in ("train", "val", "test")] + [dropped]
    given = sum(1 for path in FILES.values() for _ in read_structures(path))
    assert sum(len(rows) for part in parts for rows in part.values()) == given
    document = read_metadata(run.potential)
    assert document["head_names"] == ["pbe", "wb97m"]
    assert {k: v["head"] for k, v in document["training"]["by_source"].items()} == {
        "crystals": "pbe", "molecules": "wb97m",
    }  # fmt: skip
    total = sum(run.metrics[f"val/{s}/energy_mae"] * document["metric_counts"][f"val/{s}"]["energy"]
                for s in ("crystals", "molecules"))  # fmt: skip
    assert total / document["metric_counts"]["val"]["energy"] == pytest.approx(
        run.metrics["val/energy_mae"], rel=1e-6
    )


def test_each_head_has_energies_of_its_own_theory(run):
    """All-electron energies are a hundred times those of valence electrons."""
    potential = load_potential(run.potential)
    tables = dict(zip(potential.head_names, potential.e0, strict=True))
    assert -2100 < float(tables["wb97m"][8]) < -2000
    assert -20 < float(tables["pbe"][8]) < -5
    carbon = ase.Atoms("C", positions=[[0, 0, 0]])
    for head, table in tables.items():
        energy = MLIPCalculator(run.potential, head=head, dtype="float64").get_potential_energy(
            carbon
        )
        assert energy == pytest.approx(float(table[6]), rel=1e-12)
    for head, path in FILES.items():
        calc = MLIPCalculator(run.potential, head=head)
        known = set(calc.species)
        errors = []
        for atoms in islice(read_structures(path), 12):
            label = atoms.get_potential_energy()
            errors.append((calc.get_potential_energy(atoms) - label) / len(atoms))
            assert set(atoms.numbers.tolist()) <= known
        assert np.abs(errors).max() < 10.0
    with pytest.raises(ConfigError, match="pbe, wb97m"):
        MLIPCalculator(run.potential)


def test_evaluate_by_head(run, tmp_path, capsys):
    for head, path in FILES.items():
        out = tmp_path / f"{head}.json"
        words = ["evaluate", str(run.potential), path, "--head", head, "--output", str(out)]
        assert main(words) == 0
        assert json.loads(out.read_text())["metrics"]["energy_per_atom_mae"] < 5.0
    assert main(["evaluate", str(run.potential), FILES["pbe"]]) == 2
    assert "--head" in capsys.readouterr().err


def test_runs_with_heads_are_compared(run, tmp_path):
    """Speed is that of a head which knows the structure."""
    assert main(["compare", str(run.out_dir), "--output", str(tmp_path / "compared")]) == 0
    document = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert document["runs"][0]["speed"][0]["us_per_atom"] > 0


def test_a_run_does_not_go_on_with_other_heads(run):
    turned = [{**SOURCES[0], "head": "wb97m"}, {**SOURCES[1], "head": "pbe"}]
    with pytest.raises(CheckpointError, match=r"heads of data\.sources"):
        train(settings(run.out_dir, "trainer.max_epochs=3", "resume=auto", sources=turned))


def test_its_configuration_trains_again(run, tmp_path, monkeypatch):
    """config.yaml holds the sources, and what a seed decides comes out the same."""
    monkeypatch.setenv("MLIP_CACHE", str(run.out_dir.parent / "cache"))
    again = train(
        [f"out_dir={tmp_path / 'again'}", "trainer.max_epochs=1", "resume=false"],
        run.out_dir / "config.yaml",
    )
    first, second = (rows_of(r)[0] for r in (run, again))
    # the schedule of one epoch is not that of two: what the split and E0 decide is the same
    assert (again.out_dir / "splits.json").read_text() == (run.out_dir / "splits.json").read_text()
    assert (again.out_dir / "stats.json").read_text() == (run.out_dir / "stats.json").read_text()
    assert first.keys() == second.keys()


def test_a_transformer_needs_no_more(tmp_path, monkeypatch):
    """A model without symmetry, validated on turned structures, with crystals in its batches."""
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    words = settings(tmp_path / "run", "trainer.max_steps=2", "model=transip-tiny")
    result = train(
        [
            w
            for w in words
            if w not in ("model=facet-xs", "model.channels=[16,8]", "model.prior=zbl")
        ]
    )
    assert "val/molecules/forces_mae" in result.metrics
    assert "val_frame/crystals/forces_mae" in result.metrics
