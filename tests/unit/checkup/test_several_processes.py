"""The doctor by several processes says what it says alone, whatever is wrong and wherever."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import warnings
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
from ase.io import write
from checkup_data import SETS, frames_of, save

import mlip.data.readers as readers
from mlip.cli.main import main
from mlip.data.checkup import examine, pairs, stretches
from mlip.data.checkup.frame import COLUMNS
from mlip.data.checkup.report import text, to_dict
from mlip.data.processes import workers
from mlip.data.store import build
from mlip.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Stretches of a few frames; files are cut by this process, so that others need not know."""
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    for name, size in (("extxyz", 16_000), ("mptrj", 60_000), ("aselmdb", 40)):
        split, _ = readers._SPLIT[name]
        monkeypatch.setitem(readers._SPLIT, name, (split, size))
    monkeypatch.setattr(stretches, "ROWS", 7)
    monkeypatch.setattr(stretches, "LEAF", 11)
    monkeypatch.setattr(pairs, "ENOUGH", 20)


class Apart:
    """Workers that are this process, but get and give copies only."""

    looks = 0

    def in_turn(self, work, arguments, ahead):
        for given in arguments:
            Apart.looks += 1
            yield pickle.loads(pickle.dumps(work(*pickle.loads(pickle.dumps(given)))))


@pytest.fixture
def apart(monkeypatch):
    """Look at all that `examine(..., processes=2)` hands to workers, without the wait for them."""

    @contextmanager
    def here(number, killed):
        yield Apart()

    monkeypatch.setattr(stretches, "workers", here)
    Apart.looks = 0
    return Apart


def everything(paths, **options):
    """All that is said of files, but how long it took."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = examine([str(p) for p in paths], **options)
    about = to_dict(out)
    about.pop("seconds")
    census = out.census
    return {
        "dict": json.dumps(about),
        "text": text(out).rpartition(" (")[0],
        "warnings": [str(w.message) for w in caught],
        "frames": {name: census.frames[name].tobytes() for name in COLUMNS.names},
        "compositions": [(z.tolist(), n.tolist()) for z, n in census.compositions],
        "groups": census.groups,
        "sizes": [part.force_sizes.tolist() for part in census.parts],
        "pairs": [part.pairs.pairs().tobytes() for part in census.parts],
        "keys": [(list(p.keys.items()), list(p.other_keys.items())) for p in census.parts],
        "residuals": out.residuals.tobytes(),
    }


def assert_same(paths, processes=2, **options):
    alone = everything(paths, **options)
    several = everything(paths, processes=processes, **options)
    assert several == alone
    return alone


def bad_frames():
    """A set with a fault of many kinds, more often than is shown of each."""
    frames = frames_of("metals")[:140] + frames_of("molecules")[:60]
    rng = random.Random(0)
    for atoms in rng.sample(frames, 60):
        results, kind = atoms.calc.results, rng.randrange(9)
        if kind == 0:
            results["energy"] = np.nan
        elif kind == 1:
            atoms.positions[0] = atoms.positions[-1]
        elif kind == 2:
            del results["forces"]
        elif kind == 3:
            results["energy"] += 400.0
        elif kind == 4:
            results["forces"] = results["forces"] + 1.0
        elif kind == 5:
            atoms.info["spin"] = 2 + atoms.info.get("spin", 0)
        elif kind == 6:
            atoms.info["material_id"] = f"m{rng.randrange(4)}"
        elif kind == 7:
            atoms.positions[0, 0] = 1e7
        else:
            results.clear()
    return frames + frames[20:45]


def test_all_kinds_of_faults(tmp_path, apart):
    one = save(tmp_path / "a.extxyz", bad_frames())
    two = save(tmp_path / "b.extxyz", frames_of("metals")[100:160])
    said = assert_same([one, two], expected=7)
    assert apart.looks > 12
    kinds = {finding["kind"] for finding in json.loads(said["dict"])["findings"]}
    assert {
        *("not-finite", "overlap", "partly-labelled", "energy-outlier", "parity", "absurd"),
        *("frames-missing", "duplicate", "leak"),
    } <= kinds


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_are_some(tmp_path, processes):
    path = save(tmp_path / "a.extxyz", bad_frames())
    assert_same([path, SETS["molecules"]], processes)


def crystals_json(path):
    """MPtrj's JSON as plain text, with materials that are in several stretches."""
    materials = json.loads(gzip.decompress(SETS["crystals"].read_bytes()))
    few = {name: dict(islice(frames.items(), 9)) for name, frames in materials.items()}
    path.write_text(json.dumps(few))
    return path


