"""How much a rotation, seen or learnt, is worth to a model that has no symmetry of its own.

Trains one architecture with each objective (no rotation, random rotations, random rotations and
TransIP's latent term) at equal steps on nested parts of one data set, several seeds each, and
compares force errors on structures turned at random, errors in the orientation of the data, and
the change that a rotation makes. Test structures are the same for all: whole groups, taken first.

    python scripts/compare_objectives.py OMOL25_DIR --group composition --output omol25
    python scripts/compare_objectives.py small_mols_train.extxyz --group molecule_id --output small
    python scripts/compare_objectives.py DATA --model transip-s --steps 20000 ...     (on a GPU)

Results are added to `data/results/objectives.json` after every run; a run that is there is not
done again. `python scripts/compare_objectives.py --summary` prints means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.io import write
from machine import processor

from mlip import load_potential, train
from mlip.data.readers import read_structures
from mlip.training.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results" / "objectives.json"


def unique_structures(path: Path, group: str) -> list[tuple[str, ase.Atoms]]:
    """Structures with the name of their group, exact duplicates dropped."""
    seen: set[bytes] = set()
    out = []
    options = {} if group == "composition" else {"group": group}
    for atoms in read_structures(path, **options):  # type: ignore[arg-type]
        key = atoms.numbers.tobytes() + atoms.positions.round(6).tobytes()
        if key not in seen:
            seen.add(key)
            formula = atoms.get_chemical_formula()
            out.append((formula if group == "composition" else atoms.info["group"], atoms))
    return out


def parts(
    structures: Sequence[tuple[str, ase.Atoms]], held_out: float
) -> dict[str, list[ase.Atoms]]:
    """Test, validation and training structures: whole groups, in one order for all runs."""
    names = sorted({name for name, _ in structures})
    order = {name: k for k, name in enumerate(np.random.default_rng(0).permutation(names))}
    ranked = sorted(structures, key=lambda pair: order[pair[0]])
    cuts = [round(held_out * len(ranked)), round(2 * held_out * len(ranked))]
    for k in range(2):  # to the end of the group that is cut
        while 0 < cuts[k] < len(ranked) and ranked[cuts[k]][0] == ranked[cuts[k] - 1][0]:
            cuts[k] += 1
    atoms = [a for _, a in ranked]
    return {"test": atoms[: cuts[0]], "val": atoms[cuts[0] : cuts[1]], "pool": atoms[cuts[1] :]}


def mean_size_of_forces(structures: Sequence[ase.Atoms]) -> float:
    """What predicting no forces is off by, eV/Å: what has to be beaten."""
    return float(np.concatenate([abs(a.get_forces()).ravel() for a in structures]).mean())


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """Geometry, labels, charge and spin: what an extxyz file of a part needs."""
    out = atoms.copy()
    out.info = {key: atoms.info[key] for key in ("charge", "spin") if key in atoms.info}
    out.calc = atoms.calc
    return out


def one_run(
    objective: str, seed: int, files: dict[str, Path], out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train once and return what was found."""
    start = time.process_time()
    run = train(
        [
            f"model={options.model}",
            f"objective={objective}",
            f"seed={seed}",
            *(f"data.{part}={file}" for part, file in files.items()),
            "data.group=null",
            f"data.batch_size={options.batch_size}",
            "trainer.max_epochs=null",
            f"trainer.max_steps={options.steps}",
            f"out_dir={out}",
            *options.override,
        ]
    )
    symmetry = load_potential(run.potential).metadata["symmetry_errors"]["rotation"]
    wanted = ("energy_per_atom_mae", "forces_mae", "forces_rmse")
    return {
        "turned": {name: run.metrics[f"test/{name}"] for name in wanted},
        "as_given": {
            name: run.metrics[f"test_frame/{name}"]
            for name in wanted
            if f"test_frame/{name}" in run.metrics
        },
        "rotation": symmetry,
        "latent": {k: v for k, v in run.metrics.items() if k.startswith("train/latent")},
        "cpu_s": round(time.process_time() - start, 1),
    }


