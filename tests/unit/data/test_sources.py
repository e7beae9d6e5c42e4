"""Several sources in one run: heads, reference energies, weights, filters, and what is refused."""

from __future__ import annotations

import json
import pickle

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from conftest import CUTOFF

from mlip.data.prepare import prepare_data
from mlip.data.sources import JoinedColumn, JoinedStore, Piece, parse_sources
from mlip.data.splits import make_splits, trained_on
from mlip.data.stats import reference_energies
from mlip.data.store import open_store
from mlip.errors import ConfigError, DataError
from mlip.training.config import load_config
from mlip.training.split_file import listed

PBE = {11: -1.5, 17: -2.5, 6: -9.0, 1: -1.1}
HYBRID = {6: -1030.0, 1: -13.5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))


def labelled(atoms: ase.Atoms, table: dict[int, float], force: float = 0.5, **info) -> ase.Atoms:
    """Energies that are exactly those of free atoms."""
    forces = np.zeros((len(atoms), 3))
    forces[0] = [force, 0, 0]
    energy = sum(table[z] for z in atoms.numbers)
    stress = {"stress": np.full(6, 0.01)} if atoms.pbc.all() else {}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, **stress)
    atoms.info.update(info)
    return atoms


def crystals(n=12):
    out = []
    for k in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.6 + 0.02 * k) * (2 if k % 3 == 0 else 1 + k % 2, 1, 1)
        if k % 3 == 0:
            del atoms[0]
        atoms.rattle(0.05, seed=k)
        out.append(labelled(atoms, PBE, force=0.1 * (k + 1), material_id=f"m{k}"))
    return out


def molecules(n=10, table=HYBRID):
    names = ["CH4", "C2H2", "C2H6", "C2H4"]
    out = []
    for k in range(n):
        atoms = molecule(names[k % 4])
        atoms.rattle(0.05, seed=k)
        out.append(labelled(atoms, table, mol_id=k))
    return out


def saved(path, frames):
    write(path, frames, format="extxyz")
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {
        "salt": saved(tmp_path / "salt.extxyz", crystals()),
        "gas": saved(tmp_path / "gas.extxyz", molecules()),
    }


def prepare(sources, seed=0, **options):
    data = load_config(["data.batch_size=4", "data.num_workers=0"])["data"]
    return prepare_data({**data, "sources": sources, **options}, cutoff=CUTOFF, seed=seed)


def both(files, **salt):
    return [
        {"path": files["salt"], "head": "pbe", **salt},
        {"path": files["gas"], "head": "hybrid"},
    ]


# -- what a configuration says -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "must be a list of tables"),
        ({"path": "a"}, "must be a list of tables"),
        (["a.extxyz"], r"data\.sources\[0\]='a.extxyz' must be a table"),
        ([{"path": "a"}, {"head": "b"}], r"data\.sources\[1\]\.path is missing"),
        ([{"path": "a", "haed": "b"}], "did you mean head"),
        ([{"path": "a", "sampling": 0}], r"sampling=0 must be a positive number"),
        ([{"path": "a", "weight": "much"}], r"weight='much' must be a positive number"),
        ([{"path": "a", "val_fraction": 1.5}], r"val_fraction=1.5 must be a fraction"),
        ([{"path": "a", "labels": ["charge"]}], r"labels=.* must list some of energy"),
        ([{"path": "a", "filter": {"max_forces": 1}}], r"did you mean max_force"),
        ([{"path": "a", "filter": {"max_force": -1}}], r"max_force=-1 must be a positive number"),
        ([{"path": "a", "filter": {"elements": ["Xx"]}}], r"elements=.* must list symbols"),
        ([{"path": "x/a"}, {"path": "y/a"}], r"the name 'a' occurs 2 times"),
        ([{"path": "a", "e0": "lstsq"}, {"path": "b", "e0": "isolated"}], "one set of reference"),
    ],
)
def test_what_is_not_understood_is_refused(sources, message):
    with pytest.raises(ConfigError, match=message):
        parse_sources({"sources": sources})


def test_train_and_sources_contradict():
    with pytest.raises(ConfigError, match=r"data\.train and data\.sources"):
        parse_sources({"train": "a", "sources": [{"path": "b"}]})