def test_every_way_to_be_cut_or_not(tmp_path, apart, monkeypatch):
    """Byte ranges, rows, stores, files that are too large for a worker, and many small ones."""
    store = tmp_path / "store"
    build(store, [SETS["metals"]])
    folder = tmp_path / "folder"
    folder.mkdir()
    for k in range(5):
        save(folder / f"{k}.extxyz", frames_of("metals")[k : 30 + k])
    write(tmp_path / "a.traj", frames_of("molecules")[:30])
    paths = [crystals_json(tmp_path / "m.json"), SETS["molecules"], store, folder]
    paths += [SETS["crystals"], tmp_path / "a.traj"]
    assert_same(paths)
    looks = apart.looks
    assert looks > 30
    monkeypatch.setattr(stretches, "ALONE", 1000)
    assert_same(paths)
    assert_same(paths, keep_info=True)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(tmp_path, apart, seed):
    """What is unread, and what the reader says of it, which may be what it read before."""
    rng = random.Random(seed)
    good = save(tmp_path / "good.extxyz", frames_of("metals")[:40])
    other = save(tmp_path / "b.extxyz", frames_of("metals")[40:110])
    for path in (crystals_json(tmp_path / "m.json"), other):
        sound, unread, told = path.read_bytes(), set[str](), set[str]()
        for _ in range(5):
            data, place = bytearray(sound), rng.randrange(len(sound))
            if rng.random() < 0.3:
                del data[place:]
            else:
                data[place : place + rng.choice([1, 60])] = rng.choice([b"}", b"{", b"\0" * 9, b""])
            path.write_bytes(bytes(data))
            said = assert_same([path, good])
            unread |= set(json.loads(said["dict"])["parts"][0]["unread"].values())
            told.add(said["dict"])
        assert unread
        assert len(told) > 1


def test_the_first_material_of_a_stretch_is_named_by_the_one_before(tmp_path, apart):
    path = crystals_json(tmp_path / "m.json")
    data = path.read_bytes()
    split, size = readers._SPLIT["mptrj"]
    begin = [span[0] for span, _ in split(path, max(1, size // stretches.FINER))][3]
    key = data.index(b'"', data.index(b"{", begin) + 1)
    path.write_bytes(data[:key] + b"\0" + data[key + 1 :])
    said = assert_same([path])
    assert "after material" in said["dict"]
    assert "after no material" not in said["dict"]


def test_frames_whose_label_is_under_another_key_than_in_earlier_stretches(tmp_path, apart):
    """The first key of a file counts: stretches cannot know it, but whoever waits for them."""
    frames = frames_of("metals")
    path = save(tmp_path / "a.extxyz", [*frames[100:160], *frames[:60]])
    lines = path.read_text().splitlines()
    comments = [k for k, line in enumerate(lines) if "energy=" in line]
    for k in comments[37:90]:
        lines[k] = lines[k].replace(" energy=", " REF_energy=")
    path.write_text("\n".join(lines) + "\n")
    found = assert_same([path])
    numbers = np.frombuffer(found["frames"]["composition"], COLUMNS["composition"])
    elements = [found["compositions"][k][0][0] for k in numbers]
    assert elements == [13] * 37 + [29] * 30, "aluminium, then, behind the refused, copper"
    said = json.loads(found["dict"])
    (refused,) = [finding for finding in said["findings"] if finding["kind"] == "other-key"]
    assert refused["count"] == 53
    assert [example["frame"] for example in refused["examples"]] == [37, 38, 39]


@pytest.mark.parametrize("content", ["", " \n \n", "nonsense\n"])
def test_files_without_frames(tmp_path, apart, content):
    path = tmp_path / "a.extxyz"
    path.write_text(content)
    good = save(tmp_path / "good.extxyz", frames_of("metals")[:40])
    (tmp_path / "c.extxyz").write_text(content)
    assert_same([path, good, tmp_path / "c.extxyz"])


def test_options_that_are_wrong_are_refused_before_anything_is_read(tmp_path, apart):
    path = save(tmp_path / "a.extxyz", frames_of("metals")[:40])
    with pytest.raises(ConfigError, match="did you mean 'energy_unit'"):
        examine([path], processes=2, energy_unti="eV")
    with pytest.raises(ConfigError, match="contradicts the mptrj format"):
        examine([crystals_json(tmp_path / "m.json")], processes=2, energy_unit="hartree")
    assert apart.looks == 0


def test_the_command(tmp_path, capsys):
    path = save(tmp_path / "a.extxyz", bad_frames())
    found = []
    for n in (1, 2):
        code = main(
            ["data", "check", str(path), "--processes", f"{n}", "--json", f"{tmp_path}/{n}"]
        )
        assert code == 1
        printed = capsys.readouterr().out.rpartition(" (")[0]
        found.append((printed, {**json.loads((tmp_path / f"{n}").read_text()), "seconds": 0}))
    assert found[0] == found[1]
    assert main(["data", "check", str(path), "--processes", "0"]) == 2
    assert "--processes 0 must be 1 or more" in capsys.readouterr().err


def test_a_worker_that_is_killed():
    with (
        pytest.raises(DataError, match="somebody was killed"),
        workers(1, "somebody was killed") as w,
    ):
        w.submit(os._exit, 1).result()
