"""Make `data/mptrj-mini/`: ten small crystals at PBE, in the file format of MPtrj.

PBE in plane waves with PAW by GPAW (Debian packages `gpaw` and `gpaw-data`), run by
`gpaw_worker.py` in the system's Python. Frames are strained and rattled cells of 1-4 atoms with
volumes from -12 to +12 %, and relaxations of distorted cells. `reference.json` keeps aside what a
potential trained on them is judged by: equations of state, elastic constants, the convergence of
the settings and finite differences of the energy, all with the same settings.

    apt-get install gpaw gpaw-data
    python scripts/make_mptrj_mini.py                # hours of CPU; stop and start it as you like
    python scripts/make_mptrj_mini.py --processes 2
    python scripts/make_mptrj_mini.py --assemble     # the files from the results there are

Results wait in the work folder, one file per job, and ship in `jobs.gz`; a job that has one is
not run again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.build import bulk, make_supercell, molecule
from ase.eos import EquationOfState
from ase.units import GPa
from checksums import write_checksums
from numpy.typing import NDArray
from pymatgen.io.ase import AseAtomsAdaptor
from scipy.linalg import expm

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "data" / "mptrj-mini"
WORK = ROOT / "outputs" / "mptrj-mini"
WORKER = ROOT / "scripts" / "gpaw_worker.py"
KBAR_VASP = -10 / GPa  # kbar with VASP's sign, per eV/A^3 with ASE's
EOS_VOLUMES = (0.88, 0.91, 0.94, 0.97, 1.0, 1.03, 1.06, 1.09, 1.12)
ELASTIC_STRAIN = 0.005
# Shears of a metal move its Fermi surface: on the grid of the frames C11 < C12 for Li.
DENSER = {"Al": 1.7, "Li": 1.7, "Na": 1.2, "Mg": 1.2}
STRAINED, RATTLED, SMALL, GENTLE = 8, 7, 6, 5  # frames per material, besides its relaxation
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Material:
    """A crystal, its k-points and the cut-off its hardest element needs."""

    number: int
    name: str
    prototype: str
    primitive: ase.Atoms
    kpts: tuple[int, int, int]
    wide: tuple[tuple[int, int, int], ...]  # rows: the 4-atom cell in primitive vectors
    wide_kpts: tuple[int, int, int]
    ecut: float  # eV

    @property
    def mp_id(self) -> str:
        """An id like the Materials Project's, with our own prefix."""
        return f"mini-{self.number}"


CUBE_F = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))  # fcc: conventional cell
CUBE_I = ((0, 1, 1), (1, 0, 1), (1, 1, 0))  # bcc: conventional cell
DOUBLE = ((2, 0, 0), (0, 1, 0), (0, 0, 1))
LONG_I = ((0, 2, 2), (1, 0, 1), (1, 1, 0))  # two bcc conventional cells in a row


def materials() -> tuple[Material, ...]:
    """The crystals, at about their PBE lattice constants."""
    salt, zb, cs = "rocksalt", "zincblende", "cesiumchloride"
    return (
        Material(1, "Al", "fcc", bulk("Al", a=4.04), (12, 12, 12), CUBE_F, (7, 7, 7), 400),
        Material(2, "Li", "bcc", bulk("Li", a=3.44), (10, 10, 10), LONG_I, (4, 7, 7), 500),
        Material(3, "Na", "bcc", bulk("Na", a=4.20), (12, 12, 12), LONG_I, (4, 8, 8), 500),
        Material(4, "Mg", "hcp", bulk("Mg", a=3.19, c=5.17), (10, 10, 6), DOUBLE, (5, 10, 6), 600),
        Material(5, "Si", "diamond", bulk("Si", a=5.47), (7, 7, 7), DOUBLE, (4, 7, 7), 400),
        Material(6, "C", "diamond", bulk("C", a=3.57), (6, 6, 6), DOUBLE, (3, 6, 6), 700),
        Material(7, "SiC", zb, bulk("SiC", zb, a=4.38), (5, 5, 5), DOUBLE, (3, 5, 5), 700),
        Material(8, "NaCl", salt, bulk("NaCl", salt, a=5.70), (4, 4, 4), DOUBLE, (2, 4, 4), 600),
        Material(9, "NaCl", "CsCl", bulk("NaCl", cs, a=3.49), (5, 5, 5), DOUBLE, (3, 5, 5), 600),
        Material(10, "MgO", salt, bulk("MgO", salt, a=4.25), (4, 4, 4), DOUBLE, (2, 4, 4), 900),
    )


# --- jobs


