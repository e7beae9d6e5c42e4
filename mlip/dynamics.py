"""Molecular dynamics: ASE's integrators with honest units, a log, and a stop when it explodes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import units
from ase.io.trajectory import Trajectory
from ase.md.bussi import Bussi
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet

from mlip.calculator import MLIPCalculator, carry_state
from mlip.errors import ConfigError, DataError

ENSEMBLES = ("nve", "nvt", "npt")
EXPLODED = 100.0  # times the target temperature


@dataclass
class MDResult:
    """What a run leaves behind."""

    atoms: ase.Atoms
    rows: list[dict[str, float]]  # the log

    def drift(self) -> float:
        """Slope of the total energy, meV/atom/ps (meaningful for NVE)."""
        t = np.array([r["time_fs"] for r in self.rows]) * 1e-3
        e = np.array([r["etot_eV"] for r in self.rows]) * 1e3 / len(self.atoms)
        return float(np.polyfit(t, e, 1)[0]) if len(t) > 2 else float("nan")


def run_md(
    calculator: MLIPCalculator,
    atoms: ase.Atoms,
    *,
    ensemble: str = "nve",
    temperature: float = 300.0,
    timestep_fs: float = 1.0,
    steps: int = 1000,
    output: Path | str | None = None,
    pressure_gpa: float = 0.0,
    relaxation_fs: float = 100.0,
    log_interval: int = 10,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    allow_nonconservative: bool = False,
) -> MDResult:
    """Run dynamics from `atoms`, which are not changed.

    Args:
        calculator: the potential.
        atoms: start; its momenta are kept if it has any, else drawn at `temperature`.
        ensemble: nve (velocity Verlet), nvt (Bussi) or npt (Martyna-Tobias-Klein, which samples the
            isothermal-isobaric ensemble; the cell keeps its shape).
        temperature: K.
        timestep_fs: fs.
        steps: how many.
        output: trajectory file (.traj); a log `.csv` is written beside it.
        pressure_gpa: for npt, GPa.
        relaxation_fs: time constant of thermostat and barostat (ten times as long), fs.
        log_interval: steps between log rows and frames; the last step is always written.
        seed: of momenta and thermostat.
        progress: called with the step number at every log row.
        allow_nonconservative: run with forces that are not a gradient.

    Raises:
        ConfigError: an option is out of range, or the ensemble does not fit the structure.
        DataError: the run exploded; what was written is kept.
    """
    _check_options(ensemble, temperature, timestep_fs, steps, log_interval)
    if not calculator.conservative and not allow_nonconservative:
        raise ConfigError("forces of this potential are not a gradient: dynamics would heat up")
    atoms = carry_state(atoms, atoms.copy())
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    if not atoms.has("momenta") or not np.abs(atoms.get_momenta()).max() > 0:
        _thermalize(atoms, temperature, rng)
    freedom = _degrees_of_freedom(atoms)
    dynamics = _integrator(
        ensemble, atoms, freedom, temperature, timestep_fs, pressure_gpa, relaxation_fs, rng
    )
    hottest = EXPLODED * max(temperature, 30.0)
    with _Record(atoms, dynamics, freedom, timestep_fs, hottest, output, progress) as record:
        dynamics.attach(record, interval=log_interval)
        dynamics.run(steps)
        if record.rows[-1]["step"] != dynamics.nsteps:
            record()
    return MDResult(atoms, record.rows)


class _Record:
    """What is kept of a run, written as it goes: rows, frames and a table; ends an explosion."""

    def __init__(
        self,
        atoms: ase.Atoms,
        dynamics: Any,
        freedom: int,
        timestep_fs: float,
        hottest: float,
        output: Path | str | None,
        progress: Callable[[int], Any] | None,
    ) -> None:
        self.atoms, self.dynamics, self.freedom = atoms, dynamics, freedom
        self.timestep_fs, self.hottest, self.progress = timestep_fs, hottest, progress
        self.rows: list[dict[str, float]] = []
        path = Path(output) if output else None
        self.trajectory: Any = Trajectory(str(path), "w", atoms) if path else None
        self.table = path.with_suffix(".csv").open("w", newline="") if path else None

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in (self.trajectory, self.table):
            if handle is not None:
                handle.close()

    def __call__(self) -> None:
        """Keep the present state.

        Raises:
            DataError: the run exploded.
        """
        row = self._row()
        self.rows.append(row)
        if self.trajectory is not None:  # a writer without frames is false
            self.trajectory.write()
        if self.table is not None:
            writer = csv.DictWriter(self.table, list(row))
            if len(self.rows) == 1:
                writer.writeheader()
            writer.writerow(row)
            self.table.flush()
        if self.progress:
            self.progress(self.dynamics.nsteps)
        if not np.isfinite(row["etot_eV"]) or row["temperature_K"] > self.hottest:
            raise DataError(
                f"the dynamics exploded at step {self.dynamics.nsteps} "
                f"({row['temperature_K']:.3g} K): use a smaller --timestep, relax the start, or "
                "train on such structures; what was written is kept"
            )

    def _row(self) -> dict[str, float]:
        kinetic = self.atoms.get_kinetic_energy()
        potential = self.atoms.get_potential_energy()
        row = {
            "step": float(self.dynamics.nsteps),
            "time_fs": self.dynamics.nsteps * self.timestep_fs,
            "epot_eV": potential,
            "ekin_eV": kinetic,
            "etot_eV": potential + kinetic,
            "temperature_K": 2.0 * kinetic / (self.freedom * units.kB),
        }
        if self.atoms.pbc.all():
            stress = self.atoms.get_stress(include_ideal_gas=True)
            row["pressure_GPa"] = float(-stress[:3].mean() / units.GPa)
        return row


def _check_options(
    ensemble: str, temperature: float, timestep_fs: float, steps: int, log_interval: int
) -> None:
    if ensemble not in ENSEMBLES:
        raise ConfigError(f"ensemble={ensemble!r} must be one of {', '.join(ENSEMBLES)}")
    if not (temperature >= 0 and timestep_fs > 0 and steps >= 1 and log_interval >= 1):
        raise ConfigError(
            f"temperature={temperature} must be at least 0 K, timestep={timestep_fs} above 0 fs, "
            f"steps={steps} and log_interval={log_interval} at least 1"
        )
    if ensemble != "nve" and temperature == 0:
        raise ConfigError(f"{ensemble} needs a temperature above 0 K; mlip relax goes to 0 K")


def _thermalize(atoms: ase.Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Draw Maxwell-Boltzmann momenta without net drift."""
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    momenta = width * rng.normal(size=(len(atoms), 3))
    if len(atoms) > 1:
        momenta -= atoms.get_masses()[:, None] * momenta.sum(0) / atoms.get_masses().sum()
    atoms.set_momenta(momenta)


