"""One page of histograms: what the numbers of a data set look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from mlip.atomic import atomic_write
from mlip.data.checkup.examination import Examination
from mlip.data.checkup.frame import SIZES
from mlip.units import GPA

# Okabe and Ito's, told apart by the colour-blind
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")
BINS = 41


def write_page(examination: Examination, path: Path | str) -> None:
    """Draw energies, forces, stresses, volumes, contacts and sizes, one colour per part."""
    census = examination.census
    frames, part = census.frames, census.part
    atoms = np.maximum(frames["natoms"], 1)
    panels = {
        "energy less its fit to elements (eV/atom)": (examination.residuals, False),
        "mean stress (GPa)": (frames["stress"] / GPA, False),
        "volume (Å³/atom)": (frames["volume"] / atoms, True),
        "closest contact (of the covalent radii)": (frames["contact"], False),
        "atoms": (frames["natoms"].astype(float), True),
    }
    figure = Figure(figsize=(11, 6), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    names = [p.name for p in census.parts]
    for axis, (title, (values, log)) in zip(axes, panels.items(), strict=False):
        _histogram(axis, [values[part == k] for k in range(len(names))], log=log)
        axis.set_title(title, fontsize=10, loc="left")
    _force_sizes(axes[5], [p.force_sizes for p in census.parts])
    axes[5].set_title("force components (eV/Å)", fontsize=10, loc="left")
    for axis in axes:
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    handles = [axes[5].plot([], [], color=_colour(k))[0] for k in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _histogram(axis: Axes, parts: list[NDArray[np.float64]], *, log: bool) -> None:
    finite = [values[np.isfinite(values)] for values in parts]
    everything = np.concatenate(finite)
    if not len(everything):
        axis.text(0.5, 0.5, "none", ha="center", transform=axis.transAxes, color="#888888")
        return
    low, high = float(everything.min()), float(everything.max())
    if log and low > 0 and high > 2 * low:
        edges = np.geomspace(low, high * 1.001, BINS)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        if high > 10 * low:
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        margin = 0.01 * (high - low) or 0.5
        edges = np.linspace(low - margin, high + margin, BINS)
    for k, values in enumerate(finite):
        axis.stairs(np.histogram(values, edges)[0], edges, color=_colour(k), lw=1.4)


def _force_sizes(axis: Axes, counts: list[NDArray[np.int64]]) -> None:
    axis.set_xscale("log")
    for k, row in enumerate(counts):
        axis.stairs(row, 10.0**SIZES, color=_colour(k), lw=1.4)
    seen = np.flatnonzero(np.sum(counts, axis=0))
    if len(seen):
        axis.set_xlim(float(10.0 ** SIZES[seen[0]]), float(10.0 ** SIZES[seen[-1] + 1]))


def _colour(part: int) -> str:
    return COLOURS[part % len(COLOURS)]
