"""One thing is made wrong in shipped first-principles data, and the doctor names that thing."""

from __future__ import annotations

import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase.stress import voigt_6_to_full_3x3_stress
from checkup_data import frames_of, save

from mlip.data.checkup import examine
from mlip.data.checkup.findings import KINDS
from mlip.units import GPA, energy_factor, force_factor

HARTREE, KCAL = energy_factor("hartree"), energy_factor("kcal/mol")


def kinds(*paths, **options) -> set[str]:
    return {finding.kind for finding in examine([str(p) for p in paths], **options).findings}


def scale(**factors):
    """Multiply labels."""

    def change(atoms, results):
        for label, factor in factors.items():
            if label in results:
                results[label] = results[label] * factor

    return change


@pytest.mark.parametrize("name", ["crystals", "molecules", "metals"])
def test_sound_data_are_silent(name, poisoned):
    assert kinds(poisoned(name)) == set()


UNITS = [
    ("crystals", scale(stress=-1), "stress-unit", "positive under compression"),
    ("crystals", scale(stress=1 / GPA), "stress-unit", "stresses in GPa"),
    ("crystals", scale(stress=-10 / GPA), "stress-unit", "stresses in kbar"),
    ("metals", scale(stress=1 / GPA), "stress-unit", "stresses in GPa"),
    ("crystals", scale(forces=-1), "force-unit", "gradients instead of forces"),
    ("crystals", scale(energy=1 / HARTREE), "force-unit", "energies in hartree"),
    ("crystals", scale(energy=27.2), "force-unit", "0.03"),
    ("crystals", scale(forces=1 / KCAL), "force-unit", "forces in kcal/mol/A"),
    ("molecules", scale(forces=-1), "force-unit", "gradients instead of forces"),
    (
        *("molecules", scale(forces=1 / force_factor("hartree/bohr"))),
        *("force-unit", "forces in hartree/bohr with energies in eV"),
    ),
    ("molecules", scale(energy=1 / KCAL, forces=1 / KCAL), "energy-unit", "in kcal/mol"),
    ("molecules", scale(energy=1 / HARTREE, forces=1 / HARTREE), "energy-unit", "in hartree"),
    (
        "molecules",
        scale(energy=1 / HARTREE, forces=1 / force_factor("hartree/bohr")),
        "energy-unit",
        "in hartree",
    ),
]


@pytest.mark.parametrize(("name", "change", "kind", "words"), UNITS)
def test_units_and_signs(name, change, kind, words, poisoned):
    found = {f.kind: f for f in examine([poisoned(name, change)]).findings}
    assert kind in found, sorted(found)
    assert words in found[kind].evidence
    assert found[kind].severity == "error"


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"stress_unit": "kbar", "stress_sign": "vasp"}, scale(stress=-10 / GPA)),
        ({"energy_unit": "hartree"}, scale(energy=1 / HARTREE, forces=1 / HARTREE)),
    ],
)
def test_what_the_options_convert_is_sound(options, change, poisoned):
    change_stress = scale(stress=1.0)
    path = poisoned("crystals", lambda a, r: (change(a, r), change_stress(a, r)))
    assert kinds(path, **options) == set()


def test_a_virial_that_is_called_stress(poisoned):
    def change(atoms, results):
        results["stress"] = results["stress"] * -atoms.get_volume()

    evidence = {f.kind: f.evidence for f in examine([poisoned("metals", change)]).findings}
    assert "virials instead of stresses" in evidence["stress-unit"]


def set_label(label, value):
    def change(atoms, results):
        results[label] = np.full_like(results[label], value) if np.ndim(results[label]) else value

    return change


def nan_force(atoms, results):
    results["forces"][-1, 0] = np.nan


def flatten(atoms, results):
    atoms.cell[2] = atoms.cell[0] + [0, 0, 1e-3]


def far_away(atoms, results):
    atoms.positions[0] = 1e200


def shift_energy(atoms, results):
    results["energy"] += 40.0 * len(atoms)


def drop(label):
    def change(atoms, results):
        results.pop(label)

    return change


def other_ref(atoms, results):
    atoms.info["REF_energy"] = results["energy"] + 0.5


def fix_and_zero(atoms, results):
    atoms.set_constraint(FixAtoms([0]))
    results["forces"] = results["forces"] + [[0.1, 0, 0]]
    results["forces"][0] = 0.0


def push(atoms, results):
    results["forces"] = results["forces"] + [0.0, 0.4, 0.0]


def overlap(atoms, results):
    atoms.positions[1] = atoms.positions[0] + [0.2, 0, 0]