def job(atoms: ase.Atoms, kpts: Sequence[int], ecut: float, **more: Any) -> dict[str, Any]:
    """A job of the worker."""
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "kpts": list(kpts),
        "ecut": ecut,
        **more,
    }


def deformed(atoms: ase.Atoms, strain: Array, volume: float = 1.0) -> ase.Atoms:
    """A copy under a pure strain (3, 3) whose trace is replaced by a relative volume."""
    strain = 0.5 * (strain + strain.T)
    strain = strain - np.trace(strain) / 3 * np.eye(3)
    out = atoms.copy()
    out.set_cell(out.cell.array @ expm(strain) * volume ** (1 / 3), scale_atoms=True)
    return out


def wide(material: Material) -> ase.Atoms:
    """The 4-atom cell."""
    return make_supercell(material.primitive, np.array(material.wide))


def rattle(atoms: ase.Atoms, sigma: float, rng: np.random.Generator) -> ase.Atoms:
    """A copy with normal displacements of `sigma` A per component."""
    out = atoms.copy()
    out.positions += rng.normal(scale=sigma, size=(len(out), 3))
    return out


def training_jobs(material: Material) -> dict[str, dict[str, Any]]:
    """Strained cells, rattled cells and a relaxation, reproducible from the material's number."""
    rng = np.random.default_rng(20261124 + material.number)
    kpts, ecut = material.kpts, material.ecut
    jobs = {}
    small, large = material.primitive, wide(material)
    for k, volume in enumerate(np.linspace(0.88, 1.12, STRAINED)):
        atoms = deformed(small, rng.normal(scale=0.02, size=(3, 3)), volume)
        if len(atoms) > 1:
            atoms = rattle(atoms, 0.04, rng)
        jobs[f"{material.number:03d}{k:03d}"] = job(atoms, kpts, ecut)
    for k in range(RATTLED):
        atoms = deformed(large, rng.normal(scale=0.015, size=(3, 3)), rng.uniform(0.93, 1.08))
        atoms = rattle(atoms, rng.uniform(0.03, 0.2), rng)
        jobs[f"{material.number:03d}{100 + k:03d}"] = job(atoms, material.wide_kpts, ecut)
    # nothing moves in a one-atom cell
    start, points = (large, material.wide_kpts) if len(small) == 1 else (small, kpts)
    atoms = rattle(deformed(start, rng.normal(scale=0.025, size=(3, 3)), 1.06), 0.12, rng)
    jobs[f"{material.number:03d}200"] = job(atoms, points, ecut, relax="cell")
    rng = np.random.default_rng(20261125 + material.number)
    for k in range(SMALL):
        atoms = deformed(small, rng.normal(scale=0.025, size=(3, 3)), rng.uniform(0.9, 1.1))
        if len(atoms) > 1:
            atoms = rattle(atoms, rng.uniform(0.05, 0.15), rng)
        jobs[f"{material.number:03d}{300 + k:03d}"] = job(atoms, kpts, ecut)
    rng = np.random.default_rng(20261126 + material.number)
    for k in range(GENTLE):  # as a solid is at a few hundred kelvin, where potentials are used
        atoms = deformed(large, rng.normal(scale=0.01, size=(3, 3)), rng.uniform(0.95, 1.06))
        atoms = rattle(atoms, rng.uniform(0.02, 0.08), rng)
        jobs[f"{material.number:03d}{150 + k:03d}"] = job(atoms, material.wide_kpts, ecut)
    return jobs


def eos_jobs(material: Material) -> dict[str, dict[str, Any]]:
    """The primitive cell at several volumes, its shape kept."""
    return {
        f"eos{material.number:03d}{k:02d}": job(
            deformed(material.primitive, np.zeros((3, 3)), volume), material.kpts, material.ecut
        )
        for k, volume in enumerate(EOS_VOLUMES)
    }


def voigt(component: int) -> Array:
    """A unit strain in Voigt's order xx yy zz yz xz xy; shears are engineering strains."""
    strain = np.zeros((3, 3))
    i, j = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))[component]
    strain[i, j] += 0.5
    strain[j, i] += 0.5
    return strain


def elastic_components(material: Material) -> tuple[int, ...]:
    """The strains that give all constants of the crystal system."""
    return (0, 2, 3) if material.prototype == "hcp" else (0, 3)


def elastic_kpts(material: Material) -> tuple[int, ...]:
    """The k-points of strained cells, denser than those of the frames for a metal."""
    return tuple(round(DENSER.get(material.name, 1.0) * k) for k in material.kpts)


