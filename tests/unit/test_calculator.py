"""The calculator's contract with ASE and pymatgen."""

from __future__ import annotations

import copy
import logging

import ase
import numpy as np
import pytest
import torch
from anisotropic import Anisotropic
from ase.calculators.calculator import PropertyNotImplementedError
from conftest import build, interaction_only, predict
from stencil import RELATIVE, STENCIL, STEP, slope, strained

from mlip.calculator import MLIPCalculator
from mlip.errors import ConfigError, DataError
from mlip.models.potential import Potential
from mlip.relax import Relaxer


def test_results_are_consistent_and_inputs_untouched(bulk_atoms):
    seed, dtype = torch.initial_seed(), torch.get_default_dtype()
    calc = MLIPCalculator(build("facet"))
    before = bulk_atoms.copy()
    bulk_atoms.calc = calc
    energy = bulk_atoms.get_potential_energy()
    assert energy == bulk_atoms.get_potential_energy(force_consistent=True)
    assert calc.results["energies"].sum() == pytest.approx(energy, abs=1e-10)
    assert bulk_atoms.get_stress().shape == (6,)
    np.testing.assert_array_equal(before.positions, bulk_atoms.positions)
    assert (seed, dtype) == (torch.initial_seed(), torch.get_default_dtype())
    twin = copy.deepcopy(calc)
    assert twin.get_potential_energy(bulk_atoms) == energy


def test_stress_is_the_strain_derivative_in_ase_order(bulk_atoms):
    """xx, yy, zz, yz, xz, xy: what comes out of the calculator, not only out of the potential."""
    calc = MLIPCalculator(interaction_only(build("facet")))
    voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    moved = [strained(bulk_atoms, a, b, step * STEP) for a, b in voigt for step in STENCIL]
    energies = np.array([calc.get_potential_energy(atoms) for atoms in moved])
    numeric = slope(energies) / bulk_atoms.get_volume()
    stress = calc.get_stress(bulk_atoms)
    shear = np.sort(numeric[3:])
    assert np.diff(shear).min() > 1e-2, "equal shears would hide their order"
    np.testing.assert_allclose(stress, numeric, rtol=0, atol=RELATIVE * np.abs(stress).max())
    np.testing.assert_array_equal(
        calc.get_forces(bulk_atoms), predict(calc.potential, bulk_atoms).forces
    )


def test_a_change_of_charge_is_noticed(molecule_atoms):
    molecule_atoms.calc = MLIPCalculator(build("facet-charge"))
    molecule_atoms.info.update(charge=0, spin=1)
    neutral = molecule_atoms.get_potential_energy()
    molecule_atoms.info.update(charge=1, spin=2)
    assert molecule_atoms.get_potential_energy() != neutral


def test_ignored_and_assumed_states_are_said_once(molecule_atoms, caplog):
    logging.getLogger("mlip").propagate = True
    with caplog.at_level(logging.WARNING, logger="mlip"):
        molecule_atoms.calc = MLIPCalculator(build("facet-charge"))
        molecule_atoms.get_potential_energy()
        molecule_atoms.rattle(0.01)
        molecule_atoms.get_potential_energy()
        assert len([r for r in caplog.records if "multiplicity 1 is assumed" in r.message]) == 1
        molecule_atoms.info.update(charge=2)
        molecule_atoms.calc = MLIPCalculator(build("facet"))
        molecule_atoms.get_potential_energy()
        assert any("ignored" in r.message for r in caplog.records)


def test_stress_needs_a_crystal(molecule_atoms):
    molecule_atoms.calc = MLIPCalculator(build("facet"))
    with pytest.raises(PropertyNotImplementedError, match="crystals only"):
        molecule_atoms.get_stress()


def test_unknown_elements_and_options_are_refused(bulk_atoms):
    calc = MLIPCalculator(build("facet"), stress_weight=0.01)
    with pytest.raises(DataError, match="U"):
        calc.get_potential_energy(ase.Atoms("U", [[0, 0, 0]]))
    with pytest.raises(ConfigError, match="devise"):
        MLIPCalculator(build("facet"), devise="cpu")


def test_committee(bulk_atoms):
    one, two = build("facet"), build("facet")
    with torch.no_grad():
        two.model.readout.weight *= 1.1
    calc = MLIPCalculator([one, two])
    bulk_atoms.calc = calc
    energies = [MLIPCalculator(p).get_potential_energy(bulk_atoms) for p in (one, two)]
    assert bulk_atoms.get_potential_energy() == pytest.approx(np.mean(energies))
    assert calc.results["energy_std"] == pytest.approx(np.std(energies))
    assert calc.results["forces_std"].max() > 0


