"""The same data reads the same from every form that can hold it."""

from __future__ import annotations

import numpy as np
import pytest

from mlip.data import read_structures
from mlip.data.batching import collate_indices
from mlip.data.readers import expand_paths
from mlip.data.readers.checks import as_floats
from mlip.data.store import Store, build
from mlip.errors import DataError
from mlip.graph import SCHEMA, AtomGraph, collate

MOLECULAR = ["extxyz", "extxyz REF", "traj", "db", "db data", "json db", "aselmdb", "npz"]
CRYSTAL = [
    *["extxyz", "extxyz REF", "extxyz matbench", "extxyz per material"],
    *["traj", "db", "db data", "json db", "aselmdb", "mptrj", "matpes", "matpes lines"],
]


def assert_same(read, wanted, info):
    assert len(read) == len(wanted)
    for got, want, expected_info in zip(read, wanted, info, strict=True):
        np.testing.assert_array_equal(got.numbers, want.numbers)
        np.testing.assert_array_equal(got.pbc, want.pbc)
        np.testing.assert_allclose(got.positions, want.positions, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.cell.array, want.cell.array, rtol=0, atol=1e-12)
        assert set(got.arrays) == {"numbers", "positions"}
        assert not got.constraints
        assert got.info == expected_info
        assert set(got.calc.results) == set(want.calc.results)
        for name, value in want.calc.results.items():
            result = got.calc.results[name]
            np.testing.assert_allclose(result, value, rtol=1e-13, atol=1e-13)
            assert np.asarray(result).dtype == np.float64
        assert type(got.calc.results["energy"]) is float


@pytest.mark.parametrize("form", MOLECULAR)
def test_molecules(form, forms, molecules):
    info = [
        {**a.info, "group": "C2H6O", "id": a.info["source"]}
        if form != "npz"
        else {"charge": a.info["charge"], "spin": a.info["spin"]}
        for a in molecules
    ]
    assert_same(list(read_structures(forms[form](molecules))), molecules, info)


@pytest.mark.parametrize("form", CRYSTAL)
def test_crystals(form, forms, crystals):
    info = [{"group": a.info["mp_id"], "id": _frame_id(a)} for a in crystals]
    assert_same(list(read_structures(forms[form](crystals))), crystals, info)


def _frame_id(atoms):
    return f"{atoms.info['task_id']}-{atoms.info['calc_id']}-{atoms.info['ionic_step']}"


@pytest.mark.parametrize("form", CRYSTAL)
def test_keep_info_keeps_what_the_file_had(form, forms, crystals):
    wanted = crystals[2]
    (got,) = list(read_structures(forms[form](crystals), keep_info=True))[2:3]
    assert got.info.get("mp_id", got.info.get("material_id")) == wanted.info["mp_id"]
    assert got.info["group"] == wanted.info["mp_id"]
    assert got.calc.results["energy"] == wanted.calc.results["energy"]


def test_a_list_of_forms_is_read_in_the_order_given(forms, crystals):
    paths = [forms[name](crystals) for name in ("mptrj", "extxyz", "db")]
    read = list(read_structures(paths))
    energies = [a.calc.results["energy"] for a in read]
    assert energies == [a.calc.results["energy"] for a in crystals] * 3


@pytest.mark.parametrize("form", ["extxyz", "extxyz REF", "traj", "db", "aselmdb"])
def test_missing_labels_stay_missing(form, forms, crystals):
    for atoms in crystals:
        del atoms.calc.results["stress"]
        atoms.calc.results.pop("magmoms", None)
    for atoms in read_structures(forms[form](crystals)):
        assert set(atoms.calc.results) == {"energy", "forces"}


@pytest.mark.parametrize("form", ["extxyz", "traj", "db", "json db", "aselmdb", "mptrj", "matpes"])
def test_no_labels_no_calculator(form, forms, crystals):
    for atoms in crystals:
        atoms.calc = None
    assert [a.calc for a in read_structures(forms[form](crystals))] == [None] * 4


@pytest.mark.parametrize("form", ["extxyz", "traj", "db", "json db", "mptrj", "matpes", "aselmdb"])
@pytest.mark.parametrize(
    ("label", "spoil", "named"),
    [
        ("energy", lambda r: r.update(energy=float("nan")), "energy"),
        ("forces", lambda r: r["forces"].__setitem__((1, 2), np.inf), "[1, 2]"),
        ("stress", lambda r: r["stress"].__setitem__(3, np.nan), "stress"),
    ],
)
def test_a_label_that_is_not_finite_is_an_error_with_file_frame_and_key(
    form, label, spoil, named, forms, crystals
):
    if form == "db" and label == "energy":
        pytest.skip("SQLite stores NaN as NULL: the label is absent")
    spoil(crystals[2].calc.results)
    path = forms[form](crystals)
    with pytest.raises(ValueError, match="finite") as caught:
        list(read_structures(path))
    message = str(caught.value)
    assert str(path) in message
    assert "frame 2" in message
    assert named in message
    if form == "mptrj":
        assert "mp-1, mp-92-0-2" in message


@pytest.mark.parametrize(
    ("form", "kind"),
    [(f, "molecules") for f in MOLECULAR] + [(f, "crystals") for f in CRYSTAL],
)
def test_every_form_makes_the_same_graphs(form, kind, forms, request, tmp_path):
    """File to store to batch, against the graph of each structure as it was given."""
    wanted = request.getfixturevalue(kind)
    build(tmp_path / "store", expand_paths(forms[form](wanted)))
    batch = collate_indices(Store(tmp_path / "store"), np.arange(len(wanted)), 4.0)
    expected = collate([AtomGraph.from_atoms(a, 4.0) for a in wanted])
    for name, field in SCHEMA.items():
        got, want = getattr(batch, name), getattr(expected, name)
        assert got.dtype == want.dtype == field.dtype
        if name not in ("sample_id", "source"):  # of the store, not of the structure
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=name)
    assert batch.sample_id.tolist() == ([0, 1] * 2 if "per material" in form else [0, 1, 2, 3])


def test_numbers_whose_squares_overflow_are_finite():
    """Finiteness is looked at through a sum of squares first."""
    for value in ([1e200, -1e300], 1e308):
        np.testing.assert_array_equal(as_floats(value, None, "x", "here"), value)
    with pytest.raises(DataError, match=r"here: x\[1\] is nan"):
        as_floats([1e200, np.nan], None, "x", "here")
