"""One process that times models of one package, as compare_peers.py tells it.

It runs in the environment of that package, so it needs nothing else but ase, numpy and torch.
Requests and replies are JSON, one a line, on standard input and output; whatever the package prints
goes to standard error:

    {"do": "load", "model": "mace-small", "options": {}}
    {"do": "prepare", "model": "mace-small", "kind": "calls", "structures": [...], "steps": 5}
    {"do": "run", "at_least": 1, "seconds": 0.25}

`load` imports the package when it is asked for the first time. `run` repeats what was prepared and
replies with the CPU and wall time of each time. An exception is a reply too: {"error": "..."}.
With --once REQUEST it is a user's whole process: load, energy and forces of one structure, end.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from peer_packages import DISTRIBUTIONS, PACKAGES, Subject

DISPLACEMENT = 1e-3  # Å, standard deviation; enough for every cache to miss
LEARNING_RATE = 1e-6  # labels are random: weights that follow them would leave the usual numbers
# Å, of all atoms together: untrained forces must not change how many neighbours there are
RELAXATION_STEP = 0.01

Action = Callable[[], None]


def calls(subject: Subject, structures: Sequence[ase.Atoms], steps: int) -> tuple[Action, Action]:
    """Energy, forces and (crystals) stress of moved atoms, through the calculator."""
    (atoms,) = (a.copy() for a in structures)
    atoms.calc = subject.calculator()
    start = atoms.positions.copy()
    noise = np.random.default_rng(0)

    def move() -> None:
        atoms.positions = start + DISPLACEMENT * noise.standard_normal(start.shape)

    def call() -> None:
        atoms.get_potential_energy()
        atoms.get_forces()
        if atoms.pbc.all():
            atoms.get_stress()

    return move, call


def training(
    subject: Subject, structures: Sequence[ase.Atoms], steps: int
) -> tuple[Action, Action]:
    """One step: prediction, loss on random labels, backward, Adam."""
    module, predict = subject.trainer(structures)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    labels: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)

    def nothing() -> None:
        """What there is to do before a step."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        terms = []
        for name, value in predict().items():
            if name not in labels:
                labels[name] = torch.randn_like(value.detach())
            terms.append(torch.nn.functional.huber_loss(value, labels[name]))
        torch.stack(terms).sum().backward()
        optimizer.step()

    return nothing, step


def relaxation(
    subject: Subject, structures: Sequence[ase.Atoms], steps: int
) -> tuple[Action, Action]:
    """Relax each crystal with its cell by so many steps; the first forces are not counted."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    calculator = subject.calculator()
    optimizers: list[FIRE] = []
    options: dict[str, Any] = {"logfile": None, "maxstep": RELAXATION_STEP}

    def start() -> None:
        optimizers.clear()
        for structure in structures:
            atoms = structure.copy()
            atoms.calc = _copy(calculator)
            optimizers.append(FIRE(FrechetCellFilter(atoms), **options))  # type: ignore[arg-type]
            optimizers[-1].run(fmax=0.0, steps=0)

    def relax() -> None:
        for optimizer in optimizers:
            optimizer.run(fmax=0.0, steps=steps)

    return start, relax


def _copy(calculator: Any) -> Any:
    """A calculator with results of its own and the same model."""
    out = copy.copy(calculator)
    out.atoms, out.results = None, {}
    return out


KINDS = {"calls": calls, "training": training, "relaxation": relaxation}


class Worker:
    """The models that were loaded, and what is prepared."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.subjects: dict[str, Subject] = {}
        self.prepared: dict[str, tuple[Action, Action, float]] = {}

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Make a model."""
        subject = self.subjects[model] = PACKAGES[self.package](options.pop("name"), **options)
        return {
            "cutoff": subject.cutoff,
            "parameters": subject.parameters,
            "versions": {name: version(name) for name in DISTRIBUTIONS[self.package]},
        }

    def prepare(
        self, model: str, kind: str, structures: list[dict[str, Any]], steps: int
    ) -> dict[str, Any]:
        """Get ready to run; what was prepared for this model before is forgotten."""
        self.prepared.pop(model, None)
        atoms = [_atoms(fields) for fields in structures]
        before, timed = KINDS[kind](self.subjects[model], atoms, steps)
        gc.collect()
        self.prepared[model] = before, timed, _memory("VmRSS")
        return {}

    def run(self, model: str, at_least: int, seconds: float) -> dict[str, Any]:
        """Run what is prepared, at least so often and then until the seconds are over."""
        before, timed, resident = self.prepared[model]
        cpu, wall = [], []
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        end = time.perf_counter() + seconds
        while len(wall) < at_least or time.perf_counter() < end:
            before()
            start, start_cpu = time.perf_counter(), time.process_time()
            timed()
            cpu.append(1e3 * (time.process_time() - start_cpu))
            wall.append(1e3 * (time.perf_counter() - start))
        return {"cpu_ms": cpu, "wall_ms": wall, "memory_mib": _memory("VmHWM") - resident}


def _atoms(fields: dict[str, Any]) -> ase.Atoms:
    return ase.Atoms(**{name: fields[name] for name in ("numbers", "positions", "cell", "pbc")})


def _memory(field: str) -> float:
    """A field of this process's memory, MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def serve(worker: Worker) -> None:
    """Answer requests until there are no more."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            action = getattr(worker, request.pop("do"))
            try:
                reply = action(**request)
            except Exception as error:  # whatever a package raises is a result
                words = str(error).strip().splitlines() or [""]
                reply = {"error": f"{type(error).__name__}: {words[0]}"}
            print(json.dumps(reply), file=replies, flush=True)


def once(worker: Worker, request: dict[str, Any]) -> None:
    """From the package's import to the first energy and forces."""
    structures = [_atoms(fields) for fields in request.pop("structures")]
    options = request["options"]
    subject = PACKAGES[worker.package](options.pop("name"), **options)
    _, call = calls(subject, structures, 1)
    call()


def main() -> None:
    """Serve, or start up once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--once", metavar="REQUEST", help="JSON: options and structures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    worker = Worker(options.package)
    if options.once:
        once(worker, json.loads(options.once))
    else:
        serve(worker)


if __name__ == "__main__":
    main()
