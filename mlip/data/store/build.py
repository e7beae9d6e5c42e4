"""Making a store: jobs over processes and hosts, resumed after any kill, merged at the end."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from pathlib import Path
from typing import Any

from mlip.data.processes import count_done, first_failure, workers
from mlip.data.readers import Noticed, read_frames
from mlip.data.readers.canonical import left_out_words
from mlip.data.readers.refused import check_share, skipped_words
from mlip.data.store.conversion import Conversion
from mlip.data.store.jobs import Job, finished_shards, frames_of, run_job
from mlip.data.store.layout import MANIFEST, SHARDS, make_manifest, write_json
from mlip.data.store.lock import exclusive
from mlip.data.store.progress import Progress
from mlip.errors import DataError, MLIPError


def build(
    folder: Path,
    files: Sequence[Path],
    *,
    format: str = "auto",
    options: Mapping[str, Any] | None = None,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    append: bool = False,
    discard: bool = False,
    in_place: bool = False,
) -> bool:
    """Convert files into a store, or go on with a conversion that was interrupted.

    Args:
        folder: the store.
        files: what to read, in the order of the store.
        format: of the files, or `auto`.
        options: of the reader.
        processes: how many read at the same time. They are started afresh, so a script that
            calls this needs `if __name__ == "__main__":`.
        part: (i, n): do only every n-th job, beginning with the i-th; the store is complete when
            all parts are done and `merge` has been called.
        append: add the files to a store that is complete.
        discard: keep nothing of a new store if the data turn out to be bad.
        in_place: make an index only: positions, forces and magnetic moments are read from the files
            whenever they are asked for.

    Returns:
        Whether there was anything to do.

    Raises:
        DataError: a file is bad, or the folder holds something else.
        ConfigError: the options contradict those of the store, or the format of the files knows no
            random access and they are to be left in place.
    """
    name = f".{folder.name}.{part[0]}-of-{part[1]}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error}); choose another folder") from error
    with exclusive(folder.parent / name, str(folder)):
        plan = Conversion.make(
            folder, files, format, options or {}, append=append, in_place=in_place
        )
        if plan.complete:
            return False
        plan.save()
        try:
            _convert(plan, part, processes)
        except MLIPError:
            if discard and plan.generation == 0:
                shutil.rmtree(folder)
            raise
    return True


def _convert(plan: Conversion, part: tuple[int, int], processes: int) -> None:
    folder, names = plan.folder, list[str]()
    jobs = islice(_named(plan.jobs(), names), part[0], None, part[1])
    with Progress(folder.name, plan.size // part[1]) as progress:
        if processes == 1:
            for job in jobs:
                _repeat(run_job(folder, job, plan.reading, progress.frames, plan.in_place))
                progress.bytes(job.size)
        else:
            _run_pool(plan, jobs, processes, progress)
    if part[1] == 1:
        _merge(plan, names)


def merge(folder: Path) -> None:
    """Make a complete store of the shards that all parts have written.

    Raises:
        DataError: some are not there yet, or there is nothing to merge.
    """
    plan = Conversion.load(folder)
    _merge(plan, [job.name for job in plan.jobs()])


def _named(jobs: Iterator[Job], names: list[str]) -> Iterator[Job]:
    """Pass jobs on and note what they are called: planning them again reads large files again."""
    for job in jobs:
        names.append(job.name)
        yield job


def _merge(plan: Conversion, names: Sequence[str]) -> None:
    folder = plan.folder
    new: list[dict[str, Any]] = []
    missing = []
    for name in names:
        found, complete = finished_shards(folder, name)
        if not complete:
            missing.append(name)
        new += found
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} job(s) are not finished, the first is {missing[0]}; run "
            "the parts that were interrupted again, then merge"
        )
    _check_keys(plan, new)
    new = _with_first_frames(new)
    refused = _refused(new)
    _repeat([*_left_out(plan, new), *_skipped(plan, refused)])
    said = [{k: v for k, v in s.items() if k != "refused"} for s in new if s["structures"]]
    shards = [*plan.shards_before, *said]
    if not shards:
        raise DataError(f"{', '.join(s['path'] for s in plan.sources)}: no structures")
    about = make_manifest(
        plan.all_sources,
        plan.reading,
        shards,
        in_place=plan.in_place,
        refused=[*plan.refused_before, *refused],
    )
    write_json(folder / MANIFEST, about)
    plan.forget()
    for leftover in (folder / SHARDS).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed


def _check_keys(plan: Conversion, shards: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a file whose parts have a label under different keys."""
    known: dict[int, dict[str, str]] = {}
    for shard in shards:
        if (source := shard["part_of"]) is None:
            continue  # whole files were checked when they were read
        before = known.setdefault(source, {})
        keys = shard.get("keys", {})
        if differing := [label for label in keys if before.get(label, keys[label]) != keys[label]]:
            _name_frame(plan, shard, before)
            raise DataError(
                f"{plan.all_sources[source]['path']}: has changed since it was read: in one of its "
                f"parts the key of {differing[0]} is another now; remove {plan.folder} and convert "
                "again"
            )
        before |= keys


