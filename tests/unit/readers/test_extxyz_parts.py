"""Parts of an extxyz file: together they are the file, whatever is in it and whatever is wrong."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from mlip.data.readers import extxyz_parts
from mlip.data.readers.extxyz import read_extxyz
from mlip.data.readers.extxyz_parts import split_extxyz
from mlip.errors import CorruptDataError, MLIPError

PROPERTIES = "Properties=species:S:1:pos:R:3:forces:R:3"


def frame(rng, number):
    """A frame whose lines could be taken for others: comments that are counts, plain numbers."""
    n = rng.choice([1, 1, 2, 3, 7])
    plain = rng.random() < 0.3
    rows = [
        " ".join([str(rng.choice([1, 6, 8])) if plain else "H"] + [f"{rng.random():.6f}"] * 3)
        + ("" if plain else " 0.1 0.2 0.3")
        for _ in range(n)
    ]
    comment = f"Properties=Z:I:1:pos:R:3 energy={number}" if plain else f"{PROPERTIES} id={number}"
    if not plain and rng.random() < 0.3:
        comment, rows = str(n), [row.rpartition(" 0.1")[0] for row in rows]  # plain xyz
    end = rng.choice(["\n", "\r\n"])
    blank = "".join(
        rng.choice(["\n", "  \n", "\t\r\n"]) for _ in range(rng.choice([0, 0, 0, 1, 3]))
    )
    return end.join([f" {n} " if rng.random() < 0.1 else str(n), comment, *rows]) + end + blank


def content(seed, frames=60):
    rng = random.Random(seed)
    return "".join(frame(rng, k) for k in range(frames)).encode()


def what(raw):
    """A frame, or why it is none."""
    return str(raw.fault or (raw.numbers.tolist(), raw.positions.tolist(), repr(raw.info)))


def outcome(path, parts=(None,)):
    """What reading gives: frames with their labels, and the error that ended it."""
    out = []
    try:
        for part in parts:
            for raw in read_extxyz(path, part):
                out.append(what(raw))
                out.append({name: np.asarray(v).tolist() for name, v in raw.results.items()})
    except MLIPError as error:
        return out, type(error), str(error)
    return out, None, ""


def parts_of(path, size):
    return [part for part, _ in split_extxyz(path, size)]


@pytest.mark.parametrize("size", [1, 150, 1500])
@pytest.mark.parametrize("chunk", [64, 1000, 1024**2])
def test_parts_are_the_file(tmp_path, monkeypatch, size, chunk):
    monkeypatch.setattr(extxyz_parts, "CHUNK", chunk)
    path = tmp_path / "a.extxyz"
    path.write_bytes(content(f"{size} {chunk}"))
    parts = parts_of(path, size)
    assert len(parts) == 60 if size == 1 else len(parts) > 3
    assert (parts[0][0], parts[0][2]) == (0, 0)
    assert parts[-1][1] == path.stat().st_size
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    assert [share for _, share in split_extxyz(path, size)] == [b - a for a, b, _ in parts]
    whole, _, error = outcome(path)
    assert not error
    assert len(whole) == 120
    assert outcome(path, parts) == (whole, None, "")
    for (_, _, first), (_, _, after) in pairwise(parts):
        assert 2 * (after - first) == len(
            outcome(path, [parts[[p[2] for p in parts].index(first)]])[0]
        )


def test_a_small_file_is_not_cut(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_bytes(content(0))
    assert list(split_extxyz(path, path.stat().st_size)) == [(None, path.stat().st_size)]


@pytest.mark.parametrize("blank", [b"\n", b" \n" * 300, b"\n" * 5000])
def test_blank_lines_make_no_part_of_their_own(tmp_path, blank):
    path = tmp_path / "a.extxyz"
    path.write_bytes(blank + content(1) + blank)
    whole, _, error = outcome(path)
    assert not error
    assert outcome(path, parts_of(path, 100)) == (whole, None, "")


def spoilt(data, rng):
    """A wrong count, a line more or less, a cut, wrong bytes, a hole."""
    lines = data.splitlines(keepends=True)
    k = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        counts = [i for i, line in enumerate(lines) if line.strip().isdigit()]
        lines[rng.choice(counts)] = b"%d\n" % rng.choice([0, 1, 2, 5, 40, 10**8, 10**10])
    elif kind == 1:
        del lines[k]
    elif kind == 2:
        lines.insert(k, rng.choice([b"\n", b"3\n", b"H 0 0 0\n", lines[k]]))
    data = b"".join(lines)
    place = rng.randrange(len(data))
    if kind == 3:
        return data[:place]
    if kind == 4:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == 5:
        return data[:place] + bytes(rng.choice([1, 40, 700])) + data[place:]
    return data


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_wrong_parts_say_what_the_whole_says(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(extxyz_parts, "CHUNK", 1000)
    path = tmp_path / "a.extxyz"
    sound, rng = content(seed, 40), random.Random(seed)
    errors = set()
    for _ in range(150):
        path.write_bytes(spoilt(sound, rng))
        whole = outcome(path)
        assert outcome(path, parts_of(path, rng.choice([1, 200, 900]))) == whole
        errors.add(whole[2].partition(":")[2][:20])
    assert len(errors) > 10


def test_a_line_that_is_too_long_for_the_reader_is_left_to_it(tmp_path, monkeypatch):
    """It takes such a line in pieces, so that the lines after it are counted otherwise."""
    monkeypatch.setattr(extxyz_parts, "CHUNK", 500)
    monkeypatch.setattr("mlip.data.readers.extxyz.MAX_LINE", 1000)
    path = tmp_path / "a.extxyz"
    long = b"1\n" + b"x" * 3000 + b"\nH 0 0 0\n"
    path.write_bytes(content(2, 20) + long + content(3, 20))
    whole = outcome(path)
    assert whole[1] is CorruptDataError
    assert outcome(path, parts_of(path, 100)) == whole


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_that_changed_since_it_was_cut_is_noticed(tmp_path, more):
    """Otherwise frames could be read twice or not at all."""
    path = tmp_path / "a.extxyz"
    one = b"1\nenergy=-1.5\nH 0 0 0\n"
    path.write_bytes(20 * one)
    (begin, end, first), *_ = parts_of(path, 10 * len(one))
    path.write_bytes(8 * one + b"3\nenergy=1\nH 0 0 0\nH 0 0 1\nH 0 0 2\n" * (2 + more) + 9 * one)
    _, kind, message = outcome(path, [(begin, end, first)])
    assert kind is CorruptDataError
    assert f"not at byte {end}" in message
    assert "changes while it is read" in message
