"""Speed and energy conservation of potentials, measured side by side on the same structures.

Sizes are made from one structure: itself, and copies of it, periodic ones as supercells and
molecules on a cubic grid. Times are of whole calculator calls (neighbours, prediction, ASE's
overhead), which is what a step of dynamics costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
import torch

from mlip.calculator import MLIPCalculator, carry_state
from mlip.dynamics import run_md
from mlip.errors import MLIPError
from mlip.potential_file import read_metadata

TARGETS = (1, 64, 256)  # fewest atoms of the three sizes
GAP = 3.0  # Å between the boxes around neighbouring molecules
TIMESTEP_FS, LENGTH_FS, TEMPERATURE = 0.5, 50.0, 300.0


def three_sizes(atoms: ase.Atoms) -> list[ase.Atoms]:
    """Return the structure and two larger ones made of copies of it.

    Supercells grow along their shortest periodic axis. Copies of a molecule stand on a cubic grid,
    `GAP` apart, not periodic, so that models for molecules can be asked as well.
    """
    n = len(atoms)
    targets = [n, max(TARGETS[1], 2 * n), max(TARGETS[2], 4 * n)]
    return [_supercell(atoms, t) if atoms.pbc.any() else _grid(atoms, t) for t in targets]


def microseconds_per_atom(
    calculators: Sequence[MLIPCalculator], atoms: ase.Atoms, repeats: int = 5
) -> list[float]:
    """Time energy and forces of `atoms`, µs per atom, the least of interleaved calls.

    One thread; processor time on a CPU (others may use the machine), wall time on an accelerator.
    The atoms move a little before every call, for else nothing would be computed.
    """
    systems = []
    for calculator in calculators:
        system = carry_state(atoms, atoms.copy())
        system.calc = calculator
        systems.append(system)
    best = [math.inf] * len(systems)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for repeat in range(repeats + 1):
            for k, system in enumerate(systems):
                device = calculators[k].device
                clock = time.process_time if device.type == "cpu" else time.perf_counter
                system.positions += 1e-9
                start = clock()
                system.get_forces()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat > 0:  # the first call allocates and compiles
                    best[k] = min(best[k], clock() - start)
    finally:
        torch.set_num_threads(threads)
    return [1e6 * seconds / len(atoms) for seconds in best]


def nve_ratio(calculator: MLIPCalculator, atoms: ase.Atoms) -> dict[str, float]:
    """Measure how the error of the total energy falls with the time step in constant-energy MD.

    Two runs of `LENGTH_FS` from the same positions and momenta (300 K, velocity Verlet), one with
    `TIMESTEP_FS` and one with half of it, their total energies compared at the same times. The
    integrator's error is of second order, so the standard deviations have the ratio 4 if forces are
    the gradient of a smooth energy. What else changes the energy does not depend on the step and
    brings the ratio towards 1.

    Args:
        calculator: in float64; single precision has fluctuations of its own.
        atoms: the start, at least two atoms.

    Returns:
        `ratio`, and the standard deviation at the longer step, `energy_std`, in eV/atom.

    Raises:
        DataError: the dynamics exploded.
    """
    deviation = []
    for divisor in (1, 2):
        result = run_md(
            calculator,
            atoms,
            ensemble="nve",
            temperature=TEMPERATURE,
            timestep_fs=TIMESTEP_FS / divisor,
            steps=divisor * round(LENGTH_FS / TIMESTEP_FS),
            log_interval=divisor,
            allow_nonconservative=True,
        )
        total = np.array([row["etot_eV"] for row in result.rows])
        deviation.append(float((total - total.mean()).std()))
    ratio = deviation[0] / deviation[1] if deviation[1] > 0 else math.nan
    return {"ratio": ratio, "energy_std": deviation[0] / len(atoms)}


def measure(
    paths: Sequence[str], atoms: ase.Atoms, device: str = "cpu"
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure speed at three sizes and the NVE ratio of potential files on the same structures.

    Args:
        paths: of the files.
        atoms: what the sizes are made of, of elements that every potential knows.
        device: where to measure.

    Returns:
        For each potential `speed` (a list of `atoms` and `us_per_atom`) and `nve` (see
        `nve_ratio`), without what cannot be measured; and a sentence about each of those.
    """
    out: list[dict[str, Any]] = [{} for _ in paths]
    problems: list[str] = []
    calculators = {k: _calculator(path, atoms, device=device) for k, path in enumerate(paths)}
    if atoms.pbc.any():
        for k, calculator in list(calculators.items()):
            if not calculator.potential.accepts_periodic:
                problems.append(f"{paths[k]} is for molecules: nothing measured on a crystal")
                del calculators[k]
    for size in three_sizes(atoms):
        times = microseconds_per_atom(list(calculators.values()), size)
        for k, value in zip(calculators, times, strict=True):
            out[k].setdefault("speed", []).append({"atoms": len(size), "us_per_atom": value})
    start = next(size for size in three_sizes(atoms) if len(size) > 1)
    for k in calculators:
        try:
            exact = _calculator(paths[k], atoms, device=device, dtype="float64")
            out[k]["nve"] = {**nve_ratio(exact, start), "atoms": len(start)}
        except MLIPError as error:
            problems.append(f"{paths[k]}: no NVE ratio: {error}")
    return out, problems


def _calculator(path: str, atoms: ase.Atoms, **options: Any) -> MLIPCalculator:
    """Return a calculator of the first head that knows the elements: all cost the same."""
    document, symbols = read_metadata(path), set(atoms.symbols)
    heads = document["head_names"]
    knowing = [h for h, table in zip(heads, document["e0"], strict=True) if symbols <= set(table)]
    return MLIPCalculator(path, head=(knowing or heads)[0], **options)


def _supercell(atoms: ase.Atoms, target: int) -> ase.Atoms:
    out = carry_state(atoms, atoms.copy())
    repeats = np.ones(3, dtype=int)
    while len(atoms) * repeats.prod() < target:
        lengths = np.where(atoms.pbc, repeats * atoms.cell.lengths(), np.inf)
        repeats[int(np.argmin(lengths))] += 1
    return out.repeat(repeats.tolist())


def _grid(atoms: ase.Atoms, target: int) -> ase.Atoms:
    copies = math.ceil(target / len(atoms))
    if copies == 1:
        return carry_state(atoms, atoms.copy())
    side = math.ceil(copies ** (1 / 3))
    box = np.ptp(atoms.positions, axis=0) + GAP
    cells = np.array(list(np.ndindex(side, side, side)))
    order = np.argsort(cells.max(1), kind="stable")[:copies]  # as compact as they come
    positions = (atoms.positions[None] + (cells[order] * box)[:, None]).reshape(-1, 3)
    # neutral: what many ions at once would be is nobody's training set
    return ase.Atoms(np.tile(atoms.numbers, copies), positions)
