"""`mlip data convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlip.cli.reading import METAVAR, WORDS, add_processes, processes_of

EPILOG = f"""examples:
  mlip data convert mptrj.json stores/mptrj --processes 8
  mlip data convert omol25/train_4M stores/omol4m --processes 8
  mlip data convert omol25/train_4M stores/index --in-place
  mlip data convert new.extxyz stores/mine --append
  mlip train data.train=stores/mptrj

over hosts that share a file system (scripts/convert_array.sh is this as a SLURM job array):
  mlip data convert omol25/train_4M stores/omol4m --shard 0/16     ... up to 15/16
  mlip data convert stores/omol4m --merge

What was interrupted goes on when the same command is given again. Training on any file converts
it by itself, once; this command does it beforehand, with more processes and to a place of its own.

{WORDS}"""


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "convert",
        help="turn any data into a packed store, which opens at once and needs no memory",
        description="Read files of any format, check every frame, and write a store: a folder of "
        "memory-mapped arrays that `data.train` takes as it takes a file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar=f"{METAVAR} ... STORE")
    add_processes(parser)
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="only index .aselmdb shards: positions and forces stay in them, which must stay, too",
    )
    parser.add_argument("--append", action="store_true", help="add to a complete store")
    parser.add_argument("--shard", metavar="I/N", help="do part I (from 0) of N, on this host")
    parser.add_argument("--merge", action="store_true", help="complete a store from its parts")
    parser.add_argument(
        "--expect-frames", type=int, metavar="N", help="fail unless the store then has N frames"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, or merge what parts have written."""
    from mlip.cli.reading import split_words
    from mlip.data.readers import expand_paths
    from mlip.data.store import build, merge
    from mlip.errors import ConfigError

    (*files, out), options = split_words(args.data)
    folder = Path(out).expanduser()
    if args.merge:
        if files or options or args.shard or args.append or args.in_place:
            raise ConfigError("--merge takes the store alone: mlip data convert STORE --merge")
        merge(folder)
        return _report(folder, args.expect_frames)
    processes = processes_of(args)
    if not files:
        raise ConfigError(f"{out} stands alone; expected files and then the store to write")
    format = options.pop("format", "auto")
    part = _part(args.shard)
    new = build(
        folder,
        expand_paths(files, format),
        format=format,
        options=options,
        processes=processes,
        part=part,
        append=args.append,
        in_place=args.in_place,
    )
    if not new:
        print(f"{folder}: is complete already, nothing to do")
    if part[1] > 1 and new:
        print(f"part {args.shard} is done; when all are: mlip data convert {folder} --merge")
        return 0
    return _report(folder, args.expect_frames)


def _part(text: str | None) -> tuple[int, int]:
    from mlip.errors import ConfigError

    if text is None:
        return 0, 1
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ConfigError(f"--shard {text} must be I/N with I from 0 to N-1, such as 0/16")
    return int(number), int(count)


def _report(folder: Path, expected: int | None) -> int:
    from mlip.data.store import LEFT, Store
    from mlip.errors import DataError

    store = Store(folder)
    about = store.manifest
    n = about["structures"]
    labels = ", ".join(f"{name} {count / n:.1%}" for name, count in about["labels"].items())
    size = sum(sum(shard["sizes"].values()) for shard in about["shards"])
    print(f"{folder}: {n:,} frames, {about['atoms']:,} atoms, {size / 1e9:.2f} GB")
    print(f"labels: {labels}")
    for file, bad in store.refused.items():
        print(f"left out: {len(bad)} frames of {file}, the first: {next(iter(bad.values()))}")
    if store.originals is not None:
        store.originals.check()  # they could have been written to meanwhile
        files = about["sources"]
        size = sum(source["size"] for source in files)
        print(f"in place: {', '.join(LEFT)} are read from {len(files)} files, {size / 1e9:.2f} GB")
    if expected is not None and n != expected:
        raise DataError(f"{folder}: has {n} frames, expected {expected}")
    return 0
