"""Time models on crystals and a molecule: one calculator call, and one training step.

Process CPU time of one thread, minimum of several calls.
Run: python scripts/benchmark.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase
import numpy as np
import torch
from ase.build import bulk, molecule

from mlip.calculator import MLIPCalculator
from mlip.graph import AtomGraph
from mlip.models.registry import PotentialSpec, build_potential
from mlip.training.config import load_config


def structures() -> dict[str, ase.Atoms]:
    """Silicon of three sizes, a perovskite-like oxide and a molecule."""
    cubic = bulk("Si", "diamond", a=5.43, cubic=True)
    out = {
        "si8": cubic,
        "si64": cubic * (2, 2, 2),
        "si216": cubic * (3, 3, 3),
        "nacl64": bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2),
        "ethanol9": molecule("CH3CH2OH"),
    }
    for k, atoms in enumerate(out.values()):
        atoms.rattle(0.05, seed=k)
    return out


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds of CPU time, minimum over `repeats` calls."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=["facet-xs", "facet-s"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.models:
        options = dict(load_config([f"model={name}"])["model"])
        options.pop("prior")
        for label, atoms in structures().items():
            species = tuple(sorted({int(z) for z in atoms.numbers}))
            spec = PotentialSpec(
                options["name"],
                {k: v for k, v in options.items() if k != "name"},
                species,
                (dict.fromkeys(species, 0.0),),
                avg_num_neighbors=30.0,
            )
            potential = build_potential(spec)
            graph = AtomGraph.from_atoms(atoms, potential.cutoff)

            def step(potential=potential, graph=graph) -> None:  # noqa: ANN001
                out = potential(graph)
                (out.forces.square().mean() + out.energy.square().mean()).backward()

            training = fastest(step, args.repeats)
            calculator = MLIPCalculator(potential, device="cpu")
            moved = atoms.copy()
            moved.calc = calculator

            def call(moved=moved) -> None:  # noqa: ANN001
                moved.positions += np.float64(1e-9)
                moved.get_forces()

            row = {
                "model": name,
                "structure": label,
                "atoms": len(atoms),
                "edges": graph.edge_index.shape[1],
                "calculator_ms": round(fastest(call, args.repeats), 2),
                "training_step_ms": round(training, 2),
            }
            rows.append(row)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.json:
        about = {
            "command": f"python scripts/benchmark.py --models {' '.join(args.models)} "
            f"--repeats {args.repeats} --json FILE",
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": 1,
        }
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
