"""Make `data/omol-mini/`: small molecules at OMol25's level of theory, in OMol25's file format.

wB97M-V/def2-TZVPD by PySCF (density fitting for Coulomb and exchange, VV10 self-consistent as in
OMol25), on geometries from GFN2-xTB dynamics by tblite: molecules, ions of both signs, radicals,
triplets, the same geometry in two charge states, a bond and a hydrogen bond being pulled apart.

    pip install -e ".[dft]"
    python scripts/make_omol_mini.py                 # hours of CPU; stop and start it as you like
    python scripts/make_omol_mini.py --worker 0/2    # ... as one of two processes
    python scripts/make_omol_mini.py --assemble      # shards from the rows there are
    python scripts/make_omol_mini.py --check DIR     # recompute the smallest genuine OMol25 rows
    python scripts/make_omol_mini.py --differences   # forces against energies, two rows

Rows that are in `data/omol-mini/` or in the work folder are not computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase
import lmdb
import numpy as np
from ase import units
from ase.build import molecule
from ase.data import chemical_symbols
from ase.io import iread, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from checksums import write_checksums
from numpy.typing import NDArray
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "data" / "omol-mini"
WORK = ROOT / "outputs" / "omol-mini"
ROWS_PER_SHARD = 30
BASIS, AUXILIARY, FUNCTIONAL = "def2-tzvpd", "def2-universal-jkfit", "wb97m-v"
GRID_LEVEL, NLC_GRID_LEVEL = 3, 1  # against 5 and 3: 5 ueV in the energy of water
CONVERGENCE = 1e-9  # hartree
TEMPERATURES = (300.0, 600.0, 1000.0)  # K, in turn
Array = NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """A molecule whose dynamics is sampled."""

    name: str  # of the geometry in ASE's collection
    charge: int
    multiplicity: int
    frames: int
    also: tuple[int, int] | None = None  # charge and multiplicity to compute the geometries in, too


SYSTEMS = (
    # closed shells
    System("H2O", 0, 1, 8),
    System("NH3", 0, 1, 6),
    System("CH4", 0, 1, 6),
    System("H2CO", 0, 1, 6),
    System("CH3OH", 0, 1, 6),
    System("HCN", 0, 1, 5),
    System("C2H2", 0, 1, 5),
    System("H2O2", 0, 1, 5),
    System("HCOOH", 0, 1, 5),
    System("CO2", 0, 1, 4),
    System("N2H4", 0, 1, 4),
    System("CO", 0, 1, 3),
    System("N2", 0, 1, 3),
    # ions
    System("H3O", 1, 1, 5),
    System("NH4", 1, 1, 6),
    System("CH3", 1, 1, 5),
    System("OH", -1, 1, 3, also=(0, 2)),
    System("NH2", -1, 1, 5),
    System("NO2", -1, 1, 4),
    System("CN", -1, 1, 3),
    System("HCOO", -1, 1, 4),
    # radicals and triplets
    System("OH", 0, 2, 3),
    System("NH2", 0, 2, 5, also=(-1, 1)),
    System("CH3", 0, 2, 5, also=(1, 1)),
    System("NO2", 0, 2, 4, also=(-1, 1)),
    System("NO", 0, 2, 3, also=(1, 1)),
    System("HCO", 0, 2, 4),
    System("CH2_s3B1d", 0, 3, 5, also=(0, 1)),
    System("O2", 0, 3, 4),
)


@dataclass
class Row:
    """One geometry to compute."""

    name: str
    atoms: ase.Atoms
    charge: int
    multiplicity: int
    broken_symmetry: bool = False  # look for an unrestricted singlet

    @property
    def source(self) -> str:
        """The row's unique id, which ends on charge and multiplicity as OMol25's do."""
        return f"omol-mini/{self.name}_{self.charge}_{self.multiplicity}/pyscf.json"


# --- geometries


def start_geometry(name: str) -> ase.Atoms:
    """A geometry of ASE's G2 collection, or one made from it."""
    if name == "H3O":
        atoms = molecule("NH3")
        atoms.numbers[0] = 8
    elif name == "NH4":
        atoms = molecule("CH4")
        atoms.numbers[0] = 7
    elif name == "HCOO":
        atoms = molecule("HCOOH")
        acid = [
            a.index
            for a in atoms
            if a.symbol == "H"
            and min(atoms.get_distance(a.index, o.index) for o in atoms if o.symbol == "O") < 1.2
        ]
        del atoms[acid]
    else:
        atoms = molecule(name)
    return ase.Atoms(atoms.numbers, atoms.positions)


