"""What compare_peers.py found: ratios and their spread, targets, tables and the figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

REFERENCE = "facet-s"
# How many times what the reference takes: (task, peer, at least)
TARGETS = (
    ("calls:si64", "mace-small", 5.0),
    ("calls:si64", "sevennet-0", 9.0),
    ("calls:si64", "chgnet-0.3.0", 2.4),
    ("calls:3bpa27", "mace-small", 4.0),
    ("training:crystals", "mace-small", 6.0),
    ("training:crystals", "sevennet-0", 15.0),
    ("relaxation:crystals", "mace-small", 4.0),
    ("memory:training-crystals", "mace-small", 2.0),
    *(
        ("start-up", peer, 1.0)
        for peer in ("mace-small", "sevennet-0", "chgnet-0.3.0", "nequip-preset-S")
    ),
)
FLAT, FROM = 0.2, 500  # time per atom may vary by so much; atoms
UNITS = {"cpu_ms": "ms", "memory_mib": "MiB"}


def ratios(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lowest and highest of the ratios round by round.

    Args:
        values: one a round.
        reference: the same of what it is compared with; a machine that is slow in one round is
            slow for both.
    """
    found = [a / b for a, b in zip(values, reference, strict=True)]
    return median(found), min(found), max(found)


def compared(rows: Sequence[Row], models: Mapping[str, Row], reference: str) -> None:
    """Add ratios to the rows of one task.

    `ratio` is that to the reference; `equal_cutoff_ratio` that to the reference with the cutoff of
    the model, where that was measured too. Rows of errors have none.

    Args:
        rows: with `per_round`, the values that are compared.
        models: what is known of each model, `cutoff` (Å) among it.
        reference: name of a model.
    """
    series = {row["model"]: row["per_round"] for row in rows if "per_round" in row}
    for row in rows:
        name = row["model"]
        if name not in series:
            continue
        if reference in series:
            ratio, *spread = ratios(series[name], series[reference])
            row["ratio"] = round(ratio, 2)
            row["ratio_range"] = [round(value, 2) for value in spread]
        equal = _at_cutoff(reference, models[name]["cutoff"], models)
        if equal in series:
            row["equal_cutoff_ratio"] = round(ratios(series[name], series[equal])[0], 2)


def _at_cutoff(reference: str, cutoff: float, models: Mapping[str, Row]) -> str:
    if reference in models and models[reference]["cutoff"] == cutoff:
        return reference
    return f"{reference} ({cutoff:g} Å)"


def targets(rows: Sequence[Row]) -> list[Row]:
    """Return what was asked for and what was found; `met` is None where nothing was."""
    found = {(row["task"], row["model"]): row for row in rows}
    out = []
    for task, peer, needed in TARGETS:
        row = found.get((task, peer), {})
        ratio, spread = row.get("ratio"), row.get("ratio_range")
        # "faster" is more than 1, the others are "at least"
        met = None if ratio is None else ratio > 1.0 if needed == 1.0 else ratio >= needed
        names = {"task": task, "peer": peer, "needed": needed}
        out.append(names | {"found": ratio, "range": spread, "met": met})
    return out


