"""Run both quickstarts with several seeds and write `data/results/demo.json`.

The numbers are those of the trained files on their held-out frames, against the targets of the
demo: lattice constants within 0.5 %, bulk moduli within 15 %, a force error below 15 % of the root
mean square force. Run: python scripts/repeat_demo.py [--seeds 0 1 2] [--only crystals]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_crystals import compare
from compare_molecules import load, state_gaps
from machine import processor

from mlip import train
from mlip.data.readers import read_structures
from mlip.training.split_file import read_splits

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("energy_per_atom_mae", "forces_mae", "forces_rmse", "forces_cos", "stress_mae")


def force_rms(run: Path) -> float:
    """Root mean square force component of the run's test frames, eV/A."""
    components = []
    for file, rows in read_splits(run)["test"].items():
        chosen = set(rows.tolist())
        frames = read_structures(ROOT / file)
        components += [a.get_forces().ravel() for i, a in enumerate(frames) if i in chosen]
    return float(np.sqrt(np.mean(np.concatenate(components) ** 2)))


def trained(experiment: str, seed: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Train once; return the run and its errors."""
    out = folder / f"{experiment}-{seed}"
    start = time.perf_counter()
    run = train([f"experiment={experiment}", f"seed={seed}", f"out_dir={out}"])
    seconds = time.perf_counter() - start
    rms = force_rms(out)
    errors = {name: run.metrics[f"test/{name}"] for name in KEPT if f"test/{name}" in run.metrics}
    epochs = len((out / "metrics.csv").read_text().splitlines()) - 1
    return out, {
        "seed": seed,
        "wall_s": round(seconds, 1),
        "epochs": epochs,
        "test": errors,
        "test_force_rms": rms,
        "force_error_over_rms": errors["forces_rmse"] / rms,
    }


def crystals(seed: int, folder: Path) -> dict[str, Any]:
    """The quickstart: errors and how far lattice constants and bulk moduli are off, in percent."""
    out, record = trained("quickstart", seed, folder)
    record["materials"] = {
        entry["material"]: {
            "lattice_constant_error_percent": 100
            * (entry["potential"][a] / entry["reference"][a] - 1),
            "bulk_modulus_error_percent": 100 * (entry["potential"][b] / entry["reference"][b] - 1),
            "reference": entry["reference"],
            "potential": entry["potential"],
        }
        for entry in compare(out / "potential.safetensors").values()
        for a, b in [("lattice_constant_A", "bulk_modulus_GPa")]
    }
    return record


def molecules(seed: int, folder: Path) -> dict[str, Any]:
    """The quickstart of molecules: errors, and those of energies between two states."""
    out, record = trained("quickstart_molecules", seed, folder)
    gaps = state_gaps(load(out))
    for known, name in ((True, "both states trained on"), (False, "a state held out")):
        errors = [
            abs(gap["potential_eV"] - gap["reference_eV"])
            for gap in gaps
            if all(gap["trained"]) == known
        ]
        if errors:
            mean, worst = float(np.mean(errors)), float(np.max(errors))
            record[f"state gaps, {name}"] = {"count": len(errors), "mae_eV": mean, "max_eV": worst}
    return record


EXPERIMENTS = {"crystals": crystals, "molecules": molecules}


def summary(result: dict[str, Any]) -> str:
    """How often the targets were met."""
    materials = [m for record in result["crystals"] for m in record["materials"].values()]
    lines = []
    for name, words, limit in (
        ("lattice_constant_error_percent", "lattice constants", 0.5),
        ("bulk_modulus_error_percent", "bulk moduli", 15.0),
    ):
        met = sum(abs(m[name]) <= limit for m in materials)
        lines.append(f"{words} within {limit:g} %: {met} of {len(materials)}")
    for kind in ("crystals", "molecules"):
        ratios = ", ".join(f"{r['force_error_over_rms']:.2f}" for r in result[kind])
        lines.append(f"force RMSE over RMS force, {kind}: {ratios}")
        ratios = ", ".join(
            f"{r['test']['forces_mae'] / r['test_force_rms']:.2f}" for r in result[kind]
        )
        lines.append(f"force MAE over RMS force, {kind}: {ratios}")
    return "\n".join(lines)


def main() -> None:
    """Run, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "repeat-demo")
    parser.add_argument(
        "--only", choices=EXPERIMENTS, help="keep what is recorded of the other experiment"
    )
    parser.add_argument("--summary", action="store_true", help="only count in data/results")
    arguments = parser.parse_args()
    path = ROOT / "data" / "results" / "demo.json"
    if arguments.summary:
        print(summary(json.loads(path.read_text())))
        return
    os.chdir(ROOT)
    folder = arguments.folder / time.strftime("%Y-%m-%d_%H-%M-%S")
    result = json.loads(path.read_text()) if arguments.only else {}
    seeds = " ".join(map(str, arguments.seeds))
    for kind in [arguments.only] if arguments.only else EXPERIMENTS:
        result[kind] = [EXPERIMENTS[kind](seed, folder) for seed in arguments.seeds]
    result |= {
        "command": f"python scripts/repeat_demo.py --seeds {seeds}",
        "machine": f"{os.cpu_count()} CPU cores, {processor()}, "
        f"{torch.get_num_threads()} torch threads",
        "versions": {"torch": torch.__version__, "numpy": version("numpy")},
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{summary(result)}\nwrote {path}")


if __name__ == "__main__":
    main()
