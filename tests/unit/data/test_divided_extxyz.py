"""A large extxyz file in parts, by any number of processes, becomes what it becomes as a whole."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import time
import warnings
from itertools import islice

import numpy as np
import pytest

import mlip.data.readers as readers
from mlip.data.readers.extxyz_parts import split_extxyz
from mlip.data.store import COLUMNS, Store, build, jobs, merge
from mlip.errors import CorruptDataError, DataError, MLIPError

N = 120
SIZE = 3000  # bytes of a part; a frame has some 300


def crystal(k, apart=1.4):
    """A frame with all labels; every seventh is a molecule whose stress is left out."""
    rng = np.random.default_rng(k)
    rows = ""
    for place in (0.0, apart):
        numbers = [*(place + rng.normal(0, 0.05, 3)), *rng.normal(size=3)]
        rows += " ".join(["Si", *(f"{x:.5f}" for x in numbers)]) + "\n"
    box = "" if k % 7 == 6 else 'Lattice="4 0 0 0 4 0 0 0 4" '
    stress = 'stress="0.1 0.2 0.3 0 0 0" '
    return (
        f"2\n{box}Properties=species:S:1:pos:R:3:forces:R:3 {stress}energy={-k - 0.5} "
        f"material_id=m{k // 3}\n{rows}"
    )


@pytest.fixture(autouse=True)
def cut(monkeypatch):
    """Parts that are small; a job is cut by this process, so that others need not know."""
    monkeypatch.setitem(readers._SPLIT, "extxyz", (split_extxyz, SIZE))


@pytest.fixture
def whole(monkeypatch):
    def run(folder, path):
        with monkeypatch.context() as patch:
            patch.setitem(readers._SPLIT, "extxyz", (split_extxyz, 10**9))
            return build(folder, [path])

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text("".join(crystal(k) + "\n" * (k % 3) for k in range(N)))
    return path


def silently(do, *arguments, **options):
    """What was warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        do(*arguments, **options)
    return [str(w.message) for w in caught]


def content(store):
    return {n: np.asarray(store.column(n)) for n in COLUMNS if n != "start"}


def test_the_number_of_processes_changes_nothing(file, tmp_path, whole):
    said = [silently(build, tmp_path / f"{n}", [file], processes=n) for n in (1, 2, 3)]
    one, *others = [
        json.loads((tmp_path / f"{n}" / "manifest.json").read_text()) for n in (1, 2, 3)
    ]
    assert len(one["shards"]) > 8
    assert others == [one, one], "checksums of every column of every shard"
    said.append(silently(whole, tmp_path / "whole", file))
    lacking = sum(k % 7 == 6 for k in range(N))
    expected = (
        f"{file}: stress is no label without three periodic axes, left out in {lacking} of {N}"
    )
    assert said == [[f"{expected} frames"]] * 4
    store, once = Store(tmp_path / "2"), Store(tmp_path / "whole")
    assert len(once.manifest["shards"]) == 1
    for name, values in content(once).items():
        np.testing.assert_array_equal(content(store)[name], values, err_msg=name)
    for k in (0, 1, 50, N - 1):
        assert store.where(k) == once.where(k) == f"{file}, frame {k}"
        assert store.column("energy")[k] == -k - 0.5


