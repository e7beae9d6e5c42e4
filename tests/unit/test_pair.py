"""Pair potentials against numbers worked out by hand."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import SPECIES, predict

from mlip.models.pair import COULOMB, ZBL, LennardJones
from mlip.models.potential import Potential

ZERO = dict.fromkeys(SPECIES, 0.0)


def envelope(x: np.ndarray, p: int = 6) -> np.ndarray:
    x = np.asarray(x)
    value = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1)
    return np.where(x < 1, value - p * (p + 1) / 2 * x ** (p + 2), 0.0)


def lennard_jones(r, epsilon=0.01, sigma=3.0, cutoff=9.0):
    s6 = (sigma / np.asarray(r)) ** 6
    return 4 * epsilon * (s6 * s6 - s6) * envelope(np.asarray(r) / cutoff)


def argon(cutoff: float = 9.0) -> Potential:
    model = LennardJones(cutoff=cutoff, species=(18,), epsilon=0.01, sigma=3.0).double()
    with torch.no_grad():  # born in single precision
        model.epsilon.fill_(0.01)
        model.sigma.fill_(3.0)
    return Potential(model, {18: 0.0}).double()


def dimer(symbols: str, r: float) -> ase.Atoms:
    return ase.Atoms(symbols, [[0, 0, 0], [0, 0, r]])


@pytest.mark.parametrize("r", [2.8, 3.0, 3.3674, 5.0, 8.9])
def test_lennard_jones_dimer(r):
    out = predict(argon(), dimer("Ar2", r))
    assert out.energy.item() == pytest.approx(float(lennard_jones(r)), rel=1e-12, abs=1e-15)
    h = 1e-5
    slope = (lennard_jones(r + h) - lennard_jones(r - h)) / (2 * h)
    assert out.forces[1, 2].item() == pytest.approx(-slope, rel=1e-6, abs=1e-9)
    assert out.virial[0, 2, 2].item() == pytest.approx(r * slope, rel=1e-6, abs=1e-9)


def test_lennard_jones_simple_cubic_crystal():
    """Nearest neighbours only: E = 3 φ(a) and σ_xx = φ'(a)/a² per cell, off-diagonals zero."""
    a, cutoff = 3.2, 4.0
    crystal = bulk("Ar", "sc", a=a)
    out = predict(argon(cutoff), crystal)
    h = 1e-5
    slope = (lennard_jones(a + h, cutoff=cutoff) - lennard_jones(a - h, cutoff=cutoff)) / (2 * h)
    assert abs(slope) > 1e-3
    assert out.energy.item() == pytest.approx(3 * float(lennard_jones(a, cutoff=cutoff)), rel=1e-12)
    np.testing.assert_allclose(out.stress[0], slope / a**2 * np.eye(3), atol=1e-9)


def test_fcc_argon_is_stressed_by_the_sign_of_the_strain():
    """Equilibrium near a = 1.54 σ: tension (positive, ASE) above it, pressure below."""
    potential = argon()
    pressures = [
        -predict(potential, bulk("Ar", "fcc", a=a)).stress[0].trace().item() / 3
        for a in (4.3, 4.55, 4.7, 5.0)
    ]
    assert pressures == sorted(pressures, reverse=True)
    assert pressures[0] > 1e-2
    assert pressures[-1] < -1e-4


def zbl(z1: int, z2: int, r: float) -> float:
    """Ziegler-Biersack-Littmark (1985) with e²/4πε0 = 14.3996 eV Å."""
    x = r * (z1**0.23 + z2**0.23) / 0.46850
    phi = (
        0.1818 * np.exp(-3.2 * x)
        + 0.5099 * np.exp(-0.9423 * x)
        + 0.2802 * np.exp(-0.4029 * x)
        + 0.02817 * np.exp(-0.2016 * x)
    )
    return 14.399645 * z1 * z2 / r * phi


@pytest.mark.parametrize(("symbols", "z1", "z2"), [("H2", 1, 1), ("CO", 6, 8), ("HO", 1, 8)])
def test_zbl_dimer(symbols, z1, z2):
    from ase.data import covalent_radii

    potential = Potential(ZBL(species=SPECIES), ZERO).double()
    end = covalent_radii[z1] + covalent_radii[z2]
    for r in (0.05, 0.2, 0.5 * end, 0.9 * end):
        want = zbl(z1, z2, r) * float(envelope(r / end))
        # screening constants are kept in single precision
        assert predict(potential, dimer(symbols, r)).energy.item() == pytest.approx(want, rel=1e-6)
    out = predict(potential, dimer(symbols, end), dimer(symbols, end + 0.01))
    assert out.energy.abs().max() < 1e-12, "it ends at the sum of covalent radii"
    r = np.linspace(0.02, end - 1e-3, 200)
    energy = predict(potential, *(dimer(symbols, x) for x in r)).energy.numpy()
    assert (np.diff(energy) < 0).all(), "it repels all the way"


def test_zbl_diverges_like_coulomb():
    potential = Potential(ZBL(species=SPECIES), ZERO).double()
    r = 1e-5
    energy = predict(potential, dimer("CO", r)).energy.item()
    assert energy == pytest.approx(COULOMB * 48 / r, rel=1e-3)


def test_zbl_reaches_its_widest_pair_and_no_further():
    assert ZBL(species=(1, 6)).cutoff == pytest.approx(2 * 0.76)
    assert ZBL(species=(55,)).cutoff == pytest.approx(2 * 2.44)
    assert not list(ZBL(species=(1,)).parameters())
