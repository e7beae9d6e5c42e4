"""Extended XYZ: key order, units and signs, and every way such a file can be broken."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import warnings
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import key_val_str_to_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip.data.readers import describe_keys, read_structures
from mlip.data.readers.extxyz import _parse_comment
from mlip.errors import ConfigError, CorruptDataError, DataError

CUBE = 'Lattice="4 0 0 0 4 0 0 0 4" '
FORCES = "Properties=species:S:1:pos:R:3:forces:R:3 "


def frame(comment: str, *atoms: str) -> str:
    atoms = atoms or ("Si 0 0 0",)
    return f"{len(atoms)}\n{comment}\n" + "".join(f"{a}\n" for a in atoms)


@pytest.fixture
def write(tmp_path):
    def run(*frames: str, name: str = "a.extxyz"):
        path = tmp_path / name
        path.write_text("".join(frames))
        return path

    return run


def one(path, **options):
    (atoms,) = read_structures(path, **options)
    return atoms


# --- which key is a label -----------------------------------------------------------------------


def test_ref_keys_win_over_the_calculator(write):
    path = write(frame("energy=1.5 REF_energy=2.5"))
    assert one(path).calc.results == {"energy": 2.5}


@pytest.mark.parametrize("name", ["forces", "force", "REF_forces", "REF_force"])
def test_spellings_of_forces(name, write):
    path = write(frame(f"Properties=species:S:1:pos:R:3:{name}:R:3", "Si 0 0 0 1 2 3"))
    np.testing.assert_array_equal(one(path).calc.results["forces"], [[1, 2, 3]])


def test_explicit_keys(write):
    text = "Properties=species:S:1:pos:R:3:dft_f:R:3 energy=1 dft_e=-7.5"
    path = write(frame(text, "Si 0 0 0 1 2 3"))
    for keys in (
        {"energy": "dft_e", "forces": "dft_f", "stress": "auto"},
        SimpleNamespace(energy="dft_e", forces="dft_f"),
    ):
        results = one(path, keys=keys).calc.results
        assert results["energy"] == -7.5
        np.testing.assert_array_equal(results["forces"], [[1, 2, 3]])


def test_an_explicit_key_that_is_absent_leaves_the_label_absent(write):
    assert one(write(frame("energy=1")), keys={"energy": "dft_e"}).calc is None


def test_a_frame_whose_energy_is_under_another_key_is_refused(write):
    path = write(frame("REF_energy=1 energy=3"), frame("energy=3"))
    with pytest.raises(DataError, match=r"frame 1: its energy is under 'energy'.*'REF_energy'"):
        list(read_structures(path))


def test_describe_keys_names_what_is_there(write):
    text = "Properties=species:S:1:pos:R:3:dft_f:R:3 dft_e=-7.5 energy=1"
    keys = describe_keys(write(frame(text, "Si 0 0 0 1 2 3")))
    assert (keys.info, keys.arrays, keys.results) == (["dft_e"], ["dft_f"], ["energy"])
    assert "dft_e" in str(keys)


@pytest.mark.parametrize("constraint", [FixAtoms([0]), FixCartesian(0, mask=(True, False, False))])
def test_constraints_do_not_zero_the_labels(constraint, crystals, tmp_path):
    atoms = crystals[0]
    atoms.set_constraint(constraint)
    path = tmp_path / "fixed.extxyz"
    ase.io.write(path, atoms, format="extxyz")
    assert "move_mask" in path.read_text()
    again = ase.io.read(path, format="extxyz")
    assert np.abs(again.get_forces() - atoms.calc.results["forces"]).max() > 0.1, "no trap here"
    read = one(path)
    np.testing.assert_array_equal(read.calc.results["forces"], atoms.calc.results["forces"])
    np.testing.assert_array_equal(read.get_forces(), atoms.calc.results["forces"])
    assert len(one(path, keep_info=True).constraints) == 1


# --- stress, virial, units ----------------------------------------------------------------------

SIX = "1 2 3 4 5 6"  # ASE: xx yy zz yz xz xy
NINE = "1 6 5 6 2 4 5 4 3"


@pytest.mark.parametrize("value", [SIX, NINE])
@pytest.mark.parametrize("key", ["stress", "REF_stress"])
def test_stress_shapes(key, value, write):
    atoms = one(write(frame(f'{CUBE}{key}="{value}"')))
    np.testing.assert_array_equal(atoms.calc.results["stress"], [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("value", [SIX, NINE])
@pytest.mark.parametrize("key", ["virial", "virials", "REF_virial", "REF_virials"])
def test_virial_is_minus_volume_times_stress(key, value, write):
    atoms = one(write(frame(f'{CUBE}{key}="{value}"')))
    np.testing.assert_allclose(atoms.calc.results["stress"], -np.arange(1, 7) / 64.0, rtol=1e-15)


def test_the_volume_of_a_left_handed_cell_is_positive(write):
    atoms = one(write(frame(f'Lattice="0 4 0 4 0 0 0 0 4" virial="{SIX}"')))
    np.testing.assert_allclose(atoms.calc.results["stress"], -np.arange(1, 7) / 64.0, rtol=1e-15)


def test_vasp_order_is_explicit(write):
    atoms = one(write(frame(f'{CUBE}stress="{SIX}"')), stress_voigt="vasp")
    np.testing.assert_array_equal(atoms.calc.results["stress"], [1, 2, 3, 5, 6, 4])


def test_vasp_kbar(write):
    path = write(frame(f'{CUBE}stress="{SIX}"'))
    stress = one(path, stress_unit="kbar", stress_sign="vasp").calc.results["stress"]
    np.testing.assert_allclose(stress, -np.arange(1, 7) / 1602.1766208, rtol=1e-9)


def test_stress_in_gpa(write):
    stress = one(write(frame(f'{CUBE}stress="{SIX}"')), stress_unit="GPa").calc.results["stress"]
    np.testing.assert_allclose(stress, np.arange(1, 7) * units.GPa, rtol=1e-15)


def test_energy_unit_sets_the_force_unit_too(write):
    path = write(frame(FORCES + "energy=2", "Si 0 0 0 1 2 3"))
    results = one(path, energy_unit="hartree").calc.results
    assert results["energy"] == 2 * units.Hartree
    np.testing.assert_allclose(results["forces"], [[units.Hartree * k for k in (1, 2, 3)]])
    results = one(path, energy_unit="hartree", force_unit="hartree/bohr").calc.results
    np.testing.assert_allclose(results["forces"][0, 0], units.Hartree / units.Bohr)


def test_an_explicit_virial(write):
    atoms = one(write(frame(f'{CUBE}dft_v="{SIX}"')), keys={"virial": "dft_v"})
    np.testing.assert_allclose(atoms.calc.results["stress"], -np.arange(1, 7) / 64.0, rtol=1e-15)


def test_a_virial_under_keys_stress_is_refused(write):
    path = write(frame(f'{CUBE}virial="{SIX}"'))
    with pytest.raises(ConfigError, match=r"keys.virial=virial instead"):
        read_structures(path, keys={"stress": "virial"})


def test_a_key_like_virial_stress_is_a_stress(write):
    """mlearn's JSON calls its stress `virial_stress`."""
    atoms = one(write(frame(f'{CUBE}virial_stress="{SIX}"')), keys={"stress": "virial_stress"})
    np.testing.assert_array_equal(atoms.calc.results["stress"], [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("pbc", ["F F F", "T T F"])
def test_stress_without_three_periodic_axes_is_left_out_and_counted(pbc, write):
    text = frame(f'{CUBE}pbc="{pbc}" energy=1 stress="{SIX}"')
    path = write(text, frame(f'{CUBE}energy=1 stress="{SIX}"'), text)
    with pytest.warns(UserWarning, match=r"stress is no label.* in 2 of 3 frames"):
        frames = list(read_structures(path))
    assert [set(a.calc.results) for a in frames] == [
        {"energy"},
        {"energy", "stress"},
        {"energy"},
    ]


def test_a_stress_that_is_not_symmetric_is_refused(write):
    path = write(frame(f'{CUBE}stress="1 9 0 0 1 0 0 0 1"'))
    with pytest.raises(DataError, match="frame 0: 'stress' is not symmetric"):
        list(read_structures(path))


# --- ids, charge, weights -----------------------------------------------------------------------


def test_info_is_canonical(write):
    text = "charge=-1 spin=3 config_type=dimer config_weight=2.5 config_energy_weight=0 mp_id=mp-7"
    assert one(write(frame(text + " colour=red"))).info == {
        "charge": -1,
        "spin": 3,
        "config_type": "dimer",
        "weight": 2.5,
        "energy_weight": 0.0,
        "group": "mp-7",
    }


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_a_label_of_no_weight_is_no_label(label, write):
    """MACE writes zeros where a label is missing, and a weight of 0."""
    labels = f'{FORCES}{CUBE}energy=-1 stress="{SIX}" '
    path = write(frame(f"{labels}config_{label}_weight=0", "Si 0 0 0 0 0 0"))
    assert set(one(path).calc.results) == {"energy", "forces", "stress"} - {label}
    path = write(frame(f"{labels}config_{label}_weight=1.0", "Si 0 0 0 0 0 0"))
    assert set(one(path).calc.results) == {"energy", "forces", "stress"}


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_a_label_of_another_weight_is_refused(label, write):
    path = write(frame("energy=1"), frame(f"energy=1 config_{label}_weight=0.5"))
    with pytest.raises(DataError, match=f"frame 1: 'config_{label}_weight' is 0.5; expected 1"):
        list(read_structures(path))
    assert len(list(read_structures(path, keep_info=True))) == 2


def test_keep_info_keeps_the_rest_and_never_overwrites_it(write):
    text = "Properties=species:S:1:pos:R:3:tag:I:1 group=Vacancy mp_id=mp-7 charge=1.0 colour=red"
    atoms = one(write(frame(text, "Si 0 0 0 5")), keep_info=True)
    assert atoms.info == {"group": "Vacancy", "mp_id": "mp-7", "charge": 1, "colour": "red"}
    assert atoms.arrays["tag"].tolist() == [5]


def test_group(write):
    path = write(frame("group=Vacancy mp_id=mp-7 molecule_id=12"))
    assert one(path).info["group"] == "mp-7"
    assert one(path, group="group").info["group"] == "Vacancy"
    assert one(path, group="molecule_id").info["group"] == "12"
    assert "group" not in one(path, group=None).info
    with pytest.raises(DataError, match=r"frame 0: it has no 'smiles'.*molecule_id"):
        list(read_structures(path, group="smiles"))


@pytest.mark.parametrize("text", ["charge=0.5", "charge=red", "spin=-1", "spin=1.5", "charge=nan"])
def test_charge_and_spin_are_whole(text, write):
    with pytest.raises(DataError, match=f"frame 0: '{text.split('=')[0]}' is .*whole number"):
        list(read_structures(write(frame(text))))


def test_corrected_energy(write):
    path = write(frame("energy=1 corrected_total_energy=2"), frame("energy=1"))
    frames = read_structures(path, energy="corrected")
    assert next(frames).calc.results["energy"] == 2
    with pytest.raises(DataError, match="frame 1: corrected energies were asked for"):
        next(frames)


# --- the parser ---------------------------------------------------------------------------------


def test_defaults(write):
    """Plain xyz: free text in the second line, symbols in any case, nothing periodic."""
    atoms = one(write(frame('it is "roughly 3 Å', " H 0 0 0", "he 1 0 0"), name="p.xyz"))
    assert atoms.numbers.tolist() == [1, 2]
    assert not atoms.pbc.any()


def test_lattice_rows_are_vectors_and_periodic_by_default(write):
    atoms = one(write(frame('Lattice="1 2 3 0 5 0 0 0 6"')))
    assert atoms.cell.array.tolist() == [[1, 2, 3], [0, 5, 0], [0, 0, 6]]
    assert atoms.pbc.all()


def test_columns_by_number(write):
    atoms = one(write(frame("Properties=pos:R:3:Z:I:1:ok:L:1", "0 0 0 14 T")), keep_info=True)
    assert atoms.numbers.tolist() == [14]
    assert atoms.arrays["ok"].tolist() == [True]


def test_blank_lines_between_frames_lose_nothing(write):
    path = write(frame("energy=1"), "\n  \n", frame("energy=2"), "\n")
    assert len(list(ase.io.iread(path, index=":", format="extxyz"))) == 1, "ASE has been mended"
    assert [a.calc.results["energy"] for a in read_structures(path)] == [1, 2]


WORDS = st.text("abcxyz-_.#/", min_size=1, max_size=6).filter(lambda w: w not in ("inf", "nan"))
NUMBERS = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, width=64))
VALUES = st.one_of(
    WORDS,
    NUMBERS.map(str),
    st.sampled_from(["T", "F", "true", "nan", "-inf", "C#C", "[1,2]", '"a b"', "{1 2}", "'x y'"]),
    st.lists(NUMBERS, min_size=2, max_size=9).map(lambda v: '"' + " ".join(map(str, v)) + '"'),
    st.lists(st.sampled_from("TF"), min_size=2, max_size=4).map(lambda v: f'"{" ".join(v)}"'),
    st.just('"_JSON [209.44, 80.54]"'),
    st.just('"_JSON {\\"a\\": [1, 2]}"'),
)
KEYS = st.text("abcXYZ_", min_size=1, max_size=5).filter(lambda k: k not in ("uid",))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.dictionaries(KEYS, st.one_of(VALUES, st.none()), min_size=1, max_size=5))
def test_comment_lines_mean_what_they_mean_to_ase(pairs):
    text = " ".join(key if value is None else f"{key}={value}" for key, value in pairs.items())
    wanted = key_val_str_to_dict(text)
    _, info = _parse_comment(text, "here")
    assert list(info) == list(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(info[key]), np.asarray(value))


