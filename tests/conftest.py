"""Structures of every periodicity, and a `potential` fixture over every registered architecture.

An architecture is tested by being registered: each name in `ARCHITECTURES` and each installed entry
point runs the whole physics suite with its default options; `VARIANTS` adds options worth a run of
their own. Weights that are born zero are drawn at random and the output is scaled to forces of
order one: on a freshly initialised network most of these laws hold for the wrong reason.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from mlip.graph import AtomGraph, collate
from mlip.models.frame_averaging import FrameAveraged
from mlip.models.kernels import compiler
from mlip.models.potential import Potential, Prediction
from mlip.models.registry import ARCHITECTURES, ENTRY_POINTS, PotentialSpec, build_potential

torch.set_num_threads(1)
# Small models of many shapes: compiling for each would take longer than the suite. The variants
# "…-compiled" and tests/unit/test_kernels.py ask for what users get by default.
os.environ["MLIP_KERNELS"] = "torch"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run as Python
SPECIES = (1, 6, 8)
E0 = {1: -13.6, 6: -1030.1, 8: -2043.7}  # all-electron sizes: float32 would lose 0.1 meV of them
OTHER_E0 = {1: -1.1, 6: -1.3, 8: -1.9}  # of the first of two heads; predictions are the second's
CUTOFF = 4.0


# -- structures ----------------------------------------------------------------------------------


def _rattled(atoms: ase.Atoms, seed: int, scale: float) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=scale, size=atoms.positions.shape)
    return atoms


def _molecule() -> ase.Atoms:
    return _rattled(molecule("CH3CH2OH"), 1, 0.04)


def _bulk() -> ase.Atoms:
    """Triclinic, far smaller than the cutoff, nearest neighbours 1.4 Å apart."""
    cell = 0.75 * np.array([[2.9, 0.2, -0.3], [0.7, 3.1, 0.4], [-0.5, 0.6, 3.4]])
    scaled = [[0.05, 0.1, 0.0], [0.5, 0.45, 0.55]]
    return ase.Atoms("CO", scaled_positions=scaled, cell=cell, pbc=True)


def _slab() -> ase.Atoms:
    """Two periodic axes; the third lattice vector is zero, as ASE leaves it."""
    atoms = _bulk() * (2, 1, 1)
    atoms.pbc = [True, True, False]
    atoms.cell[2] = 0.0
    return _rattled(atoms, 2, 0.08)


def _wire() -> ase.Atoms:
    """One periodic axis; the other two lattice vectors are there and must be ignored."""
    atoms = _bulk() * (2, 1, 1)
    atoms.pbc = [True, False, False]
    return _rattled(atoms, 3, 0.08)


def _left_handed() -> ase.Atoms:
    atoms = _bulk()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]], scale_atoms=False)
    return atoms


def _unwrapped() -> ase.Atoms:
    atoms = _bulk()
    atoms.positions[0] += [4, -3, 2] @ atoms.cell.array
    return atoms


STRUCTURES = {
    "molecule": _molecule,
    "bulk": _bulk,
    "slab": _slab,
    "wire": _wire,
    "left-handed": _left_handed,
    "unwrapped": _unwrapped,
}


@pytest.fixture(params=STRUCTURES)
def atoms(request: pytest.FixtureRequest) -> ase.Atoms:
    return STRUCTURES[request.param]()


@pytest.fixture
def bulk_atoms() -> ase.Atoms:
    return _bulk()


@pytest.fixture
def molecule_atoms() -> ase.Atoms:
    return _molecule()


@pytest.fixture
def fcc() -> ase.Atoms:
    """One atom in the primitive cell."""
    return bulk("C", "fcc", a=2.4)


# -- potentials ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """An architecture with options; CUTOFF unless they say otherwise."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    priors: tuple[str, ...] = ()
    charge_spin: bool = False
    heads: tuple[str, ...] = ("default",)
    kernels: str = "torch"  # the value of MLIP_KERNELS


