"""scripts/ablation.py: its variants of Facet are what they say and have Facet's symmetry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from conftest import E0, SMALL, SPECIES, predict
from scipy.spatial.transform import Rotation

from mlip.models.facet import Convolution, ProductUpdate
from mlip.models.registry import ARCHITECTURES, PotentialSpec, build_potential

ROTOREFLECTION = -Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix()


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    import ablation  # type: ignore[import-not-found]

    yield ablation.VARIANTS
    for architecture in {name for name, cls in ablation.VARIANTS.values() if cls}:
        del ARCHITECTURES[architecture]
    for name in ("ablation", "ablation_models", "benchmark"):
        sys.modules.pop(name, None)


def test_variants_differ_in_one_thing_and_are_invariant(variants):
    found = {}
    for architecture, _ in variants.values():
        options = {**SMALL["facet"], "cutoff": 4.0}
        spec = PotentialSpec(architecture, options, SPECIES, (E0,), 10.0)
        torch.manual_seed(0)
        potential = build_potential(spec).double().eval()
        for p in potential.model.parameters():
            if p.numel() > 1 and not p.any():
                torch.nn.init.normal_(p)
        one = molecule("CH3CH2OH")
        other = one.copy()
        other.positions = other.positions @ ROTOREFLECTION.T
        a, b = predict(potential, one), predict(potential, other)
        assert a.forces.abs().max() > 1e-3
        torch.testing.assert_close(a.energy, b.energy, rtol=1e-10, atol=1e-10)
        model: Any = potential.model
        layer = model.layers[0]
        found[architecture] = (
            isinstance(layer.update, ProductUpdate),
            isinstance(layer.convolution, Convolution),
        )
    assert found == {
        "facet": (True, True),
        "facet-gates": (False, True),
        "facet-mlp": (True, False),
        "facet-gates-mlp": (False, False),
    }
