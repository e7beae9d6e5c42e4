"""Frames that cannot be used: errors, or skipped, counted and named, and never more than a few."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.io import write

import mlip.data.readers as readers
from mlip.cli.main import main
from mlip.data.checkup import examine
from mlip.data.prepare import prepare_data
from mlip.data.readers import numbered_structures, read_structures, refused
from mlip.data.readers.extxyz_parts import split_extxyz
from mlip.data.readers.materials import split_materials
from mlip.data.readers.omol25 import split_aselmdb
from mlip.data.store import COLUMNS, Store, build, jobs, merge, open_store
from mlip.data.store.conversion import Conversion
from mlip.errors import ConfigError, DataError
from mlip.training.config import load_config

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")
N = 60
# the first, two in a row, at the border of a part and of a shard, and the last
BAD = {0: "energy", 7: "overlap", 8: "forces", 19: "energy", 20: "position", 30: "misshapen",
       41: "overlap", 59: "forces"}  # fmt: skip


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Eight of sixty may be left out, and files are cut into several jobs and shards."""
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(refused, "MAX_SHARE", 0.14)
    monkeypatch.setitem(readers._SPLIT, "extxyz", (split_extxyz, 3000))
    monkeypatch.setitem(readers._SPLIT, "aselmdb", (split_aselmdb, 20))
    monkeypatch.setitem(readers._SPLIT, "mptrj", (split_materials, 5000))
    monkeypatch.setattr(jobs, "SHARD_ROWS", 6)


def frame(k, bad=()):
    """Numbers of a crystal with something wrong, if it is to be; a molecule now and then."""
    rng = np.random.default_rng(k)
    positions = np.array([[0.0, 0.0, 0.0], [1.4, 1.4, 1.4]]) + rng.normal(0, 0.05, (2, 3))
    forces, energy = rng.normal(size=(2, 3)), -k - 0.5
    what = dict(bad).get(k)
    if what == "energy":
        energy = np.nan
    if what == "forces":
        forces[1, 2] = np.inf
    if what == "position":
        positions[0, 1] = np.nan
    if what == "overlap":
        positions[1] = positions[0] + 0.01
    return energy, positions, forces


def as_extxyz(path, chosen, bad):
    with path.open("w") as out:
        for k in chosen:
            energy, positions, forces = frame(k, bad)
            box = "" if k % 9 == 4 else 'Lattice="4 0 0 0 4 0 0 0 4" '  # else: no stress, said once
            out.write(
                f"2\n{box}Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} "
                f'stress="0.1 0.2 0.3 0 0 0" material_id=m{k}\n'
            )
            rows = [["Si", *map(repr, map(float, row))] for row in np.hstack([positions, forces])]
            if dict(bad).get(k) == "misshapen":
                rows[1][3] = "*******"  # more digits than there was room for
            out.writelines(" ".join(row) + "\n" for row in rows)


def as_mptrj(path, chosen, bad):
    out: dict[str, dict] = {}
    for k in chosen:
        energy, positions, forces = frame(k, bad)
        sites = [
            {"species": [{"element": "Si", "occu": 1}], "abc": (r / 4).tolist(), "xyz": r.tolist()}
            for r in positions
        ]
        if dict(bad).get(k) == "misshapen":
            sites[0]["species"] = [{"element": e, "occu": 0.5} for e in ("Si", "Ge")]
        lattice = {"matrix": (4 * np.eye(3)).tolist()}
        out.setdefault(f"mp-{k // 3}", {})[f"mp-{k}-0-0"] = {
            "structure": {"lattice": lattice, "sites": sites},
            "uncorrected_total_energy": energy,
            "force": forces.tolist(),
            "stress": np.eye(3).tolist(),
        }
    path.write_text(json.dumps(out))


