"""`mlip data verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """example:
  mlip data verify stores/mptrj
"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "verify",
        help="compare every byte of a store with its checksums",
        description="Read a store whole and compare it with the checksums of its manifest. Sizes "
        "are compared whenever a store is opened, the content of small ones too.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify."""
    from mlip.data.progress import counted
    from mlip.data.store.layout import check_content, check_sizes, read_manifest

    folder = Path(args.store).expanduser()
    manifest = read_manifest(folder)
    check_sizes(folder, manifest["shards"])
    check_content(folder, counted(manifest["shards"], folder.name, "shards"))
    print(f"{folder}: {len(manifest['shards'])} shards, all as they were written")
    return 0
