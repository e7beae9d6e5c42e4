"""`mlip data check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlip.cli.reading import METAVAR, WORDS, add_processes, processes_of

EPILOG = f"""examples:
  mlip data check my.extxyz
  mlip data check mptrj.json --processes 8
  mlip data check train.extxyz val.extxyz --json check.json --plot check.png
  mlip data check my.extxyz data.keys.energy=dft_energy data.stress_unit=kbar

Each FILE (or folder, or quoted glob) is one part: a structure that is in two of them is a leak.
data.on_bad changes nothing here: frames that cannot be used are always named.

{WORDS}
exit code 0 if there is no error (with --strict: and no warning), else 1.
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "check",
        help="read data as a doctor would, before training on it",
        description="Labels, units, signs, outliers, duplicates, leaks, geometry, charges: what is "
        "wrong, where, on what evidence, and what to do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar=METAVAR)
    parser.add_argument("--json", metavar="OUT.json", help="write the findings here, too")
    parser.add_argument("--plot", metavar="OUT.png", help="draw a page of histograms")
    parser.add_argument(
        "--expect-frames", type=int, metavar="N", help="how many there must be in all files"
    )
    add_processes(parser)
    parser.add_argument("--strict", action="store_true", help="warnings fail, too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check."""
    from mlip.cli.reading import split_words
    from mlip.data.checkup import examine
    from mlip.data.checkup.report import text, write_json
    from mlip.errors import ConfigError

    files, options = split_words(args.data)
    if args.plot and Path(args.plot).suffix.lower() != ".png":
        raise ConfigError(f"{args.plot}: the page is drawn as PNG; name it .png")
    form = options.pop("format", "auto")
    more = {"expected": args.expect_frames, "processes": processes_of(args)}
    examination = examine(files, form, **more, **options)
    print(text(examination), end="")
    if args.json:
        write_json(examination, args.json)
    if args.plot:
        from mlip.data.checkup.page import write_page

        write_page(examination, args.plot)
    return 1 if examination.errors or (args.strict and examination.findings) else 0