def _degrees_of_freedom(atoms: ase.Atoms) -> int:
    """Number of momenta that heat can go to: a drift that is zero stays zero.

    Counting the drift, four atoms held at 300 K would move as at 400 K.
    """
    freedom = int(atoms.get_number_of_degrees_of_freedom())
    momenta = atoms.get_momenta()
    still = np.abs(momenta.sum(0)).max() <= 1e-9 * np.abs(momenta).sum()
    return freedom - 3 if still and not atoms.constraints and len(atoms) > 1 else freedom


def _integrator(
    ensemble: str,
    atoms: ase.Atoms,
    freedom: int,
    temperature: float,
    timestep_fs: float,
    pressure_gpa: float,
    relaxation_fs: float,
    rng: np.random.Generator,
) -> Any:
    dt = timestep_fs * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, dt)
    if ensemble == "nvt":
        bussi = Bussi(atoms, dt, temperature_K=temperature, taut=relaxation_fs * units.fs, rng=rng)
        bussi.ndof, bussi.target_kinetic_energy = freedom, 0.5 * freedom * bussi.temp
        return bussi
    if not atoms.pbc.all():
        raise ConfigError(f"npt needs a 3-D cell, and this structure has pbc={atoms.pbc.tolist()}")
    if atoms.constraints:
        raise ConfigError("npt cannot hold atoms fixed; use nvt, or free them")
    integrator = IsotropicMTKNPT(
        atoms,
        dt,
        temperature_K=temperature,
        pressure_au=pressure_gpa * units.GPa,
        tdamp=relaxation_fs * units.fs,
        pdamp=10 * relaxation_fs * units.fs,
    )
    # ASE counts 3N degrees of freedom, in all of its equations by way of the number of atoms.
    for part in (integrator, integrator._thermostat, integrator._barostat):
        part._num_atoms_global = freedom // 3
    return integrator
