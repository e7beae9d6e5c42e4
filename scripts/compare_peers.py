"""Our models and those of other packages on the same work, in turns.

Calls through the ASE calculator, training steps, relaxation steps, start-up and memory: one thread,
single precision, energies, forces and (crystals) stresses. Each package runs in an environment of
its own (`make peers`, or scripts/install_peers.sh FOLDER); one that is not there is left out, and
said. In every round each model does the same work in turn, so what slows the machine slows all;
what is compared are ratios of process CPU time round by round. All models have the published
shapes with 89 elements, and random weights where none ship: time depends on shapes alone.

    python scripts/compare_peers.py --json data/results/peers.json --figure data/results/peers.png
    python scripts/compare_peers.py --tasks calls training --models facet-s mace-small --rounds 3
    python scripts/compare_peers.py --models facet-s "facet-s (compiled)" "facet-s (6 Å)"
    python scripts/compare_peers.py --summary data/results/peers.json

Of a model of ours, (torch) is that without kernels in C, (compiled) that with `compile=True`, and
(6 Å) that with another cutoff. `nequip-preset-S (compiled)` is what its package compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmark import untrained
from machine import machine
from peer_processes import PEERS, Model, Worker, WorkerError, command, environment, environments
from peer_report import REFERENCE, Row, compared, draw, flatness, show, targets
from peer_tasks import Task, as_fields, tasks
from rich.console import Console
from rich.progress import Progress

from mlip.allocator import VARIABLES
from mlip.atomic import atomic_write
from mlip.errors import ConfigError, MLIPError
from mlip.potential_file import save_potential

ROOT = Path(__file__).resolve().parents[1]
OURS = (
    *("facet-s", "facet-xs", "nequip-s", "facet-s (6 Å)", "nequip-s (6 Å)"),
    *("facet-s (compiled)", "nequip-s (compiled)", "facet-s (torch)"),
)
WARM_UP, TURN = 0.5, 0.25  # seconds that these last, unless once takes longer
FRESH_RUNS = 2  # of a new process, for its memory: the optimiser's is there after the first


class Bench:
    """All models and their processes."""

    def __init__(
        self, models: Sequence[Model], pythons: Mapping[str, Path], reference: str
    ) -> None:
        self.pythons, self.reference = pythons, reference
        self.workers: dict[tuple[str, str | None], Worker] = {}
        self.models: list[Model] = []
        self.about: dict[str, Row] = {}  # of each model that could be loaded
        self.versions: dict[str, dict[str, str]] = {}
        self.left_out: list[str] = []
        for model in models:
            try:
                self._load(model)
            except WorkerError as error:
                self.left_out.append(f"{model.name}: cannot be loaded: {error}")

    def _load(self, model: Model) -> None:
        told = self.worker(model).load(model)
        self.versions[model.package] = told.pop("versions")
        self.about[model.name] = {"package": model.package, **told}
        self.models.append(model)

    def worker(self, model: Model) -> Worker:
        """The process that has a model; a new one with the same models if it has ended."""
        key = (model.package, model.kernels)
        if key in self.workers and not self.workers[key].alive:
            self.workers.pop(key).close()
        if key not in self.workers:
            self.workers[key] = Worker(self.pythons[model.package], model)
            for other in self.models:
                if (other.package, other.kernels) == key:
                    self.workers[key].load(other)
        return self.workers[key]

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()

    def measure(self, task: Task, rounds: int) -> list[Row]:
        """Do a task with every model that it is for; an error is a row too."""
        models = [m for m in self.models if task.peers or m.package == "mlip"]
        if task.kind == "start-up":  # is the same with another cutoff
            models = [m for m in models if "cutoff" not in m.options]
        kind = _StartUp if task.kind == "start-up" else _Memory if task.fresh else _Turns
        series = kind(self, models, task)
        rows = series.rows(min(rounds, task.turns or rounds))
        compared(rows, self.about, self.reference)
        return [{k: v for k, v in row.items() if k != "per_round"} for row in rows]


class _Series:
    """A task done in rounds; a model that fails is out."""

    def __init__(self, bench: Bench, models: Sequence[Model], task: Task) -> None:
        self.bench, self.models, self.task = bench, models, task
        self.fields = [as_fields(atoms) for atoms in task.structures]

    def prepare(self, model: Model) -> None:
        """Do what comes before the first round."""

    def turn(self, model: Model) -> Row:
        """Return what is measured in a round, lists of numbers."""
        raise NotImplementedError

    def rows(self, rounds: int) -> list[Row]:
        """Do all rounds."""
        turns: dict[str, list[Row]] = {model.name: [] for model in self.models}
        errors: dict[str, str] = {}
        for k in range(rounds + 1):
            for model in self.models:
                if model.name in errors:
                    continue
                try:
                    if k == 0:
                        self.prepare(model)
                    else:
                        turns[model.name].append(self.turn(model))
                except WorkerError as error:
                    errors[model.name] = str(error)
        out = []
        for name, found in turns.items():
            row = {"task": self.task.name, "model": name, "atoms": self.task.atoms}
            out.append(row | ({"error": errors[name]} if name in errors else self.values(found)))
        return out

    def values(self, turns: Sequence[Row]) -> Row:
        """What is reported of a model: of all turns the least, for comparison one value a turn."""
        per = self.task.per_run
        least = {
            key: round(min(min(turn[key]) for turn in turns) / per, 3)
            for key in ("cpu_ms", "wall_ms")
        }
        per_round = [median(turn["cpu_ms"]) for turn in turns]
        return {"unit": self.task.unit, **least, "per_round": per_round}


class _Turns(_Series):
    def prepare(self, model: Model) -> None:
        worker = self.bench.worker(model)
        more = {"kind": self.task.kind, "structures": self.fields, "steps": self.task.steps}
        worker.ask("prepare", model, **more)
        worker.ask("run", model, at_least=1, seconds=WARM_UP)

    def turn(self, model: Model) -> Row:
        return self.bench.worker(model).ask("run", model, at_least=1, seconds=TURN)


class _Memory(_Series):
    """What the first runs of a new process take above what it had before them."""

    def turn(self, model: Model) -> Row:
        worker = Worker(self.bench.pythons[model.package], model)
        try:
            worker.load(model)
            more = {"kind": self.task.kind, "structures": self.fields, "steps": self.task.steps}
            worker.ask("prepare", model, **more)
            return worker.ask("run", model, at_least=FRESH_RUNS, seconds=0)
        finally:
            worker.close()

    def values(self, turns: Sequence[Row]) -> Row:
        peaks = [turn["memory_mib"] for turn in turns]
        per_atom = round(1024 * max(peaks) / self.task.atoms, 1)
        return {"memory_mib": round(max(peaks), 1), "kib_per_atom": per_atom, "per_round": peaks}


class _StartUp(_Series):
    """A user's whole process; ours reads a potential file."""

    def turn(self, model: Model) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            options = dict(model.options)
            if model.package == "mlip":
                options["file"] = str(Path(folder, "potential.safetensors"))
                save_potential(options["file"], untrained(options["name"], set(range(1, 90))))
            request = json.dumps({"options": options, "structures": self.fields})
            words = [*command(self.bench.pythons[model.package], model), "--once", request]
            start = time.perf_counter()
            process = subprocess.Popen(
                words, env=environment(model), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.stderr.close()
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise WorkerError(said[-1] if said else f"its process ended ({process.returncode})")
        return {"cpu_ms": [1e3 * (usage.ru_utime + usage.ru_stime)], "wall_ms": [1e3 * wall]}


def chosen(names: Sequence[str] | None) -> tuple[list[Task], list[str]]:
    """Return the tasks that are asked for, by name or by group, and what is left out."""
    everything, missing = tasks()
    known = {t.group for t in everything} | {t.name for t in everything}
    for name in names or ():
        if name not in known:
            wanting = f" ({'; '.join(missing)})" if missing else ""
            raise ConfigError(
                f"there is no task {name!r}; there are {', '.join(sorted(known))}{wanting}"
            )
    return [t for t in everything if not names or {t.name, t.group} & set(names)], missing


def run(options: argparse.Namespace, console: Console) -> Row:
    """Measure what is asked for; what there is is written after every task."""
    models = [Model.named(name) for name in options.models]
    work, left_out = chosen(options.tasks)
    pythons, missing = environments(options.peers, models)
    for line in missing:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    models = [m for m in models if m.package in pythons]
    if not models:
        raise ConfigError("none of the models is installed, so there is nothing to measure")
    reference = REFERENCE if REFERENCE in options.models else models[0].name
    start = time.perf_counter()
    bench = Bench(models, pythons, reference)
    left_out += [*missing, *bench.left_out]
    document: Row = {}
    rows: list[Row] = []
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("measuring", total=len(work))
            for task in work:
                progress.update(bar, description=task.name)
                rows += bench.measure(task, options.rounds)
                progress.advance(bar)
                seconds = round(time.perf_counter() - start)
                if not console.is_terminal:
                    print(f"{task.name} done after {seconds} s", flush=True)
                document = {
                    "about": about(options, bench) | {"seconds": seconds},
                    "models": bench.about,
                    "rows": rows,
                    "targets": targets(rows) if reference == REFERENCE else [],
                    "flatness": flatness(rows),
                    "left_out": left_out,
                }
                if options.json:
                    save(document, options.json)
    finally:
        bench.close()
    return document


def about(options: argparse.Namespace, bench: Bench) -> Row:
    """How it was measured, and on what."""
    return {
        "command": command_line(options),
        "rounds": options.rounds,
        "reference": bench.reference,
        "threads": 1,
        "precision": "float32",
        "freed_memory": "kept" if options.keep_freed_memory else "as glibc does it",
        "weights": "random but for sevennet-0 and chgnet, whose packages have them",
        "machine": machine(),
        "versions": bench.versions,
    }


def save(document: Row, path: Path) -> None:
    """Write what was measured."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def command_line(options: argparse.Namespace) -> str:
    """What gave the numbers, without the names of files."""
    words = ["python", "scripts/compare_peers.py"]
    words += ["--tasks", *options.tasks] if options.tasks else []
    words += ["--keep-freed-memory"] if options.keep_freed_memory else []
    words += ["--models", *options.models] if options.models != [*OURS, *PEERS] else []
    return shlex.join([*words, "--rounds", str(options.rounds)]) + " --peers FOLDER --json FILE"


def main() -> None:
    """Measure and show, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", help="calls, training, calls:si64, ...; default all")
    parser.add_argument("--models", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="in all processes, as `mlip.keep_freed_memory()` does",
    )
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="default .peers")
    parser.add_argument("--json", type=Path, help="write what was measured")
    parser.add_argument("--figure", type=Path, help="draw it")
    parser.add_argument("--summary", type=Path, metavar="JSON", help="only show what is in a file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be 1 or more")
    if options.keep_freed_memory:
        os.environ.update(VARIABLES)  # theirs, before they begin
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    try:
        document = (
            json.loads(options.summary.read_text()) if options.summary else run(options, console)
        )
    except MLIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if options.figure:
        draw(document, options.figure)
    show(document, console)


if __name__ == "__main__":
    main()
