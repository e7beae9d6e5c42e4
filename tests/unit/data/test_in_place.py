"""Training straight from `.aselmdb`: an index beside the shards gives what a full store gives."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
import zlib
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import write

import mlip.data.readers as readers
from mlip.cli.main import main
from mlip.data.batching import Budget, GraphLoader
from mlip.data.prepare import prepare_data
from mlip.data.readers import by_number, lmdb_pages, omol25
from mlip.data.readers.lmdb_pages import check_lmdb
from mlip.data.store import COLUMNS, LEFT, SUMMARIES, Store, build, jobs, merge, open_store
from mlip.errors import ConfigError, CorruptDataError, DataError
from mlip.training import split_file
from mlip.training.card import training_card
from mlip.training.config import load_config
from mlip.training.run import train

OMOL = Path(__file__).resolve().parents[3] / "data" / "omol-mini"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(array):
    array = np.asarray(array)
    return {"__ndarray__": [list(array.shape), str(array.dtype), array.ravel().tolist()]}


def packed(content):
    return zlib.compress(json.dumps(content).encode())


@contextmanager
def open_to_write(path):
    with (
        lmdb.open(str(path), subdir=False, map_size=2**27, lock=False) as db,
        db.begin(write=True) as transaction,
    ):
        yield transaction


def write_shard(path, n, seed=0, deleted=()):
    """Crystals and molecules; some rows have no forces, no moments, or no weight for forces."""
    rng = np.random.default_rng(seed)
    with open_to_write(path) as target:
        for k in range(1, n + 1):
            crystal = k % 3 == 0
            atoms = (
                bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 1 + k % 4)
                if crystal
                else molecule("CH3OH")
            )
            atoms.rattle(0.1, rng=rng)
            row = {
                "numbers": listed(atoms.numbers),
                "positions": listed(atoms.positions),
                "cell": listed(atoms.cell.array),
                "pbc": listed(atoms.pbc),
                "energy": rng.normal(),
                "data": {"charge": k % 3 - 1, "source": f"row {k}", "data_id": f"set {k % 2}"},
            }
            if k % 5:
                row["forces"] = listed(rng.normal(size=(len(atoms), 3)))
            if k % 7 == 0:
                row["data"]["config_forces_weight"] = 0
            if k % 4 == 0:
                row["magmoms"] = listed(rng.normal(size=len(atoms)))
            if crystal:
                row["stress"] = listed(0.01 * rng.normal(size=6))
            if k not in deleted:
                target.put(b"%d" % k, packed(row))
        target.put(b"nextid", packed(n + 1))
        target.put(b"deleted_ids", packed(list(deleted)))
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards; rows were deleted from both."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "a.aselmdb", 23, seed=1, deleted=(1, 2, 11))
    write_shard(folder / "b.aselmdb", 31, seed=2, deleted=(4, 30))
    return folder


def assert_same(one: Store, other: Store) -> None:
    """Every structure, every column and every summary, to the last bit."""
    assert len(one) == len(other) > 0
    for k in range(len(one)):
        a, b = one.arrays(k), other.arrays(k)
        assert set(a) == set(b)
        for name, values in a.items():
            assert values.dtype == b[name].dtype, name
            assert values.shape == b[name].shape, name
            assert values.tobytes() == b[name].tobytes(), (k, name)
        assert one.where(k) == other.where(k)
        assert one.atoms_of(k) == other.atoms_of(k)
    for name in COLUMNS:
        assert np.asarray(one.column(name)).tobytes() == np.asarray(other.column(name)).tobytes()
    chosen = np.random.default_rng(0).permutation(len(one))[: len(one) // 2]
    for name in SUMMARIES:
        assert one.summary(name, chosen).tobytes() == other.summary(name, chosen).tobytes(), name
        assert not len(other.summary(name, chosen[:0]))
    for a, b in zip(one.compositions(chosen), other.compositions(chosen), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.edge_counts(4.0), other.edge_counts(4.0))
    assert one.manifest["blake2b"] == other.manifest["blake2b"], "it is of the data"
    assert one.manifest["labels"] == other.manifest["labels"]


def stores(paths, **options) -> tuple[Store, Store]:
    full, index = (open_store(paths, in_place=here, **options) for here in (False, True))
    assert full.folder != index.folder
    assert full.originals is None
    assert index.originals is not None
    assert not list(index.folder.glob("shards/*/positions.bin")), "nothing large is copied"
    return full, index


def test_rows_that_were_deleted_move_no_other(shards):
    path = shards / "a.aselmdb"
    status = path.stat()
    rows = by_number.Frames(path, status.st_size, status.st_mtime_ns)
    assert rows[19].info["id"] == "row 23", "3 of 23 are gone"
    assert rows[0].info["id"] == "row 3"
    assert_same(*stores(shards))


@pytest.mark.parametrize("name", ["omol-mini", "genuine"])
def test_the_data_sets(name, request):
    folder = OMOL if name == "omol-mini" else request.getfixturevalue("real_data") / "omol25"
    full, index = stores(folder, format="aselmdb")
    assert_same(full, index)


@pytest.mark.parametrize(
    "options",
    [
        {"energy_unit": "kcal/mol", "group": "data_id"},
        {"keys": {"energy": "num"}, "force_unit": "hartree/bohr"},
    ],
)
def test_rows_are_read_again_by_the_same_options(shards, tmp_path, options):
    if "keys" in options:
        with open_to_write(shards / "a.aselmdb") as target:
            for key, record in list(target.cursor()):
                if key.isdigit():
                    row = json.loads(zlib.decompress(record))
                    row["data"]["num"] = row["energy"] + 1.0
                    target.put(key, packed(row))
        shards = shards / "a.aselmdb"
    assert_same(*stores(shards, options=options))
    build(tmp_path / "s", [tmp_path / "shards" / "a.aselmdb"], options=options, in_place=True)
    with pytest.raises(ConfigError, match=r"data\.stress_sign was settled"):
        open_store(tmp_path / "s", options={"stress_sign": "vasp"})


def test_parts_processes_and_shards_of_any_size(shards, tmp_path, monkeypatch):
    files = sorted(shards.iterdir())
    build(tmp_path / "full", files)
    monkeypatch.setitem(readers._SPLIT, "aselmdb", (omol25.split_aselmdb, 9))
    monkeypatch.setattr(jobs, "SHARD_ROWS", 4)
    for part in (1, 0):
        build(tmp_path / "s", files, part=(part, 2), in_place=True)
    merge(tmp_path / "s")
    index = Store(tmp_path / "s")
    assert len(index.manifest["shards"]) > 10
    full = Store(tmp_path / "full")
    for k in range(len(full)):
        for name, values in full.arrays(k).items():
            assert values.tobytes() == index.arrays(k)[name].tobytes(), (k, name)
    for name in set(COLUMNS) - {"start"}:
        left, right = (np.asarray(store.column(name)) for store in (full, index))
        np.testing.assert_array_equal(left, right)
    assert not build(tmp_path / "s", files, in_place=True), "nothing to do"


def test_summaries_are_of_the_structures(shards):
    for store in stores(shards):
        chosen = np.random.default_rng(1).permutation(len(store))[:30]
        found = {name: store.summary(name, chosen) for name in SUMMARIES}
        for k, i in enumerate(chosen):
            row = store.arrays(int(i))
            forces = row["forces"]
            assert found["has_forces"][k] == np.isfinite(forces).all()
            assert found["has_magmoms"][k] == np.isfinite(row["magmoms"]).all()
            expected = {
                "force_min": forces.min(),
                "force_max": forces.max(),
                "force_sum": np.abs(forces).sum(),
                "force_square": max(np.dot(f, f) for f in forces),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][k], value, rtol=1e-14, err_msg=name)
        assert 0 < found["has_forces"].sum() < 30
        assert 0 < found["has_magmoms"].sum() < 30


def test_columns_take_the_indices_of_arrays(shards, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_ROWS", 7)
    full, index = stores(shards)
    rng = np.random.default_rng(0)
    for name in LEFT:
        whole, rows = np.asarray(full.column(name)), index.column(name)
        picked = rng.integers(0, len(whole), 50)
        mask = rng.random(len(whole)) < 0.3
        for key in (slice(3, 40), slice(None), slice(9, 9), 5, picked, mask, picked[:0],
                    slice(2, 60, 3)):  # fmt: skip
            np.testing.assert_array_equal(rows[key], whole[key])
        assert rows.shape == whole.shape
        assert rows[:].dtype == rows.dtype == whole.dtype


def test_a_shard_is_added(shards, tmp_path):
    a, b = sorted(shards.iterdir())
    build(tmp_path / "s", [a], in_place=True)
    with pytest.raises(ConfigError, match=r"in place; append with in_place"):
        build(tmp_path / "s", [b], append=True)
    build(tmp_path / "s", [b], append=True, in_place=True)
    build(tmp_path / "whole", [a, b])
    assert_same(Store(tmp_path / "whole"), Store(tmp_path / "s"))
    build(tmp_path / "full", [a])
    with pytest.raises(ConfigError, match="in the store itself; append without in_place"):
        build(tmp_path / "full", [b], append=True, in_place=True)
    with pytest.raises(DataError, match="store of other files or options"):
        build(tmp_path / "full", [a], in_place=True)


def slowly(folder, files):
    """Index at a pace that can be interrupted."""
    add = jobs.ShardWriter.add

    def slow(*item):
        time.sleep(0.01 if len(list((folder / "shards").glob("[0-9]*"))) < 3 else 600)
        add(*item)

    jobs.ShardWriter.add = slow
    build(folder, files, in_place=True)


def test_sigkill_costs_one_shard(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SHARD_ROWS", 8)
    files, folder = sorted(shards.iterdir()), tmp_path / "s"
    done = folder / "shards"
    process = multiprocessing.get_context("fork").Process(target=slowly, args=(folder, files))
    process.start()
    while process.is_alive() and len(list(done.glob("[0-9]*"))) < 3:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    stamps = {p.name: (p / "shard.json").stat().st_mtime_ns for p in done.glob("[0-9]*")}
    with pytest.raises(DataError, match="unfinished conversion"):
        build(folder, files)
    build(folder, files, in_place=True)
    assert all((done / n / "shard.json").stat().st_mtime_ns == t for n, t in stamps.items())
    build(tmp_path / "full", files)
    assert_same(Store(tmp_path / "full"), Store(folder))


def batches(store, **options):
    loader = GraphLoader(
        store, np.arange(len(store)), 4.0, Budget(None, 40, 900), seed=5, shuffle=True, **options
    )
    return list(loader)


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours, theirs, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert a.numpy().tobytes() == b.numpy().tobytes(), field.name


@pytest.mark.parametrize(
    ("workers", "method"), [(0, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn")]
)
def test_batches(shards, workers, method):
    full, index = stores(shards)
    index.arrays(3)  # this process has the shard open before it forks
    ours = batches(index, num_workers=workers, start_method=method)
    assert_equal_batches(ours, batches(full))
    assert_equal_batches(batches(pickle.loads(pickle.dumps(index))), ours)


def test_an_environment_is_of_one_process(shards):
    """LMDB's handles break where two processes use one; pages need no second look."""
    _, index = stores(shards)
    index.arrays(0)
    before = {key for key in omol25._environments if key[0].startswith(str(shards))}
    assert {key[1] for key in before} == {os.getpid()}
    lmdb_pages_walked = omol25.check_lmdb
    child = os.fork()
    if child == 0:
        omol25.check_lmdb = None  # calling it would end in another way
        index.arrays(0), index.arrays(len(index) - 1)
        own = {k for k in omol25._environments if k[1] == os.getpid()}
        os._exit(len(own))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert omol25.check_lmdb is lmdb_pages_walked


