"""Laws that hold exactly: rotations, reflections, translations, lattices, permutations."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.build import make_supercell
from conftest import build, predict
from scipy.spatial.transform import Rotation

# float64 rounding of sums over ~100 edges of order-one terms, with total energies of ~1e3 eV
ENERGY = 1e-10
FORCES = 1e-10


def numbers(potential, atoms):
    out = predict(potential, atoms)
    return out.energy.item(), out.forces.numpy(), out.stress[0].numpy(), out.virial[0].numpy()


def turned(atoms: ase.Atoms, q: np.ndarray) -> ase.Atoms:
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ q.T, scale_atoms=False)
    out.set_positions(atoms.positions @ q.T)
    return out


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "rotoreflection"])
def test_rotation(symmetric_potential, atoms, mirror):
    q = mirror * Rotation.random(random_state=1).as_matrix()
    e, f, _, v = numbers(symmetric_potential, atoms)
    e2, f2, _, v2 = numbers(symmetric_potential, turned(atoms, q))
    assert np.abs(f).max() > 1e-2, "forces vanish: this structure tests nothing"
    assert e2 == pytest.approx(e, abs=ENERGY)
    np.testing.assert_allclose(f2, f @ q.T, atol=FORCES)
    np.testing.assert_allclose(v2, q @ v @ q.T, atol=10 * FORCES)


def test_silu_grid_declares_no_rotation_but_keeps_inversion(bulk_atoms):
    potential = build("facet-silu")
    assert potential.symmetry == "none"
    e, f, *_ = numbers(potential, bulk_atoms)
    q = Rotation.random(random_state=1).as_matrix()
    error = abs(numbers(potential, turned(bulk_atoms, q))[0] - e)
    assert 1e-12 < error < 0.02 * np.abs(f).max(), "aliasing is small, and it is there"
    assert numbers(potential, turned(bulk_atoms, -np.eye(3)))[0] == pytest.approx(e, abs=ENERGY)


@pytest.mark.parametrize("shift", [0.37, 100.0])
def test_translation(potential, atoms, shift):
    moved = atoms.copy()
    moved.positions += shift * np.array([1.0, -0.5, 0.3])
    e, f, *_ = numbers(potential, atoms)
    e2, f2, *_ = numbers(potential, moved)
    assert e2 == pytest.approx(e, abs=ENERGY)
    np.testing.assert_allclose(f2, f, atol=1e-9)  # 100 Å cost two digits of the differences


def test_wrapping(potential, atoms):
    """Moving one atom by lattice vectors of the periodic axes is the same crystal."""
    moved = atoms.copy()
    moved.positions[0] += (np.array([3, -2, 1]) * atoms.pbc) @ atoms.cell.array
    e, f, *_ = numbers(potential, atoms)
    e2, f2, *_ = numbers(potential, moved)
    assert e2 == pytest.approx(e, abs=ENERGY)
    np.testing.assert_allclose(f2, f, atol=FORCES)


def test_permutation(potential, atoms):
    order = np.random.default_rng(0).permutation(len(atoms))
    e, f, *_ = numbers(potential, atoms)
    e2, f2, *_ = numbers(potential, atoms[order])
    assert e2 == pytest.approx(e, abs=ENERGY)
    np.testing.assert_allclose(f2, f[order], atol=FORCES)


@pytest.mark.parametrize(
    "matrix",
    [np.diag([2, 1, 1]), np.diag([1, 2, 2]), [[1, 1, 0], [0, 1, 1], [1, 0, 2]]],
    ids=["211", "122", "skew"],
)
def test_supercell(potential, bulk_atoms, matrix):
    big = make_supercell(bulk_atoms, matrix)
    n = len(big) // len(bulk_atoms)
    assert n > 1
    e, _, s, _ = numbers(potential, bulk_atoms)
    e2, f2, s2, _ = numbers(potential, big)
    assert e2 == pytest.approx(n * e, abs=n * ENERGY)
    np.testing.assert_allclose(s2, s, atol=FORCES)
    single = numbers(potential, bulk_atoms)[1]
    for z in set(bulk_atoms.numbers):
        np.testing.assert_allclose(
            f2[big.numbers == z], np.repeat(single[bulk_atoms.numbers == z], n, 0), atol=FORCES
        )


def test_batch_equals_single(potential, bulk_atoms, molecule_atoms):
    both = predict(potential, bulk_atoms, molecule_atoms)
    swapped = predict(potential, molecule_atoms, bulk_atoms)
    n = len(bulk_atoms)
    e = [predict(potential, a).energy.item() for a in (bulk_atoms, molecule_atoms)]
    f = predict(potential, molecule_atoms).forces
    np.testing.assert_allclose(both.energy, e, rtol=1e-13)
    np.testing.assert_allclose(swapped.energy, e[::-1], rtol=1e-13)
    torch.testing.assert_close(both.forces[n:], f, atol=1e-12, rtol=0)
    torch.testing.assert_close(swapped.forces[: len(molecule_atoms)], f, atol=1e-12, rtol=0)
    assert torch.isnan(both.stress[1]).all(), "a molecule has no stress"
    assert torch.isfinite(both.virial).all()


def test_same_input_same_bits(potential, bulk_atoms):
    a, b = predict(potential, bulk_atoms), predict(potential, bulk_atoms)
    assert torch.equal(a.energy, b.energy)
    assert torch.equal(a.forces, b.forces)
