"""Captured potentials: the numbers of the plain ones, whatever they are filled up with.

A recorder that calls the function again takes the place of a CUDA graph; what a GPU does with one
is for `pytest -m gpu`.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import VARIANTS, build
from elsewhere import WAITS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mlip.calculator import MLIPCalculator
from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph, collate
from mlip.models import captured
from mlip.models.captured import KEPT, Captured, cuda_graph, obstacle, room
from mlip.models.compiled import compile_potential
from mlip.models.compiled import obstacle as any_obstacle
from mlip.models.potential import Potential

CAN = [name for name, variant in VARIANTS.items() if variant.architecture != "transip"]


class Recorder:
    """Calls the function again where a graph would be launched, into the same memory."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Any, inputs: Any) -> Any:
        self.captures += 1
        outputs = function(*inputs)
        for x in outputs:
            x.fill_(torch.nan)  # a capture computes nothing

        def replay() -> None:
            self.replays += 1
            for old, new in zip(outputs, function(*inputs), strict=True):
                old.copy_(new)

        return outputs, replay


def captured_copy(plain: Potential) -> tuple[Potential, Recorder]:
    recorder = Recorder()
    ours = copy.deepcopy(plain)
    ours.compiled = Captured(recorder)
    return ours, recorder


def crystal(seed: int = 0) -> Atoms:
    atoms = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    atoms.rattle(0.05, seed=seed)
    return atoms


def ion() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=1, spin=2)
    return atoms


def graph_of(cutoff: float, *structures: Atoms) -> AtomGraph:
    return collate([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])


def numbers(potential: Potential, graph: AtomGraph) -> list[torch.Tensor]:
    with torch.no_grad():
        out = potential(graph)
    features = [] if out.features is None else [out.features]
    return [out.energy, out.forces, out.virial, out.node_energy, *features]


def assert_same(ours: list[torch.Tensor], plain: list[torch.Tensor]) -> None:
    for one, other in zip(ours, plain, strict=True):
        scale = max(float(other.abs().max()), 1e-3)
        assert float((one - other).abs().max()) < 1e-10 * scale
        assert not one.requires_grad


@pytest.mark.parametrize("name", CAN)
def test_every_architecture_gives_its_own_numbers(name, monkeypatch):
    """One memory after another holds a crystal, an ion, both and an atom alone, and them again."""
    monkeypatch.setenv("MLIP_KERNELS", "torch")
    plain = build(name).freeze()
    ours, recorder = captured_copy(plain)
    structures = [(crystal(),), (ion(),), (crystal(), ion(), Atoms("H", [(0, 0, 0)]))]
    for chosen in (*structures, *reversed(structures)):
        graph = graph_of(plain.cutoff, *chosen)
        assert_same(numbers(ours, graph), numbers(plain, graph))
    assert recorder.captures == 3
    assert recorder.replays == 3 + 6, "once to compare, once for each call"


def test_a_memory_is_used_for_many_sizes(monkeypatch):
    """Fewer and more edges and atoms than before, in one capture: nothing of others is left."""
    monkeypatch.setattr(captured, "room", lambda count: 64)
    plain = build("facet-charge").freeze()
    ours, recorder = captured_copy(plain)
    chain = [Atoms("C" * n, [(1.4 * k, 0.1 * k * k, 0) for k in range(n)]) for n in (5, 7, 3, 6)]
    for k, atoms in enumerate(chain):
        atoms.info.update(charge=k - 1, spin=k + 1)
        graph = graph_of(plain.cutoff, atoms)
        assert graph.edge_index.shape[1] <= 64
        assert_same(numbers(ours, graph), numbers(plain, graph))
    assert recorder.captures == 1


def test_results_stay_when_the_memory_is_used_again():
    ours, recorder = captured_copy(build("facet").freeze())
    atoms = crystal()
    first = numbers(ours, graph_of(ours.cutoff, atoms))
    kept = [x.clone() for x in first]
    atoms.positions[0] += 0.001
    second = numbers(ours, graph_of(ours.cutoff, atoms))
    assert recorder.captures == 1
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_weights_are_other_captures():
    plain, other = build("facet").freeze(), build("facet")
    ours, recorder = captured_copy(plain)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    other.freeze().compiled = ours.compiled
    graph = graph_of(plain.cutoff, crystal())
    for potential in (ours, other):
        kept, potential.compiled = potential.compiled, None
        right = numbers(potential, graph)
        potential.compiled = kept
        assert_same(numbers(potential, graph), right)
    assert recorder.captures == 2


def test_weights_changed_in_place_are_seen():
    ours, recorder = captured_copy(build("facet").freeze())
    graph = graph_of(ours.cutoff, crystal())
    before = numbers(ours, graph)[0]
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(1.1)
    kept, ours.freeze().compiled = ours.compiled, None
    right = numbers(ours, graph)
    ours.compiled = kept
    assert_same(numbers(ours, graph), right)
    assert recorder.captures == 1
    assert not torch.allclose(before, right[0], rtol=1e-6)


