"""The store on disk: shards, kills, parts, appending, locks; the same structures after all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from itertools import pairwise

import lmdb
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip.data.readers import materials, mptrj, read_structures
from mlip.data.readers import split_files as split
from mlip.data.store import COLUMNS, Store, build, jobs, merge, open_store, writer
from mlip.data.store.layout import check_content, read_manifest
from mlip.data.store.overlaps import MIN_DISTANCE, find_overlaps
from mlip.errors import ConfigError, CorruptDataError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))


def frames(n, seed=0):
    """Crystals and molecules, some without forces, stress or moments."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        atoms = (
            molecule("CH3OH") if k % 3 == 2 else bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 1 + k % 2)
        )
        atoms.rattle(0.1, rng=rng)
        results = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
        if k % 3 != 2:
            results["stress"] = 0.01 * rng.normal(size=6)
        if k % 4 == 0:
            results["magmoms"] = rng.normal(size=len(atoms))
        if k % 5 == 4:
            del results["forces"]
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["charge"] = k % 3 - 1
        out.append(atoms)
    return out


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.extxyz" for name in "abc"]
    for k, path in enumerate(paths):
        write(path, frames(23, seed=k), format="extxyz")
    return paths


def columns(store):
    return {name: np.asarray(store.column(name)) for name in COLUMNS if name != "start"}


def assert_same(one, other):
    for name, values in columns(one).items():
        np.testing.assert_array_equal(values, np.asarray(other.column(name)), err_msg=name)


def assert_holds(store, paths):
    """Every structure is what the readers give, in their order."""
    expected = list(read_structures(paths))
    assert len(store) == len(expected)
    for k, atoms in enumerate(expected):
        row = store.arrays(k)
        np.testing.assert_array_equal(row["positions"], atoms.positions)
        np.testing.assert_array_equal(row["atomic_numbers"], atoms.numbers)
        results = atoms.calc.results
        forces = results.get("forces", np.full((len(atoms), 3), np.nan))
        np.testing.assert_array_equal(row["forces"], forces)
        np.testing.assert_array_equal(row["energy"][0], results.get("energy", np.nan))
        assert np.isfinite(row["stress"]).all() == ("stress" in results)
        assert row["charge"][0] == atoms.info["charge"]


