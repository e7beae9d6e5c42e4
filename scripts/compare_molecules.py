"""Hold a run against the charge states, the bond and the hydrogen bond of `data/omol-mini`.

Rows that share a geometry and differ in charge or multiplicity give vertical ionisation energies,
electron affinities and spin gaps; two series pull a bond and a dimer apart. The run's own splits
tell which rows it was trained on. Run: python scripts/compare_molecules.py RUN [--output DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ase
import matplotlib as mpl
import numpy as np

from mlip import MLIPCalculator
from mlip.data.readers import read_structures
from mlip.training.split_file import read_splits

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "omol-mini"
SERIES = {
    "H2O-stretch": ("O-H distance (A)", 0, 1),
    "H2O2-dimer": ("O...O distance (A)", 0, 3),
}


def load(run: Path) -> list[dict[str, Any]]:
    """Every row with DFT's energy, the potential's, and whether it was trained on."""
    calculator = MLIPCalculator(run / "potential.safetensors", dtype="float64")
    trained = {
        (Path(file).name, row)
        for file, rows in read_splits(run)["train"].items()
        for row in rows.tolist()
    }
    rows = []
    for shard in sorted(DATA.glob("*.aselmdb")):
        for number, atoms in enumerate(read_structures(shard)):
            bare = ase.Atoms(atoms.numbers, atoms.positions)
            bare.info.update(charge=atoms.info["charge"], spin=atoms.info["spin"])
            bare.calc = calculator
            rows.append(
                {
                    "name": atoms.info["source"].split("/")[1].rsplit("_", 2)[0],
                    "state": (atoms.info["charge"], atoms.info["spin"]),
                    "formula": atoms.get_chemical_formula(),
                    "atoms": bare,
                    "reference_eV": atoms.get_potential_energy(),
                    "potential_eV": bare.get_potential_energy(),
                    "trained": (shard.name, number) in trained,
                }
            )
    return rows


def state_gaps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Energy differences of rows with one geometry, the neutral or singlet first."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    gaps = []
    for name, states in sorted(by_name.items()):
        if len(states) != 2:
            continue
        low, high = sorted(states, key=lambda row: (abs(row["state"][0]), row["state"][1]))
        gaps.append(
            {
                "geometry": name,
                "formula": low["formula"],
                "from": low["state"],
                "to": high["state"],
                "trained": [low["trained"], high["trained"]],
                "reference_eV": high["reference_eV"] - low["reference_eV"],
                "potential_eV": high["potential_eV"] - low["potential_eV"],
            }
        )
    return gaps


def table(gaps: list[dict[str, Any]]) -> str:
    """One line per geometry; a star marks one with a state that was held out."""
    lines = [f"{'one geometry in two states':34}{'DFT (eV)':>10}{'mlip (eV)':>11}{'error':>9}"]
    for gap in gaps:
        label = "{}: charge {:+d} spin {} -> {:+d} {}".format(
            gap["formula"], *gap["from"], *gap["to"]
        )
        star = "" if all(gap["trained"]) else " *"
        dft, ours = gap["reference_eV"], gap["potential_eV"]
        lines.append(f"{label + star:34}{dft:10.3f}{ours:11.3f}{ours - dft:+9.3f}")
    return "\n".join([*lines, "* one of the two states was not trained on"])


def plot(rows: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Draw the two series and return their numbers."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    curves = {}
    for axis, (series, (label, i, j)) in zip(axes, SERIES.items(), strict=True):
        points = [row for row in rows if row["name"].startswith(series)]
        points.sort(key=lambda row: row["name"])
        x = [float(row["atoms"].get_distance(i, j)) for row in points]
        dft = np.array([row["reference_eV"] for row in points])
        ours = np.array([row["potential_eV"] for row in points])
        trained = np.array([row["trained"] for row in points])
        axis.plot(x, ours - dft.min(), "C0-", label="potential")
        axis.plot(np.array(x)[trained], (dft - dft.min())[trained], "k.", label="DFT, trained on")
        axis.plot(np.array(x)[~trained], (dft - dft.min())[~trained], "ro", label="DFT, held out")
        axis.set(xlabel=label, ylabel="energy (eV)", title=series)
        axis.legend(fontsize=7)
        curves[series] = {
            "distance_A": x,
            "reference_eV": dft.tolist(),
            "potential_eV": ours.tolist(),
            "trained": trained.tolist(),
        }
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return curves


def main() -> None:
    """Print the table; write JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the results; default: RUN/report")
    arguments = parser.parse_args()
    output = arguments.output or arguments.run / "report"
    output.mkdir(parents=True, exist_ok=True)
    rows = load(arguments.run)
    gaps = state_gaps(rows)
    print(table(gaps))
    curves = plot(rows, output / "molecules.png")
    content = {"gaps": gaps, "curves": curves}
    (output / "molecules.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