OPTIONS = {**load_config([])["data"], "num_workers": 0, "batch_size": 4, "val_fraction": 0.3}
FILTER = {"max_force": 3.0, "elements": ["Na", "Cl", "C", "O", "H"], "max_stress": 0.025}


@pytest.mark.parametrize("case", ["one", "filtered", "several"])
def test_what_a_run_knows_of_its_data(shards, tmp_path, case):
    """Splits, E0, statistics, coverage, ranges, filters: the same, of one source or two."""

    def prepared(in_place):
        options = {**OPTIONS, "format": "aselmdb", "in_place": in_place, "group": "data_id"}
        if case == "several":
            entries = [
                {"path": str(shards / "a.aselmdb"), "head": "x", "group": "source"},
                {"path": str(OMOL), "head": "y", "group": "auto", "in_place": True},
            ]
            options |= {"sources": entries}
        else:
            options |= {"train": str(shards), "group": "source"}
            options |= {"filter": FILTER if case == "filtered" else None}
        return prepare_data(options, cutoff=4.0, seed=1)

    full, index = prepared(False), prepared(True)
    assert index.stats == full.stats
    assert index.coverage == full.coverage
    assert split_file.listed(index.split_record()) == split_file.listed(full.split_record())
    assert index.summary() == full.summary()
    config = load_config([])
    assert training_card(config, index) == training_card(config, full)
    assert (case == "filtered") == bool(full.stats.dropped)
    ours, theirs = (list(data.loader("train", seed=2) or []) for data in (index, full))
    assert_equal_batches(ours, theirs)


