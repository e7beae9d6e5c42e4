"""`mlip train`."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """examples:
  mlip train data.train=my.extxyz                       Facet-Small, 100 epochs
  mlip train data.train=my.extxyz model=facet-xs trainer.max_time=40m
  mlip train run.yaml optimizer.lr=1e-3                 settings from a file, then overrides
  mlip train run.yaml out_dir=outputs/a resume=auto     continue where it stopped

`group=choice` swaps a file of conf/ (model=facet-xs), `a.b=value` sets one value. run.yaml has the
same structure: `model: facet-xs`, `data: {train: my.extxyz}`.
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train a potential",
        description="Train a potential; all of conf/ can be overridden.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="CONFIG.yaml | key=value")
    parser.add_argument("--print-config", action="store_true", help="print it and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from mlip.errors import ConfigError

    files = [s for s in args.settings if "=" not in s]
    overrides = [s for s in args.settings if "=" in s]
    if len(files) > 1:
        raise ConfigError(f"one configuration file at most, got {files}; overrides are key=value")
    file = files[0] if files else None
    from mlip.training.config import load_config, to_yaml

    config = load_config(overrides, file)  # a misspelt key fails before anything slow is imported
    if args.print_config:
        print(to_yaml(config))
        return 0
    from mlip.training.run import train

    train(config)
    return 0
