"""Time models on one thread: calls, training steps, edge blocks, objectives, relaxations, lists.

Seven measurements; what they print is in data/results/ beside the command that gave it:

- models (the default): one calculator call and one training step on crystals and a molecule;
- edge-blocks: energy and forces of Facet-S with its edges in blocks of several sizes. Blocks of one
  edge are the plain way: a message (2l+1, C) for every edge, scattered to its centre;
- profile: where a call and a training step on silicon spend their time: the three functions of the
  compiled sums over neighbours in every layer, with the arithmetic that their shapes ask for, and
  all the rest;
- compile: calls and training steps of compiled and plain potentials, and the seconds it took;
- objectives: one training step (loss and gradients, no optimiser) of each objective on molecules;
- relaxations: a step of a relaxation with the cell, of 16 crystals one after another and together;
- neighbors: from arrays to a batch with its edges on `--device`, by vesin on the CPU and a copy,
  and by the list that finds them on the device. No model.

Process CPU time of one thread, so that other processes on the machine count for little; for lists
on another device, the time that passes until it is done. What is compared is run in turns; the
first turn is not counted.
Run: python scripts/benchmark.py [--measure profile] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ase
import numpy as np
import torch
from ase.build import bulk, molecule
from machine import processor
from torch import nn

from mlip.calculator import MLIPCalculator
from mlip.data.readers import read_structures
from mlip.graph import AtomGraph, collate, structure_arrays
from mlip.models.compiled import compile_potential
from mlip.models.kernels import compiler, neighbor_sum
from mlip.models.paths import Paths
from mlip.models.potential import Potential
from mlip.models.registry import PotentialSpec, build_potential, resolve_options
from mlip.potential_file import resolve_device
from mlip.relax import Relaxer
from mlip.training.config import load_config
from mlip.training.loss import HuberLoss
from mlip.training.objectives import OBJECTIVES, make_objective

MOLECULES = Path(__file__).parents[1] / "data" / "omol-mini"
EVERY = 5  # of its molecules
TOGETHER, RELAXATION = 16, 5  # crystals side by side; steps of each
LISTS = (5.0, 6.0)  # Å
BLOCKS = (1, 8, 16, 32)
CUTOFFS = (5.0, 6.665)  # Å; 28 and 60 neighbours in silicon

Row = dict[str, Any]
Calls = Mapping[str, Callable[[], object]]
Clock = Callable[[], float]


def structures() -> dict[str, ase.Atoms]:
    """Silicon of three sizes, rock salt and a molecule."""
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


def untrained(
    model: str, species: set[int], neighbours: float = 30.0, *, periodic: bool = True, **own: Any
) -> Potential:
    """Return a potential with fresh weights: a choice of conf/model for `species`."""
    options = dict(load_config([f"model={model}"])["model"]) | own
    options.pop("prior")
    name = options.pop("name")
    options = resolve_options(name, options, periodic=periodic)
    known = tuple(sorted(species))
    torch.manual_seed(0)
    return build_potential(
        PotentialSpec(name, options, known, (dict.fromkeys(known, 0.0),), neighbours)
    )


def milliseconds(
    calls: Calls, turns: int, clock: Clock = time.process_time
) -> Iterator[list[float]]:
    """Yield after a turn of nothing but warming up, `turns` times, the time of each call."""
    for turn in range(turns + 1):
        times = []
        for call in calls.values():
            start = clock()
            call()
            times.append(1e3 * (clock() - start))
        if turn:
            yield times


def medians(calls: Calls, turns: int, clock: Clock = time.process_time) -> dict[str, float]:
    """Return the median time of each call, ms."""
    columns = zip(*milliseconds(calls, turns, clock), strict=True)
    return dict(zip(calls, map(median, columns), strict=True))


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the shortest CPU time of a call, ms."""
    return min(times[0] for times in milliseconds({"": call}, repeats))


def forces(potential: Potential, graph: AtomGraph) -> torch.Tensor:
    """Call it."""
    with torch.no_grad():
        return potential(graph).forces


def training_step(potential: Potential, graph: AtomGraph) -> torch.Tensor:
    """Return the forces after a step without optimiser."""
    out = potential(graph)
    (out.forces.square().mean() + out.energy.square().mean()).backward()
    return out.forces.detach()