def test_no_row_is_read_twice(shards, monkeypatch):
    """Statistics, filters and coverage read no forces; edges are counted once, in one pass."""
    read: list[tuple[Path, int]] = []
    original = by_number.Frames.__getitem__

    def counting(frames, number):
        read.append((frames._rows.path, number))
        return original(frames, number)

    monkeypatch.setattr(by_number.Frames, "__getitem__", counting)
    options = {**OPTIONS, "train": str(shards), "format": "aselmdb", "in_place": True}
    data = prepare_data({**options, "filter": FILTER, "group": "source"}, cutoff=4.0, seed=1)
    assert len(read) == len(set(read)) == data.size("train"), "a sample, for its neighbours"
    training_card(load_config([]), data)
    assert len(read) == data.size("train")
    store = data.parts["train"][0]
    read.clear()
    for _ in range(2):
        store.edge_counts(4.0)
        assert len(read) == len(set(read)) == len(store)
    read.clear()
    np.asarray(store.column("positions"))
    assert len(read) == len(set(read)) == len(store)
    read.clear()
    store.where(3)
    assert not read


RUN = (
    "model=facet-xs", "model.channels=[4,4]", "model.num_layers=1", "data.format=aselmdb",
    "data.batch_size=16", "trainer.max_epochs=2", "seed=3", "logger=none",
)  # fmt: skip