def summary(content: dict[str, Any]) -> str:
    """Means over seeds, and the range of the force error, in meV, meV/A."""
    lines = [f"{'':66}seeds  force MAE, turned   as given  rotation  energy MAE/atom"]
    for comparison, entry in content.items():
        alike: dict[str, list[dict[str, Any]]] = {}
        for name, run in entry["runs"].items():
            alike.setdefault(name.partition(" seed ")[0], []).append(run)
        for name, runs in alike.items():
            forces = [1e3 * run["turned"]["forces_mae"] for run in runs]
            given = [1e3 * run["as_given"]["forces_mae"] for run in runs]
            rotation = [1e3 * run["rotation"]["forces_mae"] for run in runs]
            energy = [1e3 * run["turned"]["energy_per_atom_mae"] for run in runs]
            lines.append(
                f"{comparison + ': ' + name:66}{len(runs):5}  {np.mean(forces):5.0f} "
                f"({min(forces):.0f} to {max(forces):.0f}){np.mean(given):10.0f}"
                f"{np.mean(rotation):10.0f}{np.mean(energy):12.1f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Go through sizes, objectives and seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    parser.add_argument("--group", default="composition", help="info key, or composition")
    parser.add_argument("--output", help="name of this comparison in the results")
    parser.add_argument("--model", default="transip-tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 0], help="0: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--held-out", type=float, default=0.1, help="of test, and of validation")
    parser.add_argument("--override", nargs="*", default=[], help="more key=value for the runs")
    options = parser.parse_args()
    if options.summary:
        print(summary(json.loads(RESULTS.read_text())))
        return
    if options.data is None or options.output is None:
        parser.error("give DATA and --output NAME, or --summary")

    structures = unique_structures(options.data, options.group)
    split = parts(structures, options.held_out)
    counts = {name: len(atoms) for name, atoms in split.items()}
    sizes = sorted({min(size or counts["pool"], counts["pool"]) for size in options.sizes})
    folder = ROOT / "outputs" / "objectives" / options.output / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    files = {part: folder / f"{part}.extxyz" for part in ("val", "test")}
    for part, file in files.items():
        write(file, [bare(a) for a in split[part]], format="extxyz")
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    entry = content.setdefault(options.output, {"runs": {}})
    entry |= {
        "command": f"python scripts/compare_objectives.py {options.data.name} "
        f"--group {options.group} --output {options.output} --model {options.model} "
        f"--steps {options.steps} --batch-size {options.batch_size} "
        f"--held-out {options.held_out:g} --sizes {' '.join(map(str, options.sizes))} "
        f"--seeds {' '.join(map(str, options.seeds))}"
        + (f" --override {' '.join(options.override)}" if options.override else ""),
        "structures": counts,
        "test_groups": len({name for name, a in structures if any(a is b for b in split["test"])}),
        "zero_forces_mae": mean_size_of_forces(split["test"]),
        "machine": f"{processor()}, {torch.get_num_threads()} torch thread(s)",
        "versions": {"torch": torch.__version__},
    }
    shuffled = np.random.default_rng(1).permutation(counts["pool"])  # smaller parts are inside
    for seed in options.seeds:
        for size in sizes:
            files["train"] = folder / f"train-{size}.extxyz"
            chosen = [bare(split["pool"][i]) for i in shuffled[:size]]
            write(files["train"], chosen, format="extxyz")
            for objective in OBJECTIVES:
                name = f"{options.model} {size} {options.steps} steps {objective} seed {seed}"
                if name in entry["runs"]:
                    continue
                out = folder / f"{objective}-{size}-{seed}"
                entry["runs"][name] = one_run(objective, seed, files, out, options)
                partial = RESULTS.with_suffix(f".{os.getpid()}.partial")
                partial.write_text(json.dumps(content, indent=1) + "\n")
                partial.replace(RESULTS)
                print(name, json.dumps(entry["runs"][name]["turned"]), flush=True)


if __name__ == "__main__":
    main()