def xtb(atoms: ase.Atoms, charge: int, multiplicity: int) -> ase.Atoms:
    """The same atoms with GFN2-xTB attached."""
    from tblite.ase import TBLite  # type: ignore[import-not-found]

    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=multiplicity, verbosity=0)
    return atoms


def sampled(system: System, seed: int) -> Iterator[ase.Atoms]:
    """Geometries of GFN2-xTB Langevin dynamics at several temperatures, no two alike."""
    taken: list[Array] = []
    rng = np.random.default_rng(seed)
    for k in range(system.frames):
        for _ in range(20):
            temperature = TEMPERATURES[k % len(TEMPERATURES)]
            atoms = xtb(start_geometry(system.name), system.charge, system.multiplicity)
            MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
            dynamics = Langevin(
                atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng
            )
            dynamics.run(150 + int(rng.integers(100)))
            distances = np.sort(atoms.get_all_distances()[np.triu_indices(len(atoms), 1)])
            # two atoms have one distance: alike means less there
            threshold = 0.005 if len(atoms) == 2 else 0.02
            if distances.max() < 5 and all(abs(distances - d).max() > threshold for d in taken):
                taken.append(distances)
                yield ase.Atoms(atoms.numbers, atoms.positions.round(6))
                break
        else:
            raise RuntimeError(f"{system}: 20 trajectories gave no new geometry")


def stretched_water() -> Iterator[ase.Atoms]:
    """Water with one O-H bond from 0.8 to 3 A."""
    for length in (0.80, 0.88, 0.96, 1.05, 1.15, 1.30, 1.45, 1.65, 1.90, 2.20, 2.60, 3.00):
        atoms = start_geometry("H2O")
        atoms.set_distance(0, 1, length, fix=0)
        yield ase.Atoms(atoms.numbers, atoms.positions.round(6))


def water_dimer() -> Iterator[ase.Atoms]:
    """A hydrogen-bonded pair with O..O from 2.5 to 6 A, the geometry otherwise fixed."""
    donor, acceptor = start_geometry("H2O"), start_geometry("H2O")
    donor.positions -= donor.positions[0]
    donor.rotate(donor.positions[1], (1, 0, 0))  # one O-H points at the acceptor
    acceptor.positions -= acceptor.positions[0]
    acceptor.rotate(acceptor.positions[1:].mean(0), (1, 0, 0))  # its lone pairs point back
    acceptor.rotate(90, (1, 0, 0))
    acceptor.rotate(50, (0, 1, 0))
    for distance in (2.5, 2.65, 2.8, 2.92, 3.05, 3.2, 3.4, 3.7, 4.1, 4.6, 5.2, 6.0):
        far = acceptor.copy()
        far.positions += (distance, 0, 0)
        pair = donor + far
        yield ase.Atoms(pair.numbers, pair.positions.round(6))


def plan() -> list[Row]:
    """Every row, so ordered that each shard has something of everything."""
    rows: list[tuple[float, Row]] = []
    for number, system in enumerate(SYSTEMS):
        tag = system.name.split("_")[0]
        label = f"{tag}{'+' if system.charge > 0 else '-' if system.charge else ''}"
        for k, atoms in enumerate(sampled(system, seed=number)):
            where = (k + 0.5) / system.frames
            row = Row(f"{label}-md_{k:03d}", atoms, system.charge, system.multiplicity)
            rows.append((where, row))
            if system.also is not None and k < 3:
                rows.append((where, Row(f"{label}-md_{k:03d}", atoms, *system.also)))
    for k, atoms in enumerate(stretched_water()):
        rows.append(((k + 0.5) / 12, Row(f"H2O-stretch_{k:03d}", atoms, 0, 1, True)))
    for k, atoms in enumerate(water_dimer()):
        rows.append(((k + 0.5) / 12, Row(f"H2O2-dimer_{k:03d}", atoms, 0, 1)))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def geometries() -> list[Row]:
    """The plan, from the work folder if it was made there before."""
    path = WORK / "geometries.extxyz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = []
        for row in plan():
            atoms = row.atoms.copy()
            atoms.info = {
                "row": row.name,
                "charge": row.charge,
                "spin": row.multiplicity,
                "broken_symmetry": row.broken_symmetry,
            }
            images.append(atoms)
        write(path.with_suffix(".partial"), images, format="extxyz")
        path.with_suffix(".partial").replace(path)
    images: list[Any] = list(iread(path, index=":"))
    rows = [
        Row(
            str(atoms.info["row"]),
            ase.Atoms(atoms.numbers, atoms.positions),
            int(atoms.info["charge"]),
            int(atoms.info["spin"]),
            bool(atoms.info["broken_symmetry"]),
        )
        for atoms in images
    ]
    if len({row.source for row in rows}) != len(rows):
        raise RuntimeError("two rows have the same source")
    return rows