@pytest.mark.parametrize("rows", [5, 23, 69, 1000])
def test_shards_make_one_store(files, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(jobs, "SHARD_ROWS", rows)
    build(tmp_path / "s", files)
    store = Store(tmp_path / "s")
    assert store.manifest["structures"] == len(store) == 69
    assert len(store.manifest["shards"]) == -(-69 // rows)
    assert_holds(store, files)
    assert store.where(24).endswith("b.extxyz, frame 1")
    assert (
        store.manifest["labels"]["forces"]
        == np.isfinite([store.arrays(k)["forces"][0, 0] for k in range(69)]).sum()
    )
    assert store.manifest["num_atoms"] == {
        "min": 2, "mean": store.num_atoms.mean(), "max": 6,
    }  # fmt: skip


def test_columns_take_the_indices_of_arrays(files, tmp_path, monkeypatch):
    build(tmp_path / "one", files)
    monkeypatch.setattr(jobs, "SHARD_ROWS", 7)
    build(tmp_path / "many", files)
    one, many = Store(tmp_path / "one"), Store(tmp_path / "many")
    rng = np.random.default_rng(0)
    for name in ("positions", "stress", "atomic_numbers", "pbc", "energy"):
        whole, rows = np.asarray(one.column(name)), many.column(name)
        picked = rng.integers(0, len(whole), 50)
        mask = rng.random(len(whole)) < 0.3
        for key in (
            slice(3, 40),
            slice(None),
            slice(9, 9),
            5,
            picked,
            mask,
            picked[:0],
            slice(2, 60, 3),
        ):
            np.testing.assert_array_equal(rows[key], whole[key])
        assert rows[:].dtype == whole.dtype
        assert rows.shape == whole.shape
    np.testing.assert_array_equal(
        many.column("stress")[picked, 0, 1], np.asarray(one.column("stress"))[picked, 0, 1]
    )
    with pytest.raises(IndexError):
        many.column("stress")[np.array([69])]
    with pytest.raises(IndexError):
        many.column("positions")[-1]


def test_compositions_are_counted_over_shards(files, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_ROWS", 7)
    build(tmp_path / "s", files)
    store = Store(tmp_path / "s")
    chosen = np.random.default_rng(0).permutation(69)[:31]
    counts, species = store.compositions(chosen)
    assert species.tolist() == [1, 6, 8, 11, 17]
    for row, k in zip(counts, chosen, strict=True):
        numbers = store.arrays(int(k))["atomic_numbers"]
        assert row.tolist() == [(numbers == z).sum() for z in species]


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_and_parts_change_nothing(files, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(jobs, "JOB_BYTES", 1)
    build(tmp_path / "whole", files, processes=processes)
    for part in (2, 0):
        build(tmp_path / "parts", files, part=(part, 3))
    with pytest.raises(DataError, match=r"not finished.*mlip data convert"):
        Store(tmp_path / "parts")
    with pytest.raises(DataError, match=r"1 job\(s\) are not finished"):
        merge(tmp_path / "parts")
    build(tmp_path / "parts", files, part=(1, 3))
    merge(tmp_path / "parts")
    assert_same(Store(tmp_path / "whole"), Store(tmp_path / "parts"))
    assert_holds(Store(tmp_path / "whole"), files)


def test_a_store_grows(files, tmp_path):
    build(tmp_path / "grown", files[:1])
    assert not build(tmp_path / "grown", files[:1]), "nothing to do"
    before = Store(tmp_path / "grown")
    build(tmp_path / "grown", files[1:], append=True)
    assert len(before) == len(np.asarray(before.column("stress"))) == 23, "who reads is not hurt"
    build(tmp_path / "whole", files)
    assert_same(Store(tmp_path / "grown"), Store(tmp_path / "whole"))
    assert not build(tmp_path / "grown", files[1:], append=True)
    with pytest.raises(DataError, match=r"store of other files.*--append"):
        build(tmp_path / "grown", files[:2])
    new = tmp_path / "new.extxyz"
    write(new, frames(3, seed=9), format="extxyz")
    with pytest.raises(ConfigError, match="was made with the options"):
        build(tmp_path / "grown", [new], options={"energy_unit": "hartree"}, append=True)
    with pytest.raises(DataError, match="no store to append to"):
        build(tmp_path / "other", files, append=True)


def test_other_folders_are_not_written_into(files, tmp_path):
    with pytest.raises(DataError, match="neither empty nor a store"):
        build(tmp_path, files)


def test_a_folder_that_another_part_is_just_making_is_taken(files, tmp_path):
    """All tasks of an array begin at once, and one may be killed at its first write."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".conversion.json.x8f2.tmp").write_text("{")
    build(tmp_path / "s", files)
    assert_holds(Store(tmp_path / "s"), files)


FORK = multiprocessing.get_context("fork")


def slowly(folder, files):
    """Convert at a pace that can be interrupted; at the ninth and last shard, wait for it."""
    add = jobs.ShardWriter.add

    def slow(writer, block, *place):
        waiting = len(list((folder / "shards").glob("[0-9]*"))) == 8
        time.sleep(600 if waiting else 0.005 * len(block))
        add(writer, block, *place)

    jobs.ShardWriter.add = slow
    build(folder, files)


def test_sigkill_at_any_moment_costs_one_shard(files, tmp_path, monkeypatch):
    """Killed again and again, it ends the same; finished shards are not written again."""
    monkeypatch.setattr(jobs, "SHARD_ROWS", 8)
    monkeypatch.setattr(writer, "BUFFER", 4)
    shards = tmp_path / "s" / "shards"
    stamps: dict[str, int] = {}
    for wanted in (1, 2, 4, 5, 8):
        process = FORK.Process(target=slowly, args=(tmp_path / "s", files))
        process.start()
        while process.is_alive() and len(list(shards.glob("[0-9]*"))) < wanted:
            time.sleep(0.002)
        time.sleep(0.005 * wanted)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "s" / "manifest.json").exists()
        now = {p.name: (p / "shard.json").stat().st_mtime_ns for p in shards.glob("[0-9]*")}
        assert all(now[name] == stamp for name, stamp in stamps.items())
        assert len(now) >= wanted
        stamps = now
    build(tmp_path / "s", files)
    assert all((shards / n / "shard.json").stat().st_mtime_ns == t for n, t in stamps.items())
    build(tmp_path / "whole", files)
    assert_same(Store(tmp_path / "s"), Store(tmp_path / "whole"))
    assert not list(shards.glob(".*")), "what the killed had begun is gone"


def open_counting(file, log, barrier, answers):
    run = jobs.run_job

    def counting(*args):
        with log.open("a") as handle:
            handle.write("built\n")
        time.sleep(0.3)
        return run(*args)

    sys.modules["mlip.data.store.build"].run_job = counting
    barrier.wait()
    answers.put(float(open_store(file).column("energy").sum()))


def test_four_processes_build_one_store(files, tmp_path):
    barrier, answers = FORK.Barrier(4), FORK.Queue()
    arguments = (files[0], tmp_path / "log", barrier, answers)
    processes = [FORK.Process(target=open_counting, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert len({answers.get(timeout=60) for _ in processes}) == 1
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_lock_of_a_process_that_is_gone_is_named(files, tmp_path, monkeypatch):
    from filelock import FileLock

    from mlip.data.store import lock

    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    path = tmp_path / ".s.0-of-1.lock"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    about = {"host": os.uname().nodename, "pid": int(gone.stdout), "since": 0}
    path.with_name(f"{path.name}.owner").write_text(json.dumps(about))
    with (
        FileLock(path),
        pytest.raises(DataError, match=f"process {about['pid']}.*no longer exists"),
    ):
        build(tmp_path / "s", files)


def test_bad_data_leave_nothing_in_the_cache(files, tmp_path):
    text = files[0].read_text().splitlines()
    text[2] = text[2].replace(text[2].split()[1], "nan", 1)
    files[0].write_text("\n".join(text) + "\n")
    with pytest.raises(DataError):
        open_store(files)
    assert not list((tmp_path / "cache").glob("store-*"))


def test_a_store_is_data_itself(files, tmp_path):
    build(tmp_path / "s", files, options={"energy_unit": "hartree"})
    store = open_store(tmp_path / "s")
    assert store.folder == tmp_path / "s"
    assert_same(store, open_store(files, options={"energy_unit": "hartree"}))
    with pytest.raises(ConfigError, match=r"data\.energy_unit was settled"):
        open_store(tmp_path / "s", options={"energy_unit": "kcal/mol"})
    with pytest.raises(DataError, match="stands in a list"):
        open_store([tmp_path / "s", files[0]])


def test_damage_is_named(files, tmp_path):
    build(tmp_path / "s", files)
    (forces,) = (tmp_path / "s").glob("shards/*/forces.bin")
    content = bytearray(forces.read_bytes())
    content[100] ^= 1
    forces.write_bytes(bytes(content))
    with pytest.raises(CorruptDataError, match=r"forces\.bin: its content has changed"):
        open_store(tmp_path / "s")
    with pytest.raises(CorruptDataError, match=r"forces\.bin"):
        check_content(tmp_path / "s", read_manifest(tmp_path / "s")["shards"])
    forces.unlink()
    with pytest.raises(CorruptDataError, match=r"forces\.bin: is missing"):
        open_store(tmp_path / "s")


def some_materials(n, per):
    """MPtrj's nesting, with key order and text that could be taken for boundaries."""
    site = {"species": [{"element": "Si", "occu": 1}], "abc": [0.0, 0.0, 0.0], "label": '}, "x": {'}
    lattice = {"matrix": [[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]]}
    return {
        f"mp-{m}": {
            f"mp-{m}-0-{k}": {
                "structure": {"lattice": lattice, "sites": [site]},
                "uncorrected_total_energy": -(m + 0.01 * k),
                "force": [[0.1, 0.2, 0.3]],
            }
            for k in range(1 + m % per)
        }
        for m in range(n)
    }


@pytest.mark.parametrize("size", [1, 700, 3000, 10**9])
@pytest.mark.parametrize("chunk", [300, 4 * 1024**2])
def test_parts_of_a_json_file_are_the_file(tmp_path, monkeypatch, size, chunk):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(some_materials(30, 4)))
    monkeypatch.setattr(materials, "CHUNK", chunk)
    monkeypatch.setattr(materials, "_OVERLAP", 64)
    spans = [span for span, _ in materials.split_materials(path, size)]
    assert spans[0][0] == 0
    assert spans[-1][1] == path.stat().st_size
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    whole = [f.info["frame_id"] for f in mptrj.read_mptrj(path)]
    parts = [f.info["frame_id"] for span in spans for f in mptrj.read_mptrj(path, span)]
    assert parts == whole
    assert size > 3000 or len(spans) > 3


def test_frames_of_a_divided_file_keep_their_numbers(tmp_path, monkeypatch):
    import mlip.data.readers as readers

    path = tmp_path / "m.json"
    path.write_text(json.dumps(some_materials(40, 3)))
    build(tmp_path / "whole", [path])
    monkeypatch.setitem(readers._SPLIT, "mptrj", (materials.split_materials, 2000))
    monkeypatch.setattr(jobs, "SHARD_ROWS", 4)
    assert len(list(split([path], "mptrj"))) > 5
    build(tmp_path / "parts", [path])
    store = Store(tmp_path / "parts")
    assert_same(Store(tmp_path / "whole"), store)
    assert store.where(50).endswith("m.json, frame 50")


@pytest.mark.parametrize("cut", [0.3, 0.7])
def test_a_cut_json_file_is_noticed_in_parts_too(tmp_path, monkeypatch, cut):
    import mlip.data.readers as readers

    path = tmp_path / "m.json"
    text = json.dumps(some_materials(40, 3))
    path.write_text(text[: int(cut * len(text))])
    monkeypatch.setitem(readers._SPLIT, "mptrj", (materials.split_materials, 2000))
    with pytest.raises(CorruptDataError, match="cut short"):
        build(tmp_path / "s", [path])
    path.write_text(text[: text.index(', "mp-20": {') + 1])
    with pytest.raises(CorruptDataError, match="cut short"):
        build(tmp_path / "t", [path])


def overlapping(rng, kind):
    """A random structure whose closest pair is known by brute force over images."""
    n = int(rng.integers(1, 9))
    if kind == "molecule":
        cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
        positions = rng.normal(scale=0.5, size=(n, 3))
        images = np.zeros((1, 3))
    else:
        cell = np.diag(rng.uniform(0.25, 4, 3)) + rng.normal(scale=0.5, size=(3, 3))
        pbc = np.ones(3, dtype=bool)
        if kind == "slab":
            pbc[int(rng.integers(3))] = False
        positions = rng.uniform(-2, 3, size=(n, 3)) @ cell
        grid = [np.arange(-9, 10) if p else [0] for p in pbc]
        images = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 3) @ cell
    apart = positions[:, None, None] - positions[None, :, None] + images
    distance = np.linalg.norm(apart, axis=-1)
    distance[distance == 0] = np.inf
    return (np.ones(n, dtype=int), positions, cell, pbc), float(distance.min())


@pytest.mark.parametrize("kind", ["molecule", "crystal", "slab"])
def test_overlaps_are_those_of_brute_force(kind):
    from mlip.data.readers import Block, Frame

    rng = np.random.default_rng(0)
    several, closest = [], []
    while len(several) < 150:
        (numbers, positions, cell, pbc), distance = overlapping(rng, kind)
        if kind != "molecule" and abs(np.linalg.det(cell)) < 0.5:
            continue  # nine images either way are not enough for a flat cell
        several.append(Frame(numbers, positions, cell, pbc, {}, {}))
        closest.append(distance)
    expected = [k for k, d in enumerate(closest) if d < MIN_DISTANCE]
    assert 5 < len(expected) < 145
    found = find_overlaps(Block.of(several))
    assert list(found) == expected
    for k, words in found.items():
        assert words.endswith(f" are {closest[k]:.3f} A apart, closer than {MIN_DISTANCE} A")


def test_parts_of_a_file_must_have_their_labels_under_one_key(tmp_path, monkeypatch):
    import mlip.data.readers as readers
    from mlip.data.readers.omol25 import split_aselmdb

    def row(**labels):
        array = {"__ndarray__": [[1, 3], "float64", [0.0, 0.0, 0.0]]}
        return {"numbers": [1], "positions": array, "data": {}, **labels}

    rows = [row(energy=-1.0)] * 4 + [row(energy=-1.0, key_value_pairs={"REF_energy": -2.0})] * 4
    path = tmp_path / "mixed.aselmdb"
    with lmdb.open(str(path), subdir=False, lock=False) as target, target.begin(write=True) as txn:
        for k, one in enumerate(rows, start=1):
            txn.put(b"%d" % k, zlib.compress(json.dumps(one).encode()))
        txn.put(b"nextid", zlib.compress(b"9"))
    monkeypatch.setitem(readers._SPLIT, "aselmdb", (split_aselmdb, 4))
    with pytest.raises(DataError, match=r"frame 4: its energy is under 'REF_energy', that of ear"):
        build(tmp_path / "s", [path])
    build(tmp_path / "t", [path], options={"keys": {"energy": "energy"}})
    assert Store(tmp_path / "t").column("energy").tolist() == [-1.0] * 8
    assert Store(tmp_path / "t").where(6).endswith("mixed.aselmdb, frame 6")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("longest", [0, 1, 2])
def test_atoms_meet_across_the_faces_of_a_cell(axis, longest):
    from mlip.data.readers import Block, Frame

    cell = np.diag([4.0, 4.0, 4.0])
    cell[longest, longest] = 7.0
    positions = np.full((2, 3), 1.0)
    positions[:, axis] = [0.05, cell[axis, axis] - 0.05]
    for pbc, expected in (
        (True, {0: "atoms 0 and 1 are 0.100 A apart, closer than 0.3 A"}),
        (False, {}),
    ):
        frame = Frame(np.ones(2, int), positions, cell, np.full(3, pbc), {}, {})
        assert find_overlaps(Block.of([frame])) == expected
