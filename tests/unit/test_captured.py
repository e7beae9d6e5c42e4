"""Captured potentials: the numbers of the plain ones, whatever they are filled up with.

A recorder that calls the function again takes the place of a CUDA graph; what a GPU does with one
is for `pytest -m gpu`.
"""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import VARIANTS, build
from elsewhere import WAITS
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mlip.calculator import MLIPCalculator
from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph, collate
from mlip.models import captured
from mlip.models.captured import Captured, obstacle, room
from mlip.models.compiled import compile_potential
from mlip.models.compiled import obstacle as any_obstacle
from mlip.models.kernels import compiler
from mlip.models.potential import Potential

CAN = [name for name, variant in VARIANTS.items() if variant.architecture != "transip"]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Those in C: like Triton's, their sizes do not depend on numbers."""
    if compiler.compiler() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setenv("MLIP_KERNELS", "compiled")


class Recorder:
    """Freezes the operations of PyTorch where a CUDA graph would freeze kernels.

    What a function decided in Python, and every constant it made of numbers, stays as it was when
    it was recorded.
    """

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Any, inputs: Any) -> Any:
        self.captures += 1
        outputs = function(*inputs)
        frozen = make_fx(function, tracing_mode="real")(*inputs)
        for x in outputs:
            x.fill_(torch.nan)  # a capture computes nothing

        def replay() -> None:
            self.replays += 1
            for old, new in zip(outputs, frozen(*inputs), strict=True):
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


def assert_same(
    ours: list[torch.Tensor], plain: list[torch.Tensor], tolerance: float = 1e-10
) -> None:
    for one, other in zip(ours, plain, strict=True):
        scale = max(float(other.abs().max()), 1e-3)
        assert float((one - other).abs().max()) < tolerance * scale
        assert not one.requires_grad


@pytest.mark.parametrize("name", CAN)
def test_every_architecture_gives_its_own_numbers(name):
    """One memory after another holds a crystal, an ion, both and an atom alone, and them again."""
    plain = build(name).freeze()
    ours, recorder = captured_copy(plain)
    structures = [(crystal(),), (ion(),), (crystal(), ion(), Atoms("H", [(0, 0, 0)]))]
    for chosen in (*structures, *reversed(structures), *structures):
        graph = graph_of(plain.cutoff, *chosen)
        assert_same(numbers(ours, graph), numbers(plain, graph))
    assert recorder.captures == 3, "a size that is met again"
    assert recorder.replays == 3 + 6, "once to compare, once for each call"


def twice(potential: Potential, graph: AtomGraph) -> list[torch.Tensor]:
    """A size is captured when it is met again."""
    numbers(potential, graph)
    return numbers(potential, graph)


def test_a_memory_is_used_for_many_sizes(monkeypatch):
    """Fewer and more edges and atoms than before, in one capture: nothing of others is left."""
    monkeypatch.setattr(captured, "room", lambda count: 64)
    plain = build("facet-charge").freeze()
    ours, recorder = captured_copy(plain)
    chain = [Atoms("C" * n, [(1.4 * k, 0.1 * k * k, 0) for k in range(n)]) for n in (5, 7, 3, 6)]
    for k, atoms in enumerate((*chain, *chain)):
        atoms.info.update(charge=k - 1, spin=k + 1)
        graph = graph_of(plain.cutoff, atoms)
        assert graph.edge_index.shape[1] <= 64
        assert_same(numbers(ours, graph), numbers(plain, graph))
    assert (recorder.captures, recorder.replays) == (1, 1 + 7)