WORK = {"call": forces, "training step": training_step}


def measure_models(models: list[str], repeats: int) -> Iterator[Row]:
    """Time one calculator call and one training step."""
    for name in models:
        for label, atoms in structures().items():
            potential = untrained(name, set(atoms.numbers.tolist()))
            graph = AtomGraph.from_atoms(atoms, potential.cutoff)
            training = fastest(partial(training_step, potential, graph), repeats)
            moved = atoms.copy()
            moved.calc = MLIPCalculator(potential, device="cpu")

            def call(moved: ase.Atoms = moved) -> None:
                moved.positions += np.float64(1e-9)
                moved.get_forces()

            yield {
                "model": name, "structure": label, "atoms": len(atoms),
                "edges": graph.edge_index.shape[1],
                "calculator_ms": round(fastest(call, repeats), 2),
                "training_step_ms": round(training, 2),
            }  # fmt: skip


def measure_edge_blocks(models: list[str], repeats: int) -> Iterator[Row]:
    """Time energy and forces with edges in blocks of `BLOCKS`; all must agree."""
    atoms = structures()["si64"]
    for name in models:
        for cutoff in CUTOFFS:
            potential = untrained(name, {14}, cutoff=cutoff).freeze()
            graph = AtomGraph.from_atoms(atoms, cutoff)

            def blocked(
                block: int, potential: Potential = potential, graph: AtomGraph = graph
            ) -> torch.Tensor:
                plain = patch.dict(os.environ, MLIP_KERNELS="torch")
                with plain, patch("mlip.models.edges.BLOCK", block):
                    return forces(potential, graph)

            calls = {str(block): lambda block=block: blocked(block) for block in BLOCKS}
            for call in calls.values():  # single precision
                torch.testing.assert_close(call(), blocked(1), rtol=1e-4, atol=1e-5)
            times = medians(calls, repeats)
            for block, value in times.items():
                yield {
                    "model": name, "structure": "si64",
                    "neighbours": round(graph.edge_index.shape[1] / len(atoms), 1),
                    "block": int(block), "forces_ms": round(value, 2),
                    "faster_than_scatter": round(times["1"] / value, 2),
                }  # fmt: skip


def measure_profile(models: list[str], repeats: int) -> Iterator[Row]:
    """Time the compiled functions within a call and within a training step."""
    atoms = structures()["si64"]
    for name in models:
        potential = untrained(name, {14})
        frozen = copy.deepcopy(potential).freeze()
        graph = AtomGraph.from_atoms(atoms, potential.cutoff)
        for (label, work), own in zip(WORK.items(), (frozen, potential), strict=True):
            total, parts = fastest_parts(partial(work, own, graph), repeats)
            edges = graph.edge_index.shape[1]
            for (function, layer), ms in parts.items():
                operations = edges * arithmetic(layer, function)
                yield {
                    "model": name,
                    "structure": "si64",
                    "of": label,
                    "part": f"{function}, {len(layer.products)} products",
                    "ms": round(ms, 2),
                    "mflop": round(operations / 1e6, 1),
                    "gflop_per_s": round(operations / ms / 1e6, 1),
                }
            rest = total - sum(parts.values())
            yield {"model": name, "of": label, "part": "all the rest", "ms": round(rest, 2)}
            yield {"model": name, "of": label, "part": "in all", "ms": round(total, 2)}


def fastest_parts(
    work: Callable[[], object], repeats: int
) -> tuple[float, dict[tuple[str, Paths], float]]:
    """Return the shortest CPU time of `work`, ms, and what compiled functions took of it."""
    run = neighbor_sum.Kernel.run
    best: tuple[float, dict[tuple[str, Paths], float]] = (float("inf"), {})
    parts: dict[tuple[str, Paths], float] = {}

    def timed(kernel: Any, function: str, *args: Any) -> Any:
        start = time.process_time()
        out = run(kernel, function, *args)
        key = function, kernel.paths
        parts[key] = parts.get(key, 0.0) + 1e3 * (time.process_time() - start)
        return out

    with patch.object(neighbor_sum.Kernel, "run", timed):
        for _ in range(repeats + 2):  # two to warm up
            parts.clear()
            start = time.process_time()
            work()
            total = 1e3 * (time.process_time() - start)
            best = min(best, (total, dict(parts)), key=lambda pair: pair[0])
    return best


