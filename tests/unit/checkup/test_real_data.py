"""Genuine published files: what is wrong with them is found, and nothing else."""

from __future__ import annotations

import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from checkup_data import save

from mlip.data.checkup import examine
from mlip.data.readers import read_structures
from mlip.units import GPA, energy_factor, force_factor

# Copies of structures are really there; nothing else may be found.
WITH_COPIES = ("mlearn_Cu_train", "mlearn_Si", "ani2x", "reactivity", "trans1x")
HARTREE, KCAL = energy_factor("hartree"), energy_factor("kcal/mol")


def test_genuine_files_raise_no_false_alarm(real_data):
    files = sorted(p for s in ("extxyz", "aselmdb", "npz") for p in real_data.rglob(f"*.{s}"))
    assert len(files) >= 18
    for file in files:
        found = {finding.kind for finding in examine([file]).findings}
        allowed = {"duplicate"} if file.name.startswith(WITH_COPIES) else set()
        assert found <= allowed, (file, found)


def test_published_splits_do_not_leak(real_data):
    for train, test in (("3bpa/train_300K", "3bpa/test_300K"), ("acac/train_300K", "acac/test_MD")):
        files = [next(real_data.glob(f"{name}*.extxyz")) for name in (train, test)]
        assert examine(files).findings == []


POISONS = [
    ("mlearn/mlearn_Si_train.extxyz", {"stress": -1.0}, "stress-unit", "positive under"),
    ("mlearn/mlearn_Cu_train.extxyz", {"stress": 1 / GPA}, "stress-unit", "in GPa"),
    ("mlearn/mlearn_Cu_train.extxyz", {"stress": -10 / GPA}, "stress-unit", "in kbar"),
    ("mlearn/mlearn_Si_train.extxyz", {"forces": -1.0}, "force-unit", "gradients"),
    ("mlearn/mlearn_Si_train.extxyz", {"energy": 27.2}, "force-unit", "0.03"),
    ("3bpa/test_300K.extxyz", {"energy": 1 / HARTREE}, "energy-unit", "hartree"),
    ("3bpa/test_300K.extxyz", {"forces": 1 / KCAL}, "force-unit", "kcal/mol/A"),
    (
        "acac/train_300K.extxyz",
        {"forces": 1 / force_factor("hartree/bohr")},
        *("force-unit", "hartree/bohr"),
    ),
    (
        "rmd17/rmd17_ethanol_train_01.npz",
        {"energy": 1 / KCAL, "forces": 1 / KCAL},
        *("energy-unit", "kcal/mol"),
    ),
    ("rmd17/rmd17_ethanol_train_01.npz", {"forces": -1.0}, "force-unit", "gradients"),
    ("molecules/small_mols_train.extxyz", {"energy": 1 / KCAL}, "energy-unit", "kcal/mol"),
    ("mptrj/mptrj-random-1k.extxyz", {"stress": -10 / GPA}, "stress-size", "eV/A^3"),
    ("mptrj/mptrj-random-1k.extxyz", {"energy": 27.2}, "energy-scatter", "eV/atom"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "factors", "kind", "words"), POISONS)
def test_poisoned_genuine_files(name, factors, kind, words, real_data, tmp_path):
    frames = []
    for atoms in read_structures(real_data / name):
        results = {k: v * factors.get(k, 1.0) for k, v in atoms.calc.results.items()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    found = {f.kind: f for f in examine([save(tmp_path / "a.extxyz", frames)]).findings}
    assert kind in found, sorted(found)
    assert words in found[kind].evidence
