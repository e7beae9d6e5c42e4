"""OMol25 shards: order of rows, and records that are damaged, pickled or hostile."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import zlib

import lmdb
import numpy as np
import pytest

from mlip.data.readers import expand_paths, read_natoms, read_structures
from mlip.errors import CorruptDataError, DataError


def test_rows_come_by_id_not_alphabetically(tmp_path, write_rows, molecules):
    frames = (molecules * 4)[:12]
    for i, atoms in enumerate(frames):
        frames[i] = atoms.copy()
        frames[i].calc = atoms.calc
        frames[i].info["source"] = f"row {i + 1}"
    path = write_rows(tmp_path / "a.aselmdb", frames, deleted=(3, 11))
    read = [a.info["id"] for a in read_structures(path)]
    assert read == [f"row {i}" for i in range(1, 13) if i not in (3, 11)]


def test_shards_of_a_folder_and_their_metadata(tmp_path, write_rows, molecules):
    for name in ("data0001.aselmdb", "data0000.aselmdb"):
        write_rows(tmp_path / name, molecules)
    files = expand_paths(tmp_path)
    assert read_natoms(files) is None
    np.savez(tmp_path / "metadata.npz", natoms=np.full(8, 9), data_ids=np.array(["x"] * 8))
    assert [p.name for p in files] == ["data0000.aselmdb", "data0001.aselmdb"]
    assert read_natoms(files).tolist() == [9] * 8
    assert len(list(read_structures(tmp_path))) == 8
    np.savez(tmp_path / "metadata.npz", natoms=np.full(7, 9))
    with pytest.raises(DataError, match=r"natoms has shape \(7,\).*2 shards beside it have 8 rows"):
        read_structures(tmp_path)
    np.savez(tmp_path / "metadata.npz", natoms=np.array([9] * 8, dtype=object))
    with pytest.raises(DataError, match=r"metadata.npz: cannot be read"):
        read_natoms(files)


def test_the_same_file_can_be_read_twice_at_once_and_replaced(tmp_path, write_rows, molecules):
    path = write_rows(tmp_path / "a.aselmdb", molecules)
    first, second = read_structures(path), read_structures(path)
    next(first), next(second), next(first)
    assert len(list(first)) == 2
    assert len(list(second)) == 3
    path.unlink()
    write_rows(path, molecules[:1])
    assert len(list(read_structures(path))) == 1


def test_a_forked_worker_opens_its_own(tmp_path, write_rows, molecules):
    path = write_rows(tmp_path / "a.aselmdb", molecules)
    assert len(list(read_structures(path))) == 4
    child = os.fork()
    if child == 0:
        os._exit(len(list(read_structures(path))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_a_truncated_file_is_an_error_not_a_sigbus(tmp_path, write_rows, molecules):
    path = write_rows(tmp_path / "a.aselmdb", molecules * 40)
    data = path.read_bytes()
    for part in (0.001, 0.02, 0.3, 0.7, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(CorruptDataError) as caught:
            list(read_structures(path, format="aselmdb"))
        assert str(path) in str(caught.value)


def test_a_file_that_is_not_lmdb(tmp_path):
    path = tmp_path / "a.aselmdb"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(CorruptDataError, match="does not start like an LMDB database"):
        list(read_structures(path))


def test_damaged_bytes_are_noticed(tmp_path, write_rows, molecules):
    record = bytearray(zlib.compress(json.dumps({"numbers": [1]}).encode()))
    record[-1] ^= 1
    path = write_rows(tmp_path / "a.aselmdb", [molecules[0], bytes(record)])
    with pytest.raises(CorruptDataError, match="row 2: is damaged"):
        list(read_structures(path))
    path = write_rows(tmp_path / "b.aselmdb", [zlib.compress(b"{}")[:-3]])
    with pytest.raises(CorruptDataError, match="row 1: is cut short"):
        list(read_structures(path))


def test_a_missing_row_is_an_error(tmp_path, write_rows, molecules):
    path = write_rows(tmp_path / "a.aselmdb", molecules)
    with lmdb.open(str(path), subdir=False, lock=False) as env, env.begin(write=True) as txn:
        txn.delete(b"2")
    with pytest.raises(CorruptDataError, match="row 2: is missing"):
        list(read_structures(path))


def test_an_empty_shard(tmp_path, write_rows):
    with pytest.raises(DataError, match="the database is empty"):
        list(read_structures(write_rows(tmp_path / "a.aselmdb", [])))


class _Canary:
    def __reduce__(self):
        return (os.mkdir, (os.environ["CANARY"],))


def test_pickles_are_refused_unread(tmp_path, write_rows, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    poison = pickle.dumps(_Canary())
    for name, record in (("raw", poison), ("packed", zlib.compress(poison))):
        path = write_rows(tmp_path / f"{name}.aselmdb", [record])
        with pytest.raises(DataError, match="row 1: is a Python pickle"):
            list(read_structures(path))
    legacy = tmp_path / "legacy.lmdb"  # fairchem's older format: no ids, pickled records
    with lmdb.open(str(legacy), subdir=False, lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"0", poison)
    with pytest.raises(DataError, match="is a Python pickle"):
        list(read_structures(legacy))
    assert not (tmp_path / "canary").exists()


def test_a_decompression_bomb_is_refused(tmp_path, write_rows):
    for size in (2 * 1024**2, 80 * 1024**2):
        path = write_rows(tmp_path / f"{size}.aselmdb", [zlib.compress(b" " * size)])
        with pytest.raises(DataError, match=r"row 1: .* bytes expand to"):
            list(read_structures(path))


BOMB = b'{"__ndarray__":[[100000000],"float64",[0.0]]}'


def test_an_array_must_bring_its_numbers(tmp_path, write_rows):
    """45 bytes that ASE turns into 800 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"numbers": [1], "positions": json.loads(BOMB)}
    path = write_rows(tmp_path / "a.aselmdb", [row])
    with pytest.raises(DataError, match=r"'positions' announces shape \[100000000\] but brings 1"):
        list(read_structures(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": {"__ndarray__": [[9], "object", [1] * 9]}}, "'numbers' has type 'object'"),
        ({"numbers": {"__ndarray__": [[-9], "int64", [1] * 9]}}, "announces shape"),
        ({"numbers": {"__ndarray__": [[9], "int64"]}}, "'numbers' is no array"),
        ({"numbers": {"__ndarray__": [[9], "int64", ["a"] * 9]}}, "is no array of int64"),
        ({"positions": [[0, 0, 0], [1]]}, "'positions' is ragged"),
        ({"positions": [[0.0, 0.0, 0.0]]}, "'positions' has shape"),
        ({"forces": [[0.0] * 3] * 8}, "'forces' has shape"),
        ({"energy": "low"}, "'energy' is 'low', which is not numbers"),
        ({"energy": float("nan")}, "frame 0 .*x_0.*: energy is nan"),
        ({"numbers": [0] * 9}, "atomic number 0"),
        ({"numbers": []}, "no atoms"),
        ({"data": {"charge": 0.5}}, "'charge' is 0.5"),
    ],
)
def test_a_bad_entry_is_named(change, message, tmp_path, write_rows, molecules, to_row):
    path = write_rows(tmp_path / "a.aselmdb", [{**to_row(molecules[0]), **change}])
    with pytest.raises(DataError, match=message) as caught:
        list(read_structures(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("record", [b"[1, 2]", b"3", b'{"a": 1}', b"{", b""])
def test_a_record_that_is_no_row(record, tmp_path, write_rows):
    path = write_rows(tmp_path / "a.aselmdb", [zlib.compress(record)])
    with pytest.raises(DataError, match="row 1"):
        list(read_structures(path))


def test_populations_are_left_unread_unless_kept(tmp_path, write_rows, molecules, to_row):
    data = {
        **molecules[0].info,
        "mulliken_charges": {"__ndarray__": [[9], "float64", [0.5] * 9]},
        "warnings": ["boilerplate"],
        "n_basis": 563,
    }
    path = write_rows(tmp_path / "a.aselmdb", [to_row(molecules[0], data)])
    (plain,) = read_structures(path)
    assert set(plain.info) == {"charge", "spin", "data_id", "source", "group", "id"}
    (kept,) = read_structures(path, keep_info=True)
    assert kept.info["n_basis"] == 563
    assert kept.info["mulliken_charges"].tolist() == [0.5] * 9


def test_rows_with_stress_moments_and_constraints(tmp_path, write_rows, crystals, to_row):
    """As Nequix writes MPtrj: labels from the calculator, everything else in `data`."""
    row = {
        **to_row(crystals[0]),
        "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [0]}}],
        "key_value_pairs": {"colour": "red"},
    }
    path = write_rows(tmp_path / "a.aselmdb", [row])
    (atoms,) = read_structures(path)
    for name, value in crystals[0].calc.results.items():
        np.testing.assert_array_equal(atoms.calc.results[name], value)
    assert not atoms.constraints
    (kept,) = read_structures(path, keep_info=True)
    assert kept.constraints[0].index.tolist() == [0]
    assert kept.info["colour"] == "red"


def test_a_named_object_in_data_is_not_built(tmp_path, write_rows, molecules, to_row):
    """ASE would build it; here it is neither built nor kept."""
    data = {"thing": {"__ase_objtype__": "atoms", "numbers": [1]}, "charge": 0}
    path = write_rows(tmp_path / "a.aselmdb", [to_row(molecules[0], data)])
    (atoms,) = read_structures(path, keep_info=True)
    assert "thing" not in atoms.info


def test_equal_to_ase_on_real_rows(real_data, tmp_path):
    """Bit for bit what ase-db-backends reads, in another process: LMDB allows one handle."""
    pytest.importorskip("ase_db_backends")
    script = """
import sys, numpy as np, ase.db
for path in sys.argv[2:]:
    with ase.db.connect(path, readonly=True, use_lock_file=False) as db:
        rows = [db._get_row(i) for i in db.ids]
    for i, row in enumerate(rows):
        np.savez(f"{sys.argv[1]}/{path.rpartition('/')[2]}.{i}.npz", numbers=row.numbers,
                 positions=row.positions, energy=row.energy, forces=row.forces,
                 charge=row.data["charge"], spin=row.data["spin"], source=row.data["source"])
"""
    files = expand_paths(real_data / "omol25", "aselmdb")
    subprocess.run([sys.executable, "-c", script, tmp_path, *files], check=True)
    count = 0
    for file in files:
        for i, atoms in enumerate(read_structures(file)):
            row = np.load(tmp_path / f"{file.name}.{i}.npz")
            for name in ("numbers", "positions"):
                np.testing.assert_array_equal(atoms.arrays[name], row[name])
            for name in ("energy", "forces"):
                np.testing.assert_array_equal(atoms.calc.results[name], row[name])
            for name in ("charge", "spin", "source"):
                assert atoms.info[name] == row[name]
            count += 1
    assert count == 170
