"""The words that say how files are read, the same for every command that reads data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

WORDS = """data.keys.*, data.*_unit, data.stress_sign, data.stress_voigt, data.energy, data.group,
data.on_bad and data.format mean what they mean to `mlip train`.
"""
METAVAR = "FILE | data.KEY=VALUE"


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the files, and what `data.KEY=VALUE` says of how to read them.

    Raises:
        ConfigError: there is no file.
    """
    from mlip.errors import ConfigError

    files = [word for word in words if not word.startswith("data.") or "=" not in word]
    options: dict[str, Any] = {}
    for word in words:
        if word in files:
            continue
        key, _, value = word.removeprefix("data.").partition("=")
        if key.startswith("keys."):
            options.setdefault("keys", {})[key.removeprefix("keys.")] = value
        else:
            options[key] = None if value in ("null", "None") else value
    if not files:
        raise ConfigError("there is no file to read")
    return files, options


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Register the option that says how many processes read."""
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="readers at a time")


def processes_of(args: argparse.Namespace) -> int:
    """Return how many processes are to read.

    Raises:
        ConfigError: less than one.
    """
    from mlip.errors import ConfigError

    if args.processes < 1:
        raise ConfigError(f"--processes {args.processes} must be 1 or more")
    return args.processes