def test_a_source_says_its_own_and_takes_the_rest_from_data():
    options = load_config(
        [
            "data.sources=[{path: a.x, head: h, energy_unit: hartree, weight: 1e-1}, {path: b}]",
            "data.format=extxyz",
            "data.energy_unit=kcal/mol",
            "data.filter.max_force=30",
            "data.keys.energy=dft",
        ]
    )["data"]
    a, b = parse_sources(options)
    assert (a.name, a.head, a.format, a.weight) == ("a", "h", "extxyz", 0.1)
    assert (b.name, b.head, b.weight) == ("b", "default", 1.0)
    assert [s.reading["energy_unit"] for s in (a, b)] == ["hartree", "kcal/mol"]
    assert [s.reading["keys"] for s in (a, b)] == [{"energy": "dft"}] * 2
    assert [s.filter.max_force for s in (a, b)] == [30.0, 30.0]


def test_one_source_is_data_train(files):
    """The same structures, split, statistics and numbers in a batch."""
    plain = prepare(None, train=files["salt"])
    named = prepare([{"path": files["salt"], "head": "pbe"}])
    for part in ("train", "val"):
        np.testing.assert_array_equal(plain.parts[part][1], named.parts[part][1])
        assert plain.parts[part][0].folder == named.parts[part][0].folder
    assert plain.stats.to_dict() == named.stats.to_dict()
    assert (plain.heads, named.heads) == (("default",), ("pbe",))
    assert listed(plain.split_record()) == listed(named.split_record())


# -- from files to batches -----------------------------------------------------------------------


def test_batches_know_source_head_and_weight(files):
    data = prepare(
        [*both(files, weight=0.25), {"path": files["gas"], "name": "again", "head": "pbe"}]
    )
    assert data.heads == ("pbe", "hybrid")
    seen = set()
    for batch in data.loader("train"):
        for k in range(batch.num_graphs):
            source, head = int(batch.source[k]), int(batch.head[k])
            seen.add((source, head, float(batch.weight[k]), bool(batch.pbc[k].all())))
    assert seen == {(0, 0, 0.25, True), (1, 1, 1.0, False), (2, 0, 1.0, False)}


def test_a_joined_store_is_its_stores_behind_one_another(files):
    stores = [open_store(files["salt"]), open_store(files["gas"])]
    joined = JoinedStore([Piece(s, k, k, f"s{k}", np.arange(len(s))) for k, s in enumerate(stores)])
    joined = pickle.loads(pickle.dumps(joined))
    assert len(joined) == sum(map(len, stores))
    at = [(0, 3), (1, 0), (1, 9), (0, 11)]
    for k, row in at:
        index = row + k * len(stores[0])
        mine, theirs = joined.arrays(index), stores[k].arrays(row)
        assert (int(mine["head"][0]), int(mine["source"][0])) == (k, k)
        assert float(mine["weight"][0]) == row
        for name in set(theirs) - {"source", "weight"}:
            np.testing.assert_array_equal(mine[name], theirs[name])
        np.testing.assert_array_equal(
            joined.column("forces")[joined.atoms_of(index)], theirs["forces"]
        )
        assert joined.where(index) == f"s{k}: {stores[k].where(row)}"
    rows = np.array([3, 12, 21, 11])
    counts, species = joined.compositions(rows)
    assert species.tolist() == [1, 6, 11, 17]
    for row, (k, i) in enumerate(at):
        z = stores[k].arrays(i)["atomic_numbers"]
        assert counts[row].tolist() == [(z == s).sum() for s in species]
    for bad in (-1, len(joined)):
        with pytest.raises(IndexError):
            joined.arrays(bad)


def test_a_joined_column_is_indexed_as_an_array():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)) for n in (4, 0, 5, 1)]
    whole, column = np.concatenate(parts), JoinedColumn(parts)
    keys = [
        5, np.int64(9), slice(0, 4), slice(2, 7), slice(4, 9), slice(9, 10), slice(3, 3),
        slice(None), np.array([9, 0, 4, 4]), whole[:, 0] > 0, np.zeros(0, int),
        (np.array([1, 8]), 2), (5, 1), (slice(2, 7), 0),
    ]  # fmt: skip
    for key in keys:
        np.testing.assert_array_equal(column[key], whole[key])
    np.testing.assert_array_equal(np.isfinite(column), np.isfinite(whole))
    for bad in (np.array([10]), np.array([-1])):
        with pytest.raises(IndexError):
            column[bad]