# Small sizes keep the suite fast. An architecture that is not named here runs with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "facet": {"channels": (8, 6, 4), "num_layers": 2, "num_basis": 6},
    "lennard_jones": {"epsilon": 0.6, "sigma": 1.0},
    "nequip": {"channels": (8, 6, 4), "embedding": 4, "num_basis": 6, "radial_widths": (8,)},
    "transip": {"dim": 24, "num_layers": 2, "num_heads": 2, "num_basis": 6},
}
HEADED = ("facet", "nequip", "transip")  # architectures whose heads differ


def _facet(priors: tuple[str, ...] = (), charge_spin: bool = False, **options: Any) -> Variant:
    return Variant("facet", {**SMALL["facet"], **options}, priors, charge_spin)


def _nequip(charge_spin: bool = False, **options: Any) -> Variant:
    return Variant("nequip", {**SMALL["nequip"], **options}, charge_spin=charge_spin)


def _compiled(variant: Variant) -> Variant:
    return replace(variant, kernels="compiled")


def _transip(charge_spin: bool = False, **options: Any) -> Variant:
    return Variant("transip", {**SMALL["transip"], **options}, charge_spin=charge_spin)


VARIANTS: dict[str, Variant] = {
    **{
        name: Variant(name, SMALL.get(name, {}))
        for name in [*ARCHITECTURES, *entry_points(group=ENTRY_POINTS).names]
    },
    # The second of two heads; test_heads.py has what is between them.
    **{f"{name}-heads": Variant(name, SMALL[name], heads=("pbe", "wb97m")) for name in HEADED},
    "facet-L3": _facet(channels=(6, 5, 4, 3), num_layers=3),  # vectors to vectors: the middle one
    "facet-bspline": _facet(radial="bspline"),
    "facet-compiled": _compiled(_facet(channels=(6, 5, 4, 3), num_layers=3)),
    "facet-charge": _facet(charge_spin=True),
    "facet-silu-L3": _facet(grid_act="silu", channels=(6, 5, 4, 4), grid_channels=4),
    "facet-zbl": _facet(priors=("zbl",)),
    "nequip-charge": _nequip(charge_spin=True),
    "nequip-compiled": _compiled(  # more radial functions than the kernel multiplies itself
        _nequip(parity="full", channels=(6, 4, 3), num_layers=3, radial_widths=(20,))
    ),
    "nequip-full": _nequip(parity="full", channels=(6, 4, 3), num_layers=4),  # 0o in the third
    "nequip-L3": _nequip(  # the third layer is the first that paths of odd parity would reach
        channels=(6, 5, 4, 3), num_layers=3, neighbor_exponent=1.0
    ),
    "nequip-sevennet": _nequip(
        parity="none",
        self_connection="linear",
        embedding=None,
        num_layers=3,
        radial_widths=(8, 8),
        trainable_basis=True,
        readout_width=4,
        neighbor_exponent=1.0,
    ),
    "transip-charge": _transip(charge_spin=True, attention="neighbours"),
    "transip-direct": _transip(forces="direct", attention="neighbours"),
    "transip-frames": _transip(attention="neighbours", frames="o3"),
    "transip-global": _transip(attention="global"),
    "transip-phases": _transip(attention="global", distances=False),
    "transip-global-charge": _transip(charge_spin=True, attention="global"),
    "transip-global-direct": _transip(forces="direct", attention="global"),
}


