"""MatPES's JSON: its units, its two layouts, and files that are cut or odd."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from mlip.data.readers import matpes, read_structures
from mlip.errors import ConfigError, CorruptDataError, DataError


@pytest.fixture
def listed(crystals, to_matpes):
    return to_matpes(crystals)


def test_kbar_of_vasp_to_ase(listed, write):
    """A compressed crystal; components in ASE's order."""
    listed[0]["stress"] = [100.0, 200.0, 300.0, 3.0, 2.0, 1.0]
    stress = next(read_structures(write(listed))).calc.results["stress"]
    wanted = -np.array([100.0, 200.0, 300.0, 3.0, 2.0, 1.0]) / 1602.1766208
    np.testing.assert_allclose(stress, wanted, rtol=1e-8)


def test_a_matrix_of_stress_is_the_same(listed, write):
    six = next(read_structures(write(listed))).calc.results["stress"]
    xx, yy, zz, yz, xz, xy = listed[0]["stress"]
    listed[0]["stress"] = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    np.testing.assert_allclose(next(read_structures(write(listed))).calc.results["stress"], six)


def test_units_are_fixed(listed, write):
    path = write(listed)
    with pytest.raises(ConfigError, match="contradicts the matpes format"):
        read_structures(path, stress_unit="GPa")
    assert len(list(read_structures(path, stress_unit="kbar", stress_sign="vasp"))) == 4


def test_materials_are_groups_and_ids_are_theirs(listed, write):
    frames = list(read_structures(write(listed)))
    assert [a.info["group"] for a in frames] == ["mp-0", "mp-0", "mp-1", "mp-1"]
    assert [a.info["id"] for a in frames] == [r["matpes_id"] for r in listed]
    listed[0]["provenance"] = None
    assert "group" not in next(read_structures(write(listed))).info


def test_compressed(listed, tmp_path):
    path = tmp_path / "MatPES-PBE-2025.1.json.gz"
    path.write_bytes(gzip.compress(json.dumps(listed).encode()))
    assert len(list(read_structures(path))) == 4


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000, 10**6])
@pytest.mark.parametrize("indent", [None, 1])
def test_chunks_do_not_matter(listed, write, monkeypatch, chunk, indent):
    path = write(json.dumps(listed, indent=indent))
    wanted = [a.info["id"] for a in read_structures(path)]
    if chunk < 100:  # one record, or it takes long
        path, wanted = write(json.dumps(listed[:1], indent=indent)), wanted[:1]
    monkeypatch.setattr(matpes, "CHUNK", chunk)
    assert [a.info["id"] for a in read_structures(path)] == wanted


def test_moments_may_be_missing_on_some_sites(listed, write):
    del listed[0]["structure"]["sites"][1]["properties"]["magmom"]
    del listed[1]["structure"]["sites"][0]["properties"]
    frames = list(read_structures(write(listed)))
    assert np.isnan(frames[0].calc.results["magmoms"]).tolist() == [False, True, False, False]
    assert np.isnan(frames[1].calc.results["magmoms"]).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forces": [[0.0] * 3] * 3}, "'forces' has shape"),
        ({"forces": [[0.0]] * 4}, r"length 3, got 1 - at `\$\.forces"),
        ({"stress": [1.0] * 5}, "'stress' has shape"),
        ({"stress": [[1.0], 2.0]}, "stress is ragged"),
        ({"stress": [{"xx": 1.0}]}, "stress is ragged or holds more than numbers"),
        ({"stress": ["1", "2", "3", "4", "5", "6"]}, "stress is ragged or holds more than numbers"),
        ({"structure": None}, "Expected `object`"),
        ({"energy": float("nan")}, "energy is nan; expected a finite number"),
        ({"energy": "none"}, r"\$\.energy"),
    ],
)
def test_a_fault_is_named_with_file_and_frame(change, message, listed, write):
    listed[2].update(change)
    path = write(listed)
    with pytest.raises(DataError, match=message) as caught:
        list(read_structures(path))
    assert str(path) in str(caught.value)
    assert "frame 2" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["lattice"]["matrix"].pop(), "its lattice has 2 vectors, expected 3"),
        (lambda s: s["sites"][0]["properties"].update(magmom={"z": 1.0}), "the magmom of its"),
        (lambda s: s["sites"][0]["properties"].update(magmom=[0, 0, 1.0]), "the magmom of its"),
    ],
)
def test_structures_of_another_layout_are_named(spoil, message, listed, write):
    spoil(listed[2]["structure"])
    with pytest.raises(DataError, match=f"frame 2 .*{message}"):
        list(read_structures(write(listed)))


def test_disordered_sites_are_refused(listed, write):
    listed[1]["structure"]["sites"][2]["species"] = [{"element": "Na", "occu": 0.5}]
    with pytest.raises(DataError, match=r"frame 1 .*mp-91-0-1.*: site 2 is disordered"):
        list(read_structures(write(listed)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-1], "is cut short or damaged"),
        (lambda text: text[: len(text) // 2], "is cut short or damaged"),
        (lambda text: text.replace('}, {"b', '}, 1 {"b', 1), "expected a record"),
        (lambda text: text + "}", "a brace closes that did not open"),
        (lambda text: text + "x", "is cut short or damaged"),
    ],
)
def test_damage_is_named(spoil, message, listed, write):
    with pytest.raises(CorruptDataError, match=message):
        list(read_structures(write(spoil(json.dumps(listed)))))


def test_a_record_without_an_end(listed, write, monkeypatch):
    monkeypatch.setattr(matpes, "CHUNK", 100)
    monkeypatch.setattr(matpes, "MAX_RECORD", 500)
    with pytest.raises(DataError, match=r"a record of more than 500 bytes; is this MatPES"):
        list(read_structures(write(listed)))


def test_an_empty_list(write):
    with pytest.raises(DataError, match="holds no record"):
        list(read_structures(write("[]"), format="matpes"))