def test_results_stay_when_the_memory_is_used_again():
    ours, recorder = captured_copy(build("facet").freeze())
    atoms = crystal()
    first = twice(ours, graph_of(ours.cutoff, atoms))
    kept = [x.clone() for x in first]
    atoms.positions[0] += 0.001
    second = numbers(ours, graph_of(ours.cutoff, atoms))
    assert (recorder.captures, recorder.replays) == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_other_weights_are_other_captures(caplog):
    """Of copies that share them, after a cast, and after the same weights were frozen again."""
    plain, other = build("facet").freeze(), build("facet")
    ours, recorder = captured_copy(plain)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    other.freeze().compiled = ours.compiled
    graph = graph_of(plain.cutoff, crystal())

    def agrees(potential: Potential, tolerance: float = 1e-10) -> None:
        kept, potential.compiled = potential.compiled, None
        right = numbers(potential, graph)
        potential.compiled = kept
        assert_same(twice(potential, graph), right, tolerance)

    agrees(ours)
    agrees(other)
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(0.9)
    agrees(ours.freeze())
    agrees(ours.float().freeze(), tolerance=1e-4)
    assert recorder.captures == 4
    ours.double()  # not frozen
    agrees(ours)
    assert recorder.captures == 4
    assert [r.message for r in caplog.records if "not frozen" in r.message]


def test_few_captures_are_kept_and_large_systems_are_not_captured(monkeypatch, caplog):
    monkeypatch.setattr(captured, "KEPT", 3)
    plain = build("lennard_jones").freeze()
    ours, recorder = captured_copy(plain)
    graphs = [graph_of(plain.cutoff, crystal() * (n, 1, 1)) for n in range(1, 6)]
    for graph in graphs:
        assert_same(twice(ours, graph), numbers(plain, graph))
    made = [c for c in ours.compiled._captures.values() if c is not None]
    assert (len(made), recorder.captures) == (3, 5)
    assert [r.message for r in caplog.records if "more than 3 sizes" in r.message]
    # met once and long ago: what is captured now is not what is given up for it
    seventh = graph_of(plain.cutoff, crystal() * (7, 1, 1))
    for graph in (seventh, *graphs[:3], *graphs[:3], seventh):
        assert_same(numbers(ours, graph), numbers(plain, graph))
    replays = recorder.replays
    assert_same(numbers(ours, seventh), numbers(plain, seventh))
    assert recorder.replays == replays + 1
    monkeypatch.setattr(captured, "LARGEST", 10)
    before = recorder.captures, recorder.replays
    assert_same(twice(ours, graphs[0]), numbers(plain, graphs[0]))
    assert (recorder.captures, recorder.replays) == before
    monkeypatch.setattr(captured, "LARGEST", 100_000)
    monkeypatch.setattr(captured, "MET", 4)
    for graph in graphs:
        numbers(ours, graph)
    assert len(ours.compiled._captures) == 4


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 127, 128, 129, 5000, 99_999])
def test_room(count):
    assert count <= room(count) <= max(count + 7, count * 9 / 8)
    assert len({room(n) for n in range(count, 2 * count)}) <= 17


