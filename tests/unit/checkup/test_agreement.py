"""The work of forces and stresses between neighbouring frames, on energies known to be right."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from checkup_data import frames_of

from mlip.data.checkup.agreement import slopes
from mlip.data.checkup.pairs import ENOUGH, PAIR, THIN, PairFinder, labelled


def computed(atoms):
    """The same structure with EMT's labels."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    names = ("energy", "forces", "stress") if atoms.pbc.all() else ("energy", "forces")
    results = {name: atoms.calc.get_property(name, atoms) for name in names}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def row(*frames):
    finder = PairFinder()
    for atoms in frames:
        finder.offer(labelled(computed(atoms)))
    (found,) = finder.pairs()
    return found


def crystal(seed=1, strain=0.0, rattle=0.05):
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * rng.normal(size=(3, 3))), True)
    atoms.positions += rattle * rng.normal(size=(4, 3))
    return atoms


def ethanol(seed=1):
    atoms = molecule("CH3CH2OH")
    atoms.positions += 0.02 * np.random.default_rng(seed).normal(size=(9, 3))
    return atoms


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (crystal(1), crystal(2)),
        (crystal(1), crystal(1, strain=0.01)),
        (crystal(1, strain=0.01), crystal(2, strain=0.015)),
        (ethanol(1), ethanol(2)),
    ],
)
def test_work_is_the_change_of_the_energy(a, b):
    """The rule leaves an error of third order in the step: halved steps leave an eighth."""
    errors = []
    for part in (0.5, 0.25):
        between = a.copy()
        between.set_cell(a.cell.array + part * (b.cell.array - a.cell.array))
        between.positions = a.positions + part * (b.positions - a.positions)
        if a.pbc.any():  # straight lines in fractional coordinates, as the rule goes
            scaled = a.get_scaled_positions(wrap=False)
            step = b.get_scaled_positions(wrap=False) - scaled
            between.positions = (scaled + part * step) @ between.cell.array
        found = row(a, between)
        work = found["by_forces"] + found["by_stress"]
        errors.append(found["energy"] - work)
        assert abs(found["energy"]) > 10 * abs(errors[-1])
    assert abs(errors[1]) < abs(errors[0]) / 6  # of second order, it would be a quarter


def test_images_do_not_matter():
    a, b = crystal(1), crystal(2, strain=0.01)
    moved = b.copy()
    moved.positions += np.array([[3, 0, -1], [0, 2, 0], [-1, 0, 0], [0, 0, 1]]) @ b.cell.array
    moved.positions += [0.7, 0.1, -0.3]
    for name in ("energy", "by_forces", "by_stress"):
        assert row(a, moved)[name] == pytest.approx(row(a, b)[name], abs=1e-8)


def test_turning_a_molecule_does_not_matter():
    a, b = ethanol(1), ethanol(2)
    turned = b.copy()
    turned.rotate(100, (1, 2, 3))
    turned.positions += 5.0
    assert row(a, turned)["by_forces"] == pytest.approx(row(a, b)["by_forces"], abs=1e-8)


def test_far_frames_are_no_neighbours():
    finder = PairFinder()
    for atoms in (
        crystal(1),
        crystal(2, rattle=0.8),
        crystal(3, strain=0.2),
        bulk("Cu") * (2, 1, 1),
    ):
        finder.offer(labelled(computed(atoms)))
    assert len(finder.pairs()) == 0


def test_jumps_of_the_energy_do_not_decide():
    """Every sixth frame comes from another calculation, as the two relaxations of MPtrj do."""
    finder = PairFinder()
    for number, atoms in enumerate(frames_of("crystals")):
        atoms.calc.results["energy"] += 5.0 if number % 6 == 0 else 0.0
        finder.offer(labelled(atoms))
    forces, stress, _ = slopes(finder.pairs())
    assert forces.right
    assert stress.right


@pytest.mark.parametrize("factor", [1.0, -1.0, 160.2, -1602.0, 0.04])
def test_slopes_are_recovered_beside_outliers(factor):
    """Both slopes at once, from works whose sizes differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    pairs = np.zeros(200, dtype=PAIR)
    pairs["by_forces"], pairs["by_stress"] = 0.1 * rng.normal(size=(2, 200))
    pairs["by_stress"][::3] = 0.0
    pairs["energy"] = pairs["by_forces"] / 2.0 + pairs["by_stress"]
    pairs["energy"][::7] += 3.0
    pairs["by_stress"] *= factor
    for kind in ("force", "stress"):
        terms = np.abs(pairs[f"by_{kind}s" if kind == "force" else "by_stress"])
        pairs[f"{kind}_scale"] = terms
    forces, stress, _ = slopes(pairs)
    assert forces.value == pytest.approx(2.0, rel=0.02)
    assert stress.value == pytest.approx(factor, rel=0.02)


def test_what_cannot_be_told_says_why():
    still = PairFinder()
    for seed in range(8):
        still.offer(labelled(computed(crystal(seed))))
    forces, stress, _ = slopes(still.pairs())
    assert forces.right
    assert (stress.right, stress.reason) == (None, "volumes hardly move between frames")
    forces, stress, together = slopes(PairFinder().pairs())
    assert (forces.value, stress.value, together) == (None, None, 0.0)
    assert forces.reason == "too few neighbouring frames"


@pytest.mark.parametrize(("pairs", "told"), [(10, None), (60, False)])
def test_a_factor_of_two_needs_more_evidence_than_one_of_a_hundred(pairs, told):
    rows = np.zeros(pairs, dtype=PAIR)
    rows["energy"] = np.random.default_rng(0).normal(size=pairs)
    rows["by_forces"] = 2.0 * rows["energy"]
    rows["force_scale"] = np.abs(rows["by_forces"])
    assert slopes(rows)[0].right is told
    rows["by_forces"] *= 50
    assert slopes(rows)[0].right is False


def test_long_files_are_sampled(monkeypatch):
    monkeypatch.setattr("mlip.data.checkup.pairs.ENOUGH", 20)
    finder = PairFinder()
    frame = [computed(crystal(seed)) for seed in range(4)]
    for number in range(20 + 10 * THIN):
        finder.offer(labelled(frame[number % 4]))
    assert 20 < len(finder.pairs()) < 20 + 4 * THIN < ENOUGH