def flatness(rows: Sequence[Row]) -> list[Row]:
    """Return for each model how the time per atom varies with size from 500 atoms on."""
    out = []
    for model in dict.fromkeys(row["model"] for row in rows):
        per_atom = {
            row["atoms"]: 1e3 * row["cpu_ms"] / row["atoms"]
            for row in rows
            if row["model"] == model and row["task"].startswith("sizes:") and "cpu_ms" in row
        }
        chosen = {n: value for n, value in per_atom.items() if n >= FROM}
        if len(chosen) > 1:
            spread = max(chosen.values()) / min(chosen.values()) - 1.0
            out.append(
                {
                    "model": model,
                    "us_per_atom": {str(n): round(value, 1) for n, value in chosen.items()},
                    "spread": round(spread, 3),
                    "met": spread <= FLAT,
                }
            )
    return out


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print tables of ratios, the targets, and what failed or was left out."""
    rows, about = document["rows"], document["about"]
    reference = about["reference"]
    title = f"Times {reference} (lowest to highest of {about['rounds']} rounds), one thread"
    console.print(
        _table(rows, title, lambda r: _value(r) if r["model"] == reference else _ratio(r))
    )
    if any("equal_cutoff_ratio" in row for row in rows):
        title = f"Times {reference} with the model's own cutoff"
        equal = [row for row in rows if "equal_cutoff_ratio" in row]
        console.print(_table(equal, title, lambda r: f"{r['equal_cutoff_ratio']:.2f}"))
    console.print(_table(rows, "Least CPU time of one thread, or memory", _value))
    for row in document["targets"]:
        found = "not measured"
        if row["found"] is not None:
            low, high = row["range"]
            found = f"{row['found']:.2f} ({low:.2f}-{high:.2f})"
        verdict = {True: "met", False: "missed", None: "-"}[row["met"]]
        sign = ">" if row["needed"] == 1.0 else "at least"
        name = f"{row['task']} against {row['peer']}"
        console.print(f"{name:45} {sign} {row['needed']:g}: {found}  {verdict}", highlight=False)
    for row in document["flatness"]:
        sizes = ", ".join(f"{n}: {value}" for n, value in row["us_per_atom"].items())
        verdict = "met" if row["met"] else "missed"
        console.print(
            f"{row['model']} µs/atom {sizes}; varies by {row['spread']:.0%}, at most {FLAT:.0%}: "
            f"{verdict}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            failed.setdefault((row["model"], row["error"]), []).append(row["task"])
    for (model, error), names in failed.items():
        words = f"{model} cannot do {', '.join(names)}: {error}"
        console.print(words, highlight=False, soft_wrap=True)
    for line in document["left_out"]:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row], title: str, cell: Callable[[Row], str]) -> Table:
    models = list(dict.fromkeys(row["model"] for row in rows))
    table = Table(title=title, title_justify="left")
    table.add_column("task (atoms)")
    for name in models:
        table.add_column(name, justify="right")
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {row["model"]: row for row in rows if row["task"] == task}
        atoms = next(iter(own.values()))["atoms"]
        cells = [
            "" if name not in own else "fails" if "error" in own[name] else cell(own[name])
            for name in models
        ]
        table.add_row(f"{task} ({atoms})", *cells)
    return table


def _ratio(row: Row) -> str:
    if "ratio" not in row:
        return ""
    low, high = row["ratio_range"]
    return f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"


def _value(row: Row) -> str:
    (name,) = (key for key in UNITS if key in row)
    return f"{row[name]:.4g} {UNITS[name]}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw ratios as bars, and the time per atom against the number of atoms."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows, reference = document["rows"], document["about"]["reference"]
    figure, (bars, sizes) = plt.subplots(
        1, 2, figsize=(13, 4.8), width_ratios=(2, 1), layout="constrained"
    )
    colors = {m: f"C{k}" for k, m in enumerate(dict.fromkeys(r["model"] for r in rows))}
    _draw_ratios(bars, [r for r in rows if "ratio" in r], reference, colors)
    _draw_sizes(sizes, [r for r in rows if "cpu_ms" in r], colors)
    marks = [Patch(color=color, label=model) for model, color in colors.items()]
    figure.legend(handles=marks, loc="outside upper center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_ratios(axes: Any, rows: Sequence[Row], reference: str, colors: Mapping[str, str]) -> None:
    own = {row["task"] for row in rows if row["model"] == reference}
    rows = [
        r for r in rows
        if r["task"] in own and r["model"] != reference and not r["task"].startswith("sizes:")
    ]  # fmt: skip
    names = list(dict.fromkeys(row["task"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = 0.85 / max(len(models), 1)
    for k, model in enumerate(models):
        chosen = [row for row in rows if row["model"] == model]
        x = [names.index(row["task"]) + (k - (len(models) - 1) / 2) * width for row in chosen]
        heights = [row["ratio"] for row in chosen]
        spread = [
            [row["ratio"] - row["ratio_range"][0] for row in chosen],
            [row["ratio_range"][1] - row["ratio"] for row in chosen],
        ]
        style = {"color": colors[model], "error_kw": {"elinewidth": 0.6}}
        axes.bar(x, heights, width, yerr=spread, **style)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(f"times {reference} (CPU time or memory)")


def _draw_sizes(axes: Any, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    silicon = [
        r for r in rows if r["task"].split(":")[0] in ("calls", "sizes") and ":si" in r["task"]
    ]
    for model in dict.fromkeys(row["model"] for row in silicon):
        points = {
            r["atoms"]: 1e3 * r["cpu_ms"] / r["atoms"] for r in silicon if r["model"] == model
        }
        axes.plot(
            *zip(*sorted(points.items()), strict=True),
            marker="o",
            markersize=3,
            color=colors[model],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("atoms of silicon")
    axes.set_ylabel("µs of CPU per atom and call")