@cache
def _built(name: str) -> Potential:
    variant = VARIANTS[name]

    def make(force_scale: float) -> Potential:
        spec = PotentialSpec(
            architecture=variant.architecture,
            hyperparameters={"cutoff": CUTOFF, **variant.options},
            species=SPECIES,
            reference_energies=(OTHER_E0, E0)[-len(variant.heads) :],
            avg_num_neighbors=40.0,
            force_scale=force_scale,
            charge_spin=variant.charge_spin,
            priors=variant.priors,
            head_names=variant.heads,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            potential = build_potential(spec).double().eval()
            for parameter in potential.model.parameters():
                if parameter.numel() > 1 and not parameter.any():
                    torch.nn.init.normal_(parameter)
        if len(variant.heads) > 1:
            potential.register_forward_pre_hook(_last_head)
        return potential

    potential = make(1.0)
    return make(1.0 / rms_force(potential, _small(potential)))


def _last_head(potential: Potential, inputs: tuple[AtomGraph]) -> tuple[AtomGraph]:
    (graph,) = inputs
    return (graph.with_head(len(potential.e0) - 1),)


def _small(potential: Potential) -> ase.Atoms:
    return _bulk() if potential.accepts_periodic else _molecule()


def build(name: str) -> Potential:
    """A fresh copy of a variant: random weights, none of them zero, and forces of order one."""
    return copy.deepcopy(_built(name))


def rms_force(potential: Potential, atoms: ase.Atoms) -> float:
    return predict(potential, atoms).forces.square().mean().sqrt().item()


@pytest.fixture(params=VARIANTS)
def potential(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Potential:
    """Every variant, but for what it declares not to be: `@pytest.mark.needs("conservative")`.

    Periodic structures, by parameter or by fixture, are for those that accept them.
    """
    kernels = VARIANTS[request.param].kernels
    if kernels == "compiled" and compiler.compiler() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setenv("MLIP_KERNELS", kernels)
    potential = build(request.param)
    node: Any = request.node
    needs = {name for mark in node.iter_markers("needs") for name in mark.args}
    structures = {v for v in node.callspec.params.values() if isinstance(v, str)} & set(STRUCTURES)
    periodic = any(STRUCTURES[name]().pbc.any() for name in structures)
    if periodic or {"bulk_atoms", "fcc"} & set(request.fixturenames):
        needs.add("accepts_periodic")
    for name in needs:
        if not getattr(potential, name):
            pytest.skip(f"this architecture declares {name}=False")
    if "fcc" in request.fixturenames and isinstance(potential.model, FrameAveraged):
        pytest.skip("a perfect cubic crystal has no frame; measured in test_frames.py")
    return potential


@pytest.fixture
def small_atoms(potential: Potential) -> ase.Atoms:
    """The bulk, or the molecule where a potential is for molecules only."""
    return _small(potential)


@pytest.fixture
def invariant_potential(potential: Potential) -> Potential:
    """Those whose energy is exactly invariant to rotations."""
    if potential.symmetry == "none":
        pytest.skip("this architecture declares no rotational symmetry")
    return potential


def interaction_only(potential: Potential) -> Potential:
    """Take the reference energies out: 1e4 eV cost four digits of a finite difference."""
    potential.e0[:, list(E0)] = 0.0
    return potential


def predict(potential: Callable[[AtomGraph], Prediction], *structures: ase.Atoms) -> Prediction:
    """Evaluate structures as one batch, without gradients for parameters."""
    graphs = [AtomGraph.from_atoms(a, potential.cutoff) for a in structures]
    with torch.no_grad():
        return potential(collate(graphs))


# -- data ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets; tests that need it skip, with the reason, where there is none."""
    folder = os.environ.get("MLIP_REAL_DATA")
    if not folder:
        pytest.skip("MLIP_REAL_DATA is not set to a folder of real data sets")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark, in the reports that reach the summary, which tests read real data."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.user_properties.append(("real_data", True))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests read real data: a skip must not look like a pass."""
    counts = {
        outcome: sum(("real_data", True) in r.user_properties for r in reports)
        for outcome in ("passed", "failed", "skipped")
        for reports in [[r for r in terminalreporter.stats.get(outcome, []) if hasattr(r, "when")]]
    }
    terminalreporter.write_line(
        "real-data tests: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    )
