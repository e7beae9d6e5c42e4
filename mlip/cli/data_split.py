"""`mlip data split`."""

from __future__ import annotations

import argparse
from typing import Any

from mlip.cli.reading import METAVAR, WORDS, add_processes, processes_of

EPILOG = f"""examples:
  mlip data split my.extxyz --out-dir parts --val 0.1 --test 0.1
  mlip data split shards/ --out-dir parts --by composition --seed 1

Equal structures are never separated, whatever --by says. The parts are extxyz in eV and A;
splits.json beside them says which frame of which file went where.
{WORDS}"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "split",
        help="write disjoint parts of data",
        description="Write training, validation and test parts that share no structure, group, "
        "composition or set of elements.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar=METAVAR)
    parser.add_argument("--out-dir", required=True, metavar="DIR")
    parser.add_argument("--val", type=float, default=0.1, help="share to validate on (0.1)")
    parser.add_argument("--test", type=float, default=0.0, help="share to test on (0)")
    parser.add_argument(
        "--by",
        choices=["random", "group", "composition", "element"],
        help="what is never cut; element: structures of the same elements (default: group where "
        "there are groups, else random)",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_processes(parser)
    parser.add_argument("--force", action="store_true", help="overwrite an earlier split")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Split."""
    from mlip.cli.reading import split_words
    from mlip.data.partition import PARTS, elements_of, partition

    files, options = split_words(args.data)
    done = partition(
        files,
        args.out_dir,
        val=args.val,
        test=args.test,
        by=args.by,
        seed=args.seed,
        force=args.force,
        processes=processes_of(args),
        format=options.pop("format", "auto"),
        **options,
    )
    print(
        f"{len(done.census.frames)} structures in {done.sets} sets that stay together ({done.by})"
    )
    for part in PARTS:
        rows = getattr(done.splits, part)
        if len(rows):
            atoms = int(done.census.frames["natoms"][rows].sum())
            elements = " ".join(elements_of(done.census, rows))
            print(f"  {part:6}{len(rows):9} structures{atoms:11} atoms: {elements}")
    for note in done.splits.notes:
        print(f"note: {note}")
    print(f"wrote {', '.join(map(str, done.paths))}")
    return 0