def as_aselmdb(path, chosen, bad):
    def listed(array):
        return {"__ndarray__": [list(array.shape), str(array.dtype), array.ravel().tolist()]}

    with (
        lmdb.open(str(path), subdir=False, map_size=2**24, lock=False) as db,
        db.begin(write=True) as target,
    ):
        for n, k in enumerate(chosen, start=1):
            energy, positions, forces = frame(k, bad)
            row = {
                "numbers": listed(np.array([14, 14])),
                "positions": listed(positions),
                "cell": listed(4.0 * np.eye(3)),
                "pbc": listed(np.ones(3, dtype=bool)),
                "energy": energy,
                "forces": listed(forces),
            }
            if dict(bad).get(k) == "misshapen":
                row["positions"]["__ndarray__"][0] = [3, 3]
            target.put(b"%d" % n, zlib.compress(json.dumps(row).encode()))
        target.put(b"nextid", zlib.compress(b"%d" % (len(chosen) + 1)))


WRITERS = {"extxyz": as_extxyz, "json": as_mptrj, "aselmdb": as_aselmdb}
GOOD = [k for k in range(N) if k not in BAD]
SKIP = {"on_bad": "skip"}


def silently(do, *arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        do(*arguments, **options)
    return [str(w.message) for w in caught]


@pytest.fixture(params=WRITERS)
def files(request, tmp_path):
    """A file with bad frames, and the same without them."""
    bad, good = (tmp_path / f"{name}.{request.param}" for name in ("bad", "good"))
    WRITERS[request.param](bad, range(N), BAD)
    WRITERS[request.param](good, GOOD, {})
    return bad, good


def same(store, other):
    for name in COLUMNS:
        if name not in ("sample_id", "start"):
            ours, theirs = np.asarray(store.column(name)[:]), np.asarray(other.column(name)[:])
            np.testing.assert_array_equal(ours, theirs, name)


def check(folder, files):
    bad, good = files
    store = Store(folder)
    silently(build, folder.parent / "good", [good])
    same(store, Store(folder.parent / "good"))
    assert [store.where(i) for i in range(len(store))] == [f"{bad}, frame {k}" for k in GOOD]
    assert store.column("sample_id").tolist() == GOOD
    assert list(store.refused[str(bad)]) == sorted(BAD)
    for k, why in store.refused[str(bad)].items():
        assert str(bad) in why
        assert ("A apart" in why) == (BAD[k] == "overlap")
        named = re.search(r"frame (\d+)( after byte)?|row (\d+)|(mp-\d+)-0-0", why)
        assert named
        number, counted_from, row, frame_id = named.groups()
        assert counted_from or k in (int(number or -1), int(row or 0) - 1) or frame_id == f"mp-{k}"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_left_is_the_file_without_them(tmp_path, files, processes):
    said = silently(build, tmp_path / "s", [files[0]], options=SKIP, processes=processes)
    words = [m for m in said if "cannot be used" in m]
    assert len(words) == 1
    assert f"{files[0]}: 8 frame(s) cannot be used and are left out; the first: " in words[0]
    check(tmp_path / "s", files)
    assert [m.split(": ", 1)[1] for m in said if m not in words] == [
        m.split(": ", 1)[1] for m in silently(build, tmp_path / "g", [files[1]])
    ]  # stress of how many molecules was left out


def test_without_the_word_they_are_errors(tmp_path, files):
    with pytest.raises(DataError, match="frame 0"):
        build(tmp_path / "s", [files[0]], discard=True)
    assert not (tmp_path / "s").exists()


def test_going_on_after_a_kill(tmp_path, files, monkeypatch):
    monkeypatch.setattr(refused, "MAX_SHARE", 0.5)  # so that a wrong count is seen as what it is
    whole = tmp_path / "whole"
    silently(build, whole, [files[0]], options=SKIP)
    names = sorted(folder.name for folder in (whole / "shards").iterdir())
    assert len(names) > 6
    for kept in range(len(names)):
        folder = tmp_path / f"killed-{kept}"
        silently(build, folder, [files[0]], options=SKIP, part=(0, 1000))  # begins, does one job
        for name in names[:kept]:
            if not (folder / "shards" / name).exists():
                (whole / "shards" / name).rename(folder / "shards" / name)
        silently(build, folder, [files[0]], options=SKIP)
        check(folder, files)
        for name in names[:kept]:
            if not (whole / "shards" / name).exists():
                (folder / "shards" / name).rename(whole / "shards" / name)


def test_hosts_and_appending(tmp_path, files):
    for part in range(3):
        silently(build, tmp_path / "s", [files[0]], options=SKIP, part=(part, 3))
    silently(merge, tmp_path / "s")
    check(tmp_path / "s", files)
    silently(build, tmp_path / "s", [files[1]], options=SKIP, append=True)
    more = Store(tmp_path / "s")
    assert more.column("sample_id").tolist() == [*GOOD, *range(len(GOOD))]
    assert list(more.refused) == [str(files[0])]
    assert sorted(more.refused[str(files[0])]) == sorted(BAD)


def test_in_place(tmp_path):
    files = tmp_path / "bad.aselmdb", tmp_path / "good.aselmdb"
    as_aselmdb(files[0], range(N), BAD)
    as_aselmdb(files[1], GOOD, {})
    silently(build, tmp_path / "s", [files[0]], options=SKIP, in_place=True)
    check(tmp_path / "s", files)
    assert Store(tmp_path / "s").originals is not None


def test_more_than_a_few_are_an_error(tmp_path, files, monkeypatch):
    monkeypatch.setattr(refused, "MAX_SHARE", 0.1)
    words = r"^8 of 60 frames cannot be used, more than the 10.0% that data.on_bad=skip leaves out"
    with pytest.raises(DataError, match=words):
        silently(build, tmp_path / "s", [files[0]], options=SKIP, discard=True)
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(refused, "MAX_SHARE", 0.08)  # readers do not look for overlaps
    with pytest.raises(DataError, match=r"^6 of 60 frames cannot be used, more than the 8.0%"):
        silently(list, read_structures(files[0], on_bad="skip"))


def test_jobs_without_a_usable_frame(tmp_path, files, monkeypatch):
    monkeypatch.setattr(refused, "MAX_SHARE", 0.7)
    bad = {**BAD, **dict.fromkeys([*range(18, 42), *range(50, 60)], "energy")}
    writer = WRITERS[files[0].suffix[1:]]
    writer(files[0], range(N), bad)
    good = [k for k in range(N) if k not in bad]
    for part in range(2):
        silently(build, tmp_path / "s", [files[0]], options=SKIP, part=(part, 2))
    silently(merge, tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.column("sample_id").tolist() == good
    assert list(store.refused[str(files[0])]) == sorted(bad)


def test_an_end_between_the_manifest_and_the_last_word(tmp_path, files, monkeypatch):
    """The conversion is not yet forgotten, and its frames must not count twice."""
    silently(build, tmp_path / "s", [files[1]])

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "s", [files[0]], options=SKIP, append=True)
    silently(build, tmp_path / "s", [files[0]], options=SKIP, append=True)
    store = Store(tmp_path / "s")
    assert store.column("sample_id").tolist() == [*range(len(GOOD)), *GOOD]
    assert [bad["frame"] for bad in store.manifest["refused"]] == sorted(BAD)


def test_a_store_without_bad_frames_has_nothing_to_skip(tmp_path):
    as_extxyz(tmp_path / "a.extxyz", GOOD, {})
    build(tmp_path / "s", [tmp_path / "a.extxyz"])
    assert len(open_store(tmp_path / "s", options=SKIP)) == len(GOOD)
    assert not build(tmp_path / "s", [tmp_path / "a.extxyz"], options=SKIP)


@pytest.mark.parametrize("axes", ["F F F", "T T F", "T F F", "T T T"])
@pytest.mark.parametrize("apart", [0.0, 0.1])
@pytest.mark.parametrize("width", [4.0, 0.8])
def test_atoms_in_one_place(tmp_path, axes, apart, width):
    path = tmp_path / "a.extxyz"

    def frame(distance):
        cell = f"{width} 0 0 0 {width} 0 0 0 {width}"
        return (
            f'2\nLattice="{cell}" pbc="{axes}" Properties=species:S:1:pos:R:3 energy=-1\n'
            f"Si 0.1 0.1 0.1\nSi 0.1 0.1 {0.1 + distance}\n"
        )

    path.write_text(frame(0.4) + frame(apart) + 8 * frame(0.4))
    with pytest.raises(DataError, match=r"a\.extxyz, frame 1: atoms 0 and 1 are 0.[01]00 A"):
        build(tmp_path / "s", [path])
    build(tmp_path / "t", [path], options=SKIP)
    assert Store(tmp_path / "t").column("sample_id").tolist() == [0, *range(2, 10)]


@pytest.mark.parametrize("bad", [0, 3])
def test_a_frame_whose_edges_cannot_be_counted(tmp_path, monkeypatch, bad):
    monkeypatch.setattr("mlip.data.store.writer.SAMPLE", 1)
    path = tmp_path / "a.extxyz"
    far = [[0, 0, 0], [3e9, 0, 0]]
    near = [[0, 0, 0], [3, 0, 0]]
    write(path, [Atoms("H2", far if k == bad else near) for k in range(10)], format="extxyz")
    with pytest.raises(DataError, match=rf"a\.extxyz, frame {bad}: .*remove the frame"):
        build(tmp_path / "s", [path])
    build(tmp_path / "t", [path], options=SKIP)
    assert Store(tmp_path / "t").column("sample_id").tolist() == [k for k in range(10) if k != bad]
    assert Store(tmp_path / "t").manifest["edges"]["structures"] == 9


def test_one_in_a_thousand(tmp_path, monkeypatch):
    monkeypatch.undo()
    path = tmp_path / "a.extxyz"
    for bad, fits in (({500: "energy"}, True), ({500: "energy", 600: "forces"}, False)):
        as_extxyz(path, range(1000), bad)
        folder = tmp_path / f"s{len(bad)}"
        if fits:
            silently(build, folder, [path], options=SKIP)
            assert len(Store(folder)) == 999
        else:
            with pytest.raises(DataError, match=r"^2 of 1000 frames .* more than the 0.1%"):
                silently(build, folder, [path], options=SKIP)


def test_what_is_mostly_bad_is_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(refused, "HOPELESS", 5)
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(N), dict.fromkeys(range(20), "forces"))
    seen = []
    with pytest.raises(DataError, match=r"^6 of 6 frames in a row cannot be used.*frame 5"):
        seen += read_structures(path, on_bad="skip")
    monkeypatch.setattr(jobs, "SHARD_ROWS", 100)
    monkeypatch.setitem(readers._SPLIT, "extxyz", (split_extxyz, 10**9))
    with pytest.raises(DataError, match=r"^6 of 6 frames in a row cannot be used.*frame 5"):
        build(tmp_path / "s", [path], options=SKIP)
    as_extxyz(path, range(N), dict.fromkeys(range(20), "overlap"))
    with pytest.raises(DataError, match=r"^20 of 60 frames in a row cannot be used.*A apart"):
        build(tmp_path / "t", [path], options=SKIP)


