"""Check, then time, models on a GPU: with PyTorch's sums over neighbours and with Triton's.

For each model and kind of kernels: first the largest errors of energies, forces, virial and of the
gradients of a training step against float64 on the CPU, relative to the largest value; what is
further off than `TOLERANCE` ends the run. Then, for silicon of growing size, milliseconds of wall
time of energy, forces and stress (Triton's also captured as CUDA graphs, which compare themselves
with the plain way) and of a training step, and the memory at its peak. With
`--matmul high` matrix products are TF32; the errors show what that costs.

    python scripts/benchmark_gpu.py --json data/results/gpu.json
    python scripts/benchmark_gpu.py --matmul high --json data/results/gpu-tf32.json
    python scripts/benchmark_gpu.py --device cpu --models facet-xs --sizes 8      (tries the script)

What is compared runs in turns. The first turn compiles and is not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from benchmark import untrained
from gpu_timing import milliseconds, silicon

from mlip.graph import AtomGraph
from mlip.models.captured import LARGEST
from mlip.models.compiled import compile_potential
from mlip.models.potential import Potential
from mlip.potential_file import package_versions

TOLERANCE = {"highest": 1e-4, "high": 3e-2, "medium": 3e-1}  # relative to the largest value
CHECKED = 64  # atoms
CAPTURED = "triton, captured"  # compile=True
SIZES = (8, 64, 512, 4096, 21952)  # atoms: cubes of the cubic cell of silicon
Row = dict[str, Any]


def with_forces(model: str) -> Potential:
    """An untrained model with all weights drawn at random: fresh ones give no forces."""
    potential = untrained(model, {14})
    for parameter in potential.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return potential


def training_step(potential: Potential, graph: AtomGraph) -> dict[str, torch.Tensor]:
    """Take the gradients of a loss of everything that is trained on; return what went in."""
    potential.zero_grad(set_to_none=True)
    out = potential(graph)
    found = {"energies": out.node_energy, "forces": out.forces, "virial": out.virial}
    sum(x.square().mean() for x in found.values()).backward()  # type: ignore[union-attr]
    return found


def numbers(potential: Potential, graph: AtomGraph) -> dict[str, torch.Tensor]:
    """Return what is compared, in float64 on the CPU."""
    found = training_step(potential, graph)
    found["gradients"] = torch.cat(
        [p.grad.flatten() for p in potential.parameters() if p.grad is not None]
    )
    return {name: x.detach().double().cpu() for name, x in found.items()}


def errors(
    potential: Potential, graph: AtomGraph, exact: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Return the largest differences relative to the largest values."""
    return {
        name: float((x - exact[name]).abs().max() / exact[name].abs().max())
        for name, x in numbers(potential, graph).items()
    }


def measure(model: str, args: argparse.Namespace) -> Iterator[Row]:
    """Check a model with each kind of kernels, then time both at each size."""
    kinds = ("torch", "triton") if args.device != "cpu" else ("torch", "compiled")
    fresh = with_forces(model)
    graph = AtomGraph.from_atoms(silicon(CHECKED), fresh.cutoff)
    exact = numbers(copy.deepcopy(fresh).double(), graph)
    potential = copy.deepcopy(fresh).to(args.device)
    for kernels in kinds:
        with patch.dict(os.environ, MLIP_KERNELS=kernels):
            found = errors(potential, graph.to(args.device), exact)
        yield {"model": model, "kernels": kernels, "errors": found}
        if worst := [k for k, v in found.items() if not v < TOLERANCE[args.matmul]]:
            raise SystemExit(f"{model} with {kernels}: {', '.join(worst)} are wrong: {found}")
    if args.device != "cpu":
        yield check_captured(model, potential, graph.to(args.device), exact, args.matmul)
    for atoms in args.sizes:
        yield from times(model, potential, atoms, kinds, args)


def check_captured(
    model: str, potential: Potential, graph: AtomGraph, exact: dict[str, torch.Tensor], matmul: str
) -> Row:
    """Compare what a capture replays with float64 on the CPU."""
    with patch.dict(os.environ, MLIP_KERNELS="triton"), torch.no_grad():
        captured = compile_potential(copy.deepcopy(potential).freeze())
        captured(graph)  # met
        captured(graph)  # captured
        out = captured(graph)
    found = {"energies": out.node_energy, "forces": out.forces, "virial": out.virial}
    off = {
        name: float((x.double().cpu() - exact[name]).abs().max() / exact[name].abs().max())
        for name, x in found.items()
    }
    if not max(off.values()) < TOLERANCE[matmul]:
        raise SystemExit(f"{model}, captured, is wrong: {off}")
    return {"model": model, "kernels": CAPTURED, "errors": off}


def times(
    model: str, potential: Potential, atoms: int, kinds: Sequence[str], args: argparse.Namespace
) -> Iterator[Row]:
    """Time calls and training steps of one size."""
    graph = AtomGraph.from_atoms(silicon(atoms), potential.cutoff).to(args.device)
    frozen = copy.deepcopy(potential).freeze()
    calls = {kernels: called(frozen, graph) for kernels in kinds}
    if args.device != "cpu" and graph.edge_index.shape[1] <= LARGEST:
        with patch.dict(os.environ, MLIP_KERNELS="triton"):
            calls[CAPTURED] = called(compile_potential(copy.deepcopy(frozen)), graph)
            calls[CAPTURED]()  # a size is captured when it is met again: in the turn not counted
    steps = {kernels: partial(training_step, potential, graph) for kernels in kinds}
    for label, ways in (("call", calls), ("training step", steps)):
        taken: dict[str, list[float]] = {way: [] for way in ways}
        peak = dict.fromkeys(ways, 0.0)
        for turn in range(args.repeats + 1):
            for way, call in ways.items():
                kernels = "triton" if way == CAPTURED else way
                with patch.dict(os.environ, MLIP_KERNELS=kernels):
                    if args.device != "cpu":
                        torch.cuda.reset_peak_memory_stats()
                    ms = milliseconds(call, args.device)
                if turn:
                    taken[way].append(ms)
                if args.device != "cpu" and way != CAPTURED:  # whose memory is kept, not allocated
                    peak[way] = torch.cuda.max_memory_allocated() / 1024**2
        for way in ways:
            yield {
                "model": model,
                "atoms": atoms,
                "edges": graph.edge_index.shape[1],
                "of": label,
                "kernels": way,
                "ms": round(median(taken[way]), 3),
                "us_per_atom": round(1e3 * median(taken[way]) / atoms, 3),
                "peak_mib": round(peak[way], 1),
            }


def called(potential: Potential, graph: AtomGraph) -> Callable[[], object]:
    """What the calculator does of a call."""

    def call() -> object:
        with torch.no_grad():
            return potential(graph)

    return call


def main() -> None:
    """Print a table, and write it with the command if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["facet-s", "facet-m", "nequip-s"])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="atoms")
    parser.add_argument("--matmul", choices=TOLERANCE, default="highest", help="of float32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: --device cpu tries the script")
    torch.set_float32_matmul_precision(args.matmul)
    rows = []
    for model in args.models:
        for row in measure(model, args):
            rows.append(row)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if args.json:
        given = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
        about = {
            "command": " ".join(["python scripts/benchmark_gpu.py", *given, "--json FILE"]),
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "versions": package_versions(),
        }
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
