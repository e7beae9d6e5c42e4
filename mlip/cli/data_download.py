"""`mlip data download`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """examples:
  mlip data download mptrj --list
  mlip data download mptrj --out-dir downloads
  mlip data download matpes --files '*R2SCAN-20*.json.gz'

A download that was interrupted goes on when the command is given again. Files are compared with the
checksums that the archive lists.
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "download",
        help="fetch a public data set",
        description="Fetch a public data set: mptrj, matpes; for omol25, how to get access.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=["mptrj", "matpes", "omol25"])
    parser.add_argument("--out-dir", default="downloads", metavar="DIR")
    parser.add_argument("--files", nargs="+", default=[], metavar="PATTERN", help="of the archive")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from mlip.data.download import PUBLIC, choose, fetch

    data = PUBLIC[args.name]
    print(data.what)
    if args.list:
        for file in choose(args.name, args.files or ["*"]):
            print(f"  {file.name}  {file.size / 1e6:,.1f} MB  {file.algorithm} {file.digest}")
        return 0
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    for file in choose(args.name, args.files):
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(file.name, total=file.size)
            path = fetch(file, Path(args.out_dir), lambda n, t=task: bar.update(t, completed=n))
        print(f"{path}: complete, {file.algorithm} as the archive lists it")
        print(f"next: {data.hint.format(file=path)}")
    return 0