# --- labels


def converged(mol: Any, unrestricted: bool, broken_symmetry: bool) -> Any:
    """A converged Kohn-Sham calculation; of two singlets the lower one."""
    from pyscf import dft  # type: ignore[import-not-found]

    def run(guess: Any = None) -> Any:
        mf = (dft.UKS if unrestricted else dft.RKS)(mol, xc=FUNCTIONAL)
        mf = mf.density_fit(auxbasis=AUXILIARY)
        mf.grids.level, mf.nlcgrids.level = GRID_LEVEL, NLC_GRID_LEVEL
        mf.conv_tol, mf.max_cycle = CONVERGENCE, 200
        mf.kernel(dm0=guess)
        if not mf.converged:
            mf = mf.newton()
            mf.kernel(mf.mo_coeff, mf.mo_occ)
        if not mf.converged:
            raise RuntimeError(f"the SCF of {mol.atom} did not converge")
        return mf

    plain = run()
    if not broken_symmetry:
        return plain
    alpha, beta = plain.mo_coeff
    homo = int(plain.mo_occ[0].sum()) - 1
    mixed = alpha.copy()
    mixed[:, homo] = (alpha[:, homo] + alpha[:, homo + 1]) / np.sqrt(2)
    opposite = beta.copy()
    opposite[:, homo] = (beta[:, homo] - beta[:, homo + 1]) / np.sqrt(2)
    guess = plain.make_rdm1((mixed, opposite), plain.mo_occ)
    broken = run(guess)
    return broken if broken.e_tot < plain.e_tot - 1e-7 else plain


def build(atoms: ase.Atoms, charge: int, multiplicity: int) -> Any:
    """The molecule in PySCF, with the unit conversion of ASE."""
    from pyscf import gto  # type: ignore[import-not-found]

    positions = atoms.positions / units.Bohr
    mol = gto.M(
        atom=list(zip(atoms.get_chemical_symbols(), positions, strict=True)),
        unit="Bohr",
        basis=BASIS,
        charge=charge,
        spin=multiplicity - 1,
        verbose=0,
    )
    if mol.has_ecp():
        raise RuntimeError("def2's effective core potentials begin at Rb and are not set up here")
    return mol


def compute(row: Row) -> dict[str, Any]:
    """Energy (eV), forces (eV/A) and the `data` of an OMol25 row."""
    start = time.perf_counter()
    mol = build(row.atoms, row.charge, row.multiplicity)
    unrestricted = row.multiplicity > 1 or row.broken_symmetry
    mf = converged(mol, unrestricted, row.broken_symmetry)
    forces = -np.asarray(mf.nuc_grad_method().kernel()) * (units.Hartree / units.Bohr)
    net = forces.mean(axis=0)  # of the grid; OMol25 has removed it, too
    numbers = row.atoms.get_atomic_numbers()
    data = {
        "source": row.source,
        "reference_source": None,
        "data_id": "omol_mini",
        "charge": row.charge,
        "spin": row.multiplicity,
        "num_atoms": len(numbers),
        "num_electrons": int(numbers.sum() - row.charge),
        "num_ecp_electrons": 0,
        "n_scf_steps": int(getattr(mf, "cycles", 0)),
        "n_basis": int(mol.nao),
        "unrestricted": unrestricted,
        **electronic_structure(mol, mf, unrestricted, row.multiplicity),
        "warnings": [
            f"PySCF {version('pyscf')}, density fitting ({AUXILIARY}) of Coulomb and exchange",
            f"largest net force component before its removal: {abs(net).max():.1e} eV/A per atom",
        ],
        "composition": composition(row.atoms),
    }
    return {
        "numbers": numbers.tolist(),
        "positions": row.atoms.positions.tolist(),
        "energy": float(mf.e_tot * units.Hartree),
        "forces": (forces - net).tolist(),
        "data": data,
        "seconds": time.perf_counter() - start,
    }


