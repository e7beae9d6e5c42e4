"""Time steps of Muon, PyTorch's and ours, beside the gradients that they follow.

CPU time of one thread, the median of steps taken in turns on the matrices of a model, with the
gradients of one training step on a batch of five molecules of 27 atoms (3BPA's size and batch).

    python scripts/benchmark_optimizer.py [--models facet-s ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from ase.build import molecule
from benchmark import Row, medians, training_step, untrained
from machine import processor

from mlip.allocator import keep_freed_memory
from mlip.graph import AtomGraph, collate
from mlip.training.muon import Muon
from mlip.training.optimizers import make_optimizer

MODELS = ["facet-xs", "facet-s", "nequip-s", "sevennet-0", "transip-tiny", "transip-s"]
RATE, DECAY = 1e-6, 1e-4  # the weights stay where they are


def batch(cutoff: float) -> AtomGraph:
    """Five pieces of 27 atoms: three molecules side by side."""
    pieces = []
    for seed in range(5):
        atoms = molecule("C3H9C") + molecule("CH3CH2OH")
        atoms.positions[13:] += [4.5, 0.0, 0.0]
        atoms += molecule("CH4")
        atoms.positions[22:] += [0.0, 5.0, 0.0]
        atoms.rattle(0.05, seed=seed)
        pieces.append(AtomGraph.from_atoms(atoms, cutoff))
    return collate(pieces)


def measure(model: str, repeats: int) -> Row:
    """Time one model."""
    potential = untrained(model, {1, 6, 8}, periodic=False)
    graph = batch(potential.cutoff)
    of_run = make_optimizer(potential, {"name": "muon", "lr": RATE, "weight_decay": DECAY})
    matrices = of_run.param_groups[0]["params"]
    ours = Muon(matrices, RATE, DECAY)
    theirs = torch.optim.Muon(matrices, RATE, DECAY, adjust_lr_fn="match_rms_adamw")
    training_step(potential, graph)
    times = medians(
        {
            "gradients": partial(training_step, potential, graph),
            "pytorch": theirs.step,
            "ours": ours.step,
        },
        repeats,
    )
    return {
        "model": model,
        "matrices": len(matrices),
        "numbers": sum(p.numel() for p in matrices),
        "gradients_ms": round(times["gradients"], 2),
        "pytorch_ms": round(times["pytorch"], 2),
        "ours_ms": round(times["ours"], 2),
        "faster": round(times["pytorch"] / times["ours"], 2),
    }


def main() -> None:
    """Print a line for each model, and write them with the command if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="choices of conf/model")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for model in args.models:
        rows.append(measure(model, args.repeats))
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if args.json:
        given = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
        about = {
            "command": " ".join(["python scripts/benchmark_optimizer.py", *given, "--json FILE"]),
            "torch": torch.__version__,
            "machine": processor(),
            "threads": 1,
        }
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
