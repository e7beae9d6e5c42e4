"""The report of a run: what was trained on what, how well it does, and how to do it again.

Written twice with the same content: `report.html` to look at and pass on, `report.md` to read in a
terminal or a diff.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlip.evaluate import Evaluation
from mlip.quantities import MILLI, QUANTITIES
from mlip.report.html import render_html
from mlip.report.plots import learning_curves, parity

DIRECTIONS = (("cos", "cosine"), ("slope", "slope"))  # of forces
GOOD_SLOPES = (0.95, 1.05)


def write_report(
    run: Path,
    *,
    title: str,
    summary: Sequence[str],
    facts: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
) -> Path:
    """Write `run/report/` with both reports and the figures; return the path of the HTML."""
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    parts = {name: e for name, e in evaluations.items() if e.metrics}
    header, rows = _table(parts)
    warnings = [text for name, e in parts.items() if (text := slope_warning(name, e.metrics))]
    figures = []
    metrics = run / "metrics.csv"
    if metrics.exists() and learning_curves(metrics, folder / "learning_curves.png"):
        figures.append(("learning curves", folder / "learning_curves.png"))
    for name, evaluation in parts.items():
        if evaluation.pairs:
            path = folder / f"parity_{name}.png"
            parity(evaluation, path)
            figures.append((f"predicted against reference, {name}", path))
    lines = [f"# {title}", ""]
    if rows:
        lines += [_line(header), "|" + "---|" * len(header), *map(_line, rows), ""]
    for text in warnings:
        lines += [f"**Warning:** {text}", ""]
    for caption, path in figures:
        lines += [f"![{caption}]({path.name})", ""]
    lines += ["## Data", "", "```", *summary, "```", "", "## Run", "", "| | |", "|---|---|"]
    lines += [_line((key, str(value))) for key, value in facts.items()]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = render_html(
        title,
        header=header,
        rows=rows,
        warnings=warnings,
        figures=figures,
        summary=summary,
        facts=facts,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def slope_warning(part: str, metrics: Mapping[str, float]) -> str | None:
    """Say it if forces are systematically too small or too large; None if they are not."""
    slope = metrics.get("forces_slope")
    if slope is None or GOOD_SLOPES[0] <= slope <= GOOD_SLOPES[1]:
        return None
    word = "soft" if slope < 1 else "stiff"
    return (
        f"the force slope of {part} is {slope:.3f}, outside {GOOD_SLOPES[0]} to {GOOD_SLOPES[1]}: "
        f"the potential is too {word}; train longer, or on more structures far from equilibrium"
    )


def _table(parts: Mapping[str, Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Return the table of errors: beside each error, over how many numbers it is."""
    header = ["error", "unit"]
    for name in parts:
        header += [name, "numbers"]
    shown = [  # metric, words, unit, factor, the label that it is an error of
        (f"{q.name}_{kind}", f"{q.words} {kind.upper()}", q.shown_unit, MILLI, q.name)
        for q in QUANTITIES.values()
        for kind in ("mae", "rmse")
    ]
    shown += [(f"forces_{k}", f"force {word}", "", 1.0, "forces") for k, word in DIRECTIONS]
    rows = []
    for key, label, unit, factor, of in shown:
        if any(key in e.metrics for e in parts.values()):
            row = [label, unit]
            for e in parts.values():
                there = key in e.metrics
                row += [f"{factor * e.metrics[key]:.3f}" if there else "–"]
                row += [f"{e.counts[of]:,}" if there else "0"]
            rows.append(row)
    for what in ("structures", "atoms") if parts else ():
        row = [what, ""]
        for e in parts.values():
            row += ["", f"{e.counts[what]:,}"]
        rows.append(row)
    return header, rows


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
