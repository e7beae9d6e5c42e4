"""Error against training time: Facet-S and NequIP-S, and MACE-small by its own trainer.

Every point is a training of its own whose learning rate schedule ends with its time. How many steps
or epochs fit into a time is told by the difference of two short runs on the same frames; what is
shown is the CPU time of the whole run on one thread, validation and report or (ours) test included,
and for MACE, a process of its own, the import as well. MACE is run as its documentation says for
small data sets (128 scalar channels, two layers, 5 A, batches as ours, learning rate 0.01, AMSGrad,
moving average, default loss), in single precision as all; its epochs are whole.

    python scripts/learning_curve.py 3bpa mlearn_si --seconds 60 300
    python scripts/learning_curve.py 3bpa --peers .peers     (with the environment peers are in)

Points are added to `data/results/learning-curve.json`, and one that is there is not trained again;
`learning-curve.png` shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.io import read, write
from compare_models import record, seconds_per_step, train_for

from mlip.allocator import keep_freed_memory
from mlip.atomic import atomic_write
from mlip.data.readers import read_structures
from mlip.potential_file import package_versions
from mlip.training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "data" / "results" / "learning-curve.json"
MACE = "mace-small"
TRIAL_FRAMES, TRIAL_EPOCHS = 40, (1, 3)
VALIDATION = 0.1


class Mace:
    """MACE's command line on the files of one of our experiments."""

    def __init__(self, environment: Path, dataset: str, folder: Path) -> None:
        self.bin, self.folder = environment / "bin", folder
        data = load_config([f"experiment={dataset}"])["data"]
        self.batch_size = int(data["batch_size"])
        paths = data["train"] if isinstance(data["train"], list) else [data["train"]]
        frames = list(read_structures([Path(p) for p in paths]))
        self.isolated = {int(a.numbers[0]): a.get_potential_energy() for a in frames if len(a) == 1}
        self.train = [a for a in frames if len(a) > 1]
        self.test = list(read_structures([Path(data["test"])]))

    def run(self, frames: list[ase.Atoms], epochs: int, name: str) -> tuple[Path, float]:
        """Train; return the model and the CPU seconds of the whole run."""
        folder = self.folder / name
        folder.mkdir()
        _write(folder / "train.extxyz", frames)
        e0s = json.dumps(self.isolated).replace('"', "") if self.isolated else "average"
        periodic = bool(frames[0].pbc.any())
        before = _children()
        self._call(
            "mace_run_train", folder,
            "--name", "mace", "--work_dir", str(folder), "--train_file", "train.extxyz",
            "--valid_fraction", str(VALIDATION), "--E0s", e0s, "--model", "MACE",
            "--hidden_irreps", "128x0e", "--r_max", "5.0", "--batch_size", str(self.batch_size),
            "--valid_batch_size", str(self.batch_size), "--max_num_epochs", str(epochs),
            "--lr", "0.01", "--amsgrad", "--ema", "--ema_decay", "0.99", "--scheduler",
            "ExponentialLR", "--lr_scheduler_gamma", str(0.01 ** (1 / max(epochs, 1))),
            "--default_dtype", "float32", "--device", "cpu", "--seed", "0", "--plot", "False",
            *(("--compute_stress", "True", "--loss", "stress") if periodic else ()),
        )  # fmt: skip
        return folder / "mace.model", _children() - before

    def seconds_per_frame(self) -> float:
        """What a frame costs in an epoch, its share of the validation included."""
        frames = self.train[:TRIAL_FRAMES]
        short, long = (self.run(frames, n, f"trial-{n}")[1] for n in TRIAL_EPOCHS)
        return (long - short) / (TRIAL_EPOCHS[1] - TRIAL_EPOCHS[0]) / len(frames)

    def versions(self) -> dict[str, str]:
        """Return those of its environment."""
        code = (
            "import json, importlib.metadata as m;"
            "print(json.dumps({n: m.version(n) for n in ('mace-torch', 'e3nn', 'torch')}))"
        )
        command = [self.bin / "python", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def errors(self, model: Path) -> dict[str, float]:
        """Errors on the test frames, eV and eV/Å."""
        folder = model.parent
        _write(folder / "test.extxyz", self.test)
        self._call(
            "mace_eval_configs", folder, "--configs", "test.extxyz", "--model", model.name,
            "--output", "out.extxyz", "--default_dtype", "float32", "--device", "cpu",
        )  # fmt: skip
        found: list[ase.Atoms] = read(folder / "out.extxyz", ":")  # type: ignore[assignment]
        pairs = list(zip(found, self.test, strict=True))
        forces = np.concatenate(
            [(a.arrays["MACE_forces"] - b.get_forces()).ravel() for a, b in pairs]
        )
        energy = np.array([
            (a.info["MACE_energy"] - b.get_potential_energy()) / len(b) for a, b in pairs
        ])  # fmt: skip
        return {
            "energy_per_atom_rmse": float(np.sqrt(np.square(energy).mean())),
            "forces_rmse": float(np.sqrt(np.square(forces).mean())),
            "forces_mae": float(np.abs(forces).mean()),
        }

    def _call(self, program: str, folder: Path, *words: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.bin / program, *words],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stderr[-3000:]}")


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _write(path: Path, frames: list[ase.Atoms]) -> None:
    """Write frames with the keys that MACE reads."""
    out = []
    for atoms in frames:
        bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info["REF_energy"] = atoms.get_potential_energy()
        bare.arrays["REF_forces"] = atoms.get_forces()
        if atoms.pbc.all():
            bare.info["REF_stress"] = atoms.get_stress(voigt=False).ravel()
        out.append(bare)
    write(path, out, format="extxyz")