def test_wrong_numbers_and_failures_are_refused():
    ours, _ = captured_copy(build("facet").freeze())
    graph = graph_of(ours.cutoff, crystal())

    def wrong(function: Any, inputs: Any) -> Any:
        return [1.01 * x for x in function(*inputs)], lambda: None

    def empty(function: Any, inputs: Any) -> Any:
        return function(*inputs), lambda: None

    def other_features(function: Any, inputs: Any) -> Any:
        outputs, replay = Recorder()(function, inputs)

        def replay_wrongly() -> None:
            replay()
            outputs[2].add_(1e-3)

        return outputs, replay_wrongly

    def fails(function: Any, inputs: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    for record, message in (
        (wrong, "energies differ from the plain ones"),
        (empty, "energies differ from the plain ones"),
        (other_features, "features differ from the plain ones"),
        (fails, "not permitted"),
    ):
        ours.compiled = Captured(record)
        numbers(ours, graph)
        for _ in range(2):  # and are not kept
            with pytest.raises(ConfigError, match=message):
                numbers(ours, graph)


def test_a_lack_of_memory_is_told_as_such_and_gives_up_what_is_kept(monkeypatch):
    """`relax_many` goes on with half of the structures."""
    ours, recorder = captured_copy(build("facet").freeze())
    twice(ours, graph_of(ours.cutoff, crystal()))

    def record(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    ours.compiled._record = record
    large = graph_of(ours.cutoff, crystal() * (2, 1, 1))
    with pytest.raises(torch.OutOfMemoryError):
        twice(ours, large)
    assert not ours.compiled._captures
    ours.compiled._record = recorder
    assert_same(twice(ours, large), numbers(build("facet").freeze(), large))
    monkeypatch.setattr(ours, "energies", record)
    with pytest.raises(torch.OutOfMemoryError):
        numbers(ours, graph_of(ours.cutoff, crystal() * (3, 1, 1)))
    assert not ours.compiled._captures


def test_an_impossible_structure_is_no_fault_of_the_capture():
    ours, recorder = captured_copy(build("facet").freeze())
    graph, readout = graph_of(ours.cutoff, crystal()), cast(Any, ours.model).readout
    with torch.no_grad():
        kept = readout.weight.clone()
        readout.weight.mul_(torch.nan)
        assert bool(torch.isnan(twice(ours.freeze(), graph)[1]).any())
        assert recorder.captures == 0, "there is nothing to compare it with"
        readout.weight.copy_(kept)
    assert bool(torch.isfinite(numbers(ours, graph)[1]).all())
    assert recorder.captures == 1


def test_threads_wait_for_each_other():
    """From filling the memory to copying what was found; as often as not others would be inside."""
    plain = build("facet").freeze()
    ours, recorder = captured_copy(plain)
    graphs = [graph_of(plain.cutoff, crystal(seed)) for seed in range(8)]
    right = [numbers(plain, graph) for graph in graphs]
    inside = []

    def record(function: Any, inputs: Any) -> Any:
        outputs, replay = recorder(function, inputs)

        def slow_replay() -> None:
            assert not inside
            inside.append(True)
            replay()
            time.sleep(0.01)
            inside.clear()

        return outputs, slow_replay

    ours.compiled = Captured(record)
    twice(ours, graphs[0])
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(
            pool.map(lambda graph: numbers(ours, graph), graphs), right, strict=True
        ):
            assert_same(found, expected)


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
        twice(ours, graph)
    monkeypatch.setattr(Potential, "device", torch.device("cuda", 0))
    with pytest.raises(ConfigError, match="MLIP_KERNELS=triton asks for"):  # changed since
        twice(ours, graph)
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    assert obstacle(potential) is None
    assert "not for training" in str(obstacle(build("facet")))
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

        def replay() -> None:
            for old, new in zip(outputs, function(*inputs), strict=True):
                old.copy_(new)

        return outputs, replay

    ours.compiled = Captured(record)
    graph = graph_of(ours.cutoff, Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)]))
    twice(ours, graph)
    assert questions == [Counter()]
    if name != "lennard_jones":
        monkeypatch.setenv("MLIP_KERNELS", "torch")
        ours.compiled = Captured(record)
        twice(ours, graph)
        assert questions[1], "PyTorch's sums have sizes that depend on numbers"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["facet", "facet-charge", "facet-zbl", "nequip"])
def test_on_a_gpu(name, monkeypatch):
    """The numbers of the CPU, of captures replayed in turns, and through ASE."""
    plain = build(name).freeze()
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    ours = compile_potential(copy.deepcopy(plain).to("cuda").freeze())
    for seed in range(4):
        for structures in ((crystal(seed),), (crystal(seed), ion())):
            graph = graph_of(plain.cutoff, *structures)
            found = numbers(ours, graph.to(torch.device("cuda")))
            monkeypatch.setenv("MLIP_KERNELS", "torch")
            right = numbers(plain, graph)
            monkeypatch.setenv("MLIP_KERNELS", "triton")
            assert_same([x.cpu() for x in found], right)
    assert len([c for c in ours.compiled._captures.values() if c is not None]) == 2
    atoms = crystal()
    atoms.calc = MLIPCalculator(copy.deepcopy(plain), device="cuda", compile=True)
    for _ in range(2):
        atoms.rattle(1e-3)
        atoms.get_forces()
    found = atoms.get_forces()
    atoms.calc = MLIPCalculator(plain, device="cpu")
    assert abs(found - atoms.get_forces()).max() < 1e-9
