"""Published data sets, read whole: counts, labels, units and signs."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from mlip.data import read_structures
from mlip.data.readers import expand_paths

EFS = {"energy", "forces", "stress"}


@pytest.mark.parametrize(
    ("name", "count", "labels"),
    [
        ("3bpa/train_300K.extxyz", 500, {"energy", "forces"}),
        ("3bpa/isolated_atoms.extxyz", 4, {"energy"}),
        ("acac/train_300K.extxyz", 500, {"energy", "forces"}),
        ("acac/test_MD_300K.extxyz", 650, {"energy", "forces"}),
        ("acac/isolated_atoms.extxyz", 3, {"energy"}),
        ("mlearn/mlearn_Cu_test.extxyz", 31, EFS),
        ("mlearn/mlearn_Si_train.extxyz", 214, EFS),
        ("molecules/small_mols_train.extxyz", 1000, {"energy", "forces"}),
        ("mptrj/mptrj-random-1k.extxyz", 1000, EFS),
        ("mptrj/mptrj-8-all-keys.extxyz", 8, EFS),
    ],
)
def test_equal_to_ase(name, count, labels, real_data):
    frames = list(read_structures(real_data / name))
    assert len(frames) == count
    wanted = ase.io.iread(real_data / name, index=":", format="extxyz")
    for got, want in zip(frames, wanted, strict=True):
        np.testing.assert_array_equal(got.numbers, want.numbers)
        np.testing.assert_array_equal(got.positions, want.positions)
        np.testing.assert_array_equal(got.cell.array, want.cell.array)
        np.testing.assert_array_equal(got.pbc, want.pbc)
        assert set(got.calc.results) - {"magmoms"} == labels
        for label in ("energy", "forces", "magmoms"):
            if label in want.calc.results:
                np.testing.assert_array_equal(got.calc.results[label], want.calc.results[label])
        if "stress" in labels:  # ASE takes one triangle, we the mean of both
            stress = want.calc.results["stress"]
            np.testing.assert_allclose(got.calc.results["stress"], stress, rtol=0, atol=1e-9)


def test_mptrj_groups_and_signs(real_data):
    frames = list(read_structures(real_data / "mptrj" / "mptrj-random-1k.extxyz"))
    assert len({a.info["group"] for a in frames}) == 998
    assert len({a.info["id"] for a in frames}) == 1000
    trace = [a.calc.results["stress"][:3].sum() for a in frames]
    order = np.argsort(trace)
    squeezed = np.median([_shortest(frames[i]) for i in order[:15]])
    stretched = np.median([_shortest(frames[i]) for i in order[-15:]])
    assert squeezed < stretched - 0.03  # negative stress is compression: atoms are closer
    with pytest.raises(ValueError, match="corrected energies were asked for"):
        list(read_structures(real_data / "mptrj" / "mptrj-random-1k.extxyz", energy="corrected"))


def _shortest(atoms):
    """Shortest distance in units of the sum of covalent radii."""
    i, j, d = neighbor_list("ijd", atoms, 4.0)
    radii = covalent_radii[atoms.numbers]
    return (d / (radii[i] + radii[j])).min()


def test_mptrj_corrected(real_data):
    path = real_data / "mptrj" / "mptrj-8-all-keys.extxyz"
    raw = [a.calc.results["energy"] for a in read_structures(path)]
    corrected = [a.calc.results["energy"] for a in read_structures(path, energy="corrected")]
    np.testing.assert_allclose(np.subtract(corrected, raw), -0.192, atol=1e-9)  # one Sb
    frames = list(read_structures(path))
    assert {a.info["group"] for a in frames} == {"mp-1028232"}
    assert sum("magmoms" in a.calc.results for a in frames) == 2


def test_omol25(real_data):
    files = expand_paths(real_data / "omol25")
    assert [f.name.split("_")[0] for f in files] == ["ani2x", "reactivity", "trans1x"]
    frames = list(read_structures(real_data / "omol25"))
    assert len(frames) == 170
    assert len({a.info["id"] for a in frames}) == 117
    assert len({a.info["group"] for a in frames}) == 11
    for atoms in frames:
        charge, spin = atoms.info["id"].split("/orca")[0].split("_")[-2:]
        assert (atoms.info["charge"], atoms.info["spin"]) == (int(charge), int(spin))
        assert (int(atoms.numbers.sum()) - int(charge) - int(spin)) % 2 == 1  # electron parity
        assert np.abs(atoms.calc.results["forces"].sum(axis=0)).max() < 1e-5  # net force removed


@pytest.mark.parametrize("name", ["ethanol", "aspirin"])
def test_rmd17(name, real_data):
    frames = list(read_structures(real_data / "rmd17" / f"rmd17_{name}_train_01.npz"))
    assert len(frames) == 1000
    per_atom = [a.calc.results["energy"] / len(a) for a in frames]
    assert np.std(per_atom) * len(frames[0]) < 1.0  # eV: kcal would give 23 times more
    forces = np.concatenate([a.calc.results["forces"] for a in frames])
    assert 0.5 < np.sqrt((forces**2).mean()) < 2.0


def test_molecule_ids_are_groups(real_data):
    frames = read_structures(real_data / "molecules" / "small_mols_train.extxyz")
    assert all(a.info["group"].isdigit() for a in frames)


def test_mlearn_keeps_its_own_group_word_out(real_data):
    frames = read_structures(real_data / "mlearn" / "mlearn_Si_test.extxyz")
    assert all("group" not in a.info for a in frames)
    frames = read_structures(real_data / "mlearn" / "mlearn_Si_test.extxyz", group="group")
    assert {a.info["group"] for a in frames} >= {"Vacancy"}
