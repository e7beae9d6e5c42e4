"""`mlip evaluate`."""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

log = logging.getLogger("mlip")
EPILOG = """example:
  mlip evaluate potential.safetensors test.extxyz --output errors.json
"""
ROWS = (
    ("energy", "energy", "meV", 1e3),
    ("energy_per_atom", "energy per atom", "meV/atom", 1e3),
    ("forces", "force components", "meV/A", 1e3),
    ("stress", "stress components", "meV/A^3", 1e3),
)


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "evaluate",
        help="errors of a potential on labelled data",
        description="Errors with counts, also per element, on any readable data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("potential", metavar="POTENTIAL")
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("--output", metavar="FILE.json", help="write the numbers (eV, A) here")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--energy", choices=["uncorrected", "corrected"], default="uncorrected")
    parser.add_argument("--max-atoms", type=int, default=512, help="atoms per batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from mlip.cli.frame import read_known
    from mlip.errors import DataError
    from mlip.evaluate import batches_of, evaluate_batches
    from mlip.potential_file import load_potential

    potential = load_potential(args.potential, args.device, args.dtype)
    structures = read_known(args.data, potential.species, args.format, energy=args.energy)
    batches = (graph for _, graph in batches_of(structures, potential, args.max_atoms))
    result = evaluate_batches(potential, batches)
    if not result.metrics:
        raise DataError(f"{', '.join(args.data)}: no energies, forces or stresses to compare with")
    if bad := [name for name, value in result.metrics.items() if not math.isfinite(value)]:
        log.warning("predictions are not finite on this data: %s", ", ".join(bad))
    print(f"{result.counts['structures']} structures, {result.counts['atoms']} atoms")
    print(f"{'':20}{'MAE':>10}{'RMSE':>10}  {'unit':10}{'values':>10}")
    for key, label, unit, factor in ROWS:
        if f"{key}_mae" in result.metrics:
            mae, rmse = (factor * result.metrics[f"{key}_{kind}"] for kind in ("mae", "rmse"))
            print(f"{label:20}{mae:10.2f}{rmse:10.2f}  {unit:10}{result.counts[key]:10}")
    if "forces_cos" in result.metrics:
        print(f"{'force cosine':20}{result.metrics['forces_cos']:10.4f}")
    if "forces_slope" in result.metrics:
        print(f"{'force slope':20}{result.metrics['forces_slope']:10.4f}")
    if result.forces_mae_per_element:
        cells = [f"{k} {1e3 * v:.1f}" for k, v in result.forces_mae_per_element.items()]
        print("force MAE by element (meV/A): " + "  ".join(cells))
    if args.output:  # after the numbers are shown: a full disk does not take them along
        from mlip.atomic import atomic_write

        with atomic_write(args.output) as temporary:
            Path(temporary).write_text(json.dumps(result.to_dict(), indent=1))
    return 0
