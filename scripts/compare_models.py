"""Facet, the equivariant baseline and TransIP on one data set: at equal steps, and at equal time.

Time is CPU time of training steps, measured for each model by the difference of a short and a
longer run. From it follow the steps that each model may take in the time given; learning rate
schedules end there. Leave the machine alone meanwhile: a busy second thread of a core, or a full
memory bus, changes CPU time too, and not alike for all models (`seconds_in_all` shows it).

    python scripts/compare_models.py 3bpa --seconds 600 --steps 1000
    python scripts/compare_models.py mptrj_1k --models facet-s nequip-s transip-s --seconds 300
    python scripts/compare_models.py 3bpa --models facet-s facet-m nequip-s --seconds 7200 \
        --accelerator gpu                                          (to convergence, on a GPU)

The data set is a file of `conf/experiment/`. Results are added to `data/results/models.json` after
every run, and a run that is there is not done again; the runs at equal time are compared as
`mlip compare` does (`models-DATASET.png`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import processor

from mlip.allocator import keep_freed_memory
from mlip.atomic import atomic_write
from mlip.data.prepare import prepare_data
from mlip.evaluate import ErrorSums
from mlip.potential_file import package_versions, read_metadata
from mlip.report.compare import compare_runs, comparison_text, write_comparison
from mlip.training.config import load_config
from mlip.training.run import RunResult, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
TRIAL_STEPS = (20, 220)  # the first include what is done once


def train_for(
    steps: int, model: str, folder: Path, options: argparse.Namespace
) -> tuple[RunResult, float]:
    """Train for a number of steps; return the run and the seconds it took, everything included."""
    clock = time.process_time if options.accelerator == "cpu" else time.perf_counter
    start = clock()
    run = train(
        [
            f"experiment={options.dataset}",
            f"model={model}",
            f"trainer.accelerator={options.accelerator}",
            "trainer.max_epochs=null",
            f"trainer.max_steps={steps}",
            f"seed={options.seed}",
            f"out_dir={folder}",
            *options.override,
        ]
    )
    return run, clock() - start


def seconds_per_step(model: str, options: argparse.Namespace) -> float:
    """Return what a training step takes, its batch and its share of the validation included."""
    with tempfile.TemporaryDirectory() as folder:
        taken = [train_for(n, model, Path(folder) / str(n), options)[1] for n in TRIAL_STEPS]
    return (taken[1] - taken[0]) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])


def record(run: RunResult, steps: int, seconds: float) -> dict[str, Any]:
    """What one run gave."""
    metadata = read_metadata(run.potential)
    return {
        "steps": steps,
        "seconds_in_all": round(seconds, 1),
        "test": {k.split("/")[1]: v for k, v in run.metrics.items() if k.startswith("test/")},
        "test_as_given": {
            k.split("/")[1]: v for k, v in run.metrics.items() if k.startswith("test_frame/")
        },
        "symmetry_errors": metadata["symmetry_errors"],
        "training_cost": metadata["training_cost"],
    }


def errors_of_zero(dataset: str, seed: int) -> dict[str, float]:
    """Errors on the test part of predicting no forces and no stress: what has to be beaten."""
    data = prepare_data(load_config([f"experiment={dataset}"])["data"], cutoff=1.0, seed=seed)
    sums, test = ErrorSums(), data.loader("test")
    assert test is not None
    for graph in test:
        nothing = {"energy": graph.energy * torch.nan, "forces": 0.0 * graph.forces}
        sums.update(SimpleNamespace(**nothing, stress=0.0 * graph.stress), graph)  # type: ignore[arg-type]
    return {k: v for k, v in sums.compute().items() if k.endswith(("mae", "rmse")) and v == v}


def main() -> None:
    """Time every model, then train each twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a file of conf/experiment/, without .yaml")
    parser.add_argument("--models", nargs="+", default=["facet-s", "nequip-s", "transip-s"])
    parser.add_argument("--seconds", type=float, default=600, help="of training steps")
    parser.add_argument("--steps", type=int, default=1000, help="of the runs at equal steps; 0: no")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--override", nargs="*", default=[], help="more key=value for all runs")
    options = parser.parse_args()
    keep_freed_memory()

    file = RESULTS / "models.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    name = f"{options.dataset} {options.seconds:g} s {options.accelerator}"
    entry = content.setdefault(name, {"models": {}})
    entry |= {
        "command": "python scripts/compare_models.py " + command_line(options),
        "machine": f"{os.cpu_count()} cores ({processor()}), {torch.get_num_threads()} thread(s), "
        f"{torch.cuda.get_device_name() if options.accelerator != 'cpu' else 'no GPU'}",
        "versions": package_versions(),
    }

    if "zero" not in entry:
        entry["zero"] = errors_of_zero(options.dataset, options.seed)

    def save() -> None:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    folder = ROOT / "outputs" / "models" / name.replace(" ", "-")
    for model in options.models:  # all at first: one after another in the same conditions
        known = entry["models"].setdefault(model, {})
        if "seconds_per_step" not in known:
            known["seconds_per_step"] = seconds_per_step(model, options)
            save()
            print(f"{model}: {known['seconds_per_step']:.3f} s a step", flush=True)
    for model in options.models:
        known = entry["models"][model]
        steps = {
            "equal_steps": options.steps,
            "equal_time": round(options.seconds / known["seconds_per_step"]),
        }
        for kind, n in steps.items():
            if kind in known or n == 0:
                continue
            out = folder / f"{model}-{kind}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
            run, seconds = train_for(n, model, out, options)
            known[kind] = {**record(run, n, seconds), "run": str(out.relative_to(ROOT))}
            save()
            print(f"{options.dataset} {model} {kind}: {n} steps, {known[kind]['test']}", flush=True)
    compare(options, entry, save)


def command_line(options: argparse.Namespace) -> str:
    """The arguments that matter, as they are typed."""
    words: Sequence[Any] = (
        options.dataset, "--models", *options.models, "--seconds", f"{options.seconds:g}",
        "--steps", options.steps, "--seed", options.seed,
        *(("--accelerator", options.accelerator) if options.accelerator != "cpu" else ()),
        *(("--override", *options.override) if options.override else ()),
    )  # fmt: skip
    return " ".join(map(str, words))


def compare(options: argparse.Namespace, entry: dict[str, Any], save: Callable[[], None]) -> None:
    """Put the runs at equal time side by side, and keep the measured speeds and the picture."""
    runs = [ROOT / entry["models"][model]["equal_time"]["run"] for model in options.models]
    if not all(run.exists() for run in runs):
        return
    comparison = compare_runs(runs)
    with tempfile.TemporaryDirectory() as folder:
        write_comparison(comparison, folder)
        picture = (Path(folder) / "compare.png").read_bytes()
    (RESULTS / f"models-{options.dataset}.png").write_bytes(picture)
    for model, facts in zip(options.models, comparison.runs, strict=True):
        entry["models"][model]["compared"] = {
            key: facts[key] for key in ("num_parameters", "counts", "speed", "nve") if key in facts
        }
    save()
    print(comparison_text(comparison))


if __name__ == "__main__":
    main()
