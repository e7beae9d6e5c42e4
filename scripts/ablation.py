"""What the grid and the linear radial map of Facet are worth: parameters, time and error.

Trains Facet as it is, with gates instead of the product on a grid of the sphere, with an MLP
instead of the linear radial map, and with both, at equal steps on 3BPA, several seeds each; times
calls and gradients of all four in turns on a batch of its frames.

    python scripts/ablation.py [--model facet-s] [--steps 500] [--seeds 0 1 2]

Results are added to `data/results/ablation.json` after every run; a run that is there is not done
again. `python scripts/ablation.py --summary` prints means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmark import forces, medians, training_step
from machine import processor

from mlip.allocator import keep_freed_memory
from mlip.atomic import atomic_write
from mlip.data.readers import read_structures
from mlip.graph import AtomGraph, collate
from mlip.models.registry import ARCHITECTURES, Architecture, PotentialSpec, build_potential
from mlip.potential_file import package_versions
from mlip.training.config import load_config
from mlip.training.run import train

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "ablation.json"
VARIANTS = {  # name: architecture, class in ablation_models
    "grid, linear radial (facet)": ("facet", None),
    "gates, linear radial": ("facet-gates", "Gated"),
    "grid, MLP radial": ("facet-mlp", "MLPRadial"),
    "gates, MLP radial": ("facet-gates-mlp", "GatedMLPRadial"),
}
for name, cls in VARIANTS.values():
    if cls is not None:
        ARCHITECTURES[name] = Architecture("ablation_models", cls, 1)
ERRORS = ("energy_per_atom_rmse", "forces_rmse", "forces_mae")


def speeds(model: str, repeats: int) -> dict[str, dict[str, Any]]:
    """Time all variants in turns on a batch, and count their parameters."""
    config = load_config(["experiment=3bpa", f"model={model}"])
    count = int(config["data"]["batch_size"])
    frames = list(islice(read_structures(config["data"]["train"][0]), 0, count))
    species = tuple(sorted({int(z) for atoms in frames for z in atoms.numbers}))
    options = {k: v for k, v in config["model"].items() if k not in ("name", "prior")}
    batch = collate([AtomGraph.from_atoms(atoms, options["cutoff"]) for atoms in frames])
    neighbours = batch.edge_index.shape[1] / len(batch.atomic_numbers)
    potentials = {
        variant: build_potential(
            PotentialSpec(
                architecture, options, species, (dict.fromkeys(species, 0.0),), neighbours
            )
        )
        for variant, (architecture, _) in VARIANTS.items()
    }
    out: dict[str, dict[str, Any]] = {
        variant: {"parameters": sum(p.numel() for p in potential.parameters())}
        for variant, potential in potentials.items()
    }
    for what, work in (("call_ms", forces), ("gradients_ms", training_step)):
        times = medians({v: partial(work, p, batch) for v, p in potentials.items()}, repeats)
        for variant, value in times.items():
            out[variant][what] = round(value, 2)
    return out


def one_run(architecture: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train once: the errors on the test part and what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run = train(
            [
                "experiment=3bpa",
                f"model={args.model}",
                f"model.name={architecture}",
                f"seed={seed}",
                "trainer.max_epochs=null",
                f"trainer.max_steps={args.steps}",
                "trainer.accelerator=cpu",
                f"out_dir={folder}/run",
            ]
        )
        taken = time.process_time() - start
    return {name: run.metrics[f"test/{name}"] for name in ERRORS} | {"cpu_s": round(taken, 1)}


def summary(content: dict[str, Any]) -> str:
    """Means over seeds, and the range of the force error, meV/A."""
    lines = [f"{'':30}parameters  call  gradients (ms)  force RMSE (meV/A)"]
    for variant, entry in content["variants"].items():
        found = [1e3 * run["forces_rmse"] for run in entry["runs"].values()]
        lines.append(
            f"{variant:30}{entry['parameters']:10,}{entry['call_ms']:6.1f}"
            f"{entry['gradients_ms']:11.1f}{mean(found):14.1f} ({min(found):.1f} to "
            f"{max(found):.1f}, {len(found)} seeds)"
        )
    return "\n".join(lines)


def main() -> None:
    """Time, then train what is not yet in the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="facet-s")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--summary", action="store_true", help="of what is in the file; trains none"
    )
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    document: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    if args.summary:
        for name, content in document.items():
            print(f"{name}\n{summary(content)}")
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    content = document.setdefault(f"{args.model}, {args.steps} steps", {})
    content |= {
        "command": f"OMP_NUM_THREADS=1 python scripts/ablation.py --model {args.model} --steps "
        f"{args.steps} --seeds {' '.join(map(str, args.seeds))}",
        "machine": processor(),
        "versions": package_versions(),
    }

    def save() -> None:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")

    variants = content.setdefault("variants", {})
    if not variants:
        variants.update({v: {**x, "runs": {}} for v, x in speeds(args.model, args.repeats).items()})
        save()
    for seed in args.seeds:
        for variant, (architecture, _) in VARIANTS.items():
            runs = variants[variant]["runs"]
            if str(seed) not in runs:
                runs[str(seed)] = one_run(architecture, seed, args)
                save()
    print(summary(content))


if __name__ == "__main__":
    main()
