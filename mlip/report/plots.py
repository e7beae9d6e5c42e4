"""The figures of a run (learning curves, parity) and of several side by side, as PNG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from mlip.evaluate import Evaluation
from mlip.quantities import MILLI, QUANTITIES

INK, TRAIN, VAL = "#222222", "#9aa5b1", "#1f5fa8"
# Okabe and Ito's, without yellow: told apart by the colour-blind
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
CURVES = (
    ("loss", "loss", 1.0),
    *(
        (f"{q.name}_mae", f"{q.words} MAE ({q.shown_unit})", MILLI)
        for q in QUANTITIES.values()
        if q.name != "energy"  # per atom says more
    ),
)
PARITY = {  # what the pairs of values that an evaluation keeps are
    "energy": QUANTITIES["energy_per_atom"],
    "forces": QUANTITIES["forces"],
    "stress": QUANTITIES["stress"],
}


def learning_curves(metrics: Path, out: Path) -> bool:
    """Draw loss and errors against epochs from metrics.csv; return whether there was anything."""
    with metrics.open() as handle:
        rows = list(csv.DictReader(handle))
    shown = [c for c in CURVES if any(r.get(f"{p}/{c[0]}") for r in rows for p in ("train", "val"))]
    if not shown:
        return False
    figure = Figure(figsize=(3.3 * len(shown), 3.0), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for k, (name, label, factor) in enumerate(shown):
        axis = figure.add_subplot(1, len(shown), k + 1)
        for part, colour in (("train", TRAIN), ("val", VAL)):
            points = [
                (int(r["epoch"]), factor * float(r[f"{part}/{name}"]))
                for r in rows
                if r.get(f"{part}/{name}")
            ]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, lw=1.6, label=part)
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(_PlainMinor(minor_thresholds=(1.5, 0.5)))
        axis.set_xlabel("epoch")
        axis.set_title(label, fontsize=10, color=INK, loc="left")
        _clean(axis)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(out)
    return True


def parity(evaluation: Evaluation, out: Path) -> None:
    """Draw predictions against references, one panel per label.

    Not every value is drawn, but the errors are over all of them.
    """
    pairs = evaluation.pairs
    names = [n for n in PARITY if n in pairs]
    if not names:
        return
    figure = Figure(figsize=(3.5 * len(names), 3.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for k, name in enumerate(names):
        true, predicted = pairs[name]
        quantity = PARITY[name]
        axis = figure.add_subplot(1, len(names), k + 1)
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        pad = 0.04 * (high - low) or 1.0
        limits = (low - pad, high + pad)
        if len(true) > 3000:
            axis.hexbin(
                true, predicted, gridsize=70, bins="log", cmap="Blues", mincnt=1, linewidths=0.1,
                extent=(*limits, *limits),
            )  # fmt: skip
        else:
            axis.plot(true, predicted, "o", ms=3, mew=0, alpha=0.6, color=VAL)
        axis.plot(limits, limits, color=INK, lw=0.8, zorder=0)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        axis.set_xlabel(f"reference ({quantity.unit})")
        axis.set_ylabel(f"predicted ({quantity.unit})")
        axis.set_title(quantity.words, fontsize=10, color=INK, loc="left")
        text = _parity_text(evaluation, name)
        axis.text(0.04, 0.96, text, transform=axis.transAxes, va="top", fontsize=8, color=INK)
        _clean(axis)
    figure.savefig(out)


def comparison_figure(runs: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw accuracy against speed, speed against size, and rotation errors of some runs.

    Args:
        runs: as in `mlip.report.compare.Comparison`; what one lacks is not drawn.
        out: PNG.
    """
    figure = Figure(figsize=(10.5, 3.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    accuracy, speed, rotation = figure.subplots(1, 3)
    for k, run in enumerate(runs):
        colour = SERIES[k % len(SERIES)]
        name = f"{run['label']} {run['architecture']}"
        sizes = run.get("speed", [])
        error = run["metrics"].get("forces_mae")
        if sizes:
            x, y = [s["atoms"] for s in sizes], [s["us_per_atom"] for s in sizes]
            speed.plot(x, y, "o-", ms=4, lw=1.4, color=colour, label=name)
        if sizes and error is not None:
            accuracy.plot(sizes[-1]["us_per_atom"], MILLI * error, "o", color=colour)
            accuracy.annotate(
                run["label"], (sizes[-1]["us_per_atom"], MILLI * error), fontsize=9, color=INK,
                xytext=(5, 4), textcoords="offset points",
            )  # fmt: skip
        turned = run["rotation_error"].get("forces_rmse")
        if turned:
            rotation.plot([k], [MILLI * turned], "o", color=colour)
    accuracy.set_xlabel("µs per atom and step, largest size")
    unit = QUANTITIES["forces"].shown_unit
    accuracy.set_title(f"force MAE ({unit})", fontsize=10, color=INK, loc="left")
    speed.set_xlabel("atoms")
    speed.set_title("µs per atom and step", fontsize=10, color=INK, loc="left")
    rotation.set_title(f"force change on rotation ({unit})", fontsize=10, color=INK, loc="left")
    for axis, scales in ((accuracy, "xy"), (speed, "xy"), (rotation, "y")):
        if not axis.has_data():
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=INK)
            axis.set(xticks=[], yticks=[])
            continue
        for direction in scales:
            getattr(axis, f"set_{direction}scale")("log")
            if axis is not rotation:  # many powers of ten lie between learned and exact
                which = getattr(axis, f"{direction}axis")
                which.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                which.set_minor_formatter(_PlainMinor(minor_thresholds=(1.5, 0.5)))
        axis.margins(0.15)
        _clean(axis)
    rotation.set_xticks(range(len(runs)), [str(run["label"]) for run in runs])
    rotation.set_xlim(-0.5, len(runs) - 0.5)
    if speed.get_legend_handles_labels()[0]:
        speed.legend(frameon=False, fontsize=8)
    figure.savefig(out)


def _parity_text(evaluation: Evaluation, name: str) -> str:
    """Return the errors of all values, and how many there are and are drawn."""
    q = PARITY[name]
    lines = [
        f"{kind.upper()} {_short(MILLI * evaluation.metrics[f'{q.name}_{kind}'])} {q.shown_unit}"
        for kind in ("mae", "rmse")
        if f"{q.name}_{kind}" in evaluation.metrics
    ]
    drawn, count = len(evaluation.pairs[name][0]), evaluation.counts[q.name]
    lines.append(f"{count:,} values" + (f", {drawn:,} of them drawn" if drawn < count else ""))
    return "\n".join(lines)


class _PlainMinor(LogFormatter):
    """Labels between the powers of ten where these are few, as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", labelsize=8, colors=INK)


def _short(value: float) -> str:
    """Three digits, but never an exponent for what is above one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