@pytest.mark.parametrize("name", ["omol-mini", "genuine"])
def test_training_gives_the_same_weights(name, request, tmp_path):
    folder = OMOL if name == "omol-mini" else request.getfixturevalue("real_data") / "omol25"
    weights = []
    for in_place, workers in ((False, 0), (True, 0), (True, 2)):
        out = tmp_path / f"{in_place}-{workers}"
        data = [f"data.train={folder}", f"data.in_place={str(in_place).lower()}"]
        train([*RUN, *data, f"data.num_workers={workers}", f"out_dir={out}"])
        state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(state)
        rows = (out / "metrics.csv").read_text().splitlines()
        assert len(rows) == 3
    for other in weights[1:]:
        assert set(other) == set(weights[0])
        for key, value in other.items():
            assert value.numpy().tobytes() == weights[0][key].numpy().tobytes(), key


# -- what is refused -----------------------------------------------------------------------------


def test_other_formats_are_refused(tmp_path, cache, shards):
    write(tmp_path / "x.extxyz", molecule("CH4"), format="extxyz")
    with pytest.raises(ConfigError, match=r"x\.extxyz: is extxyz.*in_place is for aselmdb; leave"):
        open_store(tmp_path / "x.extxyz", in_place=True)
    with pytest.raises(ConfigError, match=r"x\.extxyz: is extxyz"):
        open_store([shards / "a.aselmdb", tmp_path / "x.extxyz"], in_place=True)
    assert not list(cache.glob("store-*"))
    with pytest.raises(ConfigError, match=r"in_place='yes' must be true or false"):
        prepare_data({**OPTIONS, "train": str(shards), "in_place": "yes"}, cutoff=4.0, seed=0)


