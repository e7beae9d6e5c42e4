"""Structures of every periodicity, and a `potential` fixture over every registered architecture."""

from __future__ import annotations

import os
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from mlip.graph import AtomGraph
from mlip.models.facet import Facet
from mlip.models.pair import ZBL, LennardJones
from mlip.models.potential import Potential, Prediction

torch.set_num_threads(1)
SPECIES = (1, 6, 8)
E0 = {1: -13.6, 6: -1030.1, 8: -2043.7}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets; tests that need it skip, with the reason, where there is none."""
    folder = os.environ.get("MLIP_REAL_DATA")
    if not folder:
        pytest.skip("MLIP_REAL_DATA is not set to a folder of real data sets")
    return Path(folder)


def _rattled(atoms: ase.Atoms, seed: int) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=0.12, size=atoms.positions.shape)
    return atoms


def _molecule() -> ase.Atoms:
    return _rattled(molecule("CH3CH2OH"), 1)


def _bulk() -> ase.Atoms:
    """Triclinic, far smaller than the cutoff."""
    cell = [[2.9, 0.2, -0.3], [0.7, 3.1, 0.4], [-0.5, 0.6, 3.4]]
    scaled = [[0.05, 0.1, 0.0], [0.5, 0.45, 0.55]]
    return ase.Atoms("CO", scaled_positions=scaled, cell=cell, pbc=True)


def _slab() -> ase.Atoms:
    atoms = _bulk() * (2, 1, 1)
    atoms.pbc = [True, True, False]
    atoms.cell[2] = 0.0
    return _rattled(atoms, 2)


def _wire() -> ase.Atoms:
    atoms = _bulk() * (2, 1, 1)
    atoms.pbc = [True, False, False]
    return _rattled(atoms, 3)


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
    return bulk("C", "fcc", a=3.4)


FACET = {"channels": (8, 6, 4), "num_layers": 2}
VARIANTS = {
    "lennard_jones": lambda: LennardJones(cutoff=4.5, species=SPECIES, epsilon=0.3, sigma=1.8),
    "facet": lambda: _facet(),
    "facet-L3": lambda: _facet(channels=(8, 6, 4, 4), num_layers=3),
    "facet-bspline": lambda: _facet(radial="bspline"),
    "facet-charge": lambda: _facet(charge_spin=True),
    "facet-silu": lambda: _facet(grid_act="silu"),
    "facet-zbl": lambda: _facet(),
}


def _facet(**options) -> Facet:
    return Facet(cutoff=4.5, species=SPECIES, avg_num_neighbors=20.0, **{**FACET, **options})


def build(name: str) -> Potential:
    """A potential with random weights, none of them zero, and forces of order one."""
    torch.manual_seed(7)
    model = VARIANTS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and not parameter.any():
                parameter.normal_()  # zero-initialised scales would hide the geometry
    priors = [ZBL(species=SPECIES)] if name.endswith("zbl") else []
    potential = Potential(model, E0, priors=priors).double().eval()
    if isinstance(model, Facet):
        with torch.no_grad():
            rms = predict(potential, _bulk()).forces.square().mean().sqrt()
            model.readout.weight *= 1.0 / rms.clamp(min=1e-6)
    return potential


@pytest.fixture(params=VARIANTS)
def potential(request: pytest.FixtureRequest) -> Potential:
    return build(request.param)


@pytest.fixture(params=[name for name in VARIANTS if name != "facet-silu"])
def symmetric_potential(request: pytest.FixtureRequest) -> Potential:
    """Those that declare exact O(3) symmetry."""
    potential = build(request.param)
    assert potential.symmetry == "O(3)"
    return potential


def predict(potential: Potential, *structures: ase.Atoms) -> Prediction:
    """Evaluate structures as one batch, without gradients for parameters."""
    from mlip.graph import collate

    graphs = [AtomGraph.from_atoms(a, potential.cutoff) for a in structures]
    with torch.no_grad():
        return potential(collate(graphs))
