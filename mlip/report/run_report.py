"""report.md: what was trained on what, how well it does, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlip.evaluate import Evaluation
from mlip.report.plots import learning_curves, parity

ROWS = (
    ("energy_mae", "energy MAE", "meV", 1e3),
    ("energy_rmse", "energy RMSE", "meV", 1e3),
    ("energy_per_atom_mae", "energy MAE per atom", "meV/atom", 1e3),
    ("energy_per_atom_rmse", "energy RMSE per atom", "meV/atom", 1e3),
    ("forces_mae", "force MAE", "meV/Å", 1e3),
    ("forces_rmse", "force RMSE", "meV/Å", 1e3),
    ("forces_cos", "force cosine", "", 1.0),
    ("stress_mae", "stress MAE", "meV/Å³", 1e3),
    ("stress_rmse", "stress RMSE", "meV/Å³", 1e3),
)


def write_report(
    run: Path,
    *,
    title: str,
    summary: Sequence[str],
    facts: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
) -> Path:
    """Write `run/report/` with report.md and figures; return the report's path."""
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    lines = [f"# {title}", ""]
    parts = {name: e for name, e in evaluations.items() if e.metrics}
    if parts:
        lines += ["| error | unit | " + " | ".join(parts) + " |", "|---" * (len(parts) + 2) + "|"]
        for key, label, unit, factor in ROWS:
            if any(key in e.metrics for e in parts.values()):
                cells = [
                    f"{factor * e.metrics[key]:.3f}" if key in e.metrics else "–"
                    for e in parts.values()
                ]
                lines.append(f"| {label} | {unit} | {' | '.join(cells)} |")
        counts = [str(e.counts["structures"]) for e in parts.values()]
        lines += [f"| structures | | {' | '.join(counts)} |", ""]
    metrics = run / "metrics.csv"
    if metrics.exists():
        learning_curves(metrics, folder / "learning_curves.png")
        lines += ["![learning curves](learning_curves.png)", ""]
    for name, evaluation in parts.items():
        if evaluation.pairs:
            parity(evaluation.pairs, folder / f"parity_{name}.png")
            lines += [f"Parity, {name}:", "", f"![parity {name}](parity_{name}.png)", ""]
    lines += ["## Data", "", "```", *summary, "```", "", "## Run", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path
