"""The runs behind the defaults: optimiser, learning rate, loss weights, radial basis, sizes.

Each run changes one thing of the recipe and is short; the table says what it cost and what it gave
on frames that were held out. `--epochs 400 --accelerator gpu` is the same to convergence.

    python scripts/recipe.py DATA --epochs 20 --json data/results/recipe.json [--only NAME ...]

DATA is a folder with `train_300K.extxyz`, `isolated_atoms.extxyz` and `test_300K.extxyz` of 3BPA
(BOTNet-datasets).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from mlip.allocator import keep_freed_memory
from mlip.potential_file import package_versions
from mlip.training.run import train

TRANSIP = ["model=transip-tiny", "objective=augmented"]
RUNS: dict[str, list[str]] = {
    "recipe": [],
    "adamw, lr 1e-2": ["optimizer=adamw"],
    "adamw, lr 5e-3": ["optimizer=adamw", "optimizer.lr=5e-3"],
    "muon, lr 2e-2": ["optimizer.lr=2e-2"],
    "muon, lr 5e-3": ["optimizer.lr=5e-3"],
    "energy weight x 0.1": ["loss.energy_weight=0.1"],
    "energy weight x 10": ["loss.energy_weight=10"],
    "delta 0.05": ["loss.delta=0.05"],
    "batch of 10": ["data.batch_size=10"],
    "bspline": ["model.radial=bspline"],
    "silu grid": ["model.grid_act=silu"],
    "three layers": ["model.num_layers=3"],
    "L=1, three layers": ["model.num_layers=3", "model.channels=[64,32]"],
    "facet-s": ["model=facet-s"],
    "nequip-s": ["model=nequip-s"],
    "nequip-s, lr 2e-2": ["model=nequip-s", "optimizer.lr=2e-2"],
    "nequip-s, lr 5e-3": ["model=nequip-s", "optimizer.lr=5e-3"],
    "nequip-s, adamw, lr 1e-2": ["model=nequip-s", "optimizer=adamw"],
    "transip-tiny": TRANSIP,
    "transip-tiny, lr 3e-3": [*TRANSIP, "optimizer.lr=3e-3"],
    "transip-tiny, lr 1e-3": [*TRANSIP, "optimizer.lr=1e-3"],
    "transip-tiny, adamw, lr 1e-3": [*TRANSIP, "optimizer=adamw", "optimizer.lr=1e-3"],
}


def main() -> None:
    """Run what is not yet in the file, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--accelerator", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()
    document: dict[str, Any] = (
        json.loads(args.json.read_text()) if args.json.exists() else {"runs": {}}
    )
    document |= {
        "what": "3BPA, train_300K (450 train, 50 validation frames), errors on test_300K; each "
        "run changes one thing of the recipe (facet-xs where no model is named)",
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python scripts/recipe.py DATA "
        f"--epochs {args.epochs} --json FILE",
        "hardware": f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}",
        "versions": package_versions(),
    }
    for name in args.only:
        if name in document["runs"]:
            continue
        document["runs"][name] = one_run(args, RUNS[name])
        args.json.write_text(json.dumps(document, indent=1) + "\n")
        print(name, document["runs"][name]["test"])


def one_run(args: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Train in a temporary folder and return what it cost and gave."""
    data = args.data
    with tempfile.TemporaryDirectory() as folder:
        started = os.times()
        settings = [
            f"data.train=[{data / 'train_300K.extxyz'}, {data / 'isolated_atoms.extxyz'}]",
            f"data.test={data / 'test_300K.extxyz'}",
            "model=facet-xs",
            "data.batch_size=5",
            f"trainer.max_epochs={args.epochs}",
            f"trainer.accelerator={args.accelerator}",
        ]
        result = train([*settings, *overrides, f"out_dir={folder}/run"])
        ended = os.times()
        with (result.out_dir / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    return {
        "overrides": overrides,
        "epochs": len(rows),
        "cpu_seconds": round(ended.user + ended.system - started.user - started.system, 1),
        "test": {
            key.removeprefix("test/"): value
            for key, value in result.metrics.items()
            if key.startswith("test/")
        },
    }


if __name__ == "__main__":
    main()
