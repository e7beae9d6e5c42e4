"""Metrics are named after quantities, and people see thousandths of the stored unit."""

from __future__ import annotations

import pytest

from mlip.quantities import QUANTITIES, quantity_of


@pytest.mark.parametrize(
    ("metric", "words", "unit"),
    [
        ("energy_mae", "energy", "meV"),
        ("val/energy_per_atom_rmse", "energy per atom", "meV/atom"),
        ("val/rotation_forces_mae", "force", "meV/A"),
        ("stress_mae", "stress", "meV/A^3"),
    ],
)
def test_the_longest_name_decides(metric, words, unit):
    quantity = quantity_of(metric)
    assert (quantity.words, quantity.ascii_unit) == (words, unit)


def test_what_is_no_error_of_a_quantity_is_refused():
    with pytest.raises(KeyError, match="val/loss is no error of energy, energy_per_atom"):
        quantity_of("val/loss")
    assert QUANTITIES["forces"].shown_unit == "meV/Å"
