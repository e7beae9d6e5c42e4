"""`mlip evaluate`."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlip.evaluate import Evaluation
    from mlip.graph import AtomGraph

log = logging.getLogger("mlip")
NAMELESS: Final = "(none)"  # structures without what --by asks for
LINES: Final = 40  # that --by prints; a file has all
EPILOG = """examples:
  mlip evaluate potential.safetensors test.extxyz --output errors.json
  mlip evaluate potential.safetensors my.extxyz data.keys.energy=dft data.stress_unit=kbar
  mlip evaluate potential.safetensors omol25/val --by data_id

data.keys.*, data.*_unit, data.stress_sign, data.stress_voigt, data.energy, data.on_bad and
data.format mean what they mean to `mlip train`.
"""


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
    parser.add_argument("data", nargs="+", metavar="DATA | data.KEY=VALUE")
    parser.add_argument("--output", metavar="FILE.json", help="write the numbers (eV, A) here")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--energy", choices=["uncorrected", "corrected"], default="uncorrected")
    parser.add_argument("--max-atoms", type=int, default=512, help="atoms per batch")
    parser.add_argument(
        "--turned", action="store_true", help="turn every structure at random first (fixed seed)"
    )
    parser.add_argument(
        "--by", metavar="KEY", help="also by this info entry: config_type, data_id, charge, ..."
    )
    parser.add_argument("--head", metavar="NAME", help="level of theory, if it knows several")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from mlip.cli.frame import read_known
    from mlip.cli.reading import split_words
    from mlip.errors import DataError
    from mlip.evaluate import NamedErrors, batches_of, evaluate_batches
    from mlip.potential_file import load_potential
    from mlip.symmetry import turned

    files, options = split_words(args.data)
    options = {"format": args.format, "energy": args.energy, **options}
    if args.by is not None:
        options["info_keys"] = (args.by,)
    named = options.get("keys", {})
    potential = load_potential(args.potential, args.device, args.dtype)
    known = potential.species_of(potential.head_index(args.head))
    structures = read_known(files, known, options.pop("format"), **options)
    waiting: deque[list[str]] = deque()  # names in the batches that are not evaluated yet
    by_name = NamedErrors()

    def batches() -> Iterator[AtomGraph]:
        for some, graph in batches_of(structures, potential, args.max_atoms, args.head):
            if args.by is not None:
                waiting.append([str(atoms.info.get(args.by, NAMELESS)) for atoms in some])
            yield graph

    stream = batches()
    if args.turned:
        stream = turned(stream)
    elif potential.symmetry == "none":
        log.warning(
            "this potential has no exact rotation symmetry and these are errors in the file's "
            "orientations; --turned gives those in random ones"
        )
    result = evaluate_batches(
        potential,
        stream,
        observe=(lambda prediction, graph: by_name.update(prediction, graph, waiting.popleft()))
        if args.by is not None
        else None,
    )
    if not result.metrics:
        raise DataError(f"{', '.join(files)}: no energies, forces or stresses to compare with")
    for label, name in named.items():
        if not result.counts["stress" if label == "virial" else label]:
            raise DataError(f"{', '.join(files)}: no structure has {name!r} (data.keys.{label})")
    if bad := [name for name, value in result.metrics.items() if not math.isfinite(value)]:
        log.warning("predictions are not finite on this data: %s", ", ".join(bad))
    parts = by_name.evaluations()
    _show(result)
    if args.by is not None:
        _show_parts(args.by, parts)
    if args.output:  # after the numbers are shown: a full disk does not take them along
        from mlip.atomic import atomic_write

        content = result.to_dict()
        if args.by is not None:
            content["by"] = {args.by: {name: part.to_dict() for name, part in parts.items()}}
        with atomic_write(args.output) as temporary:
            Path(temporary).write_text(json.dumps(content, indent=1))
    if list(parts) == [NAMELESS]:  # after what is known without it
        raise DataError(f"{', '.join(files)}: no structure has {args.by!r} (--by {args.by})")
    return 0


def _show(result: Evaluation) -> None:
    from mlip.quantities import MILLI, QUANTITIES

    print(f"{result.counts['structures']} structures, {result.counts['atoms']} atoms")
    print(f"{'':20}{'MAE':>10}{'RMSE':>10}  {'unit':10}{'values':>10}")
    for q in QUANTITIES.values():
        if f"{q.name}_mae" in result.metrics:
            mae, rmse = (MILLI * result.metrics[f"{q.name}_{kind}"] for kind in ("mae", "rmse"))
            counted = result.counts[q.name]
            print(f"{q.words:20}{mae:10.2f}{rmse:10.2f}  {q.ascii_unit:10}{counted:10}")
    if "forces_cos" in result.metrics:
        print(f"{'force cosine':20}{result.metrics['forces_cos']:10.4f}")
    if "forces_slope" in result.metrics:
        print(f"{'force slope':20}{result.metrics['forces_slope']:10.4f}")
    if result.forces_mae_per_element:
        cells = [f"{k} {MILLI * v:.1f}" for k, v in result.forces_mae_per_element.items()]
        unit = QUANTITIES["forces"].ascii_unit
        print(f"force MAE by element ({unit}): " + "  ".join(cells))


def _show_parts(key: str, parts: Mapping[str, Evaluation]) -> None:
    """Print a line of mean absolute errors for each value of an info key."""
    from mlip.quantities import MILLI, QUANTITIES

    shown = [
        q
        for q in QUANTITIES.values()
        if any(f"{q.name}_mae" in part.metrics for part in parts.values())
    ]
    largest = sorted(parts, key=lambda name: -parts[name].counts["structures"])[:LINES]
    names = sorted(largest, key=_as_number)
    width = max(map(len, (key, *names))) + 2
    heads = "".join(f"{q.ascii_unit:>12}" for q in shown)
    print(f"\nMAE of {', '.join(q.words for q in shown)}, by {key}:")
    print(f"{key:{width}}{'structures':>10}{heads}")
    for name in names:
        part = parts[name]
        values = (part.metrics.get(f"{q.name}_mae") for q in shown)
        cells = "".join(f"{'' if v is None else f'{MILLI * v:.2f}':>12}" for v in values)
        print(f"{name:{width}}{part.counts['structures']:>10}{cells}")
    if len(parts) > len(names):
        print(f"and {len(parts) - len(names)} more, of fewer structures: --output has them all")


def _as_number(name: str) -> tuple[float, str]:
    """Order numbers by their size, and what is none behind them."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name
