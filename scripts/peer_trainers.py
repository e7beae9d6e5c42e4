"""Other packages, trained by their own programs on the files of our experiments.

Each is set up after its documentation for small data sets, in single precision on one CPU thread,
with our batches and a cutoff of 5 Å. The learning rate decays with the length of a run, as ours,
and where a class says so something else suits short runs better.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io import read, write
from nequip_configuration import nequip_configuration

from mlip.data.prepare import prepare_data
from mlip.data.readers import read_structures
from mlip.training.config import load_config

TRIAL_FRAMES, TRIAL_EPOCHS = 40, (1, 3)
VALIDATION = 0.1
CUTOFF = 5.0


class PeerTrainer(ABC):
    """A package's own trainer on the files of one of our experiments."""

    packages: tuple[str, ...]  # whose versions are told

    def __init__(self, environment: Path, dataset: str, folder: Path) -> None:
        """Read the data.

        Args:
            environment: the virtual environment that the package is in.
            dataset: a file of conf/experiment/, without .yaml.
            folder: for what runs write.
        """
        self.bin, self.folder = environment.absolute() / "bin", folder
        data = load_config([f"experiment={dataset}"])["data"]
        self.batch_size = int(data["batch_size"])
        paths = data["train"] if isinstance(data["train"], list) else [data["train"]]
        frames = list(read_structures([Path(p) for p in paths]))
        self.isolated: dict[int, float] = {}
        if data["test"] is None:  # what we would test on, too
            self.train, self.test = _split(data, frames)
        else:
            alone = [a for a in frames if len(a) == 1]
            self.isolated = {int(a.numbers[0]): a.get_potential_energy() for a in alone}
            self.train = [a for a in frames if len(a) > 1]
            self.test = list(read_structures([Path(data["test"])]))
        self.periodic = bool(self.train[0].pbc.all())

    @abstractmethod
    def run(self, frames: list[ase.Atoms], epochs: int, name: str) -> tuple[Path, float]:
        """Train; return the model and the CPU seconds of the whole run."""

    @abstractmethod
    def predictions(self, model: Path) -> list[tuple[float, np.ndarray]]:
        """Energy, eV, and forces, eV/Å, of every test frame."""

    def seconds_per_epoch(self) -> float:
        """What an epoch takes, its share of the validation included."""
        frames = self.train[:TRIAL_FRAMES]
        short, long = (self.run(frames, n, f"trial-{n}")[1] for n in TRIAL_EPOCHS)
        per_frame = (long - short) / (TRIAL_EPOCHS[1] - TRIAL_EPOCHS[0]) / len(frames)
        return per_frame * len(self.train)

    def errors(self, model: Path) -> dict[str, float]:
        """Errors on the test frames, eV and eV/Å."""
        found = self.predictions(model)
        pairs = list(zip(found, self.test, strict=True))
        forces = np.concatenate([(f - atoms.get_forces()).ravel() for (_, f), atoms in pairs])
        energy = np.array([(e - a.get_potential_energy()) / len(a) for (e, _), a in pairs])
        return {
            "energy_per_atom_rmse": float(np.sqrt(np.square(energy).mean())),
            "forces_rmse": float(np.sqrt(np.square(forces).mean())),
            "forces_mae": float(np.abs(forces).mean()),
        }

    def versions(self) -> dict[str, str]:
        """Return those of its environment."""
        code = (
            "import json, importlib.metadata as m;"
            f"print(json.dumps({{n: m.version(n) for n in {self.packages!r}}}))"
        )
        command = [self.bin / "python", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def call(self, program: str, folder: Path, *words: str) -> None:
        """Run a program of the environment in a folder."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [self.bin / program, *words],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


class Mace(PeerTrainer):
    """MACE small: 128 scalar channels, two layers, AMSGrad, moving average, its default loss."""

    packages = ("mace-torch", "e3nn", "torch")

    def run(self, frames: list[ase.Atoms], epochs: int, name: str) -> tuple[Path, float]:
        """Train by `mace_run_train`."""
        folder = self.folder / name
        folder.mkdir()
        _with_keys(folder / "train.extxyz", frames)
        e0s = json.dumps(self.isolated).replace('"', "") if self.isolated else "average"
        before = _children()
        self.call(
            "mace_run_train", folder,
            "--name", "mace", "--work_dir", str(folder), "--train_file", "train.extxyz",
            "--valid_fraction", str(VALIDATION), "--E0s", e0s, "--model", "MACE",
            "--hidden_irreps", "128x0e", "--r_max", str(CUTOFF),
            "--batch_size", str(self.batch_size), "--valid_batch_size", str(self.batch_size),
            "--max_num_epochs", str(epochs), "--lr", "0.01", "--amsgrad", "--ema",
            "--ema_decay", "0.99", "--scheduler", "ExponentialLR",
            "--lr_scheduler_gamma", str(_decay(epochs)), "--default_dtype", "float32",
            "--device", "cpu", "--seed", "0", "--plot", "False",
            *(("--compute_stress", "True", "--loss", "stress") if self.periodic else ()),
        )  # fmt: skip
        return folder / "mace.model", _children() - before

    def predictions(self, model: Path) -> list[tuple[float, np.ndarray]]:
        """Predict by `mace_eval_configs`."""
        folder = model.parent
        _with_keys(folder / "test.extxyz", self.test)
        self.call(
            "mace_eval_configs", folder, "--configs", "test.extxyz", "--model", model.name,
            "--output", "out.extxyz", "--default_dtype", "float32", "--device", "cpu",
        )  # fmt: skip
        found: list[ase.Atoms] = read(folder / "out.extxyz", ":")  # type: ignore[assignment]
        return [(a.info["MACE_energy"], a.arrays["MACE_forces"]) for a in found]


class Nequip(PeerTrainer):
    """NequIP's preset S: two layers, degree 1, Adam, moving average, errors per atom.

    The moving average is shorter than in its tutorial, whose 0.999 is for a hundred times as many
    steps: it would still remember the weights of the beginning.
    """

    packages = ("nequip", "e3nn", "torch", "lightning")
    EMA = 0.99
    PREDICT = """
import sys
from ase.io import read, write
from ase.calculators.singlepoint import SinglePointCalculator
from nequip.integrations.ase import NequIPCalculator
calculator = NequIPCalculator._from_saved_model(sys.argv[1], device="cpu")
out = []
for atoms in read("test.extxyz", ":"):
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    out.append(atoms)
write("out.extxyz", out)
"""

    def run(self, frames: list[ase.Atoms], epochs: int, name: str) -> tuple[Path, float]:
        """Train by `nequip-train`; the weights are those that did best in validation."""
        folder = self.folder / name
        folder.mkdir()
        order = np.random.default_rng(0).permutation(len(frames))
        cut = round(VALIDATION * len(frames))
        for part, chosen in (("val", order[:cut]), ("train", order[cut:])):
            _with_calculators(folder / f"{part}.extxyz", [frames[k] for k in chosen])
        shifts = {chemical_symbols[z]: float(e) for z, e in self.isolated.items()}
        configuration = nequip_configuration(
            folder,
            sorted({s for atoms in self.train for s in atoms.get_chemical_symbols()}),
            {
                "preset": "S",
                "compile_mode": "eager",  # compiling takes longer than the shorter runs
                "r_max": CUTOFF,
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_scales": "${training_data_stats:forces_rms}",
                "per_type_energy_shifts": shifts or "${training_data_stats:per_atom_energy_mean}",
            },
            batch_size=self.batch_size,
            epochs=epochs,
            ema_decay=self.EMA,
            rate_decay=_decay(epochs),
            stress=self.periodic,
        )
        (folder / "own.yaml").write_text(json.dumps(configuration))  # JSON is YAML
        before = _children()
        self.call(
            "nequip-train", folder, "-cp", str(folder), "-cn", "own", f"hydra.run.dir={folder}"
        )  # fmt: skip
        return folder / "best.ckpt", _children() - before

    def predictions(self, model: Path) -> list[tuple[float, np.ndarray]]:
        """Predict by its ASE calculator."""
        folder = model.parent
        _with_calculators(folder / "test.extxyz", self.test)
        self.call("python", folder, "-c", self.PREDICT, model.name)
        found: list[ase.Atoms] = read(folder / "out.extxyz", ":")  # type: ignore[assignment]
        return [(a.get_potential_energy(), a.get_forces()) for a in found]


PEERS = {"mace-small": ("mace", Mace), "nequip-preset-S": ("nequip", Nequip)}


def _split(data: Any, frames: list[ase.Atoms]) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Training and validation frames together, and test frames, as in our runs of seed 0."""
    parts = prepare_data(data, cutoff=1.0, seed=0).parts
    rows = {name: [int(k) for k in indices] for name, (_, indices) in parts.items()}
    if sorted(k for own in rows.values() for k in own) != list(range(len(frames))):
        raise SystemExit("some frames are not used by us: which are which is not known")
    return (
        [frames[k] for name in ("train", "val") for k in rows[name]],
        [frames[k] for k in rows["test"]],
    )


def _decay(epochs: int) -> float:
    """Factor of each epoch after which the rate has fallen to a hundredth."""
    return 0.01 ** (1 / max(epochs, 1))


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _bare(atoms: ase.Atoms) -> ase.Atoms:
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _with_keys(path: Path, frames: list[ase.Atoms]) -> None:
    """Write frames with the keys that MACE reads."""
    out = []
    for atoms in frames:
        bare = _bare(atoms)
        bare.info["REF_energy"] = atoms.get_potential_energy()
        bare.arrays["REF_forces"] = atoms.get_forces()
        if atoms.pbc.all():
            bare.info["REF_stress"] = atoms.get_stress(voigt=False).ravel()
        out.append(bare)
    write(path, out, format="extxyz")


def _with_calculators(path: Path, frames: list[ase.Atoms]) -> None:
    """Write frames as ASE does."""
    out = []
    for atoms in frames:
        bare = _bare(atoms)
        labels: dict[str, Any] = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
        }
        if atoms.pbc.all():
            labels["stress"] = atoms.get_stress()
        bare.calc = SinglePointCalculator(bare, **labels)
        out.append(bare)
    write(path, out, format="extxyz")
