"""What a caller may ask of a reader, checked before any file is opened.

The names are those of the `data` group of the configuration, so that `mlip train`, `mlip data` and
`read_structures` take the same words and make the same complaints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, Literal

from mlip.errors import ConfigError
from mlip.units import energy_factor, force_factor, stress_factor

LABELS: Final = ("energy", "forces", "stress", "virial")
VIRIAL_KEYS: Final = ("REF_virial", "REF_virials", "virial", "virials")


@dataclass(frozen=True, slots=True)
class LabelKeys:
    """Names of the info or arrays entries that hold the labels; None searches the usual ones."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options of `read_structures`.

    Attributes:
        keys: where the labels are; `auto` searches REF_*, calculator results, then plain names.
        energy_unit: unit of energies and virials; None is the format's own (eV nearly always).
        force_unit: unit of forces; None is `energy_unit` per Å.
        stress_unit: unit of stresses; None is eV/Å³.
        stress_sign: `ase` (negative under compression) or `vasp` (positive).
        stress_voigt: order of 6-vectors in plain info: `ase` xx,yy,zz,yz,xz,xy or `vasp`
            xx,yy,zz,xy,yz,zx.
        energy: `uncorrected` or `corrected` (Materials Project 2020 scheme; MPtrj only).
        group: info key that must not be split between train and validation; `auto` looks for a
            material or molecule id, None sets no group.
        keep_info: keep every other info and arrays entry of the file.
        info_keys: keep these info entries, too; no arrays.
        on_bad: what to do with a frame whose labels or positions are not finite or misshapen, or
            which otherwise is not what these options say: `error`, or `skip` up to one in a
            thousand of what is read, with a warning that counts them.
    """

    keys: LabelKeys = LabelKeys()
    energy_unit: str | None = None
    force_unit: str | None = None
    stress_unit: str | None = None
    stress_sign: Literal["ase", "vasp"] | None = None
    stress_voigt: Literal["ase", "vasp"] = "ase"
    energy: Literal["uncorrected", "corrected"] = "uncorrected"
    group: str | None = "auto"
    keep_info: bool = False
    info_keys: tuple[str, ...] = ()
    on_bad: Literal["error", "skip"] = "error"

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> ReadOptions:
        """Check caller's keywords.

        Raises:
            ConfigError: a name is unknown or a value is not allowed.
        """
        _check_names(options, [f.name for f in fields(cls)], "reader option")
        values = dict(options)
        values["keys"] = _parse_keys(values.get("keys"))
        for name in ("energy_unit", "force_unit", "stress_unit", "stress_sign"):
            if values.get(name) == "auto":
                values[name] = None
        for name in ("stress_voigt", "energy", "on_bad"):
            if values.get(name) is None:
                values.pop(name, None)
        parsed = cls(**values)
        _check_choice("stress_sign", parsed.stress_sign, (None, "ase", "vasp"))
        _check_choice("stress_voigt", parsed.stress_voigt, ("ase", "vasp"))
        _check_choice("energy", parsed.energy, ("uncorrected", "corrected"))
        _check_choice("on_bad", parsed.on_bad, ("error", "skip"))
        if parsed.energy_unit is not None:
            energy_factor(parsed.energy_unit)
        if parsed.force_unit is not None:
            force_factor(parsed.force_unit)
        if parsed.stress_unit is not None:
            stress_factor(parsed.stress_unit)
        if parsed.energy == "corrected" and parsed.keys.energy:
            raise ConfigError(
                f"energy=corrected and keys.energy={parsed.keys.energy} both choose the energy; "
                "give only one of them"
            )
        if parsed.keys.stress in VIRIAL_KEYS:
            raise ConfigError(
                f"keys.stress={parsed.keys.stress} names a virial, which is -volume times stress; "
                f"set keys.virial={parsed.keys.stress} instead"
            )
        if parsed.group is not None and not isinstance(parsed.group, str):
            raise ConfigError(f"group={parsed.group!r}; expected auto, null or an info key")
        return parsed

    def keys_of(self, label: str) -> tuple[str, ...]:
        """Return the explicit names of a label; stress may come from `stress` or `virial`."""
        names = (
            (self.keys.stress, self.keys.virial)
            if label == "stress"
            else (getattr(self.keys, label, None),)
        )
        return tuple(name for name in names if name)


def _parse_keys(keys: Any) -> LabelKeys:
    if keys is None or keys == "auto":
        return LabelKeys()
    if isinstance(keys, LabelKeys):
        return keys
    if isinstance(keys, Mapping):
        _check_names(keys, list(LABELS), "label in keys")
        values = {str(label): keys[label] for label in keys}
    else:
        values = {label: getattr(keys, label, None) for label in LABELS}
    for label, name in values.items():
        if name is not None and not (isinstance(name, str) and name):
            raise ConfigError(f"keys.{label}={name!r}; expected auto or the name of an entry")
    return LabelKeys(**{k: (None if v == "auto" else v) for k, v in values.items()})


def _check_names(given: Mapping[Any, Any], known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ";"
            raise ConfigError(f"unknown {what} {name!r}{hint} known are {', '.join(known)}")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        words = ", ".join(str(a) for a in allowed if a is not None)
        raise ConfigError(f"{name}={value!r}; expected one of {words}")