def elastic_jobs(material: Material, volume: float) -> dict[str, dict[str, Any]]:
    """Strained equilibrium cells, the ions relaxed in them."""
    relaxed = deformed(
        material.primitive, np.zeros((3, 3)), volume / material.primitive.get_volume()
    )
    jobs = {}
    metal = material.name in DENSER
    for component in elastic_components(material):
        for sign in (1, -1):
            atoms = relaxed.copy()
            strain = np.eye(3) + sign * ELASTIC_STRAIN * voigt(component)
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            name = f"{'eld' if metal else 'ela'}{material.number:03d}{component}{'-+'[sign > 0]}"
            relax = "ions" if len(atoms) > 1 else None
            jobs[name] = job(atoms, elastic_kpts(material), material.ecut, relax=relax)
    return jobs


def element_jobs() -> dict[str, dict[str, Any]]:
    """O2 and Cl2 in a box, for formation energies."""
    jobs = {}
    for name, ecut, spin in (("O2", 900, True), ("Cl2", 600, False)):
        atoms = molecule(name)
        atoms.set_cell((7.0, 7.5, 8.0))
        atoms.center()
        more: dict[str, Any] = {"pbc": False, "spin": spin, "relax": "ions"}
        if spin:
            more["magmoms"] = [1.0, 1.0]
        jobs[f"elm{name}"] = job(atoms, (1, 1, 1), ecut, **more)
    return jobs


def convergence_jobs(material: Material) -> dict[str, dict[str, Any]]:
    """One distorted cell with finer settings: a higher cut-off, then more k-points."""
    rng = np.random.default_rng(material.number)
    atoms = deformed(material.primitive, rng.normal(scale=0.015, size=(3, 3)), 0.97)
    if len(atoms) > 1:
        atoms = rattle(atoms, 0.06, rng)
    denser = tuple(k + 2 for k in material.kpts)
    return {
        f"con{material.number:03d}a": job(atoms, material.kpts, material.ecut),
        f"con{material.number:03d}b": job(atoms, material.kpts, material.ecut + 200),
        f"con{material.number:03d}c": job(atoms, denser, material.ecut),
    }


DIFFERENCE_STEP = 0.01  # A
DIFFERENCES = (("005101", 0, 0), ("010102", 1, 2))  # job, atom, axis