def test_few_captures_are_kept_and_large_systems_are_not_captured(monkeypatch):
    plain = build("lennard_jones").freeze()
    ours, recorder = captured_copy(plain)
    graphs = [graph_of(plain.cutoff, crystal() * (n, 1, 1)) for n in range(1, KEPT + 4)]
    for graph in graphs:
        assert_same(numbers(ours, graph), numbers(plain, graph))
    assert len(ours.compiled._captures) == KEPT < recorder.captures
    monkeypatch.setattr(captured, "LARGEST", 10)
    before = recorder.captures, recorder.replays
    assert_same(numbers(ours, graphs[0]), numbers(plain, graphs[0]))
    assert (recorder.captures, recorder.replays) == before


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 127, 128, 129, 5000, 99_999])
def test_room(count):
    assert count <= room(count) <= max(count + 7, count * 9 / 8)
    assert len({room(n) for n in range(count, 2 * count)}) <= 17


def test_wrong_numbers_and_failures_are_refused():
    ours, _ = captured_copy(build("facet").freeze())
    graph = graph_of(ours.cutoff, crystal())

    def wrong(function: Any, inputs: Any) -> Any:
        return [1.01 * x for x in function(*inputs)], lambda: None

    def fails(function: Any, inputs: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    for record, message in ((wrong, "differ from the plain ones"), (fails, "not permitted")):
        ours.compiled = Captured(record)
        for _ in range(2):  # and are not kept
            with pytest.raises(ConfigError, match=message):
                numbers(ours, graph)


def test_what_cannot_be_had(monkeypatch):
    potential = build("facet-charge").freeze()
    ours, _ = captured_copy(potential)
    graph = graph_of(ours.cutoff, crystal())
    with pytest.raises(ConfigError, match=r"no derivatives.*no_grad"):
        ours(graph)
    outside = ion()
    outside.info["charge"] = 99
    with pytest.raises(DataError, match="charge 99"):
        numbers(ours, graph_of(ours.cutoff, outside))
    ours.compiled = Captured()
    with pytest.raises(ConfigError, match="was on a GPU and is now on cpu"):
        numbers(ours, graph)
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    assert obstacle(potential) is None
    assert "not for training" in str(obstacle(build("facet")))
    monkeypatch.setenv("MLIP_KERNELS", "auto")
    assert "MLIP_KERNELS=triton" in str(obstacle(potential))
    assert isinstance(pickle.loads(pickle.dumps(ours.compiled)), Captured)
    assert copy.deepcopy(ours).compiled is ours.compiled


def test_a_gpu_gets_captures_and_other_devices_nothing(monkeypatch):
    """What `compile_potential` chooses by the device it is told of."""
    potential = build("facet").freeze()
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    monkeypatch.setattr(Potential, "device", torch.device("cuda", 0))
    assert isinstance(compile_potential(potential).compiled, Captured)
    monkeypatch.setattr(Potential, "device", torch.device("mps"))
    assert "the potential is on mps" in str(any_obstacle(potential))


class _Asking(TorchDispatchMode):
    """Counts what a capture does not permit: asking for numbers, and tensors made of Python's."""

    def __init__(self, asked: Counter[str]) -> None:
        super().__init__()
        self.asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_truth = func is torch.ops.aten.index.Tensor and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if func in WAITS or by_truth:
            self.asked[str(func)] += 1
        return func(*args, **(kwargs or {}))


class _Making(TorchFunctionMode):
    def __init__(self, asked: Counter[str]) -> None:
        super().__init__()
        self.asked = asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)
        if func in (*made, torch.Tensor.tolist, torch.Tensor.numpy):
            self.asked[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def asked() -> Iterator[Counter[str]]:
    """Count it within."""
    found: Counter[str] = Counter()
    with _Making(found), _Asking(found):
        yield found


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="where there is a GPU it is captured itself"
)
@pytest.mark.parametrize("name", ["facet", "facet-L3", "facet-charge", "nequip", "lennard_jones"])
def test_nothing_that_is_captured_asks_for_numbers(name, monkeypatch):
    """With Triton's sums; PyTorch's do, and are refused for it."""
    pytest.importorskip("triton")
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    ours, _ = captured_copy(build(name).freeze())
    questions: list[Counter[str]] = []

    def record(function: Any, inputs: Any) -> Any:
        outputs = function(*inputs)  # constants are made once, before a capture
        with asked() as found:
            function(*inputs)
        questions.append(found)
        return outputs, lambda: None

    ours.compiled = Captured(record)
    graph = graph_of(ours.cutoff, Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)]))
    numbers(ours, graph)
    assert questions == [Counter()]
    if name != "lennard_jones":
        monkeypatch.setenv("MLIP_KERNELS", "torch")
        ours.compiled = Captured(record)
        numbers(ours, graph)
        assert questions[1], "PyTorch's sums have sizes that depend on numbers"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["facet", "facet-charge", "nequip"])
def test_on_a_gpu(name, monkeypatch):
    """The numbers of the CPU, of one capture after another, and through ASE."""
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    plain = build(name).freeze()
    ours = compile_potential(copy.deepcopy(plain).to("cuda").freeze())
    assert ours.compiled._record is cuda_graph
    for seed in range(4):
        for structures in ((crystal(seed),), (crystal(seed), ion())):
            graph = graph_of(plain.cutoff, *structures)
            found = numbers(ours, graph.to(torch.device("cuda")))
            monkeypatch.setenv("MLIP_KERNELS", "torch")
            right = numbers(plain, graph)
            monkeypatch.setenv("MLIP_KERNELS", "triton")
            assert_same([x.cpu() for x in found], right)
    atoms = crystal()
    atoms.calc = MLIPCalculator(copy.deepcopy(plain).to("cuda"), device="cuda", compile=True)
    atoms.get_potential_energy()
