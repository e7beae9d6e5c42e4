"""`mlip compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """examples:
  mlip compare outputs/facet/2026-11-24_12-00-00 outputs/nequip/2026-11-24_13-00-00
  mlip compare a.safetensors b.safetensors --output comparison        writes table, JSON and figure

Errors, training speed and rotation errors are what the files say; the time per atom and the
conservation of energy are measured now, on a structure of the data and on copies of it.
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "compare",
        help="trained potentials side by side",
        description="One table of errors with counts, size, speed, memory, symmetry and energy "
        "conservation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN|POTENTIAL")
    parser.add_argument("--output", metavar="DIR", help="also write compare.{json,txt,png} here")
    parser.add_argument("--force", action="store_true", help="overwrite a comparison in DIR")
    parser.add_argument("--structure", metavar="FILE", help="measure on the first structure of it")
    parser.add_argument("--no-measure", action="store_true", help="only what the files say")
    parser.add_argument("--device", default="cpu", help="to measure on")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare."""
    from mlip.errors import ConfigError
    from mlip.report.compare import FILES, compare_runs, comparison_text, write_comparison

    if args.output and not args.force:
        for path in (Path(args.output) / name for name in FILES):
            if path.exists():
                raise ConfigError(f"{path} exists; give another --output or --force")
    comparison = compare_runs(
        args.runs,
        structure=args.structure,
        measured=not args.no_measure,
        device=args.device,
    )
    print(comparison_text(comparison), end="")
    if args.output:
        paths = write_comparison(comparison, args.output)
        print(f"wrote {', '.join(map(str, paths))}")
    return 0
