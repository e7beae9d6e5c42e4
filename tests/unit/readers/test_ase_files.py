"""SQLite and JSON databases, trajectories, VASP output, CIF and POSCAR."""

from __future__ import annotations

import json
import sqlite3
import warnings
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory

from mlip.data.readers import describe_keys, read_structures
from mlip.errors import ConfigError, CorruptDataError, DataError

VASP = Path(ase.__file__).parent / "test" / "testdata" / "vasp"


# --- SQLite -------------------------------------------------------------------------------------


def test_a_database_is_not_touched(forms, crystals):
    path = forms["db"](crystals)
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert len(list(read_structures(path))) == 4
    finally:
        path.parent.chmod(0o755)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_foreign_database_is_refused_and_not_filled_with_tables(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match="is no ASE database"):
        list(read_structures(path))
    assert path.read_bytes() == before


def test_an_empty_database(tmp_path):
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.delete([database.write(bulk("Cu"))])
    with pytest.raises(DataError, match="the database is empty"):
        list(read_structures(path))


def test_rows_after_a_deletion(forms, crystals):
    path = forms["db"](crystals)
    ase.db.connect(path).delete([2])
    ids = [a.info["id"] for a in read_structures(path)]
    assert ids == ["mp-90-0-0", "mp-92-0-2", "mp-93-0-3"]


def test_a_truncated_database(forms, crystals):
    path = forms["db"](crystals * 40)
    data = path.read_bytes()
    for part in (0.001, 0.3, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(DataError) as caught:
            list(read_structures(path))
        assert str(path) in str(caught.value)


def test_damaged_blobs_are_named(forms, crystals):
    path = forms["db data"](crystals)
    for column, value in (("forces", b"12345"), ("data", b"123"), ("data", b"\xff" * 16)):
        with sqlite3.connect(path) as connection:
            kept = connection.execute(f"SELECT {column} FROM systems WHERE id=3").fetchone()[0]
            connection.execute(f"UPDATE systems SET {column}=? WHERE id=3", (value,))
        with pytest.raises(CorruptDataError, match="row 3"):
            list(read_structures(path))
        with connection:
            connection.execute(f"UPDATE systems SET {column}=? WHERE id=3", (kept,))
        connection.close()
    assert len(list(read_structures(path))) == 4


def test_arrays_in_data_may_be_labels(tmp_path, crystals):
    """ASE stores them in a binary form of its own."""
    path = tmp_path / "a.db"
    atoms = crystals[0].copy()
    forces = np.arange(12.0).reshape(4, 3)
    with ase.db.connect(path) as database:
        database.write(atoms, data={"dft_forces": forces, "nested": {"a": [1, {"b": 2}]}})
        database.write(atoms, data={"REF_energy": -3.5, "REF_forces": forces})
    first, second = read_structures(path, keys={"forces": "dft_forces"})
    np.testing.assert_array_equal(first.calc.results["forces"], forces)
    assert second.calc.results == {"energy": -3.5}
    second = list(read_structures(path))[1]
    np.testing.assert_array_equal(second.calc.results["forces"], forces)
    assert "dft_forces" in describe_keys(path).info


def test_an_array_beyond_its_buffer_is_refused(tmp_path):
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.write(bulk("Cu"))
    text = json.dumps({"x_forces": {"__ndarray__": [[10**9], "float64", 8]}}).encode()
    with sqlite3.connect(path) as connection:
        value = (8).to_bytes(8, "little") + text
        connection.execute("UPDATE systems SET data=?", (value,))
    connection.close()
    with pytest.raises(DataError, match="an array cannot be decoded"):
        list(read_structures(path))


# --- JSON ---------------------------------------------------------------------------------------


def test_json_rows_come_by_id(tmp_path):
    path = tmp_path / "a.json"
    with ase.db.connect(path) as database:
        for i in range(11):
            database.write(bulk("Cu"), data={"sample_id": str(i)})
    assert [a.info["id"] for a in read_structures(path)] == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"1": 3}', '{"1": {"numbers": [1]}}', '{"1": {']
)
def test_json_that_is_no_database(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError):
        list(read_structures(path, format="json"))


# --- trajectories -------------------------------------------------------------------------------


def test_constraints_do_not_zero_the_labels_of_a_trajectory(tmp_path, crystals):
    path = tmp_path / "a.traj"
    atoms = crystals[0]
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.write(path)
    (read,) = read_structures(path)
    np.testing.assert_array_equal(read.calc.results["forces"], atoms.calc.results["forces"])
    assert np.abs(read.calc.results["forces"][:2]).max() > 0.1
    assert not read.constraints
    (kept,) = read_structures(path, keep_info=True)
    assert kept.constraints[0].index.tolist() == [0, 1]


def test_a_truncated_trajectory(forms, crystals):
    path = forms["traj"](crystals)
    data = path.read_bytes()
    for cut in range(8, len(data) - 8, 101):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptDataError) as caught:
            list(read_structures(path))
        assert str(path) in str(caught.value)


