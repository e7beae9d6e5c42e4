"""`mlip data stats`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mlip.cli.reading import METAVAR, WORDS, add_processes, processes_of

EPILOG = f"""examples:
  mlip data stats my.extxyz
  mlip data stats train.extxyz val.extxyz --json > stats.json

{WORDS}"""
RANGES = (
    ("atoms_per_frame", "atoms per frame"),
    ("volume_per_atom", "volume (A^3/atom)"),
    ("energy_per_atom", "energy (eV/atom)"),
    ("energy_less_elements", "less elements"),
    ("force_largest", "largest |F| (eV/A)"),
    ("mean_stress_GPa", "mean stress (GPa)"),
    ("closest_contact", "closest contact"),
)


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "stats",
        help="what data hold, in numbers",
        description="Counts, elements, compositions, sizes, energies, forces, stresses, charges "
        "and groups of each file, folder or quoted glob.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar=METAVAR)
    add_processes(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe."""
    from mlip.cli.reading import split_words
    from mlip.data.checkup.census import take_census
    from mlip.data.checkup.summary import summarize
    from mlip.errors import CorruptDataError

    files, options = split_words(args.data)
    form = options.pop("format", "auto")
    census = take_census(files, form, processes=processes_of(args), **options)
    for file, why in census.unread.items():
        raise CorruptDataError(f"{file}: {why}")
    summaries = [summarize(census, number) for number in range(len(census.parts))]
    if args.json:
        print(json.dumps(summaries, indent=1))
    else:
        print("\n\n".join(_text(summary) for summary in summaries))
    return 0


def _text(summary: dict[str, Any]) -> str:
    counts = f"{summary['frames']}, {summary['atoms']} atoms"
    if summary["not_usable"]:
        counts += f"; {summary['not_usable']} more are not usable (mlip data check says why)"
    lines = [
        summary["name"],
        _row("frames", counts),
        _row("labels", _pairs({k: v for k, v in summary["labels"].items() if v}) or "none"),
        _row("atoms of", _pairs(summary["elements"])),
    ]
    if not summary["frames"]:
        return "\n".join(lines)
    most = _pairs(summary["most_common"])
    more = ", ..." if summary["compositions"] > len(summary["most_common"]) else ""
    lines += [
        _row("compositions", f"{summary['compositions']}: {most}{more}"),
        _row("groups", f"{summary['groups']}; {summary['without_group']} frames without"),
        _row("periodic axes", _pairs(summary["periodic_axes"], ": ")),
        _row("charge", _pairs(summary["charge"], ": ")),
        _row("multiplicity", _pairs(summary["multiplicity"], ": ") + " (0: not given)"),
    ]
    if summary["force_rms"] is not None:
        lines.append(_row("force RMS", f"{summary['force_rms']:.4g} eV/A"))
    lines.append(_row("", f"{'least':>12}{'median':>12}{'largest':>12}"))
    for key, name in RANGES:
        if summary[key] is not None:
            lines.append(_row(name, "".join(f"{value:12.5g}" for value in summary[key])))
    return "\n".join(lines)


def _row(name: str, value: str) -> str:
    return f"  {name:20}{value}"


def _pairs(table: dict[str, int], between: str = " ") -> str:
    return ", ".join(f"{name}{between}{count}" for name, count in table.items())
