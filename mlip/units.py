"""The one unit system, and the factors into it.

Inside `mlip`: Å, eV, eV/Å, eV/Å³, fs at the borders, atomic mass units. Stress follows ASE,
sigma = (1/V) dE/d(strain), negative under compression. Files are converted by
`mlip.data.readers`; relaxation and dynamics take GPa and fs by arguments that say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ase import units as _ase

from mlip.errors import ConfigError

ENERGY: Final = MappingProxyType(
    {
        "eV": 1.0,
        "meV": 1e-3,
        "hartree": _ase.Hartree,
        "rydberg": _ase.Rydberg,
        "kcal/mol": _ase.kcal / _ase.mol,
        "kJ/mol": _ase.kJ / _ase.mol,
    }
)
LENGTH: Final = MappingProxyType({"A": 1.0, "bohr": _ase.Bohr, "nm": _ase.nm})
STRESS: Final = MappingProxyType(
    {
        "eV/A^3": 1.0,
        "GPa": _ase.GPa,
        "kbar": 0.1 * _ase.GPa,
        "bar": 1e-4 * _ase.GPa,
        "hartree/bohr^3": _ase.Hartree / _ase.Bohr**3,
    }
)
GPA: Final = _ase.GPa  # eV/Å³ per GPa


def energy_factor(unit: str) -> float:
    """Return the factor from `unit` to eV.

    Raises:
        ConfigError: the unit is not known.
    """
    return _lookup(ENERGY, unit, "energy")


def force_factor(unit: str) -> float:
    """Return the factor from `unit`, written `energy/length` (e.g. `kcal/mol/A`), to eV/Å.

    Raises:
        ConfigError: either part is not known.
    """
    energy, _, length = unit.rpartition("/")
    return _lookup(ENERGY, energy, "force") / _lookup(LENGTH, length, "force")


def stress_factor(unit: str) -> float:
    """Return the factor from `unit` to eV/Å³ (the sign convention is a separate option).

    Raises:
        ConfigError: the unit is not known.
    """
    return _lookup(STRESS, unit, "stress")


def _lookup(table: Mapping[str, float], unit: str, what: str) -> float:
    by_lower = {name.lower(): factor for name, factor in table.items()}
    factor = by_lower.get(unit.replace("Å", "A").replace("ang", "A").lower())
    if factor is None:
        raise ConfigError(f"unknown {what} unit {unit!r}; known are {', '.join(table)}")
    return factor
