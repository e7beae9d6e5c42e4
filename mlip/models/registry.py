"""The one table of architectures: configurations and files hold names and numbers, never code.

A `PotentialSpec` is everything needed to rebuild an untrained potential; training makes one, the
potential file stores one, and `build_potential` is the only way from it to a module. Other packages
add an architecture through the entry-point group `mlip.architectures` (name -> class).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn

from mlip.errors import ConfigError
from mlip.models.frame_averaging import FRAMES, FrameAveraged
from mlip.models.options import check_word
from mlip.models.potential import Potential

ENTRY_POINTS = "mlip.architectures"
MAX_PARAMETERS = 1_000_000_000
MAX_WIDTH = 16_384  # of any single integer hyper-parameter
MAX_HEADS = 100
FROM_DATA = ("species", "avg_num_neighbors", "force_scale", "charge_spin", "readouts")


@dataclass(frozen=True)
class Architecture:
    """Where a named architecture lives; the version rises when its mathematics changes."""

    module: str
    name: str
    version: int


ARCHITECTURES: dict[str, Architecture] = {
    "facet": Architecture("mlip.models.facet", "Facet", 2),
    "lennard_jones": Architecture("mlip.models.pair", "LennardJones", 1),
    "nequip": Architecture("mlip.models.nequip", "NequIP", 1),
    "transip": Architecture("mlip.models.transip", "TransIP", 2),
}
PRIORS: dict[str, Architecture] = {"zbl": Architecture("mlip.models.pair", "ZBL", 1)}


@dataclass(frozen=True)
class PotentialSpec:
    """An untrained potential, as plain values."""

    architecture: str
    # the architecture's own keywords, cutoff included; and `frames`, which every one has: none, or
    # the group (so3, o3) that frame averaging makes exact
    hyperparameters: dict[str, Any]
    species: tuple[int, ...]
    reference_energies: tuple[dict[int, float], ...]  # one table per head, eV: elements it knows
    avg_num_neighbors: float
    force_scale: float = 1.0
    charge_spin: bool = False
    priors: tuple[str, ...] = ()
    head_names: tuple[str, ...] = ("default",)


def build_potential(spec: PotentialSpec) -> Potential:
    """Build the potential that `spec` describes, with fresh weights.

    Raises:
        ConfigError: an unknown name, or a hyper-parameter that does not exist or is out of range.
    """
    own = _checked(spec.hyperparameters)
    frames = own.pop("frames", "none")
    check_word("frames", frames, FRAMES)
    keywords = {
        **own,
        "species": spec.species,
        "avg_num_neighbors": spec.avg_num_neighbors,
        "force_scale": spec.force_scale,
        "charge_spin": spec.charge_spin,
    }
    architecture = _architecture_class(spec.architecture)
    _check_keywords(spec.architecture, architecture, own)
    _check_heads(spec, architecture)
    if len(spec.head_names) > 1:
        keywords["readouts"] = len(spec.head_names)
    with torch.device("meta"):  # count before allocating: a file must not ask for a terabyte
        size = sum(p.numel() for p in architecture(**keywords).parameters())
    if size > MAX_PARAMETERS:
        raise ConfigError(
            f"{spec.architecture} with {spec.hyperparameters} would have {size:,} parameters, "
            f"more than {MAX_PARAMETERS:,}; choose a smaller size"
        )
    priors = [_load(_lookup(PRIORS, name, "prior"))(species=spec.species) for name in spec.priors]
    model = architecture(**keywords)
    if frames != "none":
        model = FrameAveraged(model, frames)
    potential = Potential(model, spec.reference_energies, priors, spec.head_names)
    potential.spec = spec
    return potential


def resolve_options(name: str, options: Mapping[str, Any], *, periodic: bool) -> dict[str, Any]:
    """Replace what an architecture leaves to its training set by a concrete value.

    An architecture with such an option has a static method `resolve_options(options, periodic=)`.

    Args:
        name: of the architecture.
        options: its hyper-parameters.
        periodic: whether any structure of the data has a periodic axis.

    Raises:
        DataError: the options do not suit the data.
    """
    resolve = getattr(_architecture_class(name), "resolve_options", None)
    return dict(options) if resolve is None else resolve(options, periodic=periodic)


def architecture_version(name: str) -> int:
    """Return the version of a built-in architecture (1 for one from another package)."""
    return ARCHITECTURES[name].version if name in ARCHITECTURES else 1


def _architecture_class(name: str) -> type[nn.Module]:
    if name in ARCHITECTURES:
        return _load(ARCHITECTURES[name])
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    return _load(_lookup(ARCHITECTURES, name, "architecture"))


def _lookup(table: Mapping[str, Architecture], name: str, what: str) -> Architecture:
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown {what} {name!r}{hint} (known: {', '.join(sorted(table))})")
    return table[name]


def _load(entry: Architecture) -> type[nn.Module]:
    return getattr(importlib.import_module(entry.module), entry.name)


def _check_keywords(name: str, cls: type[nn.Module], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    known = [
        key
        for key, p in parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and key not in FROM_DATA
    ]
    known.append("frames")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean model.{near[0]}?" if near else ""
            raise ConfigError(f"{name} has no option {key!r}{hint} (it has: {', '.join(known)})")


def _check_heads(spec: PotentialSpec, cls: type[nn.Module]) -> None:
    names, tables = spec.head_names, spec.reference_energies
    if not 1 <= len(names) <= MAX_HEADS or len(set(names)) != len(names):
        raise ConfigError(f"head names {names} must be 1 to {MAX_HEADS} different words")
    if len(tables) != len(names):
        raise ConfigError(
            f"{len(tables)} tables of reference energies for heads {', '.join(names)}"
        )
    if len(names) > 1 and "readouts" not in inspect.signature(cls).parameters:
        raise ConfigError(
            f"{spec.architecture} has one read-out and cannot serve {len(names)} heads "
            f"({', '.join(names)}); its class needs a keyword `readouts`"
        )


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse hyper-parameters that are not plain numbers, words or short lists of them."""
    cutoff = values.get("cutoff")
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 < cutoff <= 20:
        raise ConfigError(f"model.cutoff={cutoff!r} must be a distance between 0 and 20 Å")
    for key, value in values.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            plain = item is None or isinstance(item, bool | int | float | str)
            too_big = isinstance(item, int | float) and abs(item) > MAX_WIDTH
            if not plain or too_big:
                raise ConfigError(
                    f"model.{key}={value!r} must hold plain values no larger than {MAX_WIDTH}"
                )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
