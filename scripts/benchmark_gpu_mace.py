"""MACE on a GPU, with and without cuEquivariance, on what benchmark_gpu.py times.

Milliseconds of wall time of energy, forces and stress and of the gradients of a training step of
silicon, neighbours given. It runs in MACE's own environment (scripts/install_peers.sh FOLDER mace,
with PyTorch for CUDA and `cuequivariance-torch cuequivariance-ops-torch-cu12` beside it):

    FOLDER/mace/bin/python scripts/benchmark_gpu_mace.py --json gpu-mace.json
    FOLDER/mace/bin/python scripts/benchmark_gpu_mace.py --cutoff 5     (as many neighbours as ours)
    FOLDER/mace/bin/python scripts/benchmark_gpu_mace.py --device cpu --sizes 8   (tries the script)

Without cuEquivariance that half is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_timing import milliseconds, silicon
from peer_packages import Mace

SIZES = (8, 64, 512, 4096)
MODELS = ("mace-small", "mace-medium")


def measure(model: str, cueq: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one model at all sizes."""
    subject = Mace(model, device=args.device, cueq=cueq)
    subject.cutoff = args.cutoff
    rows = []
    for atoms in args.sizes:
        module, predict, call = subject.on_device(silicon(atoms))

        def step(
            module: torch.nn.Module = module,
            predict: Callable[[], dict[str, torch.Tensor]] = predict,
        ) -> None:
            module.zero_grad(set_to_none=True)
            torch.stack([x.square().mean() for x in predict().values()]).sum().backward()

        for label, action in (("call", call), ("training step", step)):
            taken = [milliseconds(action, args.device) for _ in range(args.repeats + 1)][1:]
            rows.append(
                {
                    "model": model,
                    "cuequivariance": cueq,
                    "atoms": atoms,
                    "of": label,
                    "ms": round(median(taken), 3),
                    "us_per_atom": round(1e3 * median(taken) / atoms, 3),
                }
            )
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Print a table, and write it with the command if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="atoms")
    parser.add_argument("--cutoff", type=float, default=Mace.cutoff, help="A")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: --device cpu tries the script")
    ways = [False] if find_spec("cuequivariance_torch") is None else [False, True]
    if len(ways) == 1:
        print("cuequivariance_torch is not installed: left out")
    rows = [row for model in args.models for way in ways for row in measure(model, way, args)]
    if args.json:
        given = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
        about = {
            "command": " ".join(["python scripts/benchmark_gpu_mace.py", *given, "--json FILE"]),
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "versions": {
                d.name: d.version
                for d in distributions()
                if d.name in ("mace-torch", "torch", "e3nn") or "equivariance" in d.name
            },
        }
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
