"""The data that ship: whole, labelled as they say, and of one kind with the genuine data sets."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase.units import GPa

from mlip.data.readers import expand_paths, read_natoms, read_structures

DATA = Path(__file__).resolve().parents[2] / "data"
OMOL = DATA / "omol-mini"
MPTRJ = DATA / "mptrj-mini"
CRYSTALS = MPTRJ / "mptrj-mini.json.gz"
MPTRJ_KEYS = {
    "structure", "uncorrected_total_energy", "corrected_total_energy", "energy_per_atom",
    "ef_per_atom", "e_per_atom_relaxed", "ef_per_atom_relaxed", "force", "stress", "magmom",
    "bandgap", "mp_id",
}  # fmt: skip


@pytest.mark.parametrize("folder", [OMOL, MPTRJ])
def test_checksums(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert set(listed) == {p.name for p in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_they_are_small():
    files = [p for folder in (OMOL, MPTRJ) for p in folder.iterdir()]
    assert sum(p.stat().st_size for p in files) < 8e6


# --- OMol25's format


def _rows(path):
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    with environment.begin() as transaction:
        last = json.loads(zlib.decompress(transaction.get(b"nextid")))
        for number in range(1, last):
            yield json.loads(zlib.decompress(transaction.get(str(number).encode())))
    environment.close()


def _kind(value, natoms):
    """Type of a JSON value; of an array its dtype and how its axes scale."""
    if isinstance(value, dict) and "__ndarray__" in value:
        shape, dtype, _ = value["__ndarray__"]
        return dtype, tuple("N" if n == natoms and n > 3 else n for n in shape)
    return type(value).__name__


def _schema(rows):
    """(key -> kinds) of rows with more than three atoms, restricted and unrestricted apart."""
    seen = {True: {}, False: {}}
    for row in rows:
        natoms = row["data"]["num_atoms"]
        if natoms <= 3:
            continue
        kinds = seen[row["data"]["unrestricted"]]
        for key, value in [*row.items(), *((f"data.{k}", v) for k, v in row["data"].items())]:
            kinds.setdefault(key, set()).add(_kind(value, natoms))
    return seen


def test_rows_are_like_genuine_ones(real_data):
    """Same keys, same types, same axes; natural bond orbitals are the one thing we do not have."""
    ours = _schema(row for path in OMOL.glob("*.aselmdb") for row in _rows(path))
    theirs = _schema(
        row for path in (real_data / "omol25").glob("*.aselmdb") for row in _rows(path)
    )
    for unrestricted in (True, False):
        missing = {"data.nbo_charges", "data.nbo_spins"} & set(theirs[unrestricted])
        assert set(ours[unrestricted]) == set(theirs[unrestricted]) - missing
        for key, kinds in ours[unrestricted].items():
            assert kinds <= theirs[unrestricted][key], key


def test_molecules_have_genuine_units(real_data):
    """OMol25's own element references leave bond energies: tenths of an eV per atom.

    Hartree, kcal/mol or another zero of energy would leave hundreds of eV.
    """
    path = real_data / "omol25" / "elem_refs.json"
    table = json.loads(path.read_text())["hof_lin_uma_v1"]["values"]
    for atoms in read_structures(OMOL):
        left = atoms.get_potential_energy() - sum(table[str(z)] for z in atoms.numbers)
        neutral = (atoms.info["charge"], atoms.info["spin"]) == (0, 1)
        broken = any(word in atoms.info["source"] for word in ("stretch", "CH2-"))
        limit = 1.5 if neutral and not broken else 10.0  # half the ionisation energy of NO is 5 eV
        assert abs(left) / len(atoms) < limit, atoms.info["source"]


def test_measured_checks_of_the_molecules():
    """Three genuine rows recomputed within 10 meV and 10 meV/A; forces are energy differences.

    What is left of the latter is the derivative of the integration grid, half of 10 meV/A at most.
    """
    checks = json.loads((DATA / "results" / "omol-mini.json").read_text())
    genuine = checks["genuine_rows"]["records"]
    assert len({row["composition"] for row in genuine}) >= 3
    for row in genuine:
        assert abs(row["energy_difference_meV"]) < 10
        assert row["largest_force_difference_meV_per_A"] < 10
    differences = checks["finite_differences"]["records"]
    assert len({row["source"] for row in differences}) == 2
    for row in differences:
        assert abs(row["force"]) > 0.1
        assert abs(row["difference_meV_per_A"]) < 5


def test_what_the_molecules_are():
    frames = list(read_structures(OMOL))
    assert len(frames) >= 150
    states = {(a.info["charge"], a.info["spin"]) for a in frames}
    assert states >= {(0, 1), (1, 1), (-1, 1), (0, 2), (0, 3)}
    assert {int(z) for a in frames for z in a.numbers} == {1, 6, 7, 8}
    assert {len(a) for a in frames} <= set(range(2, 8))
    for atoms in frames:
        electrons = atoms.numbers.sum() - atoms.info["charge"]
        assert electrons % 2 != atoms.info["spin"] % 2
    natoms = read_natoms(expand_paths(OMOL))
    assert natoms is not None
    assert natoms.tolist() == [len(a) for a in frames]


# --- MPtrj's format


def _nested():
    return json.loads(gzip.decompress(CRYSTALS.read_bytes()))


def test_records_have_the_keys_of_mptrj(real_data):
    """Those of the published file; a genuine extract carries its scalars under the same names."""
    nested = _nested()
    assert len(nested) >= 8
    assert sum(map(len, nested.values())) >= 200
    for mp_id, frames in nested.items():
        for frame_id, record in frames.items():
            assert set(record) == MPTRJ_KEYS
            assert record["mp_id"] == mp_id
            task, calc, step = frame_id.rsplit("-", 2)
            assert task.startswith("mini-")
            assert calc.isdigit()
            assert step.isdigit()
            n = len(record["structure"]["sites"])
            assert np.shape(record["force"]) == (n, 3)
            assert np.shape(record["stress"]) == (3, 3)
    genuine = (real_data / "mptrj" / "mptrj-8-all-keys.extxyz").read_text().splitlines()[1]
    for key in ("corrected_total_energy", "energy_per_atom", "ef_per_atom", "bandgap",
                "e_per_atom_relaxed", "ef_per_atom_relaxed"):  # fmt: skip
        assert f"{key}=" in genuine
        assert key in MPTRJ_KEYS


def test_crystals_read_as_genuine_ones_do(real_data):
    """The same labels of the same kinds, from two packagings of one data set."""
    ours = next(read_structures(CRYSTALS))
    theirs = next(read_structures(real_data / "mptrj" / "mptrj-8-all-keys.extxyz"))
    assert set(ours.calc.results) == {"energy", "forces", "stress"} <= set(theirs.calc.results)
    for label, value in ours.calc.results.items():
        other = np.asarray(theirs.calc.results[label])
        assert np.asarray(value).dtype == other.dtype
        assert np.ndim(value) == other.ndim
    assert {"group", "id"} <= set(ours.info) & set(theirs.info)


def test_stress_is_in_kilobar_with_the_sign_of_vasp():
    """A cell 12 % too small pushes: positive in the file, negative in ASE's convention."""
    nested = _nested()
    reference = json.loads((MPTRJ / "reference.json").read_text())["materials"]
    frames = {a.info["id"]: a for a in read_structures(CRYSTALS)}
    checked = 0
    for mp_id, records in nested.items():
        volume0 = reference[mp_id]["eos"]["volume_A3"] / len(reference[mp_id]["symbols"])
        for frame_id, record in records.items():
            atoms = frames[frame_id]
            relative = atoms.get_volume() / len(atoms) / volume0
            relaxing = frame_id.split("-")[1].endswith("200")  # to another phase, perhaps
            if abs(relative - 1) < 0.08 or relaxing:
                continue
            kbar = np.trace(record["stress"]) / 3
            assert np.sign(kbar) == np.sign(1 - relative), frame_id
            stress = np.trace(atoms.get_stress(voigt=False)) / 3
            np.testing.assert_allclose(stress / GPa, -0.1 * kbar, rtol=1e-6)
            checked += 1
    assert checked > 20


