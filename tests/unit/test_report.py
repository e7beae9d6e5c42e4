"""The report of a run: every number with its count, one file that needs nothing else."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ase.build import molecule
from conftest import build

from mlip.evaluate import ErrorSums, Evaluation
from mlip.graph import AtomGraph
from mlip.report.plots import _parity_text
from mlip.report.run_report import slope_warning, write_report

PNG = b"\x89PNG\r\n"


def evaluation(slope: float = 1.0, stress: bool = True) -> Evaluation:
    rng = np.random.default_rng(0)
    metrics = {"energy_mae": 0.012, "energy_per_atom_mae": 0.003, "forces_mae": 1.2345}
    metrics |= {"forces_cos": 0.99, "forces_slope": slope}
    counts = {"structures": 24, "atoms": 96, "energy": 24, "energy_per_atom": 24, "forces": 2880}
    pairs = {"energy": (rng.normal(size=24), rng.normal(size=24))}
    pairs["forces"] = (rng.normal(size=4000), rng.normal(size=4000))
    if stress:
        metrics["stress_mae"], counts["stress"] = 0.001, 216
    return Evaluation(metrics, counts | {"stress": counts.get("stress", 0)}, pairs=pairs)


def write(run, **evaluations) -> tuple[str, str]:
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss\n1,0.5,0.4\n2,0.3,0.2\n")
    path = write_report(
        run,
        title="facet <1> & co",
        summary=["Data     a<b.extxyz", "         train 3"],
        facts={"potential": "x.safetensors", "again": "`mlip train config.yaml`"},
        evaluations=evaluations,
    )
    assert path == run / "report" / "report.html"
    return path.read_text(encoding="utf-8"), path.with_suffix(".md").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags that are opened and closed, and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_error_says_over_how_many_numbers(tmp_path):
    page, text = write(tmp_path, val=evaluation(), test=evaluation(stress=False))
    assert "| error | unit | val | numbers | test | numbers |" in text
    assert "| force MAE | meV/Å | 1234.500 | 2,880 | 1234.500 | 2,880 |" in text
    assert "| stress MAE | meV/Å³ | 1.000 | 216 | – | 0 |" in text
    assert "| structures |  |  | 24 |  | 24 |" in text
    assert '<td class="number">1234.500</td><td class="number">2,880</td>' in page
    widths = {line.count("|") for line in text.splitlines() if line.startswith(("| e", "| f"))}
    assert widths == {7}


def test_the_page_stands_alone(tmp_path):
    page, text = write(tmp_path, val=evaluation())
    parsed = Page(page)
    assert parsed.open == []
    assert len(parsed.loads) == 2, "learning curves and parity"
    for source in parsed.loads:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(PNG)
    assert not re.search(r"https?:|@import|url\(|<script", page)
    assert "width=device-width" in page
    assert "color-scheme: light dark" in page
    assert "facet &lt;1&gt; &amp; co" in page
    assert "a&lt;b.extxyz" in page
    for name in re.findall(r"\((\w+\.png)\)", text):
        assert (tmp_path / "report" / name).read_bytes().startswith(PNG)


def test_nothing_to_show_is_no_failure(tmp_path):
    page = write_report(tmp_path, title="t", summary=[], facts={}, evaluations={})
    assert Page(page.read_text()).loads == []
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n")
    write_report(tmp_path, title="t", summary=[], facts={}, evaluations={})
    assert not (tmp_path / "report" / "learning_curves.png").exists()


@pytest.mark.parametrize(("slope", "word"), [(0.94, "soft"), (1.06, "stiff")])
def test_a_slope_far_from_one_is_warned_of(tmp_path, slope, word):
    page, text = write(tmp_path, val=evaluation(slope))
    for report in (page, text):
        assert f"the force slope of val is {slope:.3f}" in report
        assert f"too {word}" in report
    assert slope_warning("val", {"forces_slope": 0.96}) is None
    assert slope_warning("val", {}) is None


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_the_slope_is_the_regression_through_the_origin(scale):
    """Atoms without labels do not count, and sums travel between processes."""
    potential = build("lennard_jones")
    sums = ErrorSums()
    for name in ("CH3OH", "H2O"):
        graph = AtomGraph.from_atoms(molecule(name), potential.cutoff)
        prediction = potential(graph)
        graph.forces = prediction.forces.detach() / scale
        graph.forces[0] = torch.nan
        sums.update(prediction, graph)
    assert sums.compute()["forces_slope"] == pytest.approx(scale, rel=1e-6)
    again = ErrorSums()
    again.load(sums.state())
    assert again.compute() == sums.compute()


def test_a_parity_panel_has_the_errors_of_all_values_not_of_those_drawn():
    found = evaluation()
    found.metrics["forces_rmse"] = 2.5
    found.counts["forces"] = 300_000
    text = _parity_text(found, "forces")
    assert text.splitlines()[:2] == ["MAE 1,234 meV/Å", "RMSE 2,500 meV/Å"]
    assert text.endswith("300,000 values, 4,000 of them drawn")
    assert _parity_text(found, "energy").endswith("24 values")
    assert "MAE 3 meV/atom" in _parity_text(found, "energy")
