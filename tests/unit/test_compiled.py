"""Compiled potentials: the numbers and derivatives of the plain ones, for every size."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import CUTOFF, VARIANTS, build
from torch import Tensor, nn

from mlip.calculator import MLIPCalculator
from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph, collate
from mlip.models import compiled
from mlip.models.compiled import Compiled, compile_potential, obstacle
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.kernels import compiler
from mlip.models.potential import Potential, Prediction
from mlip.models.registry import ARCHITECTURES
from mlip.potential_file import load_potential, save_potential

CAN = [name for name, variant in VARIANTS.items() if variant.architecture != "transip"]
pytestmark = pytest.mark.skipif(
    compiler.compiler() is None, reason="there is no C compiler, nor a C++ one presumably"
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", "compiled")


def batches(cutoff: float) -> list[AtomGraph]:
    """A crystal, an ion, both with an atom alone, and a crystal of one atom."""
    crystal = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    crystal.rattle(0.05, seed=0)
    ion = molecule("CH3CH2OH")
    ion.info.update(charge=1, spin=2)
    alone, single = Atoms("H", [(0, 0, 0)]), bulk("C", "fcc", a=2.6)
    return [
        collate([AtomGraph.from_atoms(atoms, cutoff) for atoms in structures])
        for structures in ([crystal], [ion], [crystal, ion, alone], [single])
    ]


def numbers(out: Prediction) -> list[Tensor]:
    features = [] if out.features is None else [out.features]
    return [out.energy, out.forces, out.virial, out.node_energy, *features]


def assert_close_to(ours: list[Tensor], plain: list[Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(ours, plain, strict=True):
        scale = max(float(other.detach().abs().max()), 1e-3)
        assert float((one - other).detach().abs().max()) < tolerance * scale


def assert_agrees_in_use(
    name: str, dtype: torch.dtype = torch.float64, tolerance: float = 1e-10
) -> None:
    plain = build(name).to(dtype).freeze()
    ours = compile_potential(copy.deepcopy(plain))
    for graph in batches(plain.cutoff):
        with torch.no_grad():
            assert_close_to(numbers(ours(graph)), numbers(plain(graph)), tolerance)
    assert len(ours.compiled._functions) == 1, "one graph for all sizes"


def assert_agrees_in_training(name: str) -> None:
    """The gradient of all that losses are made of, and what validation sees."""
    plain = build(name).train()
    ours = compile_potential(copy.deepcopy(plain))
    for graph in batches(plain.cutoff):
        found = []
        for potential in (ours, plain):
            potential.zero_grad(set_to_none=True)
            out = potential(graph)
            own = [x.square().mean() for x in numbers(out)[1:3] + numbers(out)[4:]]
            (out.energy.sin().sum() + sum(own)).backward()
            gradients = [
                torch.zeros_like(p) if p.grad is None else p.grad for p in potential.parameters()
            ]
            with torch.no_grad():
                seen = potential(graph)
            assert not seen.forces.requires_grad
            found.append([*numbers(out), *gradients, *numbers(seen)])
        assert_close_to(*found)
    assert len(ours.compiled._functions) == 1, "one graph for all sizes"


@pytest.mark.parametrize("check", [assert_agrees_in_use, assert_agrees_in_training])
def test_a_small_one_agrees(check):
    check("lennard_jones")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("check", [assert_agrees_in_use, assert_agrees_in_training])
@pytest.mark.parametrize("name", [name for name in CAN if name != "lennard_jones"])
def test_every_architecture_agrees(name, check):
    check(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["facet", "nequip"])
def test_single_precision_agrees(name):
    assert_agrees_in_use(name, torch.float32, 1e-4)


def test_hessians_are_refused():
    potential = compile_potential(build("lennard_jones").freeze())
    graph = batches(potential.cutoff)[0]
    moved = replace(graph, positions=graph.positions.clone().requires_grad_())
    with pytest.raises(ConfigError, match=r"no Hessians.*compiled = None"):
        potential(moved)
    with torch.no_grad():
        assert potential(moved).forces.isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have another format")
def test_only_libraries_that_were_cut_short_are_removed(tmp_path):
    source = "int mlip_answer(void) { return 42; }\n"
    whole = Path(compiler.load(source, "a test")._name).read_bytes()
    parts = {"whole": whole, "half": whole[: len(whole) // 2], "one": whole[:-1], "none": b"",
             "begun": b"\0" * 4096}  # fmt: skip
    for name, part in parts.items():
        (tmp_path / f"{name}.so").write_bytes(part)
    compiled._remove_cut_short(tmp_path)
    assert [p.stem for p in tmp_path.iterdir()] == ["whole"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_libraries_that_a_kill_cut_short_are_compiled_again(tmp_path):
    """By another process, as torch remembers within one what it has loaded."""
    save_potential(tmp_path / "potential", build("lennard_jones"))
    code = (
        "import sys; from ase.build import bulk; from mlip import MLIPCalculator\n"
        "atoms = bulk('C', 'fcc', a=2.6)\n"
        "atoms.calc = MLIPCalculator(sys.argv[1], device='cpu', compile=True)\n"
        "print(atoms.get_potential_energy())"
    )

    def energy() -> str:
        environment = {**os.environ, "MLIP_CACHE": str(tmp_path)}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        command = [sys.executable, "-c", code, str(tmp_path / "potential")]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    first = energy()
    libraries = [p for p in (tmp_path / "inductor").rglob("*.so") if "main" in p.name]
    assert libraries
    for k, library in enumerate(libraries):
        library.write_bytes(library.read_bytes()[: (0, 1000)[k % 2]])
    assert energy() == first
    assert all(library.stat().st_size > 1000 for library in libraries)


def test_every_registered_architecture_is_compiled_or_refused():
    compiled_ones = {VARIANTS[name].architecture for name in CAN}
    assert compiled_ones >= set(ARCHITECTURES) - {"transip"}
    for name in VARIANTS:
        assert (obstacle(build(name)) is None) == (name in CAN), name


@pytest.mark.parametrize(
    ("name", "message"),
    [("transip", "pieces"), ("transip-global", "all atoms"), ("transip-direct", "direct forces"),
     ("transip-frames", "frames")],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        compile_potential(build(name))


def test_without_compilers_it_is_refused(monkeypatch):
    potential = build("facet")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler \(no-such-compiler"):
        MLIPCalculator(potential, device="cpu", compile=True)
    monkeypatch.setenv("MLIP_KERNELS", "torch")
    with pytest.raises(ConfigError, match="MLIP_KERNELS=torch"):
        compile_potential(potential)


@pytest.mark.parametrize("whose", ["the cache", "headers"])
def test_folders_that_others_can_write_to_are_refused(whose, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "the cache"))
    headers = "torch._inductor.runtime.cache_dir_utils.default_cache_dir"
    monkeypatch.setattr(headers, lambda: str(tmp_path / "headers"))
    (tmp_path / whose).mkdir(exist_ok=True)  # torch makes its cache when imported
    (tmp_path / whose).chmod(0o777)
    potential = compile_potential(build("lennard_jones").freeze())
    with torch.no_grad(), pytest.raises(ConfigError, match=f"others may write to .*{whose}"):
        potential(batches(potential.cutoff)[0])


class Branching(nn.Module):
    """Energies that depend on the number of edges."""

    cutoff, species, symmetry, is_local = CUTOFF, (6,), "O(3)", True

    def forward(self, geometry: Geometry) -> NodeOutput:
        lengths = geometry.edge_lengths
        if lengths.shape[0] > 1000:
            lengths = lengths.square()
        energy = lengths.new_zeros(geometry.atomic_numbers.shape[0])
        return NodeOutput(energy.index_add(0, geometry.edge_index[1], lengths))


class Reading(Branching):
    """Energies that depend on a number which a tracer does not have."""

    def forward(self, geometry: Geometry) -> NodeOutput:
        energy = super().forward(geometry).energy
        return NodeOutput(energy * float(geometry.edge_lengths.detach().sum()))


@pytest.mark.parametrize(
    ("model", "message"),
    [(Branching, "another way for other numbers"), (Reading, "could not be compiled")],
)
def test_models_that_a_graph_cannot_hold_are_refused(model, message):
    potential = compile_potential(Potential(model(), {6: 0.0}).double().freeze())
    graph = AtomGraph.from_atoms(bulk("C", "diamond", a=3.6), potential.cutoff)
    with torch.no_grad(), pytest.raises(ConfigError, match=message):
        potential(graph)


@pytest.mark.parametrize(("place", "name"), [(0, "energies"), (1, "forces")])
def test_wrong_numbers_are_not_used(place, name, monkeypatch):
    potential = build("lennard_jones").freeze()
    graph = batches(potential.cutoff)[0]
    genuine = compiled._traced_and_compiled

    def wrong(*args):
        function = genuine(*args)

        def altered(*arguments):
            out = function(*arguments)
            out[place] = out[place] * (1 + 1e-8)
            return out

        return altered

    monkeypatch.setattr(compiled, "_traced_and_compiled", wrong)
    with torch.no_grad(), pytest.raises(ConfigError, match=f"compiled {name} differ"):
        compile_potential(potential)(graph)


def test_what_is_compiled_is_no_part_of_a_file(tmp_path):
    """Nor of what a checkpoint is made of; copies share it, other processes make it again."""
    plain = build("lennard_jones").freeze()
    ours = compile_potential(copy.deepcopy(plain))
    with torch.no_grad():
        ours(batches(plain.cutoff)[0])
    assert ours.state_dict().keys() == plain.state_dict().keys()
    save_potential(tmp_path / "ours", ours)
    assert load_potential(tmp_path / "ours").compiled is None
    assert copy.deepcopy(ours).compiled is ours.compiled
    sent = pickle.loads(pickle.dumps(ours.compiled))
    assert isinstance(sent, Compiled)
    assert not sent._functions


def test_a_calculator_compiles(caplog):
    plain, ours = (
        MLIPCalculator(build("lennard_jones"), device="cpu", compile=choice)
        for choice in (False, True)
    )
    for atoms in (bulk("C", "diamond", a=3.6), bulk("C", "fcc", a=2.6), Atoms("H", [(0, 0, 0)])):
        results = []
        for calculator in (plain, ours):
            calculator.calculate(atoms)
            results.append(calculator.results)
        assert results[0].keys() == results[1].keys()
        for name, value in results[0].items():
            np.testing.assert_allclose(results[1][name], value, rtol=1e-12, atol=1e-12)
    assert sum("compiling the potential" in r.message for r in caplog.records) <= 1


def test_values_are_looked_at_before_the_graph_is(monkeypatch):
    potential = compile_potential(build("facet-charge").freeze())
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled first"))
    (graph,) = batches(potential.cutoff)[:1]
    with torch.no_grad(), pytest.raises(DataError, match="charge 99"):
        potential(replace(graph, charge=graph.charge + 99))
    with torch.no_grad(), pytest.raises(ValueError, match="sorted"):
        potential(replace(graph, edge_index=graph.edge_index.flip(1)))


def test_it_can_be_left_again():
    potential = compile_potential(build("lennard_jones").freeze())
    potential.compiled = None
    with torch.no_grad():
        out = potential(batches(potential.cutoff)[0])
    assert out.energy.isfinite().all()
