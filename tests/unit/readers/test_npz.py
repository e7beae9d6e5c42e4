"""rMD17 and sGDML archives: units, shapes, and arrays that lie about their size."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zipfile

import numpy as np
import pytest
from ase import units

from mlip.data.readers import read_structures
from mlip.errors import CorruptDataError, DataError

KCAL = units.kcal / units.mol
R = np.arange(18.0).reshape(2, 3, 3)
RMD17 = {
    "nuclear_charges": np.array([8, 1, 1]),
    "coords": R,
    "energies": np.array([-1.0, -2.0]),
    "forces": R / 10,
}
SGDML = {"z": np.array([8, 1, 1]), "R": R, "E": np.array([[-1.0], [-2.0]]), "F": R / 10}
OTHER = {"numbers": np.array([8, 1, 1]), "positions": R, "energy": np.array([-1.0, -2.0])}


@pytest.fixture
def write(tmp_path):
    def run(arrays, **more):
        path = tmp_path / "a.npz"
        np.savez_compressed(path, **{**arrays, **more})
        return path

    return run


@pytest.mark.parametrize("arrays", [RMD17, SGDML], ids=["rmd17", "sgdml"])
def test_kcal_by_convention_said_once(arrays, write, caplog):
    with caplog.at_level(logging.INFO, "mlip"):
        frames = list(read_structures(write(arrays)))
    assert len(caplog.records) == 1
    assert "energies in kcal/mol, forces in kcal/mol/A by the convention" in caplog.text
    assert [a.calc.results["energy"] for a in frames] == [-KCAL, -2 * KCAL]
    np.testing.assert_allclose(frames[1].calc.results["forces"], R[1] / 10 * KCAL, rtol=1e-15)
    np.testing.assert_array_equal(frames[1].positions, R[1])
    assert frames[0].info == {}
    assert not frames[0].pbc.any()


def test_sgdml_units_are_honoured(write, caplog):
    path = write(SGDML, e_unit="Hartree", r_unit="bohr", name="w", theory="t")
    with caplog.at_level(logging.INFO, "mlip"):
        atoms = next(read_structures(path))
    assert "by its e_unit" in caplog.text
    assert atoms.calc.results["energy"] == -units.Hartree
    np.testing.assert_allclose(atoms.positions, R[0] * units.Bohr)
    scale = units.Hartree / units.Bohr
    np.testing.assert_allclose(atoms.calc.results["forces"], R[0] / 10 * scale)


def test_options_override_the_convention(write):
    atoms = next(read_structures(write(RMD17), energy_unit="eV"))
    assert atoms.calc.results["energy"] == -1
    np.testing.assert_array_equal(atoms.calc.results["forces"], R[0] / 10)
    atoms = next(read_structures(write(RMD17), energy_unit="eV", force_unit="meV/A"))
    np.testing.assert_allclose(atoms.calc.results["forces"], R[0] / 1e4)


def test_other_names_need_a_unit(write):
    with pytest.raises(DataError, match=r"unit of its energies is not known.*data.energy_unit"):
        list(read_structures(write(OTHER)))
    assert next(read_structures(write(OTHER), energy_unit="eV")).calc.results["energy"] == -1


def test_other_shapes(write):
    (atoms,) = read_structures(write({**RMD17, "coords": R[0], "forces": R[0], "energies": -1.0}))
    assert atoms.calc.results["energy"] == -KCAL
    frames = list(read_structures(write(RMD17, nuclear_charges=np.array([[8, 1, 1], [1, 8, 1]]))))
    assert frames[1].numbers.tolist() == [1, 8, 1]
    frames = list(read_structures(write(RMD17, charge=np.int64(-1), spin=np.array([1, 3]))))
    assert [a.info for a in frames] == [{"charge": -1, "spin": 1}, {"charge": -1, "spin": 3}]
    frames = list(read_structures(write(RMD17, lattice=np.eye(3) * 9)))
    assert frames[1].pbc.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energies": np.array([1.0, 2.0, 3.0])}, "energies have 3 entries, positions 2 frames"),
        ({"forces": R[:, :2]}, "'forces' has shape"),
        ({"energies": np.array([1.0, np.nan])}, "frame 1: energy is nan"),
        ({"forces": np.full((2, 3, 3), np.inf)}, r"forces\[0, 0\] is inf"),
        ({"coords": R[:, :, :2]}, r"positions have shape \(2, 3, 2\)"),
        ({"coords": R[:0]}, "positions have shape"),
        ({"nuclear_charges": np.array([8, 1, 0])}, "atomic number 0"),
        ({"nuclear_charges": np.ones((3, 3), int)}, "atomic numbers have 3 rows for 2 frames"),
        ({"r_unit": "furlong"}, "its r_unit is 'furlong'"),
    ],
)
def test_a_fault_is_named(change, message, write):
    path = write(RMD17, **change)
    with pytest.raises(DataError, match=message) as caught:
        list(read_structures(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["nuclear_charges", "coords"])
def test_missing_arrays(name, write):
    with pytest.raises(DataError, match=r"hold no (atomic numbers|positions); expected rMD17's"):
        list(read_structures(write({k: v for k, v in RMD17.items() if k != name})))


class _Canary:
    def __reduce__(self):
        return (os.mkdir, (os.environ["CANARY"],))


def test_pickled_arrays_are_never_loaded(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    assert pickle.dumps(_Canary())
    path = write(RMD17, energies=np.array([_Canary(), _Canary()], dtype=object))
    with pytest.raises(DataError, match="without running pickled code"):
        list(read_structures(path))
    assert not (tmp_path / "canary").exists()


def test_truncated_and_damaged(write):
    path = write(RMD17)
    data = path.read_bytes()
    for cut in (10, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptDataError, match="no complete npz archive"):
            list(read_structures(path))
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError):
        list(read_structures(path))


def test_an_array_must_fit_its_bytes(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3, 3)}
    )
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("coords.npy", header.getvalue() + b"\0" * 8)
    with pytest.raises(CorruptDataError, match=r"coords.npy announces .* but has"):
        list(read_structures(path))


def test_a_decompression_bomb_is_refused(write, monkeypatch):
    monkeypatch.setattr("mlip.data.readers.npz.RATIO_FLOOR", 10**6)
    path = write(RMD17, coords=np.zeros((100_000, 3, 3)))
    with pytest.raises(DataError, match=r"coords.npy expands from"):
        list(read_structures(path))