def train_mace(environment: Path, dataset: str, budgets: list[float], known: dict[str, Any]) -> Any:
    """Yield the points of MACE that are not known."""
    with tempfile.TemporaryDirectory() as scratch:
        mace = Mace(environment, dataset, Path(scratch))
        if "seconds_per_epoch" not in known:
            known["seconds_per_epoch"] = mace.seconds_per_frame() * len(mace.train)
        for budget in budgets:
            epochs = max(1, round(budget / known["seconds_per_epoch"]))
            if f"{budget:g}" in known["points"]:
                continue
            known["versions"] = mace.versions()
            model, seconds = mace.run(mace.train, epochs, f"{budget:g}")
            yield (
                f"{budget:g}",
                {
                    "epochs": epochs,
                    "seconds_in_all": round(seconds, 1),
                    "test": mace.errors(model),
                },
            )


def train_ours(model: str, budgets: list[float], known: dict[str, Any], options: Any) -> Any:
    """Yield the points of one of our models that are not known."""
    if "seconds_per_step" not in known:
        known["seconds_per_step"] = seconds_per_step(model, options)
    for budget in budgets:
        if f"{budget:g}" in known["points"]:
            continue
        known["versions"] = package_versions()
        steps = max(1, round(budget / known["seconds_per_step"]))
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = train_for(steps, model, Path(folder) / "run", options)
            kept = {k: v for k, v in record(run, steps, seconds).items() if k != "symmetry_errors"}
        yield f"{budget:g}", kept


def draw(content: dict[str, Any], path: Path) -> None:
    """Force error against training time, one panel a data set."""
    import matplotlib.pyplot as plt

    sets = content["datasets"]
    figure, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.4), squeeze=False)
    for axis, (dataset, models) in zip(axes[0], sets.items(), strict=True):
        for model, known in models.items():
            points = sorted(
                (p["seconds_in_all"], 1e3 * p["test"]["forces_rmse"])
                for p in known["points"].values()
            )
            axis.loglog(*zip(*points, strict=True), marker="o", label=model)
        axis.set(title=dataset, xlabel="whole run, CPU s of one thread", ylabel="force RMSE, meV/Å")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train what is missing; write after every point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", help="files of conf/experiment/, without .yaml")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 300])
    parser.add_argument("--models", nargs="+", default=["facet-s", "nequip-s", MACE])
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="see install_peers.sh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    options.accelerator, options.override = "cpu", []
    torch.set_num_threads(1)
    keep_freed_memory()

    content = json.loads(options.result.read_text()) if options.result.exists() else {}
    content["threads"] = 1
    sets = content.setdefault("datasets", {})
    for budget in options.seconds:  # all short ones first
        for dataset in options.datasets:
            options.dataset = dataset
            for model in options.models:
                known = sets.setdefault(dataset, {}).setdefault(model, {"points": {}})
                points = (
                    train_mace(options.peers / "mace", dataset, [budget], known)
                    if model == MACE
                    else train_ours(model, [budget], known, options)
                )
                for name, point in points:
                    command = f"learning_curve.py {dataset} --models {model} --seconds {name}"
                    known["points"][name] = {"command": f"python scripts/{command}", **point}
                    with atomic_write(options.result) as temporary:
                        temporary.write_text(json.dumps(content, indent=1) + "\n")
                    print(f"{dataset} {model} {name} s: {point['test']}", flush=True)
    draw(content, options.result.with_suffix(".png"))


if __name__ == "__main__":
    main()
