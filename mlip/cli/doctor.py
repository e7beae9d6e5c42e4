"""`mlip doctor`."""

from __future__ import annotations

import argparse
import json
from typing import Any

EPILOG = """example:
  mlip doctor
  mlip doctor --json > environment.json        for a bug report

exit code 1 if something is broken. Data have their own: mlip data check.
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="whether this environment is sound",
        description="Python, packages, accelerators, threads, folders and variables: what is "
        "there, what is broken, and what to do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine."""
    from dataclasses import asdict

    from mlip.doctor import examine_environment

    notes = examine_environment()
    broken = sum(note.broken for note in notes)
    if args.json:
        print(json.dumps([asdict(note) for note in notes], indent=1))
        return 1 if broken else 0
    for note in notes:
        mark = "BROKEN" if note.broken else "note" if note.advice else ""
        print(f"{mark:8}{note.name:22}{note.value}")
        if note.advice:
            print(f"{'':30}-> {note.advice}")
    print(f"{broken} broken" if broken else "nothing is broken")
    return 1 if broken else 0
