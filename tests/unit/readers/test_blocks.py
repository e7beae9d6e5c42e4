"""Frames in blocks are what they are one by one: values, counts, and who is blamed for a fault."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from mlip.data.readers import ReadOptions, blocks
from mlip.data.readers.canonical import Canonicalizer
from mlip.data.readers.frames import RawFrame
from mlip.errors import CorruptDataError, DataError

FILE = Path("file.x")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)


def raw(k: int, **changes) -> RawFrame:
    rng = np.random.default_rng(k)
    n = 2 + k % 3
    stress = rng.normal(size=(3, 3)) * 0.01
    results = {
        "energy": -1.5 * k,
        "forces": rng.normal(size=(n, 3)),
        "stress": stress + stress.T,
        "magmoms": rng.normal(size=n),
    }
    results.update(changes.pop("results", {}))
    values = {
        "numbers": rng.integers(1, 118, n),
        "positions": rng.normal(size=(n, 3)),
        "cell": np.diag([3.0, 4.0, 5.0]) + rng.normal(size=(3, 3)) * 0.1,
        "pbc": (True, True, True),
        "results": {name: value for name, value in results.items() if value is not None},
        "info": {"mp_id": f"mp-{k // 2}", "frame_id": str(k)},
        **changes,
    }
    return RawFrame(**values, where=f"id {k}")


def one_by_one(frames, options, first=0):
    canonical = Canonicalizer(FILE, options)
    yield from (canonical.arrays(frame, k) for k, frame in enumerate(frames, start=first))
    canonical.finish()


def in_blocks(frames, options, first=0):
    canonical = Canonicalizer(FILE, options)
    yield from (
        frame
        for block in blocks.canonical_blocks(canonical, blocks.in_lists(frames), first)
        for frame in block.frames()
    )
    canonical.finish()


def same(a, b):
    for name in ("numbers", "positions", "cell", "pbc"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert a.info == b.info
    assert set(a.results) == set(b.results)
    for name, value in a.results.items():
        np.testing.assert_array_equal(value, b.results[name])


def follow(frames):
    """Return what is yielded, the error it ends in and what was warned of."""
    found, error = [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found.extend(frames)
        except DataError as raised:
            error = raised
    return found, error, [str(w.message) for w in caught]


HARMLESS = {
    "nothing unusual": {},
    "no label": {"results": dict.fromkeys(("energy", "forces", "stress", "magmoms"))},
    "no forces": {"results": {"forces": None}},
    "moments unknown": {"results": {"magmoms": np.full(4, np.nan)}},
    "a moment unknown": {"results": {"magmoms": np.array([1.0, np.nan, 2.0, 3.0])}},
    "moments not collinear": {"results": {"magmoms": np.ones((4, 3))}},
    "stress of six": {"results": {"stress": np.arange(6.0)}},
    "virial": {"results": {"stress": None}, "info": {"virial": np.eye(3)}},
    "slab": {"pbc": np.array([True, True, False])},
    "no cell": {"cell": None, "pbc": (False, False, False)},
    "single precision": {"positions": np.ones((4, 3), np.float32)},
    "lists": {"positions": np.ones((4, 3)).tolist(), "numbers": [1, 2, 3, 4]},
    "short numbers": {"numbers": np.arange(1, 5, dtype=np.int16)},
    "almost flat": {"cell": np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1.8e-5]])},
    "switched off": {"info": {"config_forces_weight": 0.0}},
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize(
    "options",
    [ReadOptions(), ReadOptions(energy_unit="kcal/mol", stress_unit="GPa", stress_sign="vasp")],
)
def test_values_are_those_of_each_frame_alone(name, options):
    frames = [raw(k) for k in range(11)]
    frames[5] = raw(5, **HARMLESS[name])  # 4 atoms, in the second block
    if name == "virial":
        frames = [raw(k, **HARMLESS[name]) for k in range(11)]
    expected, _, said = follow(one_by_one(frames, options))
    found, error, told = follow(in_blocks(frames, options))
    assert error is None
    assert told == said
    assert len(found) == len(expected) == 11
    for a, b in zip(found, expected, strict=True):
        same(a, b)


FAULTS = {
    "element": {"numbers": np.array([1, 2, 0, 4])},
    "no atoms": {"numbers": np.zeros(0, int)},
    "position": {"positions": np.full((4, 3), np.nan)},
    "positions": {"positions": np.ones((3, 3))},
    "cell": {"cell": np.diag([1.0, np.inf, 1.0])},
    "zero axis": {"cell": np.diag([1.0, 0.0, 1.0])},
    "flat": {"cell": np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1e-6]])},
    "energy": {"results": {"energy": np.nan}},
    "force": {"results": {"forces": np.array([[0.0, 0, 0]] * 3 + [[0, np.inf, 0]])}},
    "forces": {"results": {"forces": np.ones((3, 3))}},
    "asymmetric": {"results": {"stress": np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]])}},
    "moment": {"results": {"magmoms": np.array([1, 2, 3, np.inf])}},
    "charge": {"info": {"charge": 0.5}},
    "another key": {"results": {"forces": None}, "arrays": {"REF_forces": np.ones((4, 3))}},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_that_of_its_frame(name):
    """Frames before it are handed over, also those of its own block."""
    frames = [raw(k) for k in range(11)]
    frames[5] = raw(5, **FAULTS[name])
    frames[7] = raw(7, results={"energy": np.inf})
    _, wanted, _ = follow(one_by_one(frames, ReadOptions(), first=100))
    found, error, _ = follow(in_blocks(frames, ReadOptions(), first=100))
    assert "file.x: frame 105 (id 5): " in str(error)
    assert str(error) == str(wanted)
    assert len(found) == 5


def test_a_bad_frame_comes_before_the_end_of_a_damaged_file():
    def damaged(bad):
        yield from (raw(k, results={"energy": np.nan if k == bad else 0.0}) for k in range(6))
        raise CorruptDataError("cut short")

    found, error, _ = follow(in_blocks(damaged(None), ReadOptions()))
    assert len(found) == 6
    assert "cut short" in str(error)
    found, error, _ = follow(in_blocks(damaged(5), ReadOptions()))
    assert len(found) == 5
    assert "frame 5 (id 5): energy is nan" in str(error)