def _name_frame(plan: Conversion, shard: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Read a part again, knowing the keys of earlier ones: the reader names frame and keys."""
    name = shard["name"].rpartition("-")[0]
    for job in plan.jobs():
        if job.name == name:
            for _ in read_frames(job.pieces[0], Noticed(dict(known)), **plan.reading):
                pass


def _left_out(plan: Conversion, shards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each divided file what was left out of its labels, as of one read as a whole."""
    own = [shard for shard in shards if shard["part_of"] is not None]
    for source in dict.fromkeys(s["part_of"] for s in own):
        parts = [s for s in own if s["part_of"] == source]
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part.get("left_out", {}))
        frames = sum(part["structures"] for part in parts)
        yield from left_out_words(plan.all_sources[source]["path"], total, frames)


def _refused(shards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return source, number in its file and fault of the frames that were left out.

    Raises:
        DataError: they are more than may be.
    """
    frames, count = sum(map(frames_of, shards)), sum(len(shard["refused"]) for shard in shards)
    out = (
        {"source": source, "frame": number + shard["first_frame"], "why": why}
        for shard in shards
        for source, number, why in shard["refused"]
    )
    if count:
        check_share(count, frames, next(iter(s["refused"] for s in shards if s["refused"]))[0][2])
    return list(out)


def _skipped(plan: Conversion, refused: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each file how many of its frames were left out."""
    counts = Counter(bad["source"] for bad in refused)
    first = {bad["source"]: bad["why"] for bad in reversed(refused)}
    for source, count in counts.items():
        yield skipped_words(plan.all_sources[source]["path"], count, first[source])


def _with_first_frames(shards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to shards where the part of a file that they come from begins, in frames."""
    counts: dict[int, int] = {}  # frames of each divided file so far
    out, job, first = [], "", 0
    for shard in shards:
        source = shard["part_of"]
        if source is None:
            out.append({**shard, "first_frame": 0})
            continue
        if (own := shard["name"].rpartition("-")[0]) != job:
            job, first = own, counts.get(source, 0)
        counts[source] = counts.get(source, 0) + frames_of(shard)
        out.append({**shard, "first_frame": first})
    return out


def _work(folder: Path, job: Job, options: Mapping[str, Any], in_place: bool) -> list[str]:
    return run_job(folder, job, options, count_done, in_place)


def _run_pool(plan: Conversion, jobs: Iterator[Job], processes: int, progress: Progress) -> None:
    """Keep `processes` busy; jobs are planned only as they are needed."""
    seen = 0
    running: dict[Future[list[str]], Job] = {}  # in the order of the files
    killed = (
        f"{plan.folder}: a process of the conversion was killed (out of memory?); give the "
        "command again to go on, with fewer --processes"
    )
    with workers(processes, killed) as pool:
        while True:
            for job in islice(jobs, processes + 1 - len(running)):
                work = pool.submit(_work, plan.folder, job, plan.reading, plan.in_place)
                running[work] = job
            if not running:
                return
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            seen, before = pool.done, seen
            progress.frames(seen - before)
            if any(future.exception() for future in done):
                first_failure(list(running))
            for future in done:
                _repeat(future.result())
                progress.bytes(running.pop(future).size)


def _repeat(messages: Sequence[str]) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=2)
