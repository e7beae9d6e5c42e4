"""Neighbour lists of batches on any device are those of `neighbor_list`, and of the same oracle."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from conftest import STRUCTURES, build
from images import ALL, MASKS, OPEN, brute_force, multiset, random_cell
from torch.utils._python_dispatch import TorchDispatchMode

from mlip import MLIPCalculator, Relaxer, device_neighbors
from mlip.data.readers import read_structures
from mlip.device_neighbors import batched_neighbor_list
from mlip.errors import DataError
from mlip.evaluate import batches_of
from mlip.graph import AtomGraph, structure_arrays
from mlip.neighbors import complete_cells, neighbor_list

Geometry = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions, cell, pbc


def arguments(geometries: list[Geometry], device: str = "cpu") -> list[torch.Tensor]:
    positions, cells, pbc = zip(*geometries, strict=True)
    arrays = (np.concatenate(positions), complete_cells(np.stack(cells), np.stack(pbc)))
    batch = np.repeat(np.arange(len(positions)), [len(x) for x in positions])
    return [torch.from_numpy(x).to(device) for x in (*arrays, np.stack(pbc), batch)]


def found(geometries: list[Geometry], cutoff: float, device: str = "cpu") -> list[Counter]:
    """The edges of each structure, after a look at what is promised about all of them."""
    positions, box, pbc, batch = arguments(geometries, device)
    edges, shift = batched_neighbor_list(positions, box, pbc, batch, cutoff)
    assert (edges.dtype, shift.dtype) == (torch.int64, torch.int32)
    assert edges.shape[0] == 2
    assert shift.shape == (edges.shape[1], 3)
    assert (edges[1].diff() >= 0).all(), "edges are sorted by centre"
    assert torch.equal(batch[edges[0]], batch[edges[1]]), "edges end in another structure"
    assert not shift[~pbc[batch[edges[1]]]].any(), "there are no images along an open axis"
    out, starts = [], np.cumsum([0, *(len(x) for x, _, _ in geometries)])
    edges, shift = edges.cpu().numpy(), shift.cpu().numpy()
    for begin, end in pairwise(starts.tolist()):
        own = (edges[1] >= begin) & (edges[1] < end)
        out.append(multiset(edges[:, own] - begin, shift[own]))
    return out


def geometry(atoms: ase.Atoms) -> Geometry:
    return atoms.positions, atoms.cell.array, atoms.pbc


def expected(geometries: list[Geometry], cutoff: float) -> list[Counter]:
    return [multiset(*neighbor_list(*one, cutoff)) for one in geometries]


def mixed() -> list[Geometry]:
    """Every periodicity and size in one batch, with atoms that have no neighbour."""
    lone = ase.Atoms("H", [[5.0, 5, 5]])
    thin = ase.Atoms("H", cell=[0.7, 9.0, 9.0], pbc=True)
    silicon = bulk("Si", cubic=True) * (4, 3, 1)
    silicon.rattle(0.1, seed=1)
    silicon.positions += 1e3 * np.random.default_rng(0).integers(-3, 4, (96, 1)) * silicon.cell[1]
    water = molecule("H2O")
    water.positions += 1e5
    made = [make() for make in STRUCTURES.values()]
    return [geometry(atoms) for atoms in [lone, *made, thin, silicon, lone, water, lone]]


@pytest.mark.parametrize("cutoff", [2.4, 3.3, 4.4])
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
def test_equals_brute_force(mask, cutoff):
    """16 cells in a batch: triclinic, tiny, left-handed, atoms far outside."""
    rng = np.random.default_rng(sum(2**k * m for k, m in enumerate(mask)))
    given, wanted = [], []
    for k in range(16):
        cell, outside = random_cell(rng), 0.0 if k % 2 else 1.5
        positions = rng.uniform(-outside, 1 + outside, (rng.integers(1, 5), 3)) @ cell
        edges, margin = brute_force(positions, cell, np.array(mask), cutoff)
        if margin > 1e-9:  # not a tie: whether |r| < r_c is a matter of rounding
            given.append((positions, cell, np.array(mask)))
            wanted.append(edges)
    assert found(given, cutoff) == wanted
    assert len(wanted) > 12
    assert sum(map(len, wanted)) > 10


@pytest.mark.parametrize("cutoff", [1.0, 4.0, 6.5])
def test_structures_of_every_kind_share_a_batch(cutoff):
    assert found(mixed(), cutoff) == expected(mixed(), cutoff)


def test_a_skewed_cell_of_the_same_lattice():
    """Adding lattice vectors to lattice vectors leaves atoms where they are: angles of 10°."""
    rng = np.random.default_rng(2)
    cell = np.array([[7.0, 0.3, 0.1], [-0.4, 6.5, 0.2], [0.5, 0.1, 8.0]])
    positions = rng.uniform(0, 1, (40, 3)) @ cell
    skewed = np.array([[1, 4, 0], [0, 1, 0], [3, -2, 1]]) @ cell
    plain, other = found([(positions, cell, ALL), (positions, skewed, ALL)], 3.0)
    assert other == expected([(positions, skewed, ALL)], 3.0)[0]
    assert sum(plain.values()) == sum(other.values()) > 100


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
def test_wrapping_moves_shifts_only(mask):
    """x → x + m·cell along periodic axes turns S_ij into S_ij + m_i − m_j, and nothing else."""
    rng = np.random.default_rng(7)
    cell, pbc = np.array([[3.0, 0.2, 0.1], [-0.5, 3.5, 0.3], [0.4, 0.1, 4.0]]), np.array(mask)
    positions = rng.uniform(0, 1, (6, 3)) @ cell
    m = rng.integers(-5, 6, (6, 3)) * pbc
    edges, moved = found([(positions, cell, pbc), (positions + m @ cell, cell, pbc)], 4.0)
    assert len(edges) > 10
    assert moved == Counter(
        {(j, i, *(np.array(n) + m[i] - m[j]).tolist()): c for (j, i, *n), c in edges.items()}
    )


def test_the_cutoff_is_exclusive_and_edges_are_never_capped():
    two = [(np.array([[0.0, 0, 0], [1.5, 0, 0]]), np.eye(3), OPEN)]
    assert found(two, 1.5) == [Counter()]
    assert len(found(two, np.nextafter(1.5, 2))[0]) == 2
    crowd = np.random.default_rng(0).normal(scale=0.5, size=(300, 3))
    edges, _ = batched_neighbor_list(*arguments([(crowd, np.eye(3), OPEN)]), 20.0)
    assert edges.shape[1] == 300 * 299


@pytest.mark.parametrize(("name", "value"), [("PAIRS_AT_ONCE", 5), ("MOST_BINS", 2.0**16)])
def test_little_memory_and_wide_bins_change_nothing(name, value, monkeypatch):
    before = batched_neighbor_list(*arguments(mixed()), 4.0)
    monkeypatch.setattr(device_neighbors, name, value)
    after = batched_neighbor_list(*arguments(mixed()), 4.0)
    if name == "PAIRS_AT_ONCE":  # also their order
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert multiset(*after) == multiset(*before)


class Largest(TorchDispatchMode):
    """Remember the size of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("FT"[p] for p in m))