def test_pressures_are_slopes_of_the_energy():
    """-dE/dV of each equation of state against the trace of its stresses.

    The cut-off is fixed and the cell is not, which leaves a Pulay stress: measured below 1.2 GPa
    and 1.5 % of the bulk modulus.
    """
    for entry in json.loads((MPTRJ / "reference.json").read_text())["materials"].values():
        eos = entry["eos"]
        volumes = np.array(eos["volumes_A3"])
        slopes = -np.gradient(eos["free_energies_eV"], volumes, edge_order=2) / GPa
        pressures = np.array(eos["pressures_GPa"])
        inner = slice(1, -1)
        assert np.corrcoef(slopes[inner], pressures[inner])[0, 1] > 0.999
        assert abs(slopes - pressures)[inner].max() < 0.015 * eos["bulk_modulus_GPa"]


def test_measured_checks_of_the_crystals():
    """Forces are energy differences; finer settings change little."""
    reference = json.loads((MPTRJ / "reference.json").read_text())
    differences = reference["finite_differences"]
    assert len({row["frame"] for row in differences}) == 2
    for row in differences:
        assert abs(row["difference_meV_per_A"]) < 1
        assert abs(row["force_eV_per_A"]) > 0.01, "else nothing was compared"
    nested = _nested()
    for mp_id, entry in reference["materials"].items():
        assert entry["frames"] == len(nested[mp_id])
        assert entry["elastic_constants_GPa"]
        assert entry["eos"]["largest_residual_meV_per_atom"] < 0.5
        assert set(entry["convergence"]) == {"ecut+200eV", "kpts+2"}
