"""Store, splits, statistics, batches: what happens between a file and a batch."""

from __future__ import annotations

import pickle

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip.data.batching import Budget, GraphLoader
from mlip.data.prepare import prepare_data
from mlip.data.splits import make_splits
from mlip.data.stats import fit_reference_energies, free_atom_energy
from mlip.data.store import Store, open_store
from mlip.errors import ConfigError, DataError
from mlip.graph import structure_arrays
from mlip.training.run import train

OPTIONS = {
    "train": None, "val": None, "test": None, "val_fraction": 0.2, "test_fraction": 0.0,
    "format": "auto", "group": "auto", "energy": "uncorrected", "keys": {}, "e0": "auto",
    "batch_size": 4, "max_atoms": None, "max_edges": None, "num_workers": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))


def frames(n=20, labels=("energy", "forces", "stress")):
    rng = np.random.default_rng(0)
    out = []
    for k in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.6 + 0.02 * k) * (1 + k % 2, 1, 1)
        atoms.rattle(0.1, seed=k)
        results = {
            "energy": -3.0 * len(atoms) + rng.normal(),
            "forces": rng.normal(size=(len(atoms), 3)),
            "stress": rng.normal(size=6) * 0.01,
        }
        atoms.calc = SinglePointCalculator(atoms, **{k: results[k] for k in labels})
        atoms.info["material_id"] = f"m{k // 2}"
        out.append(atoms)
    return out


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a b=c.extxyz"
    write(path, frames(), format="extxyz")
    return path


def test_store_holds_what_the_file_holds(file):
    store = open_store(file)
    for k, atoms in enumerate(frames()):
        given = structure_arrays(atoms)
        for name, value in store.arrays(k).items():
            if name in given:
                np.testing.assert_allclose(value, given[name], atol=1e-7, err_msg=name)
    assert np.isnan(store.arrays(0)["magmoms"]).all()
    for bad in (-1, len(store)):
        with pytest.raises(IndexError):
            store.arrays(bad)


def test_store_is_built_once_and_again_when_damaged(file, caplog):
    first = open_store(file)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    assert (open_store(file).folder / "manifest.json").stat().st_mtime_ns == stamp
    (energies,) = first.folder.glob("shards/*/energy.bin")
    with energies.open("ab") as handle:
        handle.write(b"x")
    again = open_store(file)
    assert energies.stat().st_size == 8 * len(again)
    write(file, frames(6), format="extxyz")
    assert len(open_store(file)) == 6, "a changed file is read again"