@pytest.mark.parametrize("box", [(1e4, 1e4, 1e4), (1e4, 1e4, 3.0), (3.0, 3.0, 1e7), (1e8,) * 3])
def test_a_huge_vacuum_costs_nothing(mask, box):
    """From a micrometre of nothing to a centimetre: no memory, so no minutes either."""
    pbc, box = np.array(mask), np.array(box)
    far = np.array([[0.2, 0, 0], [1.2, 0, 0], 0.6 * box, box - [0.3, 0, 0]])
    with Largest() as largest:
        edges = found([(far, np.diag(box), pbc)], 1.5)
    assert edges == [brute_force(far, np.diag(box), pbc, 1.5)[0]]
    assert 0 < largest.elements < 1e4


@pytest.mark.parametrize("distance", [1e5, 9e7])
def test_one_atom_that_left_a_layer_of_thousands(distance):
    layer = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0), [0.0]), -1).reshape(-1, 3)
    stray = np.concatenate([layer, [[distance, distance, 0.5]]])
    with Largest() as largest:
        edges, _ = batched_neighbor_list(*arguments([(stray, np.eye(3), OPEN)]), 1.2)
    assert edges.shape[1] == 4 * 60 * 59
    assert largest.elements < 2e6


def test_pairs_are_looked_at_a_part_at_a_time(monkeypatch):
    """So that no tensor is larger than the result, (E, 3), while there are five times the pairs."""
    crowd = np.random.default_rng(0).uniform(0, 12, size=(1000, 3))
    largest = {}
    for pairs in (2**22, 2**14):
        monkeypatch.setattr(device_neighbors, "PAIRS_AT_ONCE", pairs)
        with Largest() as seen:
            _, shift = batched_neighbor_list(*arguments([(crowd, np.eye(3) * 12, ALL)]), 5.0)
        largest[pairs] = seen.elements / shift.numel()
    assert largest[2**22] > 3
    assert largest[2**14] == 1


def test_no_atoms_have_no_neighbours():
    nothing = (np.zeros((0, 3)), np.eye(3), ALL)
    assert found([nothing], 3.0) == [Counter()]
    one = (np.zeros((1, 3)), np.eye(3), ALL)
    assert found([nothing, one, nothing], 1.1) == [Counter(), *expected([one], 1.1), Counter()]