def test_another_key_is_never_skipped(tmp_path):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(N), {})
    text = path.read_text().replace("energy=-30.5", "REF_energy=-30.5")
    path.write_text(text)
    for read in (
        lambda: list(read_structures(path, on_bad="skip")),
        lambda: build(tmp_path / "s", [path], options=SKIP),
    ):
        with pytest.raises(DataError, match="frame 30: its energy is under 'REF_energy'"):
            silently(read)


def test_the_key_of_a_frame_that_is_skipped_counts_for_nothing(tmp_path):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(N), {0: "energy"})
    path.write_text(path.read_text().replace("energy=nan", "REF_energy=nan"))
    assert len(list(read_structures(path, on_bad="skip"))) == N - 1
    try:
        build(tmp_path / "s", [path], options=SKIP)
    except DataError as error:
        pytest.fail(f"the others are refused: {error}")
    assert len(Store(tmp_path / "s")) == N - 1


def test_what_a_skipped_frame_would_leave_out_is_not_counted(tmp_path):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(9), {})
    path.write_text(path.read_text().replace("energy=-4.5", "energy=-4.5 charge=0.5"))
    said = silently(list, read_structures(path, on_bad="skip"))
    assert len(said) == 1  # the one molecule, whose stress is no label, is skipped for its charge
    assert "1 frame(s) cannot be used and are left out; the first: " in said[0]
    assert "frame 4" in said[0]
    assert silently(build, tmp_path / "s", [path], options=SKIP) == said


