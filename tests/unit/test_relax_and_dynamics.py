"""Relaxation and dynamics against mechanics: pressure, and the unit of time."""

from __future__ import annotations

import csv

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read
from conftest import build

from mlip.calculator import MLIPCalculator
from mlip.dynamics import run_md
from mlip.errors import DataError
from mlip.relax import Relaxer

# CODATA 2018, written out: the library's own constants would confirm themselves
EV, DALTON, GPA = 1.602176634e-19, 1.66053906660e-27, 1e9  # J, kg, Pa


@pytest.mark.parametrize("pressure", [0.0, 100.0, -100.0])
def test_a_crystal_under_pressure_pushes_back(pressure):
    """At rest σ = −P: the enthalpy E + PV is at its minimum, whichever way the crystal started."""
    fmax = 1e-4
    relaxer = Relaxer(build("lennard_jones"), fmax=fmax, steps=500, pressure_gpa=pressure)
    result = relaxer.relax(bulk("C", "fcc", a=1.52))
    assert result.converged
    wanted = -pressure * GPA * 1e-30 / EV  # eV/Å³
    # one atom: the filter's force is (σ + P) V, below fmax
    volume = result.final_structure.get_volume()
    np.testing.assert_allclose(result.stress[:3], wanted, rtol=1e-6, atol=1.01 * fmax / volume)
    np.testing.assert_allclose(result.stress[3:], 0.0, atol=1.01 * fmax / volume)


def test_a_free_atom_flies_at_its_speed():
    """An atom of 1 eV without neighbours covers t·√(2E/m), in Å and fs."""
    atom = ase.Atoms("H", [[0.0, 0.0, 0.0]])
    mass = atom.get_masses()[0]
    atom.set_momenta([[np.sqrt(2.0 * mass), 0.0, 0.0]])
    result = run_md(MLIPCalculator(build("lennard_jones")), atom, timestep_fs=0.5, steps=40)
    speed = np.sqrt(2.0 * EV / (mass * DALTON)) * 1e10 * 1e-15  # Å/fs
    assert result.rows[-1]["time_fs"] == pytest.approx(20.0)
    assert result.rows[-1]["ekin_eV"] == pytest.approx(1.0)
    # CODATA of different years differ by 1e-8
    np.testing.assert_allclose(result.atoms.positions[0], [20.0 * speed, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("steps", [20, 23])
def test_rows_frames_and_table_are_one_record(tmp_path, steps, molecule_atoms):
    """Every fifth step and the last one, once, wherever it is looked up."""
    told: list[int] = []
    result = run_md(
        MLIPCalculator(build("lennard_jones")), molecule_atoms, timestep_fs=0.2, steps=steps,
        log_interval=5, output=tmp_path / "md.traj", progress=told.append,
    )  # fmt: skip
    expected = sorted({*range(0, steps + 1, 5), steps})
    assert told == expected
    assert [row["step"] for row in result.rows] == expected
    with (tmp_path / "md.csv").open() as handle:
        table = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(handle)]
    assert table == result.rows
    frames = read(tmp_path / "md.traj", ":")
    energies = [frame.get_potential_energy() for frame in frames]
    assert energies == [row["epot_eV"] for row in result.rows]


def test_an_explosion_keeps_what_was_written(tmp_path, molecule_atoms):
    calculator = MLIPCalculator(build("lennard_jones"))
    with pytest.raises(DataError, match=r"exploded at step 1 .* smaller --timestep"):
        run_md(calculator, molecule_atoms, timestep_fs=60.0, log_interval=1,
               output=tmp_path / "md.traj")  # fmt: skip
    assert len(read(tmp_path / "md.traj", ":")) == 2
    assert len((tmp_path / "md.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_thermostats_hold_the_temperature_of_what_moves(ensemble):
    """Four atoms without drift have nine degrees of freedom: <K> = 9/2 kT, not 12/2.

    The samples are one relaxation time apart or more, so the error of their mean is about
    sqrt(2/9/n) of T; five of those are allowed, and 12/9 is far outside.
    """
    atoms = bulk("C", "fcc", a=1.56, cubic=True)
    result = run_md(
        MLIPCalculator(build("lennard_jones")), atoms, ensemble=ensemble, temperature=300.0,
        timestep_fs=0.5, steps=6000, relaxation_fs=10.0, log_interval=40, seed=1,
    )  # fmt: skip
    rows = result.rows[30:]
    kinetic = np.mean([row["ekin_eV"] for row in rows]) * EV
    temperature = kinetic / (4.5 * 1.380649e-23)
    assert temperature == pytest.approx(300.0, rel=5 * np.sqrt(2 / 9 / len(rows)))
    assert np.mean([r["temperature_K"] for r in rows]) == pytest.approx(temperature, rel=1e-6)


def test_a_result_is_also_a_mapping():
    result = Relaxer(build("lennard_jones"), steps=0).relax(bulk("C", "fcc", a=1.52))
    assert "energy" in result
    assert dict(result)["energy"] == result.energy
    assert set(result) >= {"final_structure", "forces", "stress", "trajectory", "converged"}