def test_an_empty_or_pickled_trajectory(tmp_path):
    path = tmp_path / "a.traj"
    Trajectory(path, "w").close()
    with pytest.raises(DataError):
        list(read_structures(path))
    path.write_bytes(b"PickleTrajectory\x80\x04")
    with pytest.raises(DataError, match="pickled trajectories are never read"):
        list(read_structures(path))


# --- VASP ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not VASP.is_dir(), reason="this ASE comes without its test data")
@pytest.mark.parametrize(
    ("name", "target"), [("OUTCAR_example_1", "OUTCAR"), ("vasprun_pstress.xml", "vasprun.xml")]
)
def test_vasp(name, target, tmp_path):
    path = tmp_path / target
    path.write_bytes((VASP / name).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the sample may be cut short
        frames = list(read_structures(path))
        wanted = ase.io.read(path, index=":", format={"OUTCAR": "vasp-out"}.get(target, "vasp-xml"))
    assert len(frames) == len(wanted) > 0
    for got, want in zip(frames, wanted, strict=True):
        np.testing.assert_array_equal(got.positions, want.positions)
        assert {"energy", "forces"} <= set(got.calc.results)
        for label in ("energy", "forces", "stress"):
            if label in want.calc.results:
                np.testing.assert_allclose(got.calc.results[label], want.calc.results[label])
    with pytest.raises(ConfigError, match=r"contradicts the vasp-.* leave stress_sign out"):
        read_structures(path, stress_sign="ase")


VASPRUN = """<?xml version="1.0"?>
<modeling>
<kpoints><varray name="kpointlist"><v>0 0 0</v></varray>
<varray name="weights"><v>1</v></varray></kpoints>
<atominfo><array name="atoms"><set><rc><c>Cu</c><c>1</c></rc></set></array></atominfo>
<structure name="initialpos"><crystal><varray name="basis">
<v>3 0 0</v><v>0 3 0</v><v>0 0 3</v></varray></crystal>
<varray name="positions"><v>0 0 0</v></varray></structure>
{steps}
</modeling>
"""
STEP = """<calculation><scstep><energy><i name="e_fr_energy">-3.6</i><i name="e_wo_entrp">-3.5</i>
<i name="e_0_energy">-3.5</i></energy></scstep>
<structure><crystal><varray name="basis"><v>3 0 0</v><v>0 3 0</v><v>0 0 3</v></varray></crystal>
<varray name="positions"><v>0 0 0</v></varray></structure>
<varray name="forces"><v>1 2 3</v></varray>
<varray name="stress"><v>100 1 2</v><v>1 200 3</v><v>2 3 300</v></varray>
<energy><i name="e_fr_energy">-3.6</i><i name="e_wo_entrp">-3.5</i><i name="e_0_energy">-3.5</i>
</energy></calculation>
"""


def test_vasp_stress_is_converted_once(tmp_path):
    path = tmp_path / "vasprun.xml"
    path.write_text(VASPRUN.format(steps=STEP * 2))
    first, _ = read_structures(path)
    results = first.calc.results
    assert results["energy"] == -3.5  # extrapolated to zero smearing
    np.testing.assert_array_equal(results["forces"], [[1, 2, 3]])
    np.testing.assert_allclose(
        results["stress"], np.array([100, 200, 300, 3, 2, 1]) * -0.1 * units.GPa, rtol=1e-12
    )
    assert set(results) == {"energy", "forces", "stress"}


def test_an_unfinished_vasp_run_says_so(tmp_path):
    path = tmp_path / "vasprun.xml"
    text = VASPRUN.format(steps=STEP * 3)
    path.write_text(text[: text.rindex("<calculation>") + 100])
    with pytest.warns(UserWarning, match="VASP did not finish this file; its 2 complete steps"):
        assert len(list(read_structures(path))) == 2


@pytest.mark.parametrize("name", ["OUTCAR", "vasprun.xml", "POSCAR", "a.cif"])
@pytest.mark.parametrize("text", ["", "nonsense\n" * 30])
def test_what_ase_cannot_parse_is_an_error_with_the_name(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=name):
            list(read_structures(tmp_path / name))


# --- structures without labels ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format"), [("POSCAR", "vasp"), ("a.cif", "cif")])
def test_structures(name, format, tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    ase.io.write(tmp_path / name, atoms, format=format)
    (read,) = read_structures(tmp_path / name)
    assert sorted(read.numbers) == [11, 17]
    assert read.calc is None
    assert read.info == {}
    np.testing.assert_allclose(read.get_volume(), atoms.get_volume(), rtol=1e-6)
    assert len(list(read_structures(tmp_path / name, keep_info=True))) == 1


def test_a_disordered_cif_is_refused(tmp_path):
    """ASE would take the most common element of each site without a word."""
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    path = tmp_path / "a.cif"
    ase.io.write(path, atoms, format="cif")
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.split()[:1] == ["Na"])
    half = line.replace("1.0000", "0.5000", 1)
    path.write_text(text.replace(line, f"{half}\n{half.replace('Na', 'K').replace('K1', 'K9')}"))
    with pytest.raises(DataError, match="is disordered"):
        list(read_structures(path))
