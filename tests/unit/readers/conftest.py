"""One molecular and one crystal set, and a writer for every form that can hold them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

KBAR = -1602.1766208  # eV/Å³, ASE's sign -> kbar, VASP's sign; written out, not imported


def label(atoms: Atoms, **results) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def molecules() -> list[Atoms]:
    """Four ethanols; positions and forces have 8 decimals so that extxyz keeps every bit."""
    rng = np.random.default_rng(1)
    frames = []
    for i in range(4):
        atoms = molecule("CH3CH2OH")
        atoms.positions = np.round(atoms.positions + rng.normal(scale=0.1, size=(9, 3)), 8)
        atoms.info = {
            "charge": (-1) ** i,
            "spin": 2,
            "data_id": "ani2x",
            "source": f"ani2x/x_{i}_1_2/orca.tar.zst",
        }
        label(atoms, energy=-4200.123456789 - i, forces=np.round(rng.normal(size=(9, 3)), 8))
        frames.append(atoms)
    return frames


@pytest.fixture
def crystals() -> list[Atoms]:
    """Four frames of two materials; the last has no magnetic moments."""
    rng = np.random.default_rng(2)
    frames = []
    for i in range(4):
        atoms = bulk("NaCl", "rocksalt", a=5.6 + 0.01 * i) * (1, 1, 2)
        atoms.cell.array[1, 0] += 0.3  # triclinic, so that a transposed cell shows
        atoms.positions = np.round(atoms.positions + rng.normal(scale=0.05, size=(4, 3)), 8)
        atoms.info = {"mp_id": f"mp-{i // 2}", "task_id": f"mp-9{i}", "calc_id": 0, "ionic_step": i}
        results = {
            "energy": -13.25 - i,
            "forces": np.round(rng.normal(size=(4, 3)), 8),
            "stress": rng.normal(size=6) * 0.01,
        }
        if i < 3:
            results["magmoms"] = np.round(rng.normal(size=4), 8)
        frames.append(label(atoms, **results))
    return frames


def jsonable(array: np.ndarray) -> dict:
    array = np.asarray(array)
    return {"__ndarray__": [list(array.shape), str(array.dtype), array.ravel().tolist()]}


def row_of(atoms: Atoms, data: dict | None = None) -> dict:
    """The row that ASE's LMDB backend would store."""
    row = {
        "numbers": jsonable(atoms.numbers),
        "positions": jsonable(atoms.positions),
        "cell": jsonable(atoms.cell.array),
        "pbc": jsonable(atoms.pbc),
        "unique_id": "0" * 32,
        "calculator": "unknown",
        "calculator_parameters": {},
        "data": dict(atoms.info) if data is None else data,
    }
    for name, value in (atoms.calc.results if atoms.calc else {}).items():
        row[name] = jsonable(value) if isinstance(value, np.ndarray) else value
    return row


@pytest.fixture
def write_rows() -> Callable[..., Path]:
    """Write an .aselmdb of rows, records (bytes) or structures, as fairchem's shards are."""

    def write(path: Path, rows: list, *, deleted: tuple[int, ...] = (), **records: bytes) -> Path:
        def pack(obj: object) -> bytes:
            return zlib.compress(json.dumps(obj).encode())

        env = lmdb.open(str(path), subdir=False, map_size=2**27, lock=False)
        with env.begin(write=True) as txn:
            for i, row in enumerate(rows, start=1):
                if i in deleted:
                    continue
                row = row_of(row) if isinstance(row, Atoms) else row
                txn.put(str(i).encode(), row if isinstance(row, bytes) else pack(row))
            txn.put(b"nextid", pack(len(rows) + 1))
            if deleted:
                txn.put(b"deleted_ids", pack(list(deleted)))
            for name, record in records.items():
                txn.put(name.encode(), record)
        env.close()
        return path

    return write


@pytest.fixture
def to_row() -> Callable[..., dict]:
    return row_of


def mptrj_record(atoms: Atoms) -> dict:
    """One MPtrj record in the units and with the layout of the published file."""
    results = atoms.calc.results if atoms.calc else {}
    cell = atoms.cell.array
    record = {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": 0,
            "lattice": {"matrix": cell.tolist(), "pbc": [True, True, True], "a": 1.0},
            "properties": {},
            "sites": [
                {
                    "species": [{"element": symbol, "occu": 1}],
                    "abc": abc.tolist(),
                    "xyz": xyz.tolist(),
                    "label": symbol,
                    "properties": {},
                }
                for symbol, abc, xyz in zip(
                    atoms.symbols,
                    atoms.positions @ np.linalg.inv(cell),
                    atoms.positions,
                    strict=True,
                )
            ],
        },
        "corrected_total_energy": None,
        "uncorrected_total_energy": results.get("energy"),
        "energy_per_atom": -3.0,
        "magmom": None,
        "bandgap": None,
        "mp_id": atoms.info["mp_id"],
    }
    if "energy" in results:
        record["corrected_total_energy"] = results["energy"] - 0.5
    if "forces" in results:
        record["force"] = results["forces"].tolist()
    if "stress" in results:
        xx, yy, zz, yz, xz, xy = results["stress"] * KBAR
        record["stress"] = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    if "magmoms" in results:
        record["magmom"] = results["magmoms"].tolist()
    return record


def nest(frames: list[Atoms]) -> dict:
    materials: dict = {}
    for atoms in frames:
        info = atoms.info
        frame_id = f"{info['task_id']}-{info['calc_id']}-{info['ionic_step']}"
        materials.setdefault(info["mp_id"], {})[frame_id] = mptrj_record(atoms)
    return materials