@pytest.mark.parametrize("sampling", [1.0, 2.0, 0.5])
def test_sampling_is_how_often_a_structure_comes(files, sampling):
    data = prepare(both(files, sampling=sampling, val_fraction=0.3), seed=1)
    loader = data.loader("train")
    counts = np.zeros(2)
    for _ in range(8):
        for batch in loader:
            counts += [int((batch.source == k).sum()) for k in (0, 1)]
    salt, gas = (len(rows) for _, rows in data.chosen["train"])
    assert counts[1] == 8 * gas
    assert counts[0] == pytest.approx(8 * salt * sampling, rel=0.25 if sampling == 0.5 else 0)
    held = torch.cat([batch.source for batch in data.loader("val")])
    assert held.bincount().tolist() == [len(rows) for _, rows in data.chosen["val"]], "each once"


# -- reference energies --------------------------------------------------------------------------


def test_each_head_has_its_own_reference_energies(files):
    data = prepare(both(files, e0="lstsq"), e0="lstsq")
    pbe, hybrid = (data.stats.references[head].table for head in ("pbe", "hybrid"))
    assert pbe == pytest.approx({11: PBE[11], 17: PBE[17]}, abs=1e-6)
    assert hybrid == pytest.approx(HYBRID, abs=1e-6)
    assert data.stats.species == (1, 6, 11, 17)
    assert set(data.stats.to_dict()["e0"]) == {"pbe", "hybrid"}


def test_sources_of_one_head_share_reference_energies(files, tmp_path):
    """No crystal has carbon and no molecule sodium; the head knows both."""
    gas = saved(tmp_path / "pbe-gas.extxyz", molecules(table=PBE))
    data = prepare([{"path": files["salt"], "e0": "lstsq"}, {"path": gas}])
    assert data.heads == ("default",)
    assert data.stats.e0.table == pytest.approx(PBE, abs=1e-6)


def test_one_atom_frames_belong_to_their_head(files, tmp_path):
    atom = labelled(ase.Atoms("C", positions=[[0, 0, 0]]), {6: -1029.0}, force=0.0)
    gas = saved(tmp_path / "with-atom.extxyz", [*molecules(), atom])
    salt = saved(tmp_path / "pbe-gas.extxyz", molecules(table=PBE))
    data = prepare([{"path": salt, "head": "pbe"}, {"path": gas, "head": "hybrid"}])
    assert data.stats.references["hybrid"].table[6] == -1029.0
    assert data.stats.references["pbe"].table[6] == pytest.approx(PBE[6], abs=0.05)
    assert any("1 neutral one-atom frame(s) of with-atom" in note for note in data.notes)


@pytest.mark.parametrize("spec", ["auto", "lstsq"])
@pytest.mark.parametrize("name", ["salt", "gas"])
def test_reference_energies_do_not_depend_on_blocks(files, monkeypatch, spec, name):
    """Compositions of a hundred million structures are never in memory at once."""
    store = open_store(files[name])
    noise = np.random.default_rng(0).normal(size=len(store))
    whole, parts = (
        [reference_energies(store, np.arange(n), spec, baseline=noise[:n]) for n in (len(store), 1)]
        for size in (100, 3)
        if not monkeypatch.setattr("mlip.data.stats.BLOCK", size)
    )
    for a, b in zip(whole, parts, strict=True):
        assert a.rank == b.rank
        assert b.table == pytest.approx(a.table, rel=1e-8)
        assert b.residual_max == pytest.approx(a.residual_max, abs=1e-7)
        assert b.residual_mean == pytest.approx(a.residual_mean, abs=1e-7)


# -- splits --------------------------------------------------------------------------------------


def test_a_material_of_two_sources_is_on_one_side(files, tmp_path):
    """Same ids, other numbers of frames: whichever source is split, the other follows."""
    twin = saved(tmp_path / "twin.extxyz", [f for f in crystals() for _ in (0, 1)])
    for seed in range(5):
        data = prepare(
            [{"path": files["salt"], "head": "a"}, {"path": twin, "head": "b"}],
            seed=seed,
            val_fraction=0.3,
        )
        groups = {
            part: {(int(g)) for pool, rows in pieces for g in pool.store.column("group")[rows]}
            for part, pieces in data.chosen.items()
        }
        assert not groups["train"] & groups["val"]
        for number, total in ((0, 12), (1, 24)):
            held = sum(len(r) for pool, r in data.chosen["val"] if pool.number == number)
            assert 0 < held <= 0.5 * total


def test_a_source_of_which_nothing_is_left_is_refused(files, tmp_path):
    """Its only material is among those that another source holds out."""
    held = prepare(both(files, val_fraction=0.5)).split_record()["val"][f"salt: {files['salt']}"]
    one = saved(tmp_path / "one.extxyz", [crystals()[held[0]]])
    sources = [*both(files, val_fraction=0.5), {"path": one, "head": "pbe", "val_fraction": 0}]
    with pytest.raises(DataError, match="nothing of one is left to train on"):
        prepare(sources)