def test_two_atoms_on_one_point_are_numbered_within_their_structure():
    good = (np.array([[0.0, 0, 0], [1.0, 0, 0]]), np.eye(3), OPEN)
    bad = (np.array([[0.5, 0, 0], [1.5, 0, 0], [3.5, 0, 0]]), 3.0 * np.eye(3), ALL)
    with pytest.raises(DataError, match=r"atoms (0 and 2|2 and 0) are at the same point"):
        batched_neighbor_list(*arguments([good, bad, good]), 2.0)


def test_crystals_of_mptrj(real_data):
    """Every 25th frame of a sample, in one batch."""
    frames = list(read_structures(real_data / "mptrj" / "mptrj-random-1k.extxyz"))[::25]
    given = [geometry(atoms) for atoms in frames]
    for cutoff in (4.0, 6.0):
        assert found(given, cutoff) == expected(given, cutoff)


# -- in use --------------------------------------------------------------------------------------


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """Make the CPU find neighbours as an accelerator would; the sizes of the batches it did."""
    sizes = []

    def counted(positions, box, pbc, batch, cutoff):
        sizes.append(len(box))
        return batched_neighbor_list(positions, box, pbc, batch, cutoff)

    monkeypatch.setattr("mlip.graph._finds_neighbors", lambda device: True)
    monkeypatch.setattr("mlip.graph.batched_neighbor_list", counted)
    return sizes


def results(calculator: MLIPCalculator) -> list[dict[str, Any]]:
    return calculator.evaluate([structure_arrays(make()) for make in STRUCTURES.values()])


@pytest.mark.parametrize("name", ["facet", "nequip", "transip"])
def test_a_calculator_gives_the_same(name, request):
    calculator = MLIPCalculator(build(name), dtype="float64")
    by_vesin = results(calculator)
    sizes = request.getfixturevalue("searches")
    for make, one, other in zip(STRUCTURES.values(), by_vesin, results(calculator), strict=True):
        calculator.calculate(make())
        assert one.keys() == other.keys() == calculator.results.keys()
        assert ("stress" in one) == bool(make().pbc.all())
        for key, value in one.items():
            np.testing.assert_allclose(other[key], value, rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(calculator.results[key], value, rtol=1e-12, atol=1e-9)
    assert sizes == [len(STRUCTURES)] + len(STRUCTURES) * [1]


def test_relaxations_are_the_same(request):
    crystals = [bulk("C", "diamond", a=3.6), bulk("C", "fcc", a=2.4) * 2, molecule("CH4")]
    for seed, atoms in enumerate(crystals):
        atoms.rattle(0.05, seed=seed)
    relaxer = Relaxer(build("facet"), fmax=1e-4, steps=4, device="cpu")
    by_vesin = relaxer.relax_many(crystals)
    sizes = request.getfixturevalue("searches")
    for one, other in zip(by_vesin, relaxer.relax_many(crystals), strict=True):
        assert one.n_steps == other.n_steps
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(
            one.final_structure.positions, other.final_structure.positions, atol=1e-9
        )
    assert sizes[0] == 3


def test_a_structure_that_cannot_be_used_does_not_stop_the_others(searches):
    good = [molecule("CO"), molecule("CH4")]
    bad = [ase.Atoms("C2", np.zeros((2, 3))), ase.Atoms("C", cell=[3, 3, 0], pbc=True)]
    bad += [ase.Atoms("C", [[np.nan, 0, 0]])]
    relaxer = Relaxer(build("facet"), steps=1, relax_cell=False, device="cpu")
    found = relaxer.relax_many([good[0], *bad, good[1]])
    assert [isinstance(result, DataError) for result in found] == [False, True, True, True, False]
    for words, error in zip(
        ("at the same point", "are zero", "not finite"), found[1:4], strict=True
    ):
        assert words in str(error)
    assert max(searches) > 1


def test_batches_of_a_stream_are_the_same(request):
    potential = build("facet")
    stream = [make() for make in STRUCTURES.values()]
    by_vesin = [graph for _, graph in batches_of(stream, potential, 12)]
    sizes = request.getfixturevalue("searches")
    graphs = [graph for _, graph in batches_of(stream, potential, 12)]
    assert len(sizes) == len(graphs) > 1
    for one, other in zip(by_vesin, graphs, strict=True):
        assert multiset(one.edge_index, one.edge_shift) == multiset(
            other.edge_index, other.edge_shift
        )
        for name in AtomGraph.__slots__:
            if not name.startswith("edge"):
                torch.testing.assert_close(
                    getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True
                )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_on_an_accelerator():
    assert found(mixed(), 4.0, "cuda") == expected(mixed(), 4.0)
    potential = build("facet")
    there, here = (MLIPCalculator(potential, device=d, dtype="float64") for d in ("cuda", "cpu"))
    for one, other in zip(results(there), results(here), strict=True):
        for key, value in other.items():
            np.testing.assert_allclose(one[key], value, rtol=1e-10, atol=1e-9)
