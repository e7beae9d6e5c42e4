"""Total charge and spin: every state has a row of its own, or is refused."""

from __future__ import annotations

import pytest
import torch
from conftest import build, predict

from mlip.errors import DataError
from mlip.models.embedding import MAX_CHARGE, MAX_SPIN


def energy(potential, atoms, charge: int, spin: int) -> float:
    atoms.info.update(charge=charge, spin=spin)
    return predict(potential, atoms).energy.item()


@pytest.mark.parametrize("name", ["facet-charge", "nequip-charge", "transip-charge"])
def test_the_last_states_differ_and_those_beyond_are_refused(name, molecule_atoms):
    potential = build(name)
    edge = energy(potential, molecule_atoms, MAX_CHARGE, MAX_SPIN)
    for charge, spin in ((MAX_CHARGE - 1, MAX_SPIN), (MAX_CHARGE, MAX_SPIN - 1), (-MAX_CHARGE, 1)):
        assert abs(energy(potential, molecule_atoms, charge, spin) - edge) > 1e-6
    for charge, spin in ((MAX_CHARGE + 1, 1), (-MAX_CHARGE - 1, 1), (0, MAX_SPIN + 1), (0, -1)):
        with pytest.raises(DataError, match=f"charge {charge} and spin multiplicity {spin}: "):
            energy(potential, molecule_atoms, charge, spin)


def test_potentials_without_charge_take_any(molecule_atoms):
    potential = build("facet")
    assert energy(potential, molecule_atoms, 99, 1) == energy(potential, molecule_atoms, 0, 1)
    assert torch.isfinite(predict(potential, molecule_atoms).forces).all()
