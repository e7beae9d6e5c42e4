"""`mlip data`: the table of what can be done with data before any training."""

from __future__ import annotations

import argparse
from typing import Any, Final

from mlip.cli import (
    data_check,
    data_convert,
    data_download,
    data_split,
    data_stats,
    data_verify,
)

# Each module offers `add_parser(commands)`, as the commands of `mlip` do: one line adds one.
COMMANDS: Final = (
    data_check,
    data_stats,
    data_split,
    data_convert,
    data_verify,
    data_download,
)
EPILOG = """examples:
  mlip data check train.extxyz val.extxyz
  mlip data stats my.extxyz
  mlip data split my.extxyz --out-dir parts --val 0.1 --test 0.1
  mlip data convert mptrj.json stores/mptrj --processes 8
  mlip data download mptrj
"""


def add_parser(commands: Any) -> None:
    """Register the command and its sub-commands."""
    parser = commands.add_parser(
        "data",
        help="look at data sets; check, split, convert and fetch them",
        description="What can be done with data before any training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    table = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(table)