def arithmetic(layer: Paths, function: str) -> int:
    """Floating-point operations per edge that `neighbor_sum.c` has to do, without radial weights.

    A product multiplies its channels with weights, then with the coupled harmonics, (2l3+1) times
    (2l1+1) of them; its gradient has two such products and one sum over channels, and the second
    derivative twice that.
    """
    total = 0
    for (_, (l1, l2, l3), _), channels in zip(layer.products, layer.widths, strict=True):
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        couple, scale, product = 2 * d1 * d2 * d3, d1 * channels, 2 * d1 * d3 * channels
        total += {
            "forward": couple + scale + product,
            "backward": 2 * couple + 5 * scale + 2 * product,
            "backward_twice": 3 * couple + 14 * scale + 5 * product,
        }[function]
    return total


def measure_compile(models: list[str], repeats: int) -> Iterator[Row]:
    """Time calls and training steps of compiled and plain potentials in turns."""
    every = {k: structures()[k] for k in ("si8", "ethanol9", "si64")}
    species = {int(z) for atoms in every.values() for z in atoms.numbers}
    for name, (of, work) in product(models, WORK.items()):
        plain = untrained(name, species)
        for parameter in plain.parameters():  # fresh ones give hardly any forces
            parameter.data += 0.02 * torch.randn_like(parameter)
        if of == "call":
            plain.freeze()
        ours, seconds = compile_potential(copy.deepcopy(plain)), 0.0
        for label, atoms in every.items():
            graph = AtomGraph.from_atoms(atoms, plain.cutoff)
            start = time.perf_counter()
            found = work(ours, graph)
            seconds = seconds or time.perf_counter() - start
            torch.testing.assert_close(found, work(plain, graph), rtol=1e-4, atol=1e-4)
            calls = {str(p is ours): partial(work, p, graph) for p in (plain, ours)}
            slow, fast = medians(calls, repeats).values()
            yield {
                "model": name, "structure": label, "of": of, "plain_ms": round(slow, 2),
                "compiled_ms": round(fast, 2), "faster": round(slow / fast, 2),
                "compiling_s": round(seconds),
            }  # fmt: skip


def measure_objectives(models: list[str], repeats: int) -> Iterator[Row]:
    """Time a training step of each objective on a batch of molecules."""
    frames = list(islice(read_structures(MOLECULES), 0, None, EVERY))
    species = {int(z) for atoms in frames for z in atoms.numbers}
    loss = HuberLoss(1.0, 3.0, 0.0, delta=0.5, force_scale=1.0)
    for name in models:
        potential = untrained(name, species, periodic=False)
        graph = collate([AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in frames])

        calls = {}
        for objective in OBJECTIVES:
            options = load_config([f"objective={objective}"])["objective"]
            taught = make_objective(options, potential, loss)
            calls[objective] = partial(_step, taught, potential, graph, loss)
        times = medians(calls, repeats)
        for objective, value in times.items():
            yield {
                "model": name,
                "structures": len(frames),
                "atoms": len(graph.atomic_numbers),
                "edges": graph.edge_index.shape[1],
                "objective": objective,
                "step_ms": round(value, 1),
                "relative_to_standard": round(value / times["standard"], 3),
            }


def _step(taught: nn.Module, potential: Potential, graph: AtomGraph, loss: HuberLoss) -> None:
    taught(potential, graph, loss, 1.0).loss.backward()


def measure_relaxations(models: list[str], repeats: int) -> Iterator[Row]:
    """Time relaxations of a fixed number of steps."""
    for name in models:
        for atoms in (bulk("Si"), bulk("Si", cubic=True), bulk("Si", cubic=True) * (2, 1, 1)):
            rng = np.random.default_rng(0)
            crystals = [atoms.copy() for _ in range(TOGETHER)]
            for crystal in crystals:
                crystal.positions += rng.normal(scale=0.02, size=(len(atoms), 3))
            potential = untrained(name, set(atoms.numbers.tolist()))
            for parameter in potential.parameters():  # fresh ones give no forces: nothing to do
                parameter.data += 0.02 * torch.randn_like(parameter)
            relaxer = Relaxer(potential, fmax=1e-9, steps=RELAXATION, device="cpu")
            times = medians(
                {
                    "alone": lambda r=relaxer, c=crystals: [r.relax(crystal) for crystal in c],
                    "together": lambda r=relaxer, c=crystals: r.relax_many(c, at_once=TOGETHER),
                },
                repeats,
            )
            results = relaxer.relax_many(crystals)
            if any(isinstance(r, Exception) or r.n_steps < RELAXATION for r in results):
                raise RuntimeError(f"{name}: a relaxation ended before {RELAXATION} steps")
            steps = TOGETHER * (RELAXATION + 1)
            yield {
                "model": name,
                "atoms": len(atoms),
                "alone_step_ms": round(times["alone"] / steps, 2),
                "together_step_ms": round(times["together"] / steps, 2),
                "faster": round(times["alone"] / times["together"], 2),
            }