def test_every_source_gets_its_share():
    groups = np.arange(300)
    sources = np.repeat([0, 1, 2], [200, 80, 20])
    elements = np.zeros(300, dtype=int), [frozenset([1])]
    s = make_splits(
        groups, elements, val_fraction=[0.1, 0.2, 0.0], test_fraction=0.05, seed=0, sources=sources
    )
    assert np.bincount(sources[s.val], minlength=3).tolist() == [20, 16, 0]
    assert np.bincount(sources[s.test], minlength=3).tolist() == [10, 4, 1]


def test_every_head_is_trained_on_its_own_elements(files, tmp_path):
    """However many crystals of one level of theory have chlorine: one molecule of the other has."""
    odd = labelled(molecule("HCl"), PBE, mol_id="chlorine")
    gas = saved(tmp_path / "chlorine.extxyz", [*molecules(), odd])
    for seed in range(8):
        data = prepare(both({**files, "gas": gas}, val_fraction=0.3), seed)
        (pieces,) = [rows for pool, rows in data.chosen["train"] if pool.head == 1]
        assert 10 in pieces


def test_an_element_new_to_its_head_is_refused(files, tmp_path):
    odd = saved(tmp_path / "odd.extxyz", [labelled(molecule("HCl"), PBE)])
    sources = both(files)
    sources[1]["val"] = odd  # the other head knows chlorine
    with pytest.raises(DataError, match=r"odd.extxyz\) has Cl, .* of head 'hybrid'"):
        prepare(sources)
    with pytest.raises(DataError, match=r"has H, .* of head 'pbe'"):
        prepare(both(files, val=odd))


# -- labels --------------------------------------------------------------------------------------


def test_a_source_without_a_label_is_refused_unless_it_says_so(files, tmp_path):
    bare = molecules()
    for atoms in bare:
        del atoms.calc.results["forces"]
    sources = both({**files, "gas": saved(tmp_path / "bare.extxyz", bare)})
    with pytest.raises(DataError, match=r"no forces found in .*bare.extxyz"):
        prepare(sources)
    sources[1]["labels"] = ["energy"]
    assert prepare(sources).coverage.counts["train"]["forces"] > 0


# -- filters -------------------------------------------------------------------------------------


def test_the_summary_says_which_source_lacks_what(files):
    lines = prepare(both(files)).summary()
    gas = next(k for k, line in enumerate(lines) if "gas: head hybrid" in line)
    assert "energy 100%, stress 0%, forces 100%" in lines[gas + 1]


def test_what_a_filter_leaves_out_is_counted_everywhere(files):
    data = prepare(both(files, filter={"max_force": 0.95}))
    line = next(line for line in data.summary() if line.startswith("Dropped"))
    assert line == "Dropped  3 of 12 structures of salt: |F| above 0.95 eV/A"
    assert data.stats.to_dict()["dropped"] == {"salt": {"max_force": 3}}
    record = json.loads(json.dumps(listed(data.split_record())))
    assert record["dropped"] == {"max_force": {f"salt: {files['salt']}": [9, 10, 11]}}
    used = [
        i
        for part in ("train", "val", "test")
        for i in record[part].get(f"salt: {files['salt']}", [])
    ]
    assert sorted(used) == list(range(9))
    store, rows = data.parts["train"]
    assert not [i for i in rows if np.abs(store.arrays(int(i))["forces"]).max() > 0.95]


def test_nothing_is_left_out_unasked(files):
    data = prepare(both(files))
    assert sum(data.size(part) for part in ("train", "val", "test")) == 22
    assert not data.stats.dropped
    assert "dropped" not in data.split_record()
    assert not [line for line in data.summary() if line.startswith("Dropped")]


@pytest.mark.parametrize("block", [100, 5])
def test_each_rule_takes_what_it_says(tmp_path, monkeypatch, block):
    monkeypatch.setattr("mlip.data.filters.BLOCK", block)
    frames = [*crystals(), *molecules(table=PBE)]
    frames[2].calc.results["stress"][4] = -0.9
    frames[5].calc.results["energy"] += 3.0 * len(frames[5])
    frames[6].calc.results["energy"] -= 3.0 * len(frames[6])  # below is not above
    del frames[3].calc.results["stress"]  # no label, nothing to judge by
    path = saved(tmp_path / "all.extxyz", frames)

    def dropped(**rules):
        return listed(prepare(None, train=path, filter=rules).split_record()).get("dropped", {})

    assert dropped(max_stress=0.5) == {"max_stress": {path: [2]}}
    assert dropped(max_energy_above_fit=1.5) == {"max_energy_above_fit": {path: [5]}}
    assert dropped(elements=["Na", "Cl"]) == {"elements": {path: list(range(12, 22))}}
    two = dropped(elements="Na Cl", max_force=1.05)  # each by the first rule that it breaks
    assert two == {"elements": {path: list(range(12, 22))}, "max_force": {path: [10, 11]}}
    with pytest.raises(DataError, match=r"data\.filter leaves nothing \(max_force 22\)"):
        dropped(max_force=1e-6)