def test_a_store_that_is_given_is_taken_as_it_is(shards, tmp_path):
    """So that a validation set that cannot be read in place may be a store."""
    files = sorted(shards.iterdir())
    build(tmp_path / "full", files)
    build(tmp_path / "index", files, in_place=True)
    assert open_store(tmp_path / "full", in_place=True).originals is None
    assert open_store(tmp_path / "index").originals is not None


def touched(path):
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def rewritten(path):
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grown(path):
    with path.open("ab") as file:
        file.write(bytes(4096))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (touched, r"has changed since it was indexed.*\(other time\); restore.*index the data ag"),
        (rewritten, r"has changed since it was indexed.*\(other content\)"),
        (grown, r"has changed since it was indexed.*\(other size, content, time\)"),
        (Path.unlink, r"cannot be read.*only an index of it; put it back"),
    ],
    ids=["touched", "rewritten", "grown", "gone"],
)
def test_a_shard_that_has_changed_or_gone(shards, tmp_path, change, message):
    files = sorted(shards.iterdir())
    build(tmp_path / "s", files, in_place=True)
    store = open_store(tmp_path / "s")
    change(files[1])
    with pytest.raises(DataError, match=rf"b\.aselmdb: {message}"):
        open_store(tmp_path / "s")
    with pytest.raises(DataError, match=rf"b\.aselmdb: {message}"):
        train([*RUN, f"data.train={tmp_path / 's'}", f"out_dir={tmp_path / 'out'}"])
    if change is not rewritten:  # of the ends of files only `open_store` knows
        last = len(store) - 1
        with pytest.raises(DataError, match=r"b\.aselmdb: (has been written|cannot be read)"):
            store.arrays(last)
    if files[1].exists() and change is not grown:
        with pytest.raises(DataError, match=r"index of .*|store of other files"):
            build(tmp_path / "s", files, in_place=True)


def test_files_that_moved_are_indexed_again(shards, tmp_path):
    build(tmp_path / "s", sorted(shards.iterdir()), in_place=True)
    moved = shards.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"a\.aselmdb: cannot be read.*index the data again where"):
        open_store(tmp_path / "s")
    with pytest.raises(DataError, match=r"elsewhere or at another time; remove it and give this"):
        build(tmp_path / "s", sorted(moved.iterdir()), in_place=True)
    files = [*sorted(moved.iterdir()), write_shard(tmp_path / "c.aselmdb", 5)]
    with pytest.raises(DataError, match=r"is in this store already"):
        build(tmp_path / "s", files, in_place=True, append=True)


def test_a_cached_index_follows_its_files(shards):
    before = open_store(shards, in_place=True)
    forces = before.arrays(0)["forces"]
    touched(shards / "a.aselmdb")
    after = open_store(shards, in_place=True)
    assert after.folder != before.folder
    np.testing.assert_array_equal(after.arrays(0)["forces"], forces)


def test_a_link_that_goes_takes_no_other_path_with_it(shards, tmp_path):
    (tmp_path / "link").symlink_to(shards)
    linked = open_store(tmp_path / "link", in_place=True)
    (tmp_path / "link").unlink()
    try:
        found = open_store(shards, in_place=True)
    except DataError as error:
        pytest.fail(str(error))
    assert found.folder != linked.folder
    assert np.isfinite(found.arrays(0)["forces"]).all()