def squeeze(atoms, results):
    atoms.set_cell(atoms.cell * 0.529, scale_atoms=True)


def squeeze_molecule(atoms, results):
    atoms.positions *= 0.529


def lose_pbc(atoms, results):
    results.pop("stress")
    atoms.pbc = False


def only_flags(atoms, results):
    atoms.pbc = [True, True, False]


def odd(atoms, results):
    atoms.info["spin"] = atoms.info.get("spin", 1) + 1


FEW = slice(3, 9)
FRAMES = [
    ("metals", nan_force, FEW, "not-finite"),
    ("metals", set_label("energy", np.nan), FEW, "not-finite"),
    ("metals", set_label("energy", -1e200), FEW, "absurd"),
    ("molecules", far_away, FEW, "absurd"),
    ("metals", flatten, FEW, "absurd"),
    ("molecules", set_label("energy", 0.0), FEW, "zero-filled"),
    ("molecules", set_label("forces", 0.0), FEW, "zero-filled"),
    ("metals", set_label("stress", 0.0), slice(30, 40), "zero-filled"),
    ("metals", shift_energy, slice(5, 7), "energy-outlier"),
    ("crystals", shift_energy, slice(5, 7), "energy-outlier"),
    ("molecules", shift_energy, slice(5, 7), "energy-outlier"),
    ("metals", drop("energy"), FEW, "partly-labelled"),
    ("metals", drop("stress"), FEW, "partly-labelled"),
    ("molecules", drop("forces"), FEW, "partly-labelled"),
    ("metals", drop("energy"), slice(None), "no-energy"),
    ("metals", other_ref, slice(None), "two-labels"),
    ("metals", fix_and_zero, slice(150, 160), "forces-zeroed"),
    ("metals", push, slice(150, 160), "net-force"),
    ("metals", overlap, FEW, "overlap"),
    ("metals", squeeze, FEW, "close"),
    ("molecules", squeeze_molecule, slice(None), "close"),
    ("metals", lose_pbc, FEW, "pbc-lost"),
    ("metals", only_flags, FEW, "stress-not-periodic"),
    ("molecules", odd, FEW, "parity"),
]


@pytest.mark.parametrize(("name", "change", "which", "kind"), FRAMES)
def test_faults_of_frames(name, change, which, kind, poisoned):
    found = {f.kind: f for f in examine([poisoned(name, change, which)]).findings}
    assert kind in found, sorted(found)
    changed = range(*which.indices(10**6))
    assert all(e.frame in changed for e in found[kind].examples if e.frame is not None)
    if which != slice(None) and kind != "not-finite":
        assert found[kind].count <= len(changed)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_virial_and_a_stress_must_agree(sign, poisoned):
    def change(atoms, results):
        stress = voigt_6_to_full_3x3_stress(results["stress"])
        atoms.info["REF_virial"] = sign * atoms.get_volume() * stress

    assert ("two-labels" in kinds(poisoned("metals", change))) == (sign > 0)


def test_labels_that_belong_to_other_structures(tmp_path):
    frames = frames_of("metals")
    order = np.random.default_rng(0).permutation(len(frames))
    results = [atoms.calc.results for atoms in frames]
    for atoms, other in zip(frames, order, strict=True):
        atoms.calc.results = results[other]
    assert "unrelated" in kinds(save(tmp_path / "a.extxyz", frames))


@pytest.mark.parametrize(
    ("name", "label", "factor", "kind"),
    [
        ("molecules", "forces", 1 / KCAL, "force-size"),
        ("crystals", "stress", -100 / GPA, "stress-size"),
    ],
)
def test_sizes_speak_where_nothing_can_be_compared(name, label, factor, kind, tmp_path):
    """One frame of each composition: no two frames are neighbours."""
    frames = list({a.numbers.tobytes(): a for a in frames_of(name)}.values())
    assert kind not in kinds(save(tmp_path / "sound.extxyz", frames))
    for atoms in frames:
        atoms.calc.results[label] *= factor
    assert kind in kinds(save(tmp_path / "a.extxyz", frames))


def test_two_levels_of_theory_in_one_file(poisoned):
    def change(atoms, results):
        results["energy"] -= 1000.0 * len(atoms)

    found = kinds(poisoned("metals", change, slice(0, None, 2)))
    assert "energy-scatter" in found


def test_every_kind_has_a_test(request):
    """What the table promises is planted somewhere in this folder."""
    folder = request.path.parent
    tests = "".join(path.read_text() for path in folder.glob("test_*.py"))
    missing = [kind for kind in KINDS if f'"{kind}"' not in tests]
    assert missing == []