def test_a_filter_is_for_held_out_structures_too(files):
    data = prepare(None, train=files["salt"], val=files["salt"], filter={"max_force": 0.95})
    assert data.size("val") == 9
    assert data.stats.dropped == {"data": {"max_force": 3}, "data (val)": {"max_force": 3}}


# -- weights -------------------------------------------------------------------------------------


def test_weights_by_config_type(files, tmp_path):
    """They multiply the source's and the file's own; what is not named keeps those."""
    frames = crystals()
    for k, atoms in enumerate(frames):
        atoms.info["config_type"] = ["bulk", "surface", "liquid"][k % 3]
    frames[1].info["config_weight"] = 0.5
    path = saved(tmp_path / "kinds.extxyz", frames)
    wanted = [{"surface": 8.0, "bulk": 0.5}.get(a.info["config_type"], 1.0) for a in frames]
    wanted[1] *= 0.5
    plain = prepare(None, train=path, weights={"surface": 8, "bulk": 0.5}, val_fraction=0)
    assert "Weights  4 structures of config_type surface" in plain.summary()
    mixed = prepare(
        [
            {"path": path, "weights": {"surface": 4, "bulk": 0.25}, "weight": 2, "val_fraction": 0},
            {"path": files["gas"], "head": "hybrid"},
        ]
    )
    for data, factor in ((plain, 1.0), (mixed, 2.0)):
        store, rows = data.parts["train"]
        found = [float(store.arrays(int(i))["weight"][0]) for i in rows[:12]]
        liquid = [k for k in range(12) if k % 3 == 2]
        expected = [w * factor if k in liquid else w for k, w in enumerate(wanted)]
        assert found == expected
    with pytest.raises(DataError, match=r"config_type='srface'; .* have bulk, liquid, surface"):
        prepare(None, train=path, weights={"srface": 2.0})
    for bad in (2.0, {"bulk": -1}, {"bulk": "x"}, {}):
        with pytest.raises(ConfigError, match=r"data\.weights"):
            prepare(None, train=path, weights=bad)


# -- what is held out and trained on all the same --------------------------------------------------


def test_what_a_given_part_shares_with_any_training_structure_is_said(tmp_path, files):
    named = crystals()[:2]  # another geometry of materials that the other source trains on
    for atoms in named:
        atoms.rattle(0.1, seed=5)
    copies = molecules()[:3]  # the very structures
    new = molecules(4)
    for atoms in new:
        atoms.rattle(0.1, seed=7)
    val = saved(tmp_path / "val.extxyz", named)
    test = saved(tmp_path / "test.extxyz", copies + new)
    sources = [
        {"path": files["salt"], "head": "pbe", "val_fraction": 0.0},
        {"path": files["gas"], "head": "hybrid", "test": test, "val_fraction": 0.2},
        {"path": saved(tmp_path / "more.extxyz", crystals()[4:8]), "head": "pbe", "val": val},
    ]
    trained_on_gas = 3 - sum(
        str(files["gas"]) in key
        for key, rows in prepare(sources).split_record()["val"].items()
        for row in rows.tolist()
        if row < 3
    )
    notes = [note for note in prepare(sources).notes if "copies of training" in note]
    assert [note.split(" structures")[0] for note in notes] == ["2 of 2", f"{trained_on_gas} of 7"]
    assert "of more (val) are copies" in notes[0]
    assert "of gas (test) are copies" in notes[1]
    assert not any("copies of training" in note for note in prepare(both(files)).notes)


def test_groups_that_are_trained_on():
    rng = np.random.default_rng(0)
    held, trained = (rng.integers(0, 60, n).astype(np.uint64) * 2**57 for n in (40, 90))
    expected = np.isin(held, trained)
    assert 5 < expected.sum() < 40
    for parts in (1, 7):
        found = trained_on(held, np.array_split(trained, parts))
        np.testing.assert_array_equal(found, expected)
    assert not trained_on(held, []).any()
