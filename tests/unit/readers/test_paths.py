"""Which files a path means, which format they are, and what is said when neither is clear."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlip.data import read_structures
from mlip.data.readers import FORMATS, ReadOptions, expand_paths
from mlip.data.readers.paths import detect_format
from mlip.errors import ConfigError, DataError

TEXT = "1\nenergy={}\nSi 0 0 0\n"


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("b.extxyz", "a.extxyz", "c.xyz")):
        (tmp_path / name).write_text(TEXT.format(i))
    return tmp_path


def energies(frames):
    return [a.calc.results["energy"] for a in frames]


def test_a_directory_is_its_files_sorted(folder):
    (folder / ".hidden.extxyz").write_text("nothing")
    (folder / "README.md").write_text("nothing")
    assert [p.name for p in expand_paths(folder)] == ["a.extxyz", "b.extxyz", "c.xyz"]
    assert energies(read_structures(folder)) == [1, 0, 2]


def test_globs_lists_and_strings(folder):
    assert energies(read_structures(str(folder / "*.extxyz"))) == [1, 0]
    assert energies(read_structures([folder / "c.xyz", str(folder / "?.extxyz")])) == [2, 1, 0]


def test_names_with_spaces_unicode_and_at(tmp_path):
    path = tmp_path / "größe @ 300 K.extxyz"
    path.write_text(TEXT.format(5))
    assert energies(read_structures(path)) == [5]


def test_a_missing_file_is_an_error_at_the_call_with_the_nearest_names(folder):
    with pytest.raises(DataError, match=r"similar names there: a.extxyz"):
        read_structures(folder / "a.extxzy")
    with pytest.raises(DataError, match=r"holds .*a.extxyz"):
        read_structures(folder / "zzzzzz")
    with pytest.raises(DataError, match="exists, but nothing below it"):
        read_structures(folder / "nowhere" / "deep" / "a.extxyz")
    with pytest.raises(DataError, match="no file matches this pattern"):
        read_structures(folder / "*.traj")
    with pytest.raises(DataError, match="'@' selections are not supported"):
        read_structures(f"{folder / 'a.extxyz'}@0:10")


@pytest.mark.parametrize(
    "name",
    ["https://example.org/a.extxyz", "postgresql://user@host/db", "mysql:///x.db", "file:/a.xyz"],
)
def test_addresses_are_refused(name):
    with pytest.raises(DataError, match="looks like a URL"):
        read_structures(name)


def test_directories_that_are_not_one_kind(folder, tmp_path):
    (folder / "x.cif").write_text("data_x")
    with pytest.raises(DataError, match=r"several kinds of data: 3 extxyz .*1 cif"):
        read_structures(folder)
    assert energies(read_structures(folder, format="extxyz")) == [1, 0, 2]
    with pytest.raises(DataError, match="no npz files but others"):
        read_structures(folder, format="npz")
    other = tmp_path / "empty"
    other.mkdir()
    with pytest.raises(DataError, match=r"nothing in this directory.*it is empty"):
        read_structures(other)
    (other / "notes.md").write_text("")
    (other / "deeper").mkdir()
    with pytest.raises(DataError, match=r"it holds deeper/, notes.md"):
        read_structures(other)


def test_a_file_is_not_read_twice(folder):
    with pytest.raises(DataError, match="named more than once"):
        read_structures([folder / "a.extxyz", folder / "*.extxyz"])


def test_an_empty_list(folder):
    with pytest.raises(DataError, match="list of paths is empty"):
        read_structures([])


@pytest.mark.parametrize("form", ["db", "json db", "mptrj", "traj", "npz", "aselmdb", "extxyz"])
def test_formats_are_known_by_content_where_the_name_says_nothing(form, forms, crystals, molecules):
    path = forms[form](molecules if form == "npz" else crystals)
    wanted = {"json db": "json"}.get(form, form)
    assert detect_format(path) == wanted
    if form in ("db", "traj", "aselmdb", "extxyz"):
        assert detect_format(path.rename(path.with_name("data"))) == wanted


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("OUTCAR", "vasp-out"),
        ("OUTCAR.relax", "vasp-out"),
        ("run1_vasprun.xml", "vasp-xml"),
        ("vasprun.static.xml", "vasp-xml"),
        ("POSCAR", "vasp"),
        ("CONTCAR.2", "vasp"),
        ("a.vasp", "vasp"),
        ("a.CIF", "cif"),
        ("a.xyz.gz", "extxyz"),
    ],
)
def test_formats_by_name(name, found, tmp_path):
    (tmp_path / name).write_text("")
    assert detect_format(tmp_path / name) == found


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.pkl", "x"), ("refs.json", '{"a": {"H": -13.6}}'), ("notes", "hello"), ("a.pt", "x")],
)
def test_what_cannot_be_read_is_refused_by_name(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="is no file that mlip can read; known formats are extxyz"):
        read_structures(tmp_path / name)


def test_compressed_binary_files_are_refused(tmp_path):
    (tmp_path / "a.traj.gz").write_text("")
    with pytest.raises(DataError, match="compressed traj files are not read"):
        read_structures(tmp_path / "a.traj.gz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_inf": True}, "unknown reader option 'keep_inf', did you mean 'keep_info'?"),
        ({"keys": {"enregy": "E"}}, "unknown label in keys 'enregy', did you mean 'energy'?"),
        ({"keys": {"energy": 3}}, "keys.energy=3; expected auto or the name"),
        ({"energy": "raw"}, "energy='raw'; expected one of uncorrected, corrected"),
        ({"stress_sign": "plus"}, "stress_sign='plus'; expected one of ase, vasp"),
        ({"stress_voigt": "lammps"}, "stress_voigt='lammps'"),
        ({"stress_unit": "Pascal"}, "unknown stress unit 'Pascal'"),
        ({"energy_unit": "cal"}, "unknown energy unit 'cal'"),
        ({"force_unit": "eV"}, "unknown force unit"),
        ({"group": 3}, "group=3; expected auto, null or an info key"),
        ({"energy": "corrected", "keys": {"energy": "E"}}, "give only one of them"),
        ({"format": "extxzy"}, "unknown format 'extxzy', did you mean 'extxyz'?"),
        ({"format": "postgresql"}, "unknown format 'postgresql'"),
    ],
)
def test_options_are_checked_at_the_call(options, message, folder):
    with pytest.raises(ConfigError) as caught:
        read_structures(folder / "a.extxyz", **options)
    assert message in str(caught.value)


def test_none_and_auto_mean_the_default():
    names = ("keys", "energy_unit", "force_unit", "stress_unit", "stress_sign", "stress_voigt")
    plain = ReadOptions.parse({})
    assert ReadOptions.parse(dict.fromkeys(names)) == plain
    assert ReadOptions.parse(dict.fromkeys(names[:5], "auto")) == plain


def test_every_format_has_a_reader():
    from mlip.data.readers import _READERS

    assert set(_READERS) == set(FORMATS)


def test_reading_needs_neither_torch_nor_pymatgen():
    code = (
        "import sys, mlip.data.readers as r; bad = {'torch', 'pymatgen', 'lightning', 'hydra',"
        " 'ase_db_backends'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