def test_frames_keep_their_numbers(tmp_path, files):
    atoms_on_one_another = [k for k in BAD if BAD[k] == "overlap"]  # which readers do not look for
    usable = sorted([*GOOD, *atoms_on_one_another])
    with pytest.warns(UserWarning, match=r"6 frame\(s\) cannot be used and are left out; the fir"):
        found = list(numbered_structures(files[0], on_bad="skip"))
    assert [(path, number) for path, number, _ in found] == [(files[0], k) for k in usable]
    energies = [atoms.get_potential_energy() for _, _, atoms in found]
    assert energies == [-k - 0.5 for k in usable]


def test_a_run_says_what_it_skips_every_time(tmp_path):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(N), BAD)
    config = load_config([f"data.train={path}", "data.on_bad=skip", "loss.stress_weight=0"])
    for _ in range(2):  # the second finds the store of the first
        data = []
        silently(lambda: data.append(prepare_data(config["data"], cutoff=3.0, seed=0)))  # noqa: B023
        assert len(data[0].parts["train"][0]) == len(GOOD)
        lines = [line for line in data[0].summary() if line.startswith("Dropped")]
        assert len(lines) == 1
        assert lines[0].startswith(
            "Dropped  8 of 60 frames of data that cannot be used; the first: "
        )
        assert data[0].stats.dropped == {"data": {"bad": 8}}
        record = data[0].split_record()["dropped"]
        assert {k: v.tolist() for k, v in record["bad"].items()} == {str(path): sorted(BAD)}


