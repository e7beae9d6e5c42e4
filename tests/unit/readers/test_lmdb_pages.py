"""A damaged LMDB file is an error; LMDB itself would take the process down with it."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import lmdb
import pytest

from mlip.data.readers.lmdb_pages import check_lmdb
from mlip.data.readers.omol25 import read_aselmdb
from mlip.errors import CorruptDataError, MLIPError

SOUND, REFUSED, OTHER = 0, 1, 2


@pytest.fixture
def shard(tmp_path, write_rows, molecules):
    """A tree with every kind of page: branches, leaves, and records with pages of their own."""
    path = write_rows(tmp_path / "a.aselmdb", molecules * 20)
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as env:
        for k in range(4):
            with env.begin(write=True) as transaction:
                transaction.put(b"big%d" % k, os.urandom(9000))
    check_lmdb(path)
    return path


def pages_of(path: Path) -> tuple[int, dict[int, int]]:
    """The page size, and the kind of every page of the tree: 1 branch, 2 leaf, 4 overflow."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 40)
    kinds = {}
    for number in range(2, len(data) // size):
        own, kind = struct.unpack_from("<Q2xH", data, number * size)
        if own == number and kind in (1, 2, 4):
            kinds[number] = kind
    return size, kinds


def outcome(path: Path) -> int:
    """Read every row in a child process: what it made of the file, negative if it was killed."""
    child = os.fork()
    if child == 0:
        code = OTHER
        try:
            for _ in read_aselmdb(path):
                pass
            code = SOUND
        except MLIPError as error:
            code = REFUSED if str(path) in str(error) else OTHER
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_sound_files_pass(tmp_path, shard):
    kinds = pages_of(shard)[1]
    assert set(kinds.values()) == {1, 2, 4}, "the file has every kind of page"
    assert outcome(shard) == SOUND
    with lmdb.open(str(shard), subdir=False, lock=False, readonly=True) as env:
        env.copy(str(tmp_path / "copy.aselmdb"), compact=True)
    check_lmdb(tmp_path / "copy.aselmdb")
    with lmdb.open(str(shard), subdir=False, lock=False, map_size=2**26) as env:
        for key in [b"big1", *(b"%d" % n for n in range(20, 50))]:
            with env.begin(write=True) as transaction:
                transaction.delete(key)
    check_lmdb(shard)
    fresh = tmp_path / "fresh.aselmdb"
    lmdb.open(str(fresh), subdir=False, lock=False).close()
    check_lmdb(fresh)


@pytest.mark.parametrize("what", ["header", "slots", "nodes", "page", "meta"])
def test_no_damage_kills_the_process(shard, what):
    data, rng = shard.read_bytes(), random.Random(what)
    size, kinds = pages_of(shard)
    tree = [number for number, kind in kinds.items() if kind != 4]
    refused = 0
    for _ in range(25):
        damaged = bytearray(data)
        number = rng.choice(tree)
        lower, upper = struct.unpack_from("<HH", data, number * size + 12)
        if what == "page":
            damaged[number * size : (number + 1) * size] = rng.randbytes(size)
        else:
            first, last = {
                "header": (8, 16), "slots": (16, lower), "nodes": (upper, upper + 16),
                "meta": (16, 152),
            }[what]  # fmt: skip
            page = rng.randrange(2) if what == "meta" else number
            damaged[page * size + rng.randrange(first, last)] ^= rng.choice([255, 1, 128])
        shard.write_bytes(damaged)
        result = outcome(shard)
        assert result in (SOUND, REFUSED), f"{what} of page {number}: {result}"
        refused += result == REFUSED
    assert refused > 5, "the damage was seen"


def test_every_length_is_refused(shard):
    data = shard.read_bytes()
    size, _ = pages_of(shard)
    rng = random.Random(3)
    lengths = [0, 1, 15, 151, size - 1, size, size + 100, 2 * size, len(data) - size]
    lengths += [len(data) - 1, len(data) - rng.randrange(2, size)]
    lengths += [rng.randrange(len(data)) for _ in range(10)]
    for length in lengths:
        shard.write_bytes(data[:length])
        with pytest.raises(CorruptDataError, match=r"cut short|does not start like"):
            check_lmdb(shard)


def test_an_older_header_is_not_read_as_if_it_were_the_newest(shard):
    """One flipped bit in a transaction number would bring back what was written over."""
    data = bytearray(shard.read_bytes())
    size, _ = pages_of(shard)
    first, second = (struct.unpack_from("<Q", data, at + 144)[0] for at in (0, size))
    at = 144 if first < second else size + 144
    data[at + 1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptDataError, match="headers contradict"):
        check_lmdb(shard)
