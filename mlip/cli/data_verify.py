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
        "are compared whenever a store is opened, the content of small ones too. If a store is an "
        "index of files in place, these are read whole, too.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify."""
    from mlip.data.progress import counted
    from mlip.data.store import LEFT, Store
    from mlip.data.store.layout import check_content, check_sizes
    from mlip.data.store.originals import check_left

    store = Store(Path(args.store).expanduser())
    shards = store.manifest["shards"]
    check_sizes(store.folder, shards)
    check_content(store.folder, counted(shards, store.folder.name, "shards"))
    print(f"{store.folder}: {len(shards)} shards, all as they were written")
    if store.originals is not None:
        store.originals.check()
        check_left(store)
        print(f"{len(store.sources)} files with its {', '.join(LEFT)}: all as they were indexed")
    return 0