def test_a_split_is_written_without_them(tmp_path, capsys):
    bad = {k: what for k, what in BAD.items() if what != "overlap"}
    path, out = tmp_path / "a.extxyz", tmp_path / "parts"
    as_extxyz(path, range(N), bad)
    command = ["data", "split", str(path), "--out-dir", str(out), "--val", "0.2"]
    assert main(command) == 1
    assert "frame 0" in capsys.readouterr().err
    assert main([*command, "data.on_bad=skip"]) == 0
    parts = [list(read_structures(out / f"{part}.extxyz")) for part in ("train", "val")]
    energies = [atoms.get_potential_energy() for part in parts for atoms in part]
    assert sorted(energies) == sorted(-k - 0.5 for k in range(N) if k not in bad)


def test_a_split_keeps_frames_where_they_belong(tmp_path):
    """A number beyond nature is no fault of the reader; training leaves its frame to the user."""
    path, out = tmp_path / "a.extxyz", tmp_path / "parts"
    as_extxyz(path, range(N), {3: "energy"})
    path.write_text(path.read_text().replace("energy=-10.5", "energy=-1e15"))
    command = ["data", "split", str(path), "--out-dir", str(out), "--val", "0.2"]
    assert main([*command, "data.on_bad=skip"]) == 0
    record = json.loads((out / "splits.json").read_text())
    assert record["dropped"] == {"bad": {str(path): [3, 10]}}
    for part in ("train", "val"):
        found = [a.get_potential_energy() for a in read_structures(out / f"{part}.extxyz")]
        assert found == [-k - 0.5 for k in record[part][str(path)]]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_split_knows_two_levels_of_theory(tmp_path, capsys, processes):
    path, out = tmp_path / "a.extxyz", tmp_path / "parts"
    as_extxyz(path, range(N), {0: "energy"})
    text = path.read_text()
    path.write_text(text.replace("energy=nan", "REF_energy=nan"))
    command = ["data", "split", str(path), "--out-dir", str(out), "--val", "0.2", "--processes"]
    assert main([*command, processes, "data.on_bad=skip"]) == 0
    path.write_text(text.replace("energy=-30.5", "REF_energy=-30.5"))
    capsys.readouterr()
    assert main([*command, processes, "data.on_bad=skip", "--force"]) == 1
    assert "frame 30: its energy is under 'REF_energy'" in capsys.readouterr().err