def records(frames: list[Atoms]) -> list[dict]:
    """The records of MatPES in the units and with the layout of the published file."""
    out = []
    for atoms in frames:
        results = atoms.calc.results if atoms.calc else {}
        structure = mptrj_record(atoms)["structure"]
        for site, moment in zip(structure["sites"], results.get("magmoms", ()), strict=False):
            site["properties"]["magmom"] = moment
        info = atoms.info
        record = {
            "builder_meta": {"license": "BSD {3}", "pymatgen_version": "2025.1.24"},
            "nsites": len(atoms),
            "elements": sorted(set(atoms.symbols)),
            "structure": structure,
            "energy": results.get("energy"),
            "matpes_id": f"{info['task_id']}-{info['calc_id']}-{info['ionic_step']}",
            "bandgap": 0.5,
            "functional": "PBE",
            "formation_energy_per_atom": None,
            "provenance": {"original_mp_id": info["mp_id"], "md_step": 93},
        }
        if "forces" in results:
            record["forces"] = results["forces"].tolist()
        if "stress" in results:
            record["stress"] = (results["stress"] * KBAR).tolist()
        out.append(record)
    return out


@pytest.fixture
def to_matpes() -> Callable[[list[Atoms]], list[dict]]:
    """List structures as MatPES does."""
    return records


@pytest.fixture
def to_mptrj() -> Callable[[list[Atoms]], dict]:
    """Nest structures as MPtrj does: {mp_id: {frame_id: record}}."""
    return nest


def with_ref_keys(atoms: Atoms) -> Atoms:
    """Labels under REF_* in info and arrays, and a wrong calculator beside them."""
    other = atoms.copy()
    results = atoms.calc.results
    other.info["REF_energy"] = results["energy"]
    other.arrays["REF_forces"] = results["forces"].copy()
    if "stress" in results:
        xx, yy, zz, yz, xz, xy = results["stress"]
        other.info["REF_stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if "magmoms" in results:
        other.arrays["REF_magmoms"] = results["magmoms"].copy()
    return label(other, energy=99.0, forces=np.full((len(other), 3), 9.0))


def _write_db(path: Path, frames: list[Atoms], *, as_data: bool) -> None:
    with ase.db.connect(path) as database:
        for atoms in frames:
            kwargs = {"data": atoms.info} if as_data else {"key_value_pairs": dict(atoms.info)}
            database.write(atoms, **kwargs)


def _write_npz(path: Path, frames: list[Atoms]) -> None:
    kcal = 4184 / (1.6021766208e-19 * 6.022140857e23)  # eV per kcal/mol, CODATA 2014 as in ASE
    np.savez(
        path,
        nuclear_charges=frames[0].numbers,
        coords=np.stack([a.positions for a in frames]),
        energies=np.array([a.calc.results["energy"] for a in frames]) / kcal,
        forces=np.stack([a.calc.results["forces"] for a in frames]) / kcal,
        charge=np.array([a.info["charge"] for a in frames]),
        spin=np.array([a.info["spin"] for a in frames]),
    )


def _write_per_material(folder: Path, frames: list[Atoms]) -> None:
    """The layout of matbench's 2023 archive: one extxyz per material in one folder."""
    folder.mkdir()
    for mp_id in dict.fromkeys(a.info["mp_id"] for a in frames):
        same = [a for a in frames if a.info["mp_id"] == mp_id]
        ase.io.write(folder / f"{mp_id}.extxyz", same, format="extxyz")


def _write_matbench(path: Path, frames: list[Atoms]) -> None:
    """Matbench's 2024 file calls the material `material_id`."""
    renamed = []
    for atoms in frames:
        other = atoms.copy()
        other.info["material_id"] = other.info.pop("mp_id")
        other.calc = atoms.calc
        renamed.append(other)
    ase.io.write(path, renamed, format="extxyz")


@pytest.fixture
def forms(tmp_path: Path, write_rows) -> dict[str, Callable[[list[Atoms]], Path]]:
    """Name of a form -> function that writes structures in it and returns the path."""

    def form(name: str, write: Callable[[Path, list[Atoms]], object]):
        def run(frames: list[Atoms]) -> Path:
            path = tmp_path / name
            write(path, frames)
            return path

        return run

    def extxyz(path: Path, frames: list[Atoms]) -> None:
        ase.io.write(path, frames, format="extxyz")

    return {
        "extxyz": form("calc.extxyz", extxyz),
        "extxyz REF": form("ref.extxyz", lambda p, f: extxyz(p, [with_ref_keys(a) for a in f])),
        "extxyz matbench": form("matbench.extxyz", _write_matbench),
        "extxyz per material": form("materials", _write_per_material),
        "traj": form("a.traj", lambda p, f: ase.io.write(p, f, format="traj")),
        "db": form("pairs.db", lambda p, f: _write_db(p, f, as_data=False)),
        "db data": form("data.db", lambda p, f: _write_db(p, f, as_data=True)),
        "json db": form("rows.json", lambda p, f: _write_db(p, f, as_data=True)),
        "aselmdb": form("data0000.aselmdb", lambda p, f: write_rows(p, f)),
        "npz": form("molecule.npz", _write_npz),
        "mptrj": form("mptrj.json", lambda p, f: p.write_text(json.dumps(nest(f)))),
        "matpes": form("matpes.json", lambda p, f: p.write_text(json.dumps(records(f)))),
        "matpes lines": form(
            "matpes.jsonl", lambda p, f: p.write_text("\n".join(map(json.dumps, records(f))))
        ),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a text, or anything as JSON."""

    def run(content: object, name: str = "frames.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return run