def electronic_structure(
    mol: Any, mf: Any, unrestricted: bool, multiplicity: int
) -> dict[str, Any]:
    """Orbital energies, populations and integrals over the grid, named and ordered as in OMol25."""
    density = np.asarray(mf.make_rdm1())
    spins = density if unrestricted else np.stack([density / 2, density / 2])
    energies = np.atleast_2d(np.asarray(mf.mo_energy))
    occupations = np.atleast_2d(np.asarray(mf.mo_occ))
    homo, gap = [], []
    for levels, filled in zip(energies, occupations > 0, strict=True):
        top = levels[filled].max() if filled.any() else np.nan
        homo.append(float(top * units.Hartree))
        gap.append(float((levels[~filled].min() - top) * units.Hartree))
    numint = mf._numint
    count = numint.nr_uks if unrestricted else numint.nr_rks
    electrons = np.asarray(count(mol, mf.grids, mf.xc, density)[0], dtype=float)
    alpha, beta = electrons if unrestricted else (electrons / 2, electrons / 2)
    _, nonlocal_energy, _ = numint.nr_nlc_vxc(mol, mf.nlcgrids, mf.xc, spins.sum(0))
    if unrestricted:
        s_squared = float(mf.spin_square()[0])
        exact = (multiplicity**2 - 1) / 4
    else:
        s_squared = exact = 0.0
    mulliken, lowdin = populations(mol, spins)
    nuclear = np.asarray(mol.atom_charges(), dtype=float)
    result: dict[str, Any] = {
        "nl_energy": float(nonlocal_energy * units.Hartree),
        "integrated_densities": np.array([alpha, beta, alpha + beta], dtype=float),
        "homo_energy": np.array(homo),
        "homo_lumo_gap": np.array(gap),
        "s_squared": s_squared,
        "s_squared_dev": s_squared - exact,
        "mulliken_charges": (nuclear - mulliken.sum(0)).round(6),
        "lowdin_charges": (nuclear - lowdin.sum(0)).round(6),
    }
    if unrestricted:
        result["mulliken_spins"] = (mulliken[0] - mulliken[1]).round(6)
        result["lowdin_spins"] = (lowdin[0] - lowdin[1]).round(6)
    return result


def populations(mol: Any, spins: Array) -> tuple[Array, Array]:
    """Electrons per spin and atom after Mulliken and after Loewdin, each (2, N)."""
    overlap = mol.intor("int1e_ovlp")
    values, vectors = np.linalg.eigh(overlap)
    root = (vectors * np.sqrt(values)) @ vectors.T
    slices = mol.aoslice_by_atom()[:, 2:]
    mulliken = np.einsum("sij,ji->si", spins, overlap)
    lowdin = np.einsum("ij,sjk,ki->si", root, spins, root)
    per_atom = [
        np.stack([orbital[:, a:b].sum(1) for a, b in slices], axis=1)
        for orbital in (mulliken, lowdin)
    ]
    return per_atom[0], per_atom[1]


def composition(atoms: ase.Atoms) -> str:
    """As OMol25 writes it: `C1H4O1`, elements in alphabetical order."""
    symbols = atoms.get_chemical_symbols()
    return "".join(f"{s}{symbols.count(s)}" for s in sorted(set(symbols)))


# --- files


def encoded(value: Any) -> Any:
    """JSON of ase-db-backends: arrays as `{"__ndarray__": [shape, dtype, flat list]}`."""
    if isinstance(value, np.ndarray):
        return {"__ndarray__": [list(value.shape), str(value.dtype), value.ravel().tolist()]}
    raise TypeError(type(value).__name__)