def test_a_frame_of_another_layout(tmp_path):
    """In MPtrj and MatPES a row of two numbers is no force; the frames behind it can be read."""
    as_mptrj(tmp_path / "mptrj.json", range(9), {})
    document = json.loads((tmp_path / "mptrj.json").read_text())
    document["mp-1"]["mp-4-0-0"]["force"][1] = [0.0, 0.0]
    (tmp_path / "mptrj.json").write_text(json.dumps(document))
    frames = [frame for material in document.values() for frame in material.values()]
    records = [
        {
            "structure": {
                "lattice": frame["structure"]["lattice"],
                "sites": [
                    {**s, "properties": {}, "label": "Si"} for s in frame["structure"]["sites"]
                ],
            },
            "energy": frame["uncorrected_total_energy"],
            "forces": frame["force"],
            "stress": [0.0] * 6,
            "matpes_id": f"matpes-{k}",
        }
        for k, frame in enumerate(frames)
    ]
    (tmp_path / "matpes.json").write_text(json.dumps(records))
    for name in ("mptrj", "matpes"):
        path = tmp_path / f"{name}.json"
        with pytest.raises(DataError, match="array"):
            list(read_structures(path, name))
        found = list(numbered_structures(path, name, on_bad="skip"))
        assert [number for _, number, _ in found] == [0, 1, 2, 3, 5, 6, 7, 8]
        silently(build, tmp_path / name, [path], format=name, options=SKIP)
        assert len(Store(tmp_path / name)) == 8
        part = examine([path]).census.parts[0]
        assert (part.frames, part.usable) == (9, 8)


def test_evaluation_skips_them_too(tmp_path, capsys):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(N), {3: "energy"})
    run = tmp_path / "run"
    words = [f"data.train={path}", "data.on_bad=skip", "model=facet-xs", "trainer.max_steps=1"]
    assert main(["train", *words, f"out_dir={run}", "trainer.accelerator=cpu"]) == 0
    capsys.readouterr()
    command = ["evaluate", str(run / "potential.safetensors"), str(path)]
    assert main(command) == 1
    assert "frame 3" in capsys.readouterr().err
    assert main([*command, "data.on_bad=skip"]) == 0
    assert f"{N - 1} structures" in capsys.readouterr().out
    as_extxyz(path, range(N), {3: "energy", 5: "overlap"})
    assert main([*command, "data.on_bad=skip"]) == 0
    assert f"{N - 2} structures" in capsys.readouterr().out
    as_extxyz(path, range(N), dict.fromkeys(range(20), "overlap"))
    assert main([*command, "data.on_bad=skip"]) == 1
    assert "20 of 60 frames cannot be used" in capsys.readouterr().err


def test_a_command_says_it_in_a_line(tmp_path):
    path = tmp_path / "a.extxyz"
    as_extxyz(path, range(0, 4000, 9), {})  # crystals alone
    with path.open("a") as more:
        more.write(path.read_text() * 2)
    text = path.read_text()
    path.write_text(text.replace("energy=-0.5 ", "energy=nan ", 1))
    command = [sys.executable, "-m", "mlip.cli.main", "data", "convert", str(path)]
    words = [*command, str(tmp_path / "s"), "data.on_bad=skip"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].startswith(f"warning: {path}: 1 frame(s) cannot be used")
    assert "UserWarning" not in done.stderr
    assert f"left out: 1 frames of {path}" in done.stdout


def test_a_wrong_word(tmp_path):
    with pytest.raises(ConfigError, match="on_bad='ignore'; expected one of error, skip"):
        read_structures(Path("x"), on_bad="ignore")
