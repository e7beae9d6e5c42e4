"""Run GPAW on job files: a worker of `make_mptrj_mini.py`, for the Python that has GPAW.

    python3 scripts/gpaw_worker.py JOBS_DIR RESULTS_DIR [INDEX/COUNT]

Debian's GPAW lives in the system's Python, which need have nothing else of this project: jobs and
results are JSON files. A job that has a result is skipped, results appear whole or not at all, and
workers with different INDEX/COUNT share one folder, so a stopped run is started again as it was.

A job is `{"numbers", "positions", "cell", "kpts", "ecut", "relax": null | "ions" | "cell",
"spin": false}`; its result is a list of frames with energies in eV, forces in eV/A and the stress
in eV/A^3 (3x3, ASE's sign).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.constraints import (
    ExpCellFilter,  # pyright: ignore[reportAttributeAccessIssue]  # as in Debian's ASE 3.22
)
from ase.optimize import BFGS
from gpaw import GPAW, PW, FermiDirac  # type: ignore[import-not-found]

SMEARING = 0.1  # eV, of the Fermi-Dirac occupations
DENSITY = 1e-6  # electrons per valence electron, tighter than GPAW's 1e-4, for forces
FMAX = 0.01  # eV/A, the end of a relaxation
MAX_STEPS = 8


def calculator(job: dict[str, Any]) -> GPAW:
    """PBE in plane waves, only exact symmetries."""
    return GPAW(
        mode=PW(job["ecut"]),
        xc="PBE",
        kpts={"size": job["kpts"], "gamma": True},
        occupations=FermiDirac(SMEARING),
        spinpol=job.get("spin", False),
        convergence={"density": DENSITY},
        maxiter=200,
        symmetry={"tolerance": 1e-6},
        txt=None,
    )


def frame(atoms: ase.Atoms) -> dict[str, Any]:
    """The labels of one ionic step; forces are derivatives of the free energy."""
    calc: Any = atoms.calc
    periodic = bool(atoms.pbc.all())
    return {
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "free_energy": float(calc.get_potential_energy(atoms, force_consistent=True)),
        "energy_zero_smearing": float(calc.get_potential_energy(atoms)),
        "forces": calc.get_forces(atoms).tolist(),
        "stress": calc.get_stress(atoms)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]].tolist()
        if periodic
        else None,
        "bandgap": band_gap(calc),
        "iterations": int(calc.get_number_of_iterations()),
        "ibz_kpoints": len(calc.get_ibz_k_points()),
    }


def band_gap(calc: GPAW) -> float:
    """Smallest difference between an empty and a filled state on the k-point mesh, in eV."""
    fermi = calc.get_fermi_level()
    levels = np.concatenate(
        [
            calc.get_eigenvalues(kpt=k, spin=s)
            for k in range(len(calc.get_ibz_k_points()))
            for s in range(calc.get_number_of_spins())
        ]
    )
    filled, empty = levels[levels <= fermi], levels[levels > fermi]
    gap = float(empty.min() - filled.max()) if len(empty) else float("nan")
    # within the smearing a gap is not a gap
    return gap if gap > 3 * SMEARING else 0.0


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """All frames of a job: one, or the steps of a relaxation."""
    atoms = ase.Atoms(
        numbers=job["numbers"],
        positions=job["positions"],
        cell=job["cell"],
        pbc=job.get("pbc", True),
        magmoms=job.get("magmoms"),
    )
    atoms.calc = calculator(job)
    if job.get("relax") is None:
        return [frame(atoms)]
    frames: list[dict[str, Any]] = []
    target = ExpCellFilter(atoms) if job["relax"] == "cell" else atoms
    optimizer = BFGS(target, logfile=None, maxstep=0.1)
    optimizer.attach(lambda: frames.append(frame(atoms)))
    optimizer.run(fmax=FMAX, steps=MAX_STEPS)
    return frames


def main() -> None:
    """Work through the jobs that are this worker's and have no result."""
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    index, count = map(int, (sys.argv[3] if len(sys.argv) > 3 else "0/1").split("/"))
    results.mkdir(parents=True, exist_ok=True)
    for path in sorted(jobs.glob("*.json"))[index::count]:
        target = results / path.name
        if target.exists():
            continue
        start = time.perf_counter()
        job = json.loads(path.read_text())
        result = {"job": job, "frames": run(job)}
        result["seconds"] = time.perf_counter() - start
        partial = target.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(result))
        partial.replace(target)
        print(
            f"{path.stem}: {len(result['frames'])} frame(s), {result['seconds']:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
