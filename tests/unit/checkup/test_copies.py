"""Duplicates, leaks and elements across files, whatever was done to the copies."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from checkup_data import frames_of, save

from mlip.data.checkup import examine


def turned(atoms):
    """The same structure, turned, shifted and renumbered."""
    order = np.random.default_rng(1).permutation(len(atoms))
    out = atoms[order]
    out.info = dict(atoms.info)
    out.rotate(50, (1, 2, 3), rotate_cell=True)
    out.positions += [3.0, -1.0, 0.5]
    results = {"energy": atoms.calc.results["energy"]}
    out.calc = SinglePointCalculator(out, **results)
    return out


def found_in(*paths):
    return {f.kind: f for f in examine([str(p) for p in paths]).findings}


@pytest.mark.parametrize("name", ["molecules", "metals"])
@pytest.mark.parametrize("copy", [lambda atoms: atoms, turned])
def test_a_copy_in_the_same_file_is_a_duplicate(name, copy, tmp_path):
    frames = frames_of(name)[:60]
    path = save(tmp_path / "a.extxyz", [*frames, copy(frames[7])])
    finding = found_in(path)["duplicate"]
    assert finding.count == 1
    assert finding.examples[0].frame == 7
    assert "frame 60" in finding.examples[0].detail
    assert "leak" not in found_in(path)


@pytest.mark.parametrize("copy", [lambda atoms: atoms, turned])
def test_a_copy_in_another_file_is_a_leak(copy, tmp_path):
    frames = frames_of("molecules")
    train = save(tmp_path / "train.extxyz", frames[:100])
    val = save(tmp_path / "val.extxyz", [copy(frames[7]), *frames[100:120]])
    finding = found_in(train, val)["leak"]
    assert (finding.count, finding.severity) == (1, "error")
    assert finding.examples[0].frame == 7
    assert str(val) in finding.examples[0].detail


def test_files_of_one_folder_are_one_part(tmp_path):
    frames = frames_of("molecules")
    (tmp_path / "set").mkdir()
    save(tmp_path / "set" / "a.extxyz", frames[:50])
    save(tmp_path / "set" / "b.extxyz", frames[40:80])
    found = found_in(tmp_path / "set")
    assert found["duplicate"].count == 10
    assert "leak" not in found


def test_another_charge_is_another_structure(tmp_path):
    frames = frames_of("molecules")[:30]
    ion = frames[3].copy()
    ion.info.update(charge=frames[3].info["charge"] + 2)
    ion.calc = SinglePointCalculator(ion, energy=frames[3].calc.results["energy"])
    assert "duplicate" not in found_in(save(tmp_path / "a.extxyz", [*frames, ion]))


def test_a_small_move_is_another_structure(tmp_path):
    frames = frames_of("molecules")[:30]
    moved = frames_of("molecules")[3]
    moved.positions[0, 0] += 1e-3
    assert "duplicate" not in found_in(save(tmp_path / "a.extxyz", [*frames, moved]))


def test_atoms_far_apart_count(tmp_path):
    """Fragments beyond the cutoff of the fingerprint: another distance is another structure."""
    frames = frames_of("molecules")[:1]
    pair = []
    for distance in (8.0, 9.0):
        atoms = frames[0].copy()
        atoms.extend(frames[0].copy())
        atoms.positions[len(frames[0]) :, 0] += distance
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
        pair.append(atoms)
    assert "duplicate" not in found_in(save(tmp_path / "a.extxyz", pair))


def test_lonely_atoms_count(tmp_path):
    """No pair within the cutoff at all."""
    pair = [Atoms("He2", [[0, 0, 0], [0, 0, d]]) for d in (6.0, 7.0)]
    assert "duplicate" not in found_in(save(tmp_path / "a.extxyz", pair))
    assert "duplicate" in found_in(save(tmp_path / "b.extxyz", [*pair, pair[0]]))


def test_the_same_structure_with_two_energies(tmp_path):
    frames = frames_of("molecules")[:30]
    other = frames_of("molecules")[3]
    other.calc.results["energy"] += 0.5
    finding = found_in(save(tmp_path / "a.extxyz", [*frames, other]))["contradiction"]
    assert finding.count == 1
    assert "0.5 eV" in finding.examples[0].detail


def test_elements_that_the_first_file_lacks(tmp_path):
    frames = frames_of("molecules")
    with_n = [a for a in frames if 7 in a.numbers]
    without = [a for a in frames if 7 not in a.numbers]
    a, b = save(tmp_path / "a.extxyz", without), save(tmp_path / "b.extxyz", with_n[:5])
    finding = found_in(a, b)["new-elements"]
    assert finding.count == 5
    assert "has N, which" in finding.evidence
    assert "new-elements" not in found_in(a, save(tmp_path / "c.extxyz", without[:5]))