def database_row(result: dict[str, Any]) -> bytes:
    """A row as the genuine shards hold it."""
    content = {
        "numbers": np.array(result["numbers"], dtype=np.int64),
        "positions": np.array(result["positions"]),
        "unique_id": hashlib.md5(result["data"]["source"].encode()).hexdigest(),
        "calculator": "unknown",
        "calculator_parameters": {},
        "energy": result["energy"],
        "forces": np.array(result["forces"]),
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, dtype=bool),
        "ctime": 26.9,  # years since 2000, as ASE counts; fixed, so that equal rows are equal bytes
        "user": "mlip",
        "mtime": 26.9,
        "data": result["data"],
    }
    return zlib.compress(json.dumps(content, default=encoded).encode())


def write_shard(path: Path, rows: list[bytes]) -> None:
    """Write one LMDB file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    environment = lmdb.open(str(partial), subdir=False, lock=False, map_size=64 * 1024**2)
    with environment.begin(write=True) as transaction:
        for number, content in enumerate(rows, start=1):
            transaction.put(str(number).encode(), content)
        transaction.put(b"nextid", zlib.compress(json.dumps(len(rows) + 1).encode()))
    compact = path.with_suffix(".compact")
    compact.unlink(missing_ok=True)
    environment.copy(str(compact), compact=True)  # without the free pages
    environment.close()
    compact.replace(path)
    partial.unlink()


def shipped() -> dict[str, bytes]:
    """Rows of the shards there are, by source."""
    rows: dict[str, bytes] = {}
    for path in sorted(OUT.glob("*.aselmdb")):
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
        with environment.begin() as transaction:
            for number in range(1, json.loads(zlib.decompress(transaction.get(b"nextid")))):
                content = transaction.get(str(number).encode())
                rows[json.loads(zlib.decompress(content))["data"]["source"]] = bytes(content)
        environment.close()
    return rows


def result_path(row: Row) -> Path:
    """Where a computed row waits for its shard."""
    return WORK / "rows" / f"{row.source.split('/')[1]}.json"


def load_result(path: Path) -> dict[str, Any]:
    """A result, its arrays as arrays again."""
    result = json.loads(path.read_text())
    for key, value in result["data"].items():
        if isinstance(value, dict):
            shape, dtype, flat = value["__ndarray__"]
            result["data"][key] = np.array(flat, dtype=dtype).reshape(shape)
    return result


def assemble() -> None:
    """Write every shard whose rows are all there, the sidecar and the checksums."""
    have = shipped()
    rows = geometries()
    for row in rows:
        if row.source not in have and result_path(row).exists():
            have[row.source] = database_row(load_result(result_path(row)))
    natoms, names, missing = [], [], 0
    OUT.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        part = rows[first : first + ROWS_PER_SHARD]
        if absent := [row for row in part if row.source not in have]:
            missing += len(absent)
            print(f"data{shard:04d}: waits for {len(absent)} of {len(part)} rows")
            continue
        write_shard(OUT / f"data{shard:04d}.aselmdb", [have[row.source] for row in part])
        natoms += [len(row.atoms) for row in part]
        names += ["omol_mini"] * len(part)
    np.savez(OUT / "metadata.npz", natoms=np.array(natoms), data_ids=np.array(names))
    write_checksums(OUT)
    print(f"{len(natoms)} rows in {OUT}, {missing} missing")


def generate(index: int, count: int) -> None:
    """Compute the missing rows that are this worker's."""
    done = set(shipped())
    todo = [row for row in geometries() if row.source not in done][index::count]
    (WORK / "rows").mkdir(parents=True, exist_ok=True)
    for row in track(todo, description="rows"):
        path = result_path(row)
        if path.exists():
            continue
        result = compute(row)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(result, default=encoded))
        partial.replace(path)
        print(f"{row.source} {result['energy']:.3f} eV {result['seconds']:.0f} s", flush=True)


# --- checks


