"""What a GPU must give: the numbers of the CPU. Run by `pytest -m gpu`."""

from __future__ import annotations

import ase
import pytest
import torch
from ase.build import bulk
from conftest import build

from mlip.graph import AtomGraph, collate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("name", ["facet-L3", "nequip-full", "nequip-sevennet", "transip"])
def test_potentials_and_their_training_gradients(name, kernels, monkeypatch):
    """In float64, on crystals, a molecule and an atom alone in one batch."""
    structures = [
        bulk("C", "diamond", a=3.6) * (2, 1, 1),
        ase.Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)]),
        ase.Atoms("H", [(0, 0, 0)]),
    ]
    found = []
    for device, choice in (("cpu", "torch"), ("cuda", kernels)):
        monkeypatch.setenv("MLIP_KERNELS", choice)
        potential = build(name).to(device).train()
        graph = collate([AtomGraph.from_atoms(a, potential.cutoff) for a in structures])
        out = potential(graph.to(torch.device(device)))
        loss = (out.energy - out.energy.detach() + 1).square().mean() + out.forces.square().mean()
        (loss + out.virial.square().mean()).backward()
        gradients = [p.grad for p in potential.parameters() if p.grad is not None]
        found.append([x.detach().cpu() for x in (out.energy, out.forces, out.virial, *gradients)])
    for one, other in zip(*found, strict=True):
        scale = max(float(one.abs().max()), 1e-6)
        assert float((one - other).abs().max()) < 1e-9 * scale