def test_a_store_names_its_files_as_the_caller_does(file, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    first = open_store(file.name)
    monkeypatch.chdir(other)
    again = open_store(f"../{file.name}")
    assert again.folder == first.folder
    assert pickle.loads(pickle.dumps(again)).sources == again.sources == [f"../{file.name}"]
    assert again.where(3) == f"../{file.name}, frame 3"


def test_store_travels_as_a_path(file):
    store = open_store(file)
    state = store.__getstate__()
    assert list(state) == ["folder", "sources"]
    twin = Store.__new__(Store)
    twin.__setstate__(state)
    np.testing.assert_array_equal(twin.column("energy"), store.column("energy"))


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_disjoint_grouped_and_complete(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 30, 200)
    sets = [frozenset(rng.choice(8, 2).tolist()) for _ in range(199)] + [frozenset([99])]
    elements = np.arange(200), sets
    s = make_splits(groups, elements, val_fraction=0.2, test_fraction=0.1, seed=seed)
    parts = [set(p.tolist()) for p in (s.train, s.val, s.test)]
    assert set().union(*parts) == set(range(200))
    assert sum(map(len, parts)) == 200
    by_group = [{int(groups[i]) for i in p} for p in parts]
    assert not by_group[0] & by_group[1]
    assert not by_group[0] & by_group[2]
    assert not by_group[1] & by_group[2]
    assert 199 in parts[0], "the only structure with its element must be trained on"
    again = make_splits(groups, elements, val_fraction=0.2, test_fraction=0.1, seed=seed)
    np.testing.assert_array_equal(again.val, s.val)


def test_frames_of_one_material_stay_together(file):
    """From the file to the parts: frames 2k and 2k + 1 are of material k."""
    for seed in range(5):
        parts = prepare_data({**OPTIONS, "train": str(file)}, cutoff=4.0, seed=seed).parts
        rows = {p: store.column("sample_id")[indices] for p, (store, indices) in parts.items()}
        assert len(rows["val"]) == 4
        assert not set((rows["train"] // 2).tolist()) & set((rows["val"] // 2).tolist())


def test_a_giant_group_is_trained_on():
    groups = np.repeat([0, 1, 2, 3], [900, 40, 30, 30])
    for seed in range(6):
        s = make_splits(
            groups,
            (np.zeros(1000, dtype=int), [frozenset([1])]),
            val_fraction=0.1,
            test_fraction=0.0,
            seed=seed,
        )
        assert 30 <= len(s.val) <= 150
        assert len(s.train) >= 850


def test_an_empty_validation_set_is_said():
    elements = np.array([0, 0, 1, 2]), [frozenset([1]), frozenset([2]), frozenset([3])]
    s = make_splits(np.array([0, 0, 1, 2]), elements, val_fraction=0.3, test_fraction=0.0, seed=0)
    assert len(s.val) == 0
    assert any("nothing is left for val" in note for note in s.notes)


def test_a_flipped_byte_is_noticed(file):
    store = open_store(file)
    (path,) = store.folder.glob("shards/*/energy.bin")
    content = bytearray(path.read_bytes())
    content[5] ^= 0xFF
    path.write_bytes(bytes(content))
    np.testing.assert_allclose(open_store(file).column("energy"), [
        a.calc.results["energy"] for a in frames()
    ])  # fmt: skip


def test_overlapping_atoms_are_named(tmp_path):
    bad = frames(3)
    bad[2].positions[1] = bad[2].positions[0] + [0.1, 0, 0]
    write(tmp_path / "o.extxyz", bad, format="extxyz")
    with pytest.raises(DataError, match=r"frame 2: atoms . and . are 0\.100 A apart"):
        open_store(tmp_path / "o.extxyz")


def test_an_abandoned_pass_costs_the_next_one_nothing(file):
    loader = GraphLoader(open_store(file), np.arange(20), 4.0, Budget(4))
    next(iter(loader))
    assert sum(b.num_graphs for b in loader) == 20


def test_exact_duplicates_never_leak(tmp_path):
    same = frames(10)
    for atoms in same:
        del atoms.info["material_id"]
    write(tmp_path / "d.extxyz", same + [a.copy() for a in same], format="extxyz")
    store = open_store(tmp_path / "d.extxyz")
    np.testing.assert_array_equal(store.column("group")[:10], store.column("group")[10:])


def test_reference_energies_are_recovered():
    rng = np.random.default_rng(0)
    species = np.array([1, 6, 8])
    counts = rng.integers(1, 9, (50, 3)).astype(float)
    for truth in ([-13.6, -1030.0, -2043.0], [-1.1, -1.2, -1.9]):
        energies = counts @ np.array(truth)
        for spec in ("auto", "lstsq"):
            fit = fit_reference_energies(counts, species, energies, spec)
            np.testing.assert_allclose(list(fit.table.values()), truth, rtol=1e-3, atol=2e-3)
            assert fit.rank == 3


def test_one_composition_gives_sense():
    """Ethanol only: the data fix one number, the free-atom table the rest."""
    counts = np.tile([6.0, 2.0, 1.0], (30, 1))
    fit = fit_reference_energies(counts, np.array([1, 6, 8]), np.full(30, -4211.0))
    assert fit.rank == 1
    assert counts[0] @ list(fit.table.values()) == pytest.approx(-4211, rel=1e-3)
    assert -20 < fit.table[1] < -10
    assert -1100 < fit.table[6] < -950
    assert -2200 < fit.table[8] < -1900
    valence = fit_reference_energies(counts, np.array([1, 6, 8]), np.full(30, -46.0))
    assert all(-10 < e < -2 for e in valence.table.values())


def test_free_atom_formula():
    for z, energy in ((1, -13.6), (6, -1029.5), (8, -2043.5), (26, -34374.0)):
        assert free_atom_energy(np.array(z)) == pytest.approx(energy, rel=0.1)


def test_explicit_tables_and_isolated_atoms():
    counts, species, energies = np.array([[1.0, 1.0]]), np.array([1, 8]), np.array([-10.0])
    assert fit_reference_energies(counts, species, energies, {"H": -1, "O": -2}).table == {
        1: -1,
        8: -2,
    }
    with pytest.raises(DataError, match="no energy for O"):
        fit_reference_energies(counts, species, energies, {"H": -1})
    fit = fit_reference_energies(counts, species, energies, "auto", {1: -4.0})
    assert fit.table[1] == -4.0
    assert fit.table[8] == pytest.approx(-6, abs=0.1)
    with pytest.raises(ConfigError, match=r"data\.e0"):
        fit_reference_energies(counts, species, energies, "no-such-file")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "budget",
    [Budget(4), Budget(6), Budget(None, max_atoms=9), Budget(None, None, max_edges=400)],
)
def test_every_structure_once_per_epoch_whatever_the_workers(file, budget, workers):
    store = open_store(file)
    loader = GraphLoader(
        store, np.arange(20), 4.0, budget, seed=3, shuffle=True, num_workers=workers
    )
    reference = GraphLoader(store, np.arange(20), 4.0, budget, seed=3, shuffle=True)
    orders = []
    for _ in range(2):
        batches = list(loader)
        orders.append([int(i) for b in batches for i in b.sample_id])
        assert sorted(orders[-1]) == list(range(20))
        expected = [b.sample_id.tolist() for b in reference]
        assert [b.sample_id.tolist() for b in batches] == expected
        if budget.max_atoms:
            assert max(len(b.atomic_numbers) for b in batches) <= 9
        if budget.max_edges:
            assert max(b.edge_index.shape[1] for b in batches) <= 400
    assert orders[0] != orders[1], "epochs are shuffled differently"


def test_a_loader_continues_in_the_middle_of_an_epoch(file):
    store = open_store(file)
    make = lambda: GraphLoader(store, np.arange(20), 4.0, Budget(4), seed=1, shuffle=True)  # noqa: E731
    whole = [b.sample_id.tolist() for b in make()]
    stopped = make()
    iterator = iter(stopped)
    first = [next(iterator).sample_id.tolist() for _ in range(2)]
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [b.sample_id.tolist() for b in resumed] == whole


def test_a_structure_beyond_the_budget_is_named(file):
    with pytest.raises(DataError, match=r"frame 1 has 4 atoms, more than data.max_atoms=3"):
        GraphLoader(open_store(file), np.arange(20), 4.0, Budget(None, max_atoms=3))


def test_missing_labels_refuse_and_name_the_keys(tmp_path):
    path = tmp_path / "x.extxyz"
    bare = frames(labels=())
    for atoms in bare:
        atoms.info["dft_energy"] = -1.0
    write(path, bare, format="extxyz")
    with pytest.raises(DataError, match=r"no energy found.*dft_energy.*data\.keys\.energy"):
        prepare_data({**OPTIONS, "train": str(path)}, cutoff=4.0, seed=0)
    found = prepare_data(
        {**OPTIONS, "train": str(path), "keys": {"energy": "dft_energy"}},
        cutoff=4.0,
        seed=0,
        required_labels=["energy"],
    )
    assert found.coverage.counts["train"]["energy"] == found.size("train")


def test_crystals_without_stress_refuse_whatever_their_file_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.frames", frames(labels=("energy", "forces")), format="extxyz")
    with pytest.raises(DataError, match=r"no stress found.*material_id.*loss\.stress_weight=0"):
        train(["data.train=x.frames", "data.format=extxyz"])


def test_an_element_only_validation_has_is_named(tmp_path, file):
    other = frames(4)
    for atoms in other:
        atoms.numbers[0] = 92
    write(tmp_path / "v.extxyz", other, format="extxyz")
    options = {**OPTIONS, "train": str(file), "val": str(tmp_path / "v.extxyz")}
    with pytest.raises(DataError, match=r"val .* has U"):
        prepare_data(options, cutoff=4.0, seed=0)


def test_one_atom_frames_define_e0_and_are_not_trained_on(tmp_path):
    lone = []
    for symbol, energy in (("Na", -1.5), ("Cl", -2.5)):
        atom = ase.Atoms(symbol, [[0, 0, 0]])
        atom.calc = SinglePointCalculator(atom, energy=energy)
        lone.append(atom)
    write(tmp_path / "x.extxyz", lone + frames(), format="extxyz")
    data = prepare_data({**OPTIONS, "train": str(tmp_path / "x.extxyz")}, cutoff=4.0, seed=0)
    assert data.stats.e0.table == {11: -1.5, 17: -2.5}
    assert data.size("train") + data.size("val") == 20
    assert any("one-atom" in note for note in data.notes)


def lone_atom(symbol, energy, **info):
    atom = ase.Atoms(symbol, [[0, 0, 0]], info=info)
    atom.calc = SinglePointCalculator(atom, energy=energy, forces=np.zeros((1, 3)))
    return atom


def test_only_one_atom_frames_that_define_e0_are_left_out(tmp_path, file):
    lone = [lone_atom("Na", -1.5), lone_atom("Cl", -2.5), lone_atom("Na", 3.6, charge=1)]
    write(tmp_path / "x.extxyz", lone + frames(), format="extxyz")
    options = {**OPTIONS, "train": str(tmp_path / "x.extxyz")}
    data = prepare_data(options, cutoff=4.0, seed=0)
    assert data.size("train") + data.size("val") == 21  # the ion stays
    assert any(note.startswith("2 neutral one-atom frame(s) of data.train") for note in data.notes)
    assert data.stats.e0.table[11] == -1.5
    data = prepare_data({**options, "e0": "lstsq"}, cutoff=4.0, seed=0)
    assert data.size("train") + data.size("val") == 23
    assert not any("one-atom" in note for note in data.notes)
    options = {**OPTIONS, "train": str(file), "val": options["train"]}
    assert prepare_data(options, cutoff=4.0, seed=0).size("val") == 23


def test_a_file_of_free_atoms_is_read_as_the_training_data_are(tmp_path, file):
    """Its unit and keys are the data's, ions are no reference, the ground state of several is."""
    lines = ("Na dft=-1.5", "Na dft=-2.0", "Na dft=-9.0 charge=-1", "Cl dft=-2.5")
    text = "".join(f"1\n{words[3:]}\n{words[:2]} 0 0 0\n" for words in lines)
    (tmp_path / "atoms").write_text(text)
    structures = frames()
    for atoms in structures:
        atoms.info["dft"] = -1.0
    write(tmp_path / "x.extxyz", structures, format="extxyz")
    options = {
        **OPTIONS, "train": str(tmp_path / "x.extxyz"), "keys": {"energy": "dft"},
        "energy_unit": "kcal/mol", "force_unit": "eV/A", "group": "material_id",
        "format": "extxyz", "e0": str(tmp_path / "atoms"),
    }  # fmt: skip
    e0 = prepare_data(options, cutoff=4.0, seed=0).stats.e0
    kcal = 0.0433641153  # CODATA: eV in a kcal/mol
    assert e0.table == pytest.approx({11: -2.0 * kcal, 17: -2.5 * kcal})
    assert e0.method == "table atoms"
    (tmp_path / "atoms").write_text(text.partition("1\ndft=-2.5")[0])
    with pytest.raises(DataError, match=r"atoms' has no energy for Cl"):
        prepare_data(options, cutoff=4.0, seed=0)


def test_torch_geometric_dataset(file):
    from torch_geometric.loader import DataLoader

    from mlip.data.dataset import GraphDataset
    from mlip.graph import AtomGraph

    data = GraphDataset(open_store(file), cutoff=4.0)
    batch = AtomGraph.from_pyg(next(iter(DataLoader(data, batch_size=3))))
    assert batch.num_graphs == 3
    assert batch.edge_index.max() == len(batch.atomic_numbers) - 1
    assert torch.isfinite(batch.energy).all()


def test_real_mptrj_sample(real_data):
    data = prepare_data(
        {**OPTIONS, "train": str(real_data / "mptrj" / "mptrj-random-1k.extxyz")},
        cutoff=5.0,
        seed=0,
    )
    assert len(data.stats.species) == 85
    assert data.coverage.counts["train"]["stress"] == data.size("train")
    assert 30 < data.stats.avg_num_neighbors < 50
    assert data.stats.e0.residual_mean < 1.0


def test_real_omol_sample(real_data):
    data = prepare_data({**OPTIONS, "train": str(real_data / "omol25")}, cutoff=5.0, seed=0)
    assert data.size("train") + data.size("val") == 170
    assert data.stats.charge_spin
    assert data.coverage.counts["train"]["stress"] == 0
    assert data.stats.e0.residual_mean < 2.0


def test_e0_from_a_file_is_read_as_the_data_are(tmp_path):
    """The lowest neutral atom counts, in the units of `data.energy_unit`."""
    from mlip.data.stats import _read_table

    path = tmp_path / "atoms.extxyz"
    frames = [("dft=-10.0", 0), ("dft=-12.0", 0), ("dft=-99.0", 1)]
    path.write_text(
        "".join(
            f'1\nProperties=species:S:1:pos:R:3 {label} charge={charge} pbc="F F F"\nC 0 0 0\n'
            for label, charge in frames
        )
    )
    table = _read_table(path, {"keys": {"energy": "dft"}, "energy_unit": "kcal/mol"})
    assert table == {6: pytest.approx(-12.0 * 0.0433641153, rel=1e-6)}