def measure_neighbors(models: list[str], repeats: int, device: torch.device) -> Iterator[Row]:
    """Time both ways to a batch with edges on `device`; the edges must be the same."""
    cubic = bulk("Si", "diamond", a=5.43, cubic=True)
    small = [
        bulk("Si"),
        cubic,
        bulk("Si") * (2, 1, 1),
        bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    ]
    batches = {f"si{8 * k**3}": [cubic * (k, k, k)] for k in (2, 5, 10)}
    batches["32 crystals"] = [atoms.copy() for atoms in small * 8]

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    for label, crystals in batches.items():
        for seed, atoms in enumerate(crystals):
            atoms.rattle(0.05, seed=seed)
        arrays = [structure_arrays(atoms) for atoms in crystals]
        for cutoff in LISTS:

            def batch(on_device: bool, arrays: Any = arrays, cutoff: float = cutoff) -> AtomGraph:
                with patch("mlip.graph._finds_neighbors", lambda _: on_device):
                    return AtomGraph.connected(arrays, cutoff, device)

            vesin, found = batch(False), batch(True)
            if not torch.equal(_sorted_edges(vesin), _sorted_edges(found)):
                raise RuntimeError(f"{label}: the edges within {cutoff} A are not the same")
            calls = {"vesin": partial(batch, False), "device": partial(batch, True)}
            times = medians(calls, repeats, clock)
            atoms, edges = len(vesin.atomic_numbers), vesin.edge_index.shape[1]
            yield {
                "structure": label,
                "atoms": atoms,
                "cutoff": cutoff,
                "neighbours": round(edges / atoms, 1),
                "on": str(device),
                "vesin_us_per_atom": round(1e3 * times["vesin"] / atoms, 2),
                "device_us_per_atom": round(1e3 * times["device"] / atoms, 2),
                "faster": round(times["vesin"] / times["device"], 2),
            }


def _sorted_edges(graph: AtomGraph) -> torch.Tensor:
    edges = torch.cat([graph.edge_index.T, graph.edge_shift], dim=1)
    return torch.unique(edges, dim=0)


MEASURES = {  # with the models that are measured unless others are asked for
    "models": (measure_models, ["facet-xs", "facet-s"]),
    "compile": (measure_compile, ["facet-s", "nequip-s"]),
    "profile": (measure_profile, ["facet-s", "nequip-s"]),
    "edge-blocks": (measure_edge_blocks, ["facet-s"]),
    "objectives": (measure_objectives, ["transip-tiny", "transip-s", "facet-s"]),
    "relaxations": (measure_relaxations, ["facet-xs", "facet-s"]),
    "neighbors": (measure_neighbors, []),
}


def main() -> None:
    """Print a table, and write it with the command if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=MEASURES, default="models")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", help="choices of conf/model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of neighbors; the others are on the CPU")
    args = parser.parse_args()
    if args.device != "cpu" and args.measure != "neighbors":
        parser.error(f"--device is for --measure neighbors; {args.measure} runs on the CPU")
    torch.set_num_threads(1)
    measure, models = MEASURES[args.measure]
    if args.measure == "neighbors":
        measure = partial(measure_neighbors, device=resolve_device(args.device))
    rows = []
    for row in measure(args.models or models, args.repeats):
        rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.json:
        given = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
        about = {
            "command": " ".join(["python scripts/benchmark.py", *given, "--json FILE"]),
            "torch": torch.__version__,
            "machine": processor(),
            "threads": 1,
            "kernels": "compiled" if compiler.usable() else "torch",
        }
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