def difference_jobs(training: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Two training cells with one atom moved forth and back."""
    jobs = {}
    for name, atom, axis in DIFFERENCES:
        for sign in (1, -1):
            moved = json.loads(json.dumps(training[name]))
            moved["positions"][atom][axis] += sign * DIFFERENCE_STEP
            jobs[f"dif{name}{'+' if sign > 0 else '-'}"] = moved
    return jobs


def all_jobs() -> dict[str, dict[str, Any]]:
    """Every job that can be stated with the results there are, the most wanted first."""
    chosen = materials()
    jobs: dict[str, dict[str, Any]] = {}
    for material in chosen:
        jobs |= eos_jobs(material)
    training: dict[str, dict[str, Any]] = {}
    for material in chosen:
        training |= training_jobs(material)
    # one frame of each material in turn, so that a stopped run has something of everything
    turns = sorted(training, key=lambda name: (name[3:], name))
    jobs |= {name: training[name] for name in turns if "relax" not in training[name]}
    for material in chosen:
        points = [result(name) for name in eos_jobs(material)]
        if all(points):
            jobs |= elastic_jobs(material, fitted_eos(material)["volume_A3"])
    jobs |= difference_jobs(training) | element_jobs()
    for material in chosen:
        jobs |= convergence_jobs(material)
    return jobs | {name: training[name] for name in turns}  # relaxations take longest


# --- results


def finished() -> dict[str, dict[str, Any]]:
    """All results there are, by job: those that ship, so that a later run goes on, and new ones."""
    archive = OUT / "jobs.gz"
    known = json.loads(gzip.decompress(archive.read_bytes())) if archive.exists() else {}
    for path in sorted((WORK / "results").glob("*.json")):
        content = json.loads(path.read_text())
        known[path.stem.split("_", 1)[1]] = {key: content[key] for key in ("frames", "seconds")}
    return known


def result(name: str) -> list[dict[str, Any]]:
    """The frames of a finished job, else none."""
    global _results
    if _results is None:
        _results = finished()
    return _results[name]["frames"] if name in _results else []


_results: dict[str, dict[str, Any]] | None = None  # read once; `run` forgets them


def fitted_eos(material: Material) -> dict[str, Any]:
    """Birch-Murnaghan fit of the free energy against the volume of the primitive cell."""
    frames = [result(name)[0] for name in eos_jobs(material)]
    volumes = [float(abs(np.linalg.det(f["cell"]))) for f in frames]
    energies = [f["free_energy"] for f in frames]
    fit = EquationOfState(volumes, energies, eos="birchmurnaghan")
    volume, energy, modulus = fit.fit(warn=False)
    residuals = fit.func(np.array(volumes), *fit.eos_parameters) - np.array(energies)
    at_start = material.primitive.get_volume()
    conventional = make_supercell(
        material.primitive,
        np.array({"bcc": CUBE_I, "hcp": np.eye(3), "CsCl": np.eye(3)}.get(
            material.prototype, CUBE_F
        )),
    )  # fmt: skip
    return {
        "volume_A3": float(volume),
        "lattice_constant_A": float(
            conventional.cell.lengths()[0] * (volume / at_start) ** (1 / 3)
        ),
        "energy_per_atom_eV": float(energy) / len(material.primitive),
        "bulk_modulus_GPa": float(modulus) / GPa,
        "largest_residual_meV_per_atom": 1e3
        * float(abs(residuals).max())
        / len(material.primitive),
        "volumes_A3": volumes,
        "free_energies_eV": energies,
        "pressures_GPa": [-float(np.trace(f["stress"])) / 3 / GPa for f in frames],
    }


def elastic_constants(material: Material, volume: float) -> dict[str, float]:
    """Independent constants in GPa from central differences of the stress."""
    columns = {}
    for component in elastic_components(material):
        both = [
            result(name) for name in elastic_jobs(material, volume) if name[6] == str(component)
        ]
        if not all(both):
            return {}
        plus, minus = (np.array(frames[-1]["stress"]) for frames in both)
        slope = (plus - minus) / (2 * ELASTIC_STRAIN) / GPa
        columns[component] = [float(slope[i, j]) for i, j in
                              ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]  # fmt: skip
    x, s = columns[0], columns[3]
    if material.prototype == "hcp":
        z = columns[2]
        return {"C11": x[0], "C12": x[1], "C13": 0.5 * (x[2] + z[0]), "C33": z[2], "C44": s[3]}
    return {"C11": x[0], "C12": 0.5 * (x[1] + x[2]), "C44": s[3]}


def formation_references() -> dict[str, float]:
    """Energy per atom of the elements, for `ef_per_atom`."""
    solids = {m.name: fitted_eos(m)["energy_per_atom_eV"] for m in materials()[:6]}
    gases = {name[3:-1]: result(name)[-1]["free_energy"] / 2 for name in element_jobs()}
    return solids | gases


def record(
    material: Material, numbers: Sequence[int], frame: dict[str, Any], relaxed: float,
    elements: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """One frame as MPtrj has it."""
    atoms = ase.Atoms(numbers, frame["positions"], cell=frame["cell"], pbc=True)
    structure = AseAtomsAdaptor.get_structure(atoms)  # type: ignore[arg-type]
    n = len(atoms)
    energy = frame["free_energy"]
    reference = sum(elements[s] for s in atoms.get_chemical_symbols()) / n
    return {
        "structure": structure.as_dict(),
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy,  # MP2020's corrections are for VASP's energies
        "energy_per_atom": energy / n,
        "ef_per_atom": energy / n - reference,
        "e_per_atom_relaxed": relaxed,
        "ef_per_atom_relaxed": relaxed - reference,
        "force": frame["forces"],
        "stress": (np.array(frame["stress"]) * KBAR_VASP).tolist(),
        "magmom": None,  # not spin-polarised
        "bandgap": frame["bandgap"],
        "mp_id": material.mp_id,
    }


def assemble() -> None:
    """Write the frames, the reference and the checksums from the results there are."""
    nested: dict[str, dict[str, Any]] = {}
    reference: dict[str, Any] = {"settings": settings(), "materials": {}}
    elements = formation_references()
    reference["elements_eV_per_atom"] = elements
    missing = 0
    for material in materials():
        eos = fitted_eos(material)
        frames: dict[str, Any] = {}
        for name, content in training_jobs(material).items():
            steps = result(name)
            missing += not steps
            for step, frame in enumerate(steps):
                frames[f"mini-{int(name)}-0-{step}"] = record(
                    material, content["numbers"], frame, eos["energy_per_atom_eV"], elements
                )
        nested[material.mp_id] = frames
        primitive = deformed(
            material.primitive,
            np.zeros((3, 3)),
            eos["volume_A3"] / material.primitive.get_volume(),
        )
        reference["materials"][material.mp_id] = {
            "formula": material.name,
            "prototype": material.prototype,
            "symbols": primitive.get_chemical_symbols(),
            "cell": primitive.cell.array.tolist(),
            "positions": primitive.positions.tolist(),
            "kpts": list(material.kpts),
            "ecut_eV": material.ecut,
            "frames": len(frames),
            "eos": eos,
            "elastic_kpts": list(elastic_kpts(material)),
            "elastic_constants_GPa": elastic_constants(material, eos["volume_A3"]),
            "convergence": convergence(material),
        }
    reference["finite_differences"] = finite_differences()
    reference["cpu_hours"] = cpu_hours()
    OUT.mkdir(parents=True, exist_ok=True)
    content = json.dumps(nested, separators=(",", ":")).encode()
    (OUT / "mptrj-mini.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    raw = json.dumps(finished(), separators=(",", ":")).encode()
    (OUT / "jobs.gz").write_bytes(gzip.compress(raw, 9, mtime=0))
    distorted = bulk("Si", a=5.6, cubic=True)  # for the demo to relax
    distorted.rattle(0.08, seed=1)
    distorted.write(OUT / "si-distorted.cif")
    (OUT / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    write_checksums(OUT)
    print(f"{sum(map(len, nested.values()))} frames in {OUT}, {missing} jobs missing")


def convergence(material: Material) -> dict[str, Any]:
    """Changes of energy, forces and stress by finer settings, for one distorted cell."""
    base, cutoff, kpoints = (result(name) for name in convergence_jobs(material))
    out: dict[str, Any] = {}
    for label, finer in (("ecut+200eV", cutoff), ("kpts+2", kpoints)):
        if base and finer:
            a, b = base[0], finer[0]
            stress = np.array(b["stress"]) - np.array(a["stress"])
            forces = np.array(b["forces"]) - np.array(a["forces"])
            out[label] = {
                "energy_meV_per_atom": 1e3
                * (b["free_energy"] - a["free_energy"])
                / len(material.primitive),
                "largest_force_meV_per_A": 1e3 * float(abs(forces).max()),
                "largest_stress_GPa": float(abs(stress).max()) / GPa,
            }
    return out


def finite_differences() -> list[dict[str, Any]]:
    """Labels against central differences of the energy."""
    records = []
    for name, atom, axis in DIFFERENCES:
        here, plus, minus = (result(n) for n in (name, f"dif{name}+", f"dif{name}-"))
        if here and plus and minus:
            force = here[0]["forces"][atom][axis]
            numeric = -(plus[0]["free_energy"] - minus[0]["free_energy"]) / (2 * DIFFERENCE_STEP)
            records.append(
                {
                    "frame": f"mini-{int(name)}-0-0",
                    "atom": atom,
                    "axis": "xyz"[axis],
                    "force_eV_per_A": force,
                    "difference_meV_per_A": 1e3 * (force - numeric),
                }
            )
    return records


def cpu_hours() -> float:
    """What the finished jobs took."""
    return round(sum(content["seconds"] for content in finished().values()) / 3600, 2)


def settings() -> dict[str, Any]:
    """How the labels were made."""
    return {
        "code": "GPAW 22.8 (Debian 12), gpaw-data 0.9.20000, plane waves",
        "functional": "PBE, not spin-polarised",
        "occupations": "Fermi-Dirac, 0.1 eV; energies are free energies",
        "kpoints": "Gamma-centred, the same grid for every frame of one cell shape",
        "eos": "Birch-Murnaghan, shape of the cell kept (Mg: c/a of its PBE start)",
        "elastic": f"central differences of the stress, strain {ELASTIC_STRAIN}, ions relaxed",
        "command": "python scripts/make_mptrj_mini.py",
    }


# --- running


def run(processes: int, python: str) -> None:
    """Run workers until no job is left; elastic jobs can be stated once the EOS is there."""
    folder = WORK / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    global _results
    while True:
        _results = None
        order = all_jobs()
        for path in folder.glob("*.json"):
            path.unlink()
        todo = [name for name in order if not result(name)]
        for rank, name in enumerate(order):
            if name in todo:
                (folder / f"{rank:04d}_{name}.json").write_text(json.dumps(order[name]))
        print(f"{len(order) - len(todo)} of {len(order)} jobs done", flush=True)
        if not todo:
            return
        workers = [
            subprocess.Popen(
                [python, str(WORKER), str(folder), str(WORK / "results"), f"{i}/{processes}"]
            )
            for i in range(processes)
        ]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            sys.exit("a worker failed; its message is above")


def main() -> None:
    """Run what is missing, then write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=1, help="GPAW processes side by side")
    parser.add_argument("--python", default="/usr/bin/python3", help="the Python that has GPAW")
    parser.add_argument("--assemble", action="store_true", help="only write the files")
    arguments = parser.parse_args()
    if not arguments.assemble:
        run(arguments.processes, arguments.python)
    assemble()


if __name__ == "__main__":
    main()
