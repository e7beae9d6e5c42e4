"""Unit factors against numbers written out by hand (CODATA), not against the library they use."""

from __future__ import annotations

import math

import pytest

from mlip.errors import ConfigError
from mlip.units import GPA, energy_factor, force_factor, stress_factor

HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, Å; CODATA 2018
KCAL_MOL, KJ_MOL = 0.0433641042, 0.0103642697  # eV


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("hartree", HARTREE),
        ("Hartree", HARTREE),
        ("rydberg", HARTREE / 2),
        ("kcal/mol", KCAL_MOL),
        ("kJ/mol", KJ_MOL),
    ],
)
def test_energies(unit, factor):
    assert energy_factor(unit) == pytest.approx(factor, rel=1e-7)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("eV/A", 1.0),
        ("eV/Å", 1.0),
        ("eV/ang", 1.0),
        ("meV/A", 1e-3),
        ("kcal/mol/A", KCAL_MOL),
        ("kJ/mol/nm", KJ_MOL / 10),
        ("hartree/bohr", HARTREE / BOHR),
        ("hartree/bohr", 51.422067),
    ],
)
def test_forces(unit, factor):
    assert force_factor(unit) == pytest.approx(factor, rel=1e-7)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("eV/A^3", 1.0),
        ("GPa", 1 / 160.21766208),
        ("kbar", 1 / 1602.1766208),
        ("bar", 1e-3 / 1602.1766208),
        ("hartree/bohr^3", HARTREE / BOHR**3),
    ],
)
def test_stresses(unit, factor):
    assert stress_factor(unit) == pytest.approx(factor, rel=1e-7)


def test_gpa_and_kbar_agree():
    assert math.isclose(GPA, stress_factor("GPa"))
    assert math.isclose(10 * stress_factor("kbar"), GPA)


@pytest.mark.parametrize(
    ("function", "unit"),
    [
        (energy_factor, "electronvolt"),
        (energy_factor, ""),
        (force_factor, "eV"),
        (force_factor, "A/eV"),
        (stress_factor, "Pa"),
    ],
)
def test_unknown_units_name_the_known_ones(function, unit):
    with pytest.raises(ConfigError, match=r"unknown .* unit .*known are"):
        function(unit)
