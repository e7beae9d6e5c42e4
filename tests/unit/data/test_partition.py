"""Parts on disk: disjoint, whole, the same for the same structures, and never over others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkup_data import SETS, frames_of, save

from mlip.data.checkup import examine
from mlip.data.partition import PARTS, RECORD, partition
from mlip.data.readers import read_structures
from mlip.errors import ConfigError, DataError
from mlip.units import energy_factor

SHARES = {"val": 0.2, "test": 0.1}


def parts_of(out_dir):
    """The structures of each part."""
    return {part: list(read_structures(out_dir / f"{part}.extxyz")) for part in PARTS}


def ids(frames):
    return {atoms.info["id"] for atoms in frames}


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("random", lambda a: a.info["id"]),
        ("group", lambda a: a.info["group"]),
        ("composition", lambda a: a.get_chemical_formula()),
        ("element", lambda a: tuple(sorted(set(a.numbers.tolist())))),
    ],
)
def test_parts_share_nothing_and_lose_nothing(by, key, tmp_path):
    done = partition([SETS["molecules"]], tmp_path, by=by, seed=3, **SHARES)
    parts = parts_of(tmp_path)
    keys = {part: {key(atoms) for atoms in frames} for part, frames in parts.items()}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not keys[a] & keys[b]
    everything = list(read_structures(SETS["molecules"]))
    assert sum(map(len, parts.values())) == len(everything)
    assert set().union(*map(ids, parts.values())) == ids(everything)
    assert done.sets == len({key(atoms) for atoms in everything})
    present = set().union(*(set(atoms.numbers) for atoms in parts["train"]))
    assert present == set().union(*(set(atoms.numbers) for atoms in everything))
    findings = {f.kind for f in examine([tmp_path / f"{part}.extxyz" for part in PARTS]).findings}
    assert "leak" not in findings


def test_the_record_says_where_every_frame_went(tmp_path):
    partition([SETS["molecules"]], tmp_path, by="random", seed=3, **SHARES)
    record = json.loads((tmp_path / RECORD).read_text())
    assert (record["seed"], record["by"], record["fractions"]) == (3, "random", SHARES)
    for part, frames in parts_of(tmp_path).items():
        wanted = [
            list(read_structures(file))[row].info["id"]
            for file, rows in record[part].items()
            for row in rows
        ]
        assert [atoms.info["id"] for atoms in frames] == wanted


@pytest.mark.parametrize("by", ["random", "composition"])
def test_the_order_of_frames_does_not_matter(by, tmp_path):
    frames = frames_of("molecules")
    for name, some in (("a", frames), ("b", frames[::-1])):
        partition([save(tmp_path / f"{name}.extxyz", some)], tmp_path / name, by=by, **SHARES)
    a, b = parts_of(tmp_path / "a"), parts_of(tmp_path / "b")
    assert all(ids(a[part]) == ids(b[part]) for part in PARTS)


def test_the_seed_matters(tmp_path):
    for seed in (0, 1):
        partition([SETS["molecules"]], tmp_path / str(seed), seed=seed, by="random", **SHARES)
    assert ids(parts_of(tmp_path / "0")["val"]) != ids(parts_of(tmp_path / "1")["val"])


@pytest.mark.parametrize("seed", range(4))
def test_equal_structures_stay_together_whatever_their_groups(seed, tmp_path):
    """A turned copy links two groups, and what is linked to them."""
    frames = frames_of("molecules")[:60]
    for number, atoms in enumerate(frames):
        state = {name: atoms.info[name] for name in ("charge", "spin")}
        atoms.info = {**state, "mp_id": f"group-{number}", "id": str(number)}
    copy = frames[7].copy()
    copy.rotate(40, "z")
    copy.info.update(mp_id="group-8", id="copy")
    path = save(tmp_path / "a.extxyz", [*frames, copy])
    done = partition([path], tmp_path / "parts", seed=seed, val=0.4, test=0.2)
    assert (done.by, done.sets) == ("group", 59)
    for part in parts_of(tmp_path / "parts").values():
        assert len({"7", "8", "copy"} & ids(part)) in (0, 3)


def test_labels_are_written_once_and_in_our_units(tmp_path):
    """Foreign keys and units are converted; read again without any option, they are the same."""
    hartree = energy_factor("hartree")
    frames = frames_of("metals")[:40]
    for number, atoms in enumerate(frames):
        results, atoms.calc = atoms.calc.results, None
        atoms.info = {"my_energy": results["energy"] / hartree, "id": str(number), "note": "kept"}
        atoms.info["virial"] = np.eye(3)
        atoms.arrays["REF_forces"] = results["forces"] / hartree
    path = save(tmp_path / "a.extxyz", frames)
    reading = {"energy_unit": "hartree", "keys": {"energy": "my_energy"}, "group": None}
    partition([path], tmp_path / "parts", **SHARES, **reading)
    wanted = {atoms.info["id"]: atoms for atoms in read_structures(path, **reading)}
    count = 0
    for frames in parts_of(tmp_path / "parts").values():
        for atoms in frames:
            other = wanted[atoms.info["id"]]
            count += 1
            assert atoms.calc.results.keys() == other.calc.results.keys()
            for label, value in other.calc.results.items():
                assert atoms.calc.results[label] == pytest.approx(value, abs=1e-8)
    assert count == 40
    text = (tmp_path / "parts" / "train.extxyz").read_text()
    assert "note=kept" in text
    assert not any(key in text for key in ("my_energy", "REF_forces", "virial"))


def test_nothing_is_overwritten(tmp_path):
    paths = [SETS["metals"]]
    partition(paths, tmp_path, **SHARES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"train\.extxyz exists"):
        partition(paths, tmp_path, seed=1, **SHARES)
    with pytest.raises(ConfigError, match=r"test\.extxyz is of another split"):
        partition(paths, tmp_path, val=0.2, test=0.0, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    partition(paths, tmp_path, seed=1, by="random", force=True, **SHARES)
    assert (tmp_path / "train.extxyz").read_bytes() != before["train.extxyz"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("mlip.data.partition.write", fail)
    with pytest.raises(OSError, match="disk full"):
        partition([SETS["metals"]], tmp_path / "parts", **SHARES)
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"by": "composition"}, DataError, "too few for 3 parts"),
        ({"by": "group", "group": None}, DataError, "no frame has a group"),
        ({"by": "colour"}, ConfigError, "expected one of random"),
        ({"val": 0.7, "test": 0.5}, DataError, "below one"),
    ],
)
def test_what_cannot_be_split(arguments, error, words, tmp_path):
    copper = [atoms for atoms in frames_of("metals") if set(atoms.symbols) == {"Cu"}]
    path = save(tmp_path / "a.extxyz", copper)
    with pytest.raises(error, match=words):
        partition([path], tmp_path / "parts", **{**SHARES, **arguments})
    assert not (tmp_path / "parts").exists()


def test_a_bad_frame_is_named(tmp_path):
    frames = frames_of("metals")[:9]
    frames[4].calc.results["energy"] = np.nan
    path = save(tmp_path / "a.extxyz", frames)
    with pytest.raises(DataError, match=r"a\.extxyz, frame 4: .*nan"):
        partition([path], tmp_path / "parts", **SHARES)