@pytest.fixture
def damaged(tmp_path):
    """An index of a shard whose row 150 was damaged later, far from the ends of the file."""
    path = write_shard(tmp_path / "a.aselmdb", 300, deleted=(2,))
    build(tmp_path / "s", [path], in_place=True)
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as db, db.begin() as rows:
        record = rows.get(b"150")
    status, content = path.stat(), bytearray(path.read_bytes())
    assert content.count(record) == 1
    place = content.find(record) + len(record) // 2
    assert 65536 < place < len(content) - 65536
    content[place] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return tmp_path / "s"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_that_is_damaged_later_is_named(damaged, workers):
    store = open_store(damaged)
    store.arrays(147), store.arrays(149)
    with pytest.raises(CorruptDataError, match=r"a\.aselmdb: row 150: is damaged"):
        store.arrays(148)
    loader = GraphLoader(store, np.arange(len(store)), 4.0, Budget(8), num_workers=workers)
    with pytest.raises(CorruptDataError, match=r"a\.aselmdb: row 150: is damaged") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_another_row_in_its_place_is_noticed(shards):
    store = open_store(shards, in_place=True)
    assert store.originals is not None
    first = store.arrays(0)
    for energy, numbers in ((0.0, first["atomic_numbers"]), (first["energy"][0], [1] * 6)):
        with pytest.raises(CorruptDataError, match=r"a\.aselmdb, frame 0: is not the one that was"):
            store.originals.read(0, 0, np.array(numbers), float(energy))


def test_a_walk_that_leaves_records_out_is_as_safe(tmp_path):
    """A pointer beyond the file is found; what only the record's own page says is not."""
    path = write_shard(tmp_path / "a.aselmdb", 4)
    with open_to_write(path) as target:
        target.put(b"3", os.urandom(9000))
    content = bytearray(path.read_bytes())
    places = range(2 * 4096, len(content), 4096)
    pages = [k for k in places if content[k + 10] == lmdb_pages._OVERFLOW]
    content[pages[0]] ^= 1  # says that it is another page
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptDataError, match="does not hold the record"):
        check_lmdb(path)
    check_lmdb(path, records=False)
    pointer = (pages[0] // 4096).to_bytes(8, "little")
    assert content.count(pointer) == 1, "of the leaf; that of the record itself is spoilt"
    path.write_bytes(bytes(content).replace(pointer, (10**6).to_bytes(8, "little")))
    with pytest.raises(CorruptDataError, match="points to page 1000000"):
        check_lmdb(path, records=False)


# -- commands ------------------------------------------------------------------------------------


def test_commands(shards, tmp_path, capsys):
    files, folder = str(shards), tmp_path / "s"
    words = ["data", "convert", files, str(folder), "data.format=aselmdb", "--in-place"]
    assert main([*words, "--expect-frames", "49"]) == 0
    said = capsys.readouterr().out
    assert "in place: positions, forces, magmoms are read from 2 files" in said
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["data", "convert", files, str(tmp_path / "full"), "data.format=aselmdb"]) == 0
    texts = []
    for name in (folder, tmp_path / "full"):
        capsys.readouterr()
        assert main(["data", "stats", str(name)]) == 0
        texts.append(capsys.readouterr().out.replace(str(name), "").splitlines()[1:])
        assert main(["data", "check", str(name)]) in (0, 1)
        texts.append(capsys.readouterr().out.count("\n"))
    assert texts[:2] == texts[2:]
    assert main(["data", "verify", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "shards, all as they were written" in said
    assert "2 files with its positions, forces, magmoms: all as they were indexed" in said


def test_verify_reads_the_shards(damaged, capsys):
    assert main(["data", "verify", str(damaged)]) == 1
    assert "a.aselmdb: row 150: is damaged" in capsys.readouterr().err


def test_verify_knows_other_forces(tmp_path, capsys):
    """The same atoms and energy, other forces: only the checksum of the column tells."""
    path = write_shard(tmp_path / "a.aselmdb", 6)
    build(tmp_path / "s", [path], in_place=True)
    with open_to_write(path) as target:
        row = json.loads(zlib.decompress(target.get(b"3")))
        row["forces"]["__ndarray__"][2][0] += 1.0
        target.put(b"3", packed(row))
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    from mlip.data.store.conversion import describe_source

    manifest["sources"] = [describe_source(path, in_place=True)]
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["data", "verify", str(tmp_path / "s")]) == 1
    assert "frame 0 to" in (said := capsys.readouterr().err)
    assert "their forces have changed since they were indexed" in said