def test_parts_over_hosts(file, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_ROWS", 4)
    said = silently(build, tmp_path / "whole", [file])
    for part in (1, 0):
        assert not silently(build, tmp_path / "parts", [file], part=(part, 2))
    assert silently(merge, tmp_path / "parts") == said
    assert f"left out in {sum(k % 7 == 6 for k in range(N))} of {N} frames" in said[0]
    one, other = (Store(tmp_path / name).manifest for name in ("whole", "parts"))
    assert one == other


def test_small_files_are_read_together_as_before(file, tmp_path, monkeypatch):
    monkeypatch.setitem(readers._SPLIT, "extxyz", (split_extxyz, file.stat().st_size))
    other = tmp_path / "b.extxyz"
    other.write_bytes(file.read_bytes() + b"\n")  # a little too large
    small = [tmp_path / f"{k}.extxyz" for k in range(3)]
    for k, path in enumerate(small):
        path.write_text(crystal(k))
    planned = list(jobs.plan_jobs([*small, file, other], "auto", {}))
    assert [len(job.pieces) for job in planned] == [4, 1]
    assert [job.part_of for job in planned] == [None, 4]


LATE = 87
FAULTS = {
    "a number that is none": crystal(LATE).replace(f"energy={-LATE - 0.5}", "energy=nan"),
    "a column too few": crystal(LATE).rpartition(" ")[0] + "\n",
    "a count that is too large": crystal(LATE).replace("2\n", "3\n", 1),
    "a count that is too small": crystal(LATE).replace("2\n", "1\n", 1),
    "no count": crystal(LATE).replace("2\n", "two\n", 1),
    "no Properties to speak of": crystal(LATE).replace("species:S:1", "species:S:x"),
    "another key": crystal(LATE).replace(" energy=", " REF_energy="),
    "atoms on one another": crystal(LATE, apart=0.0),
    "zero bytes": crystal(LATE)[:2] + "\0" * 40 + crystal(LATE)[42:],
    "no text": crystal(LATE).replace("material_id=m", "material_id=\udcff"),
}


def message(do, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            do(*arguments, **options)
        except MLIPError as error:
            return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_as_in_a_whole_file(fault, file, tmp_path, whole):
    frames = [crystal(k) + "\n" * (k % 3) for k in range(N)]
    frames[LATE] = FAULTS[fault]
    file.write_bytes("".join(frames).encode("utf-8", "surrogateescape"))
    expected = message(whole, tmp_path / "whole", file)
    named = LATE + 1 if fault == "a count that is too small" else LATE
    assert f"frame {named}" in expected[1]
    assert message(build, tmp_path / "one", [file]) == expected
    if fault == "atoms on one another":
        assert message(build, tmp_path / "two", [file], processes=2) == expected


def test_a_label_that_moves_to_another_key_between_two_parts(file, tmp_path, whole):
    """Each part is uniform: only who knows all of them can tell, and the reader then names it."""
    first = [part[2] for part, _ in split_extxyz(file, SIZE)][4]
    frames = [crystal(k) + "\n" * (k % 3) for k in range(N)]
    frames[first:] = [text.replace(" energy=", " REF_energy=") for text in frames[first:]]
    file.write_text("".join(frames))
    assert first in [part[2] for part, _ in split_extxyz(file, SIZE)]
    expected = message(whole, tmp_path / "whole", file)
    assert f"frame {first}: its energy is under 'REF_energy'" in expected[1]
    assert message(build, tmp_path / "parts", [file]) == expected


@pytest.mark.parametrize("cut_off", [1, 10, 60, 100, 250])
def test_a_file_that_is_cut_short(file, tmp_path, whole, cut_off):
    file.write_bytes(file.read_bytes().rstrip()[:-cut_off])
    expected = message(whole, tmp_path / "whole", file)
    assert CorruptDataError.__name__ in expected or f"frame {N - 1}" in expected[1]
    assert message(build, tmp_path / "parts", [file]) == expected


def test_the_first_fault_of_a_file_is_named_whoever_is_faster(file, tmp_path, monkeypatch):
    """Here the last part is always the one that is heard of first."""

    def the_last(running, **_):
        *_, future = running
        future.exception()  # wait for it
        return {future}, set()

    monkeypatch.setattr(importlib.import_module("mlip.data.store.build"), "wait", the_last)
    frames = [crystal(k) for k in range(30)]
    monkeypatch.setitem(readers._SPLIT, "extxyz", (split_extxyz, sum(map(len, frames[:15]))))
    for k in (12, 18):
        frames[k] = frames[k].replace("Si", "Xx", 1)
    file.write_text("".join(frames))
    kind, text = message(build, tmp_path / "s", [file], processes=2)
    assert kind == DataError.__name__
    assert f"{file}: frame 12:" in text


def never_ending(path, size):
    """Cut off eight parts and wait to be killed."""
    yield from islice(split_extxyz(path, size), 8)
    time.sleep(600)


def begin(folder, file):
    readers._SPLIT["extxyz"] = (never_ending, SIZE)
    build(folder, [file], processes=2)


@pytest.mark.parametrize("wanted", [1, 4])
def test_sigkill_costs_the_parts_under_way(file, tmp_path, wanted):
    silently(build, tmp_path / "whole", [file])
    shards = tmp_path / "s" / "shards"
    process = multiprocessing.get_context("fork").Process(target=begin, args=(tmp_path / "s", file))
    process.start()
    while process.is_alive() and len(list(shards.glob("[0-9]*"))) < wanted:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "s" / "manifest.json").exists()
    time.sleep(1)  # its workers notice that it is gone
    stamps = {p: p.stat().st_mtime_ns for p in shards.glob("[0-9]*/shard.json")}
    assert len(stamps) >= wanted
    said = silently(build, tmp_path / "s", [file], processes=2)
    assert len(said) == 1
    assert f"of {N} frames" in said[0], "what finished parts left out is said, too"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert Store(tmp_path / "s").manifest == Store(tmp_path / "whole").manifest


def test_a_conversion_that_was_begun_when_files_were_cut_otherwise_is_not_gone_on_with(
    file, tmp_path
):
    """Its shards belong to other jobs of the same names: frames would be missing."""
    folder = tmp_path / "s"
    silently(build, folder, [file], part=(0, 2))
    about = json.loads((folder / "conversion.json").read_text())
    del about["plan"]
    (folder / "conversion.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="was begun by another version of mlip"):
        build(folder, [file])
