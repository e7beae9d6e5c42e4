"""MPtrj's JSON: conversion, memory, and files that are cut, damaged or hostile."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from mlip.data.readers import Piece, blocks, mptrj, pymatgen_json, read_frames, read_structures
from mlip.data.readers.materials import cut_materials
from mlip.data.readers.stacked import Doubtful
from mlip.errors import ConfigError, CorruptDataError, DataError


@pytest.fixture
def nested(crystals, to_mptrj):
    return to_mptrj(crystals)


def first(nested):
    return nested["mp-0"]["mp-90-0-0"]


def test_kbar_of_vasp_to_ase(nested, write):
    """A compressed crystal: VASP's kbar is positive, ASE's stress negative."""
    first(nested)["stress"] = [[100.0, 1.0, 2.0], [1.0, 200.0, 3.0], [2.0, 3.0, 300.0]]
    stress = next(read_structures(write(nested))).calc.results["stress"]
    np.testing.assert_allclose(stress, np.array([100, 200, 300, 3, 2, 1]) / -1602.1766208, 1e-12)


def test_energies(nested, crystals, write):
    path = write(nested)
    raw = [a.calc.results["energy"] for a in read_structures(path)]
    corrected = [a.calc.results["energy"] for a in read_structures(path, energy="corrected")]
    assert raw == [a.calc.results["energy"] for a in crystals]
    assert corrected == [e - 0.5 for e in raw]
    first(nested)["corrected_total_energy"] = None
    with pytest.raises(DataError, match=r"frame 0 \(mp-0, mp-90-0-0\): corrected energies"):
        list(read_structures(write(nested), energy="corrected"))


@pytest.mark.parametrize(
    "options",
    [{"stress_unit": "GPa"}, {"stress_sign": "ase"}, {"energy_unit": "kcal/mol"}],
)
def test_a_unit_that_contradicts_the_format_is_refused(options, nested, write):
    path = write(nested)
    with pytest.raises(ConfigError, match="contradicts the mptrj format"):
        read_structures(path, **options)
    same = read_structures(path, stress_unit="kbar", stress_sign="vasp", energy_unit="eV")
    plain = read_structures(path)
    for a, b in zip(same, plain, strict=True):
        np.testing.assert_array_equal(a.calc.results["stress"], b.calc.results["stress"])


@pytest.mark.parametrize(
    ("magmom", "wanted"),
    [
        (None, None),
        ([None] * 4, None),
        ([], None),
        ([1.5, None, -0.5, 0.0], [1.5, np.nan, -0.5, 0.0]),
    ],
)
def test_magnetic_moments_may_be_null(magmom, wanted, nested, write):
    first(nested)["magmom"] = magmom
    results = next(read_structures(write(nested))).calc.results
    if wanted is None:
        assert "magmoms" not in results
    else:
        np.testing.assert_array_equal(results["magmoms"], wanted)


@pytest.mark.parametrize("name", ["force", "stress", "uncorrected_total_energy"])
@pytest.mark.parametrize("how", ["null", "absent"])
def test_absent_labels_stay_absent(name, how, nested, write):
    if how == "null":
        first(nested)[name] = None
    else:
        del first(nested)[name]
    results = next(read_structures(write(nested))).calc.results
    label = {"force": "forces", "uncorrected_total_energy": "energy"}.get(name, name)
    assert set(results) == {"energy", "forces", "stress", "magmoms"} - {label}


def test_a_frame_without_labels_leaves_those_of_its_material_alone(nested, write, crystals):
    """Arrays of a material are made together; each frame keeps its own."""
    first(nested).update(force=None, stress=None)
    first(nested)["structure"]["sites"].pop()
    first(nested)["magmom"].pop()
    _, second, *_ = read_structures(write(nested))
    np.testing.assert_allclose(second.positions, crystals[1].positions, atol=1e-12)
    for name, value in crystals[1].calc.results.items():
        np.testing.assert_allclose(second.calc.results[name], value, atol=1e-12)


def test_frames_of_one_material_may_differ_in_their_elements(nested, write, crystals):
    """Equal sites of frames in turn are looked up once."""
    list(read_structures(write(nested)))  # every species is known
    kept, other = first(nested), json.loads(json.dumps(first(nested)))
    other["structure"]["sites"].reverse()
    frames = [kept, kept, other, other, kept]
    nested["mp-0"] = {f"mp-90-0-{k}": frame for k, frame in enumerate(frames)}
    numbers = crystals[0].numbers
    assert (numbers != numbers[::-1]).any()
    for frame, atoms in zip(frames, read_structures(write(nested)), strict=False):
        np.testing.assert_array_equal(atoms.numbers, numbers[:: 1 if frame is kept else -1])


def test_a_frame_that_is_none_is_named(nested, write):
    nested = {"mp-0": nested["mp-0"], "mp-1": {"mp-91-0-0": 5}, "mp-2": nested["mp-1"]}
    with pytest.raises(DataError, match="mp-1, mp-91-0-0: Expected `object`, got `int`"):
        list(read_structures(write(nested)))


def test_of_two_faults_of_a_frame_the_first_is_named(nested, write):
    first(nested)["stress"] = [[1.0], [2.0, 3.0]]
    first(nested)["structure"]["lattice"]["matrix"] = [[1.0] * 3] * 2
    with pytest.raises(DataError, match="stress is ragged"):
        list(read_structures(write(nested)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stress": [[1.0], [2.0, 3.0]]}, "stress is ragged"),
        ({"stress": [[1.0] * 6]}, "'stress' has shape"),
        ({"force": [[0.0] * 3] * 3}, "'forces' has shape"),
        ({"species": [{"element": "Xq"}]}, "site 0 holds 'Xq'"),
        ({"matrix": [[1.0] * 3] * 2}, "lattice has 2 vectors"),
    ],
)
def test_a_fault_in_a_material_is_that_of_its_frame(change, message, nested, write):
    _, (name, record) = nested["mp-1"].items()
    structure = record["structure"]
    for place in (record, structure["lattice"], structure["sites"][0]):
        place.update({key: value for key, value in change.items() if key in place})
    found = []
    with pytest.raises(DataError, match=f"mp-1, {name}.*{message}"):
        found.extend(read_structures(write(nested)))
    assert len(found) == 3


def test_oxidation_states_and_cartesian_sites(nested, write, crystals):
    sites = first(nested)["structure"]["sites"]
    sites[0]["species"] = [{"element": "Na", "oxidation_state": 1.0, "occu": 1}]
    sites[1]["species"] = [{"element": "Cl-", "occu": 1.0, "properties": {"spin": 5}}]
    for site in sites:
        del site["abc"]
    atoms = next(read_structures(write(nested)))
    np.testing.assert_array_equal(atoms.numbers, crystals[0].numbers)
    np.testing.assert_array_equal(atoms.positions, crystals[0].positions)


@pytest.mark.parametrize("species", [{"element": "Na"}, [], [{"occu": 1}], "Na", [["Na", 1]]])
def test_sites_of_another_layout_are_refused(species, nested, write):
    first(nested)["structure"]["sites"][1]["species"] = species
    with pytest.raises(DataError, match=r"mp-0, mp-90-0-0.*(species|sites|site 1)"):
        list(read_structures(write(nested)))


def test_species_are_known_by_their_text(nested, write, crystals, monkeypatch):
    """However it is spelled, and however many spellings there are."""
    monkeypatch.setattr(pymatgen_json, "MANY_SPECIES", 2)
    symbol = str(crystals[0].symbols[0])
    site = first(nested)["structure"]["sites"][0]
    for species in ({"occu": 1}, {"occu": 1.0}, {}, {"properties": {"a": [[]]}}):
        site["species"] = [{**species, "element": symbol}]
        atoms = next(read_structures(write(nested)))
        np.testing.assert_array_equal(atoms.numbers, crystals[0].numbers)
    assert len(pymatgen_json._known) <= 4


def test_disordered_sites_are_refused(nested, write):
    site = first(nested)["structure"]["sites"][2]
    for species in ([{"element": "Na", "occu": 0.5}], [{"element": e, "occu": 0.5} for e in "KN"]):
        site["species"] = species
        with pytest.raises(DataError, match="mp-0, mp-90-0-0: site 2 is disordered"):
            list(read_structures(write(nested)))


@pytest.mark.parametrize("element", ["Xq", "X", "na", "", "Vacancy"])
def test_unknown_elements_are_refused(element, nested, write):
    first(nested)["structure"]["sites"][0]["species"][0]["element"] = element
    with pytest.raises(DataError, match="mp-0, mp-90-0-0"):
        list(read_structures(write(nested)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"force": [[0.0] * 3] * 3}, "'forces' has shape"),
        (
            {"force": [[0.0] * 3, [1.0], [0.0] * 3, [0.0] * 3]},
            r"length 3, got 1 - at `\$\.force\[1\]`",
        ),
        ({"force": "none"}, "Expected `array | null`"),
        ({"stress": [[1.0]]}, "'stress' has shape"),
        ({"stress": [[1.0], [2.0, 3.0]]}, "stress is ragged"),
        ({"structure": {"sites": []}}, "missing required field `lattice`"),
        ({"structure": None}, "Expected `object`"),
        ({"magmom": [1.0]}, "'magmoms' has shape"),
        ({"uncorrected_total_energy": float("nan")}, "energy is nan; expected a finite number"),
        ({"force": [[float("inf")] * 3] * 4}, r"forces\[0, 0\] is inf"),
    ],
)
def test_a_fault_is_named_with_file_and_ids(change, message, nested, write):
    first(nested).update(change)
    path = write(nested)
    with pytest.raises(DataError, match=message) as caught:
        list(read_structures(path))
    assert str(path) in str(caught.value)
    assert "mp-0, mp-90-0-0" in str(caught.value)


def test_nan_where_it_is_no_label_is_harmless(nested, write):
    """Python writes NaN, msgspec and orjson refuse it; only labels must be finite."""
    first(nested)["bandgap"] = float("nan")
    path = write(nested)
    assert "NaN" in path.read_text()
    assert len(list(read_structures(path))) == 4


def test_truncation_names_the_byte_and_the_last_complete_material(nested, write):
    text = json.dumps(nested)
    whole = list(read_structures(write(text)))
    second = text.index('"mp-1"')
    for cut in (1, 5, 60, second // 2, second - 1, second + 3, len(text) - 40, len(text) - 1):
        path = write(text[:cut])
        read = []
        with pytest.raises(DataError) as caught:
            read.extend(read_structures(path, format="mptrj"))
        assert str(path) in str(caught.value)
        if cut > second:
            assert isinstance(caught.value, CorruptDataError)
            assert f"byte {second - 1}, after material mp-0" in str(caught.value)
    assert len(whole) == 4


NO_MPTRJ = ["", "[]", "{}", "  ", "not json", '{"mp-1": 3}', '{"mp-1": {}, 5}']


@pytest.mark.parametrize("text", NO_MPTRJ)
def test_what_is_no_mptrj(text, write):
    with pytest.raises(DataError):
        list(read_structures(write(text), format="mptrj"))


def test_gzip(nested, write, tmp_path):
    path = tmp_path / "mptrj.json.gz"
    path.write_bytes(gzip.compress(json.dumps(nested).encode()))
    plain = list(read_structures(write(nested)))
    packed = list(read_structures(path))
    assert [a.info for a in packed] == [a.info for a in plain]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptDataError):
        list(read_structures(path))


def test_modules_named_in_the_file_are_not_imported(nested, write, tmp_path, monkeypatch):
    """pymatgen's MontyDecoder imports what `@module` says."""
    (tmp_path / "canary_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    first(nested)["structure"].update({"@module": "canary_module", "@class": "Structure"})
    assert len(list(read_structures(write(nested)))) == 4
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize("chunk", [64, 1000, 10**7])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_cut_into_materials(chunk, indent, nested, write, monkeypatch):
    """Any chunk length and layout; a structure may hold what looks like a boundary."""
    monkeypatch.setattr("mlip.data.readers.materials.CHUNK", chunk)
    first(nested)["structure"]["properties"] = {"a": {"b": {}}, "c": {"d": 1}}
    nested["mp-empty"] = {}
    nested["mp-2"] = nested["mp-1"]
    text = json.dumps(nested, indent=indent)
    pieces = [json.loads(b"{" + piece + b"}") for _, piece in cut_materials(write(text))]
    assert [list(piece) for piece in pieces] == [["mp-0"], ["mp-1"], ["mp-empty"], ["mp-2"]]
    assert {k: v for piece in pieces for k, v in piece.items()} == nested


MEASURE = """
import sys
from mlip.data.readers import pymatgen_json, read_structures

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

frames = read_structures(sys.argv[1])
next(frames)
start = peak = anonymous()
for count, _ in enumerate(frames, start=2):
    if count % 100 == 0:
        peak = max(peak, anonymous())
print(count, peak - start)
"""


def _grown(path, record, megabytes):
    """Write a file of that size and return (frames written, frames read, growth in MB)."""
    text = json.dumps(record)
    frames = int(megabytes * 1e6 / len(text))
    with path.open("w") as stream:
        stream.write("{")
        for i in range(frames):
            opening = ", " if i % 20 else f'{"}, " if i else ""}"mp-{i}": {{'
            stream.write(f'{opening}"mp-{i}-0-0": {text}')
        stream.write("}}")
    command = [sys.executable, "-c", MEASURE, path]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    read, grown = out.split()
    return frames, int(read), float(grown)


@pytest.fixture
def big_record(crystals, to_mptrj):
    """About 100 kB, as a frame of 250 atoms: reading 50 MB of them takes a second."""
    atoms = crystals[0] * (4, 4, 4)
    atoms.info = crystals[0].info
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((len(atoms), 3)))
    return first(to_mptrj([atoms]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat(tmp_path, big_record):
    written, read, grown = _grown(tmp_path / "a.json", big_record, 50)
    assert read == written > 400
    assert grown < 40  # MB: one chunk, one material of 2 MB as objects


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_for_a_gigabyte(tmp_path, big_record):
    written, read, grown = _grown(tmp_path / "a.json", big_record, 1000)
    assert read == written
    assert grown < 40


@pytest.mark.parametrize(
    ("frame_id", "task"),
    [("mp-90-0-7", ("mp-90", 0, 7)), ("mvc-5-1-12", ("mvc-5", 1, 12)), ("frame7", None)],
)
def test_a_frame_id_is_task_calculation_and_step(frame_id, task, nested, write):
    """As the other packagings of MPtrj have them, so that a split can keep relaxations whole."""
    nested["mp-0"][frame_id] = nested["mp-0"].pop("mp-90-0-0")
    path = write(nested)
    if task is None:
        with pytest.raises(DataError, match="has no 'task_id' to group by"):
            list(read_structures(path, group="task_id"))
        return
    for key, value in zip(("task_id", "calc_id", "ionic_step"), task, strict=True):
        frames = read_structures(path, group=key)
        assert next(a for a in frames if a.info["id"] == frame_id).info["group"] == str(value)


ODD = {
    "nothing": {},
    "no force": {"force": None},
    "an empty force": {"force": []},
    "a short force": {"force": [[0.0] * 3] * 3},
    "a force that is not finite": {"force": [[float("nan"), 0.0, 0.0]] + [[0.0] * 3] * 3},
    "no stress": {"stress": None},
    "a ragged stress": {"stress": [[1.0], [2.0, 3.0]]},
    "an asymmetric stress": {"stress": [[1.0, 900.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]},
    "no energy": {"uncorrected_total_energy": None},
    "an energy that is not finite": {"uncorrected_total_energy": float("inf")},
    "moments unknown": {"magmom": [None] * 4},
    "a moment unknown": {"magmom": [1.5, None, -0.5, 0.0]},
    "too few moments": {"magmom": [1.5, None, -0.5]},
    "no label": dict.fromkeys(("force", "stress", "uncorrected_total_energy", "magmom")),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("options", [{}, {"energy": "corrected"}])
def test_what_is_stacked_is_what_is_read_one_by_one(name, options, nested, write, monkeypatch):
    """Labels stay with their frames; faults are those of the frame, in the same words."""
    nested["mp-1"]["mp-92-0-2"].update(ODD[name])
    path = write(nested)

    def outcome():
        found, error = [], ""
        try:
            found.extend(read_frames(Piece(path, "mptrj", path.stat().st_size), **options))
        except DataError as raised:
            error = str(raised)
        return found, error

    stacked, told = outcome()
    monkeypatch.setattr(mptrj, "_stacked_if_usual", lambda frames: frames)
    monkeypatch.setattr(blocks, "_stacked", doubtful)
    alone, said = outcome()
    assert told == said
    assert len(stacked) == len(alone) >= 2
    for one, other in zip(alone, stacked, strict=True):
        assert one.info == other.info
        assert one.results.keys() == other.results.keys()
        for name in ("numbers", "positions", "cell", "pbc"):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
        for label, value in one.results.items():
            np.testing.assert_array_equal(other.results[label], value)


def doubtful(*_):
    raise Doubtful


@pytest.mark.parametrize("labels", [{"force": [], "magmom": []}, {"force": None, "magmom": None}])
def test_a_frame_without_atoms_is_refused_among_others(labels, nested, write):
    path = write(nested)
    list(read_structures(path))  # every species is known
    frame = nested["mp-1"]["mp-92-0-2"]
    frame.update(labels)
    frame["structure"]["sites"] = []
    path = write(nested)
    found = []
    with pytest.raises(DataError, match=r"\(mp-1, mp-92-0-2\): it has no atoms"):
        found.extend(read_frames(Piece(path, "mptrj", path.stat().st_size)))
    assert len(found) >= 2