def test_relaxer_returns_what_it_was_given(bulk_atoms, molecule_atoms):
    from pymatgen.io.ase import AseAtomsAdaptor

    potential = build("lennard_jones")
    relaxer = Relaxer(potential, fmax=0.05, steps=300)
    structure = AseAtomsAdaptor.get_structure(bulk_atoms)
    molecule = AseAtomsAdaptor.get_molecule(molecule_atoms)
    for given in (bulk_atoms, structure, molecule):
        result = relaxer.relax(given)
        assert type(result["final_structure"]) is type(given)
        assert result.n_steps > 0
        assert (
            result.trajectory[-1].get_potential_energy()
            <= result.trajectory[0].get_potential_energy()
        )
    assert relaxer.relax(structure).stress is not None
    assert relaxer.relax(molecule).stress is None


def test_pymatgen_relaxes_with_the_calculator(bulk_atoms):
    from pymatgen.io.ase import AseAtomsAdaptor

    structure = AseAtomsAdaptor.get_structure(bulk_atoms)
    relaxed = structure.relax(calculator=MLIPCalculator(build("lennard_jones")), steps=20)
    assert relaxed.volume != pytest.approx(structure.volume)


def tilted() -> Potential:
    """A potential without rotational symmetry."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Anisotropic(cutoff=4.0, species=(1, 6, 8))
    return Potential(model, dict.fromkeys((1, 6, 8), 0.0)).double()


def test_averaged_forces_and_stress_are_derivatives(bulk_atoms):
    """Of the averaged energy, which differs from the energy without averaging."""
    calc = MLIPCalculator(tilted(), rotations=12)
    plain = MLIPCalculator(tilted()).get_potential_energy(bulk_atoms)
    assert abs(calc.get_potential_energy(bulk_atoms) - plain) > 1e-2
    forces, stress = calc.get_forces(bulk_atoms), calc.get_stress(bulk_atoms)
    moved = []
    for i, k in np.ndindex(len(bulk_atoms), 3):
        for step in STENCIL:
            moved.append(bulk_atoms.copy())
            moved[-1].positions[i, k] += step * STEP
    numeric = -slope(np.array([calc.get_potential_energy(a) for a in moved])).reshape(-1, 3)
    scale = np.abs(forces).max()
    assert scale > 0.05
    np.testing.assert_allclose(forces, numeric, rtol=0, atol=RELATIVE * max(scale, 1.0))
    voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    moved = [strained(bulk_atoms, a, b, step * STEP) for a, b in voigt for step in STENCIL]
    energies = np.array([calc.get_potential_energy(atoms) for atoms in moved])
    numeric = slope(energies) / bulk_atoms.get_volume()
    np.testing.assert_allclose(stress, numeric, rtol=0, atol=RELATIVE * max(scale, 1.0))


def test_an_averaged_committee_is_the_mean_of_averages(bulk_atoms):
    one, two = tilted(), tilted()
    with torch.no_grad():
        two.model.readout.mul_(1.1)
    both = MLIPCalculator([one, two], rotations=24)
    energies = [
        MLIPCalculator(p, rotations=24).get_potential_energy(bulk_atoms) for p in (one, two)
    ]
    assert both.get_potential_energy(bulk_atoms) == pytest.approx(np.mean(energies))
    assert both.results["energies_committee"] == pytest.approx(energies)
    assert both.results["energies"].sum() == pytest.approx(np.mean(energies))
    assert both.parameters["rotations"] == 24
    assert copy.deepcopy(both).get_potential_energy(bulk_atoms) == pytest.approx(np.mean(energies))


def test_rotations_that_are_no_group_or_change_nothing(bulk_atoms, caplog):
    with pytest.raises(ConfigError, match="rotations=10 must be the order of a group"):
        MLIPCalculator(tilted(), rotations=10)
    logging.getLogger("mlip").propagate = True
    with caplog.at_level(logging.WARNING, logger="mlip"):
        MLIPCalculator(tilted(), rotations=12)
        assert not caplog.records
        exact = MLIPCalculator(build("lennard_jones"), rotations=12)
    assert "changes nothing" in caplog.text
    plain = MLIPCalculator(build("lennard_jones")).get_forces(bulk_atoms)
    np.testing.assert_allclose(exact.get_forces(bulk_atoms), plain, atol=1e-10)
