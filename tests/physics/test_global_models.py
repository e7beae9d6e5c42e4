"""Models that see positions and cell, not only edges: long range, global attention.

Toys with known energies stand in for them: springs between all atoms of a structure, a term in the
cell volume, and both beside an ordinary edge term, so that the two ways in must add up.
"""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from conftest import STRUCTURES, predict
from stencil import RELATIVE, STENCIL, STEP, slope, strained
from torch import Tensor, nn

from mlip.graph import AtomGraph
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.pair import LennardJones
from mlip.models.potential import Potential

ZERO = {1: 0.0, 6: 0.0, 8: 0.0}


class Springs(nn.Module):
    """½ k Σ |x_i − x̄|² per structure, plus ½ p (V − V0)²/V0 where there is a cell."""

    symmetry = "O(3)"
    is_local = False
    needs_positions = True
    cutoff = 4.0
    species = (1, 6, 8)

    def __init__(self, *, spring: float = 0.7, volume: float = 0.0, pair: bool = False) -> None:
        super().__init__()
        self.spring = nn.Parameter(torch.tensor(spring))
        self.volume = nn.Parameter(torch.tensor(volume))
        self.pair = LennardJones(cutoff=4.0, species=self.species, epsilon=0.3, sigma=1.0)
        self.use_pair = pair

    def forward(self, geometry: Geometry) -> NodeOutput:
        x, cell = geometry.positions, geometry.cell
        assert x is not None
        assert cell is not None
        b, n = geometry.batch, geometry.num_graphs
        count = torch.zeros(n, dtype=x.dtype).index_add(0, b, torch.ones_like(x[:, 0]))
        centre = torch.zeros(n, 3, dtype=x.dtype).index_add(0, b, x) / count[:, None]
        energy = 0.5 * self.spring * (x - centre[b]).square().sum(1)
        periodic = geometry.pbc.all(1)
        volume = torch.where(periodic, torch.linalg.det(cell).abs(), 10.0)
        energy = energy + (0.05 * self.volume * (volume - 10.0) ** 2 / count)[b]
        if self.use_pair:
            energy = energy + self.pair(geometry).energy
        return NodeOutput(energy)


TOYS = {
    "springs": lambda: Springs(),
    "volume": lambda: Springs(spring=0.0, volume=2.0),
    "springs and volume and edges": lambda: Springs(volume=0.3, pair=True),
}


@pytest.fixture(params=TOYS)
def toy(request) -> Potential:
    return Potential(TOYS[request.param](), ZERO).double()


def test_springs_have_the_force_of_springs(molecule_atoms):
    """F_i = −k (x_i − x̄), virial = k Σ (x_i − x̄)⊗(x_i − x̄)."""
    out = predict(Potential(Springs(), ZERO).double(), molecule_atoms)
    d = molecule_atoms.positions - molecule_atoms.positions.mean(0)
    k = float(np.float32(0.7))  # the parameter was born in single precision
    np.testing.assert_allclose(out.energy.item(), 0.5 * k * (d**2).sum(), rtol=1e-13)
    np.testing.assert_allclose(out.forces, -k * d, atol=1e-13)
    np.testing.assert_allclose(out.virial[0], k * d.T @ d, atol=1e-12)


def test_a_volume_term_is_a_pressure(bulk_atoms):
    """E = c/2 (V − V0)²: stress = c (V − V0) on the diagonal, and no force on any atom."""
    model = Springs(spring=0.0, volume=2.0)
    out = predict(Potential(model, ZERO).double(), bulk_atoms)
    volume = bulk_atoms.get_volume()
    assert abs(volume - 10.0) > 0.5
    want = 2 * 0.05 * 2.0 * (volume - 10.0) * np.eye(3)
    np.testing.assert_allclose(out.stress[0], want, atol=1e-12)
    assert not out.forces.any()


@pytest.mark.parametrize("structure", ["molecule", "bulk", "left-handed", "slab"])
def test_forces_and_virial_against_finite_differences(toy, structure):
    atoms = STRUCTURES[structure]()
    out = predict(toy, atoms)
    scale = max(1.0, out.virial.abs().max().item(), out.forces.abs().max().item())
    moved = []
    for i, k in np.ndindex(len(atoms), 3):
        for step in STENCIL:
            a = atoms.copy()
            a.positions[i, k] += step * STEP
            moved.append(a)
    numeric = -slope(predict(toy, *moved).energy.numpy()).reshape(-1, 3)
    np.testing.assert_allclose(out.forces, numeric, rtol=0, atol=RELATIVE * scale)
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    moved = [strained(atoms, a, b, step * STEP) for a, b in pairs for step in STENCIL]
    numeric = slope(predict(toy, *moved).energy.numpy())
    ours = np.array([out.virial[0, a, b] for a, b in pairs])
    if atoms.pbc.all() or toy.model.spring.item() > 0:  # a volume term needs a volume
        assert np.abs(ours).max() > 1e-2, "no virial: this structure tests nothing"
    np.testing.assert_allclose(ours, numeric, rtol=0, atol=RELATIVE * scale)


def test_batch_equals_single_and_nothing_leaks(toy, molecule_atoms, bulk_atoms):
    both = predict(toy, molecule_atoms, bulk_atoms)
    for k, (atoms, rows) in enumerate(((molecule_atoms, slice(0, 9)), (bulk_atoms, slice(9, 11)))):
        alone = predict(toy, atoms)
        assert both.energy[k].item() == pytest.approx(alone.energy.item(), rel=1e-13)
        torch.testing.assert_close(both.forces[rows], alone.forces, atol=1e-12, rtol=0)
        torch.testing.assert_close(both.virial[k], alone.virial[0], atol=1e-12, rtol=0)


def test_an_isolated_atom_has_its_reference_energy(toy):
    out = predict(toy, ase.Atoms("C", [[5.0, 1.0, 2.0]]))
    assert out.energy.item() == 0.0
    assert not out.forces.any()


def test_hessians_go_through_positions(toy, bulk_atoms):
    graph = AtomGraph.from_atoms(bulk_atoms, toy.cutoff)
    toy.requires_grad_(False)

    def outputs(positions: Tensor) -> tuple[Tensor, Tensor]:
        graph.positions = positions
        out = toy(graph)
        return out.forces, out.virial

    x = graph.positions.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(outputs, (x,), eps=1e-5, atol=1e-6, rtol=1e-6)


def test_it_is_not_called_extensive(toy):
    assert not toy.is_local
    assert not toy.extensive