# --- broken files -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "   \n\n\t\n"])
def test_empty(text, write):
    path = write(text)
    with pytest.raises(DataError, match="empty"):
        list(read_structures(path))


def test_truncation_is_never_a_short_read(write, crystals, tmp_path):
    """Cut anywhere inside the last frame: an error that names file and frame."""
    ase.io.write(tmp_path / "whole.extxyz", crystals, format="extxyz")
    text = (tmp_path / "whole.extxyz").read_text()
    start = text.rindex("\n4\n") + 1
    positions = {*range(start + 1, len(text) - 1, 7), start + 2, len(text) - 2, len(text) - 9}
    for cut in sorted(positions):
        path = write(text[:cut])
        with pytest.raises(DataError) as caught:
            list(read_structures(path))
        assert f"{path}: frame 3" in str(caught.value), cut
    path = write(text[: start + 40])
    with pytest.raises(CorruptDataError, match="announces 4 atoms, but the file ends after 0"):
        list(read_structures(path))
    assert len(list(read_structures(write(text.rstrip("\n"))))) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (frame("energy=nan"), "frame 0: energy is nan; expected a finite number"),
        (frame("energy=-inf"), "energy is -inf"),
        (frame("energy=None"), "'energy' is 'None', which is not numbers"),
        (frame("energy"), "'energy' is True, which is not numbers"),
        (frame("charge"), "'charge' is True; expected a whole number"),
        (frame('energy=1 note="open'), "cannot read its second line"),
        (frame('energy="1 2"'), "'energy' has shape \\(2,\\), expected one number"),
        (frame(FORCES, "Si 0 0 0 1 nan 3"), "forces\\[0, 1\\] is nan"),
        (frame(CUBE + 'stress="1 2 3 4 5 nan"'), "stress\\[5\\] is nan"),
        (frame(CUBE + 'stress="1 2 3 4"'), "'stress' has shape \\(4,\\), expected \\(3, 3\\)"),
        (frame(CUBE + 'virial="1 2 3"'), "'virial' has shape"),
        (frame("REF_forces=3"), "'REF_forces' has shape \\(\\), expected \\(1, 3\\)"),
        (frame("Properties=species:S:1:pos:R:3:forces:R:2", "Si 0 0 0 1 2"), "expected \\(1, 3\\)"),
        (frame("", "Si 0 inf 0"), "positions\\[0, 1\\] is inf"),
        (frame('Lattice="4 0 0 0 nan 0 0 0 4"'), "cell\\[1, 1\\] is nan"),
        (frame('Lattice="0 0 0 0 0 0 0 0 0"'), "axes \\[0, 1, 2\\] are periodic but"),
        (frame('pbc="F T F"'), "axes \\[1\\] are periodic but"),
        (frame('Lattice="1 0 0 2 0 0 0 0 3"'), "the cell is flat"),
        (frame('Lattice="1 2 3"'), "expected 9 numbers"),
        (frame(CUBE + "pbc=maybe"), "pbc is 'maybe'; expected three of T and F"),
        ("0\n\n", "frame 0: it has no atoms"),
        (frame("", "X 0 0 0"), "atomic number 0 \\(a dummy or ghost"),
        (frame("Properties=Z:I:1:pos:R:3", "119 0 0 0"), "atomic number 119"),
        (frame("Properties=Z:I:1:pos:R:3", "-1 0 0 0"), "atomic number -1"),
        (frame("", "Xx 0 0 0"), "'Xx' is not a chemical symbol"),
        (frame("", "Si 0 0"), "atom 0 has 3 columns, expected 4"),
        (frame(FORCES, "Si 0 0 0 1 2"), "atom 0 has 6 columns, expected 7"),
        (frame("", "Si 0 0 zero"), "column 'pos' holds something that is not of type R"),
        (frame("Properties=species:S:1:pos:R:3:a:Q:1", "Si 0 0 0 1"), "not a list of name:type"),
        (frame("Properties=species:S:1", "Si"), "have no 'pos'"),
        (frame("Properties=pos:R:3", "0 0 0"), "neither 'species' nor 'Z'"),
        (frame('a="_JSON {1"'), "is not JSON"),
        (frame("weight=-1"), "'weight' is -1.0; expected zero or more"),
        ("Si 0 0 0\n", "frame 0: expected its number of atoms, found 'Si 0 0 0'"),
        (frame("energy=1") + "Si 0 0 0\n", "frame 1: expected its number of atoms"),
        ("999999999999\n\n", "announces 999999999999 atoms"),
        (frame('Properties=species:S:1:pos:R:3 energy="1'), "cannot read its second line"),
    ],
)
def test_a_fault_is_named_with_file_and_frame(text, message, write):
    path = write(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=message) as caught:
            list(read_structures(path))
    assert str(path) in str(caught.value)


def test_not_text(tmp_path):
    path = tmp_path / "latin.extxyz"
    path.write_bytes(frame("name=caf\xe9").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_structures(path))


# --- compressed files ---------------------------------------------------------------------------

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("suffix", OPENERS)
def test_compressed(suffix, tmp_path):
    path = tmp_path / f"a.extxyz{suffix}"
    data = "".join(frame(f"energy={i}") for i in range(50)).encode()
    with OPENERS[suffix](path, "wb") as stream:
        stream.write(data)
    assert [a.calc.results["energy"] for a in read_structures(path)] == list(range(50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptDataError, match="damaged or cut short"):
        list(read_structures(path))


@pytest.mark.parametrize("suffix", OPENERS)
def test_a_decompression_bomb_is_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("mlip.data.readers.streams.RATIO_FLOOR", 1_000_000)
    path = tmp_path / f"bomb.xyz{suffix}"
    with OPENERS[suffix](path, "wb") as stream:
        stream.write(b"\n" * 30_000_000)
    with pytest.raises(DataError, match="expands to more than"):
        list(read_structures(path))


def test_no_log_and_no_warning_on_good_data(write, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        list(read_structures(write(frame(f'{CUBE}energy=1 stress="{SIX}"'))))
    assert not caplog.records
