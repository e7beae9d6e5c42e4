"""Whether what makes a step faster changes what is learnt: force errors epoch by epoch.

Trains one model on 3BPA with the same seed by PyTorch's sums over neighbours, by kernels in C and
compiled as a whole, and once more with another seed, which is how much chance alone does.

    python scripts/same_learning.py --model facet-s --steps 500

Results are added to `data/results/same-learning.json`; a run that is there is not done again.
`python scripts/same_learning.py --summary` prints them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import processor

from mlip.allocator import keep_freed_memory
from mlip.atomic import atomic_write
from mlip.potential_file import package_versions
from mlip.training.run import train

RESULT = Path(__file__).resolve().parents[1] / "data" / "results" / "same-learning.json"
WAYS: dict[str, tuple[str, list[str]]] = {  # MLIP_KERNELS and overrides
    "torch": ("torch", []),
    "kernels in C": ("compiled", []),
    "compiled": ("compiled", ["trainer.compile=true"]),
    "kernels in C, another seed": ("compiled", ["seed=1"]),
}


def one_run(model: str, steps: int, way: str) -> dict[str, Any]:
    """Train one way; return errors, eV/Å."""
    kernels, overrides = WAYS[way]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MLIP_KERNELS=kernels):
        run = train(
            [
                "experiment=3bpa",
                f"model={model}",
                "trainer.max_epochs=null",
                f"trainer.max_steps={steps}",
                f"out_dir={folder}/run",
                *overrides,
            ]
        )
        with (run.out_dir / "metrics.csv").open() as file:
            epochs = [float(row["val/forces_rmse"]) for row in csv.DictReader(file)]
    return {
        "val_forces_rmse": epochs,
        "test_forces_rmse": run.metrics["test/forces_rmse"],
        "cpu_s": round(time.process_time() - start, 1),
    }


def summary(content: dict[str, Any]) -> str:
    """Force errors, meV/Å: of validation after each epoch, and of the test."""
    lines = []
    for name, entry in content.items():
        lines.append(f"{name}: force RMSE (meV/A) of validation by epoch; of the test")
        for way, run in entry["runs"].items():
            curve = " ".join(f"{1e3 * x:6.1f}" for x in run["val_forces_rmse"])
            lines.append(f"  {way:28}{curve}; {1e3 * run['test_forces_rmse']:.1f}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="facet-s")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    options = parser.parse_args()
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if options.summary:
        print(summary(content))
        return
    keep_freed_memory()
    entry = content.setdefault(f"{options.model}, {options.steps} steps", {"runs": {}})
    entry["command"] = (
        f"python scripts/same_learning.py --model {options.model} --steps {options.steps}"
    )
    for way in WAYS:
        if way not in entry["runs"]:
            entry["runs"][way] = one_run(options.model, options.steps, way) | {
                "machine": f"{processor()}, {torch.get_num_threads()} torch thread(s)",
                "versions": package_versions(),
            }
            with atomic_write(RESULT) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(summary(content))


if __name__ == "__main__":
    main()