def genuine_rows(folder: Path) -> list[dict[str, Any]]:
    """The smallest genuine rows, one per composition, smallest first."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.aselmdb")):
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
        with environment.begin() as transaction:
            for number in range(1, json.loads(zlib.decompress(transaction.get(b"nextid")))):
                row = json.loads(zlib.decompress(transaction.get(str(number).encode())))
                rows.setdefault(row["data"]["composition"], row)
        environment.close()
    return sorted(rows.values(), key=lambda row: (row["data"]["n_basis"], row["data"]["source"]))


def check_genuine(folder: Path, count: int) -> None:
    """Recompute genuine rows with our settings and write the differences."""
    records = []
    for genuine in genuine_rows(folder)[:count]:
        numbers = genuine["numbers"]["__ndarray__"][2]
        positions = np.reshape(genuine["positions"]["__ndarray__"][2], (-1, 3))
        atoms = ase.Atoms([chemical_symbols[z] for z in numbers], positions)
        data = genuine["data"]
        # as a singlet of OMol25 that is called unrestricted has <S^2> 0, restricted is the same
        result = compute(Row("check", atoms, data["charge"], data["spin"]))
        forces = np.reshape(genuine["forces"]["__ndarray__"][2], (-1, 3))
        difference = np.abs(np.array(result["forces"]) - forces)
        records.append(
            {
                "source": data["source"],
                "composition": data["composition"],
                "charge": data["charge"],
                "multiplicity": data["spin"],
                "n_basis": [data["n_basis"], result["data"]["n_basis"]],
                "energy_difference_meV": 1e3 * (result["energy"] - genuine["energy"]),
                "largest_force_difference_meV_per_A": 1e3 * float(difference.max()),
                "nl_energy_difference_meV": 1e3 * (result["data"]["nl_energy"] - data["nl_energy"]),
                "homo_difference_meV": 1e3
                * (result["data"]["homo_energy"][0] - data["homo_energy"]["__ndarray__"][2][0]),
                "seconds": result["seconds"],
            }
        )
        print(json.dumps(records[-1]), flush=True)
    report("genuine_rows", f"--check DIR --count {count}", records)


def check_differences(step: float = 0.002) -> None:
    """Forces of two rows against central differences of the energy."""
    records = []
    wanted = ("H2O-md_000", "NO2-md_001")
    for row in geometries():
        if row.name not in wanted or (row.charge, row.multiplicity) not in ((0, 1), (0, 2)):
            continue
        forces = np.array(compute(row)["forces"])
        for atom, axis in ((0, 2), (1, 1)):
            energies = []
            for sign in (1, -1):
                moved = row.atoms.copy()
                moved.positions[atom, axis] += sign * step
                mol = build(moved, row.charge, row.multiplicity)
                energies.append(converged(mol, row.multiplicity > 1, False).e_tot * units.Hartree)
            numeric = -(energies[0] - energies[1]) / (2 * step)
            records.append(
                {
                    "source": row.source,
                    "atom": atom,
                    "axis": "xyz"[axis],
                    "force": float(forces[atom, axis]),
                    "difference_meV_per_A": 1e3 * float(forces[atom, axis] - numeric),
                }
            )
            print(json.dumps(records[-1]), flush=True)
    report("finite_differences", "--differences", records)


def report(key: str, arguments: str, records: list[dict[str, Any]]) -> None:
    """Add measured records to `data/results/omol-mini.json`."""
    path = ROOT / "data" / "results" / "omol-mini.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[key] = {
        "command": f"python scripts/make_omol_mini.py {arguments}",
        "versions": {name: version(name) for name in ("pyscf", "tblite", "ase", "numpy")},
        "machine": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)",
        "records": records,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Generate, assemble or check, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", default="0/1", metavar="I/N", help="compute every N-th row")
    parser.add_argument("--assemble", action="store_true", help="write the shards that are whole")
    parser.add_argument("--check", type=Path, metavar="DIR", help="folder of genuine OMol25 shards")
    parser.add_argument("--count", type=int, default=3, help="how many genuine rows to check")
    parser.add_argument("--differences", action="store_true", help="check forces by differences")
    arguments = parser.parse_args()
    if arguments.check:
        check_genuine(arguments.check, arguments.count)
    elif arguments.differences:
        check_differences()
    elif arguments.assemble:
        assemble()
    else:
        index, count = map(int, arguments.worker.split("/"))
        generate(index, count)
        assemble()


if __name__ == "__main__":
    main()
