"""Compiled sums over neighbours: the numbers and derivatives of PyTorch's, on any threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import build
from layers import LAYERS, geometry, paths, problem, written_out

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.edges import Edges
from mlip.models.facet import _coupling
from mlip.models.kernels import compiler, neighbor_sum

pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")


def compiled(layer, first, source, *tensors):
    *features, harmonics, radial, weights = tensors
    packed = torch.cat([x.flatten(1) for x in features], dim=1)
    return neighbor_sum.neighbor_sum(
        layer, _coupling, packed, harmonics, radial, weights, first, source
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("num_radial", [1, 4, 20])
def test_it_is_the_sum_of_all_messages(name, num_radial):
    first, source, _, tensors = problem(LAYERS[name], num_radial)
    ours = compiled(LAYERS[name], first, source, *tensors)
    for one, other in zip(ours, written_out(LAYERS[name], first, source, *tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_radial", [3, 20])
def test_first_and_second_derivatives(num_radial):
    """Of every argument, against finite differences."""
    layer = paths((2, 1, 1), outputs=(0, 1, 2))
    first, source, _, tensors = problem(layer, num_radial, n=4, edges=9)

    def function(*tensors):
        return tuple(compiled(layer, first, source, *tensors))

    assert torch.autograd.gradcheck(function, tensors)

    def gradients(*tensors):
        """As training takes them: with respect to all but the weights, then differentiated."""
        loss = sum((k + 1) * (x**3).sum() for k, x in enumerate(function(*tensors)))
        return torch.autograd.grad(loss, tensors[:-1], create_graph=True)

    assert torch.autograd.gradcheck(gradients, tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_all_messages(name, dtype):
    """First ones, and second ones as training takes them, for every width of channels."""
    layer = LAYERS[name]
    first, source, _, tensors = problem(layer, dtype=dtype)

    def derivatives(function, *tensors):
        out = function(layer, first, source, *tensors)
        loss = sum((k + 1) * x.square().sum() for k, x in enumerate(out))
        one = torch.autograd.grad(loss, tensors[:-1], create_graph=True)
        two = torch.autograd.grad(sum(x.square().sum() for x in one), tensors)
        return *one, *two

    exact = derivatives(written_out, *(x.detach().double().requires_grad_() for x in tensors))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, other in zip(derivatives(compiled, *tensors), exact, strict=True):
        error = float((ours - other).detach().abs().max())
        assert error < tolerance * float(other.detach().abs().max())


def test_a_third_derivative_is_refused():
    layer = LAYERS["one-radial"]
    first, source, _, tensors = problem(layer)
    x = tensors[-2]
    value = sum((y**4).sum() for y in compiled(layer, first, source, *tensors))
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"third.*MLIP_KERNELS=torch"):
        torch.autograd.grad(gradient.square().sum(), x, create_graph=True)


def test_the_gradient_of_the_weights_is_not_differentiated():
    layer = LAYERS["one-radial"]
    first, source, _, tensors = problem(layer)
    value = sum(y.square().sum() for y in compiled(layer, first, source, *tensors))
    (gradient,) = torch.autograd.grad(value, tensors[-1], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"radial weights.*MLIP_KERNELS=torch"):
        torch.autograd.grad(gradient.sum(), tensors[0])


def test_batches_of_gradients_are_refused():
    layer = LAYERS["one-radial"]
    first, source, _, tensors = problem(layer)
    out = compiled(layer, first, source, *tensors)[0].flatten()
    with pytest.raises(NotImplementedError, match=r"is_grads_batched.*MLIP_KERNELS=torch"):
        torch.autograd.grad(out, tensors[0], torch.eye(len(out)).double(), is_grads_batched=True)


def test_many_radial_functions_are_multiplied_in_full_precision():
    """Outside the kernel, where autocast would reach them."""
    layer = LAYERS["middle"]
    first, source, _, tensors = problem(layer, num_radial=20, dtype=torch.float32)
    plain = compiled(layer, first, source, *tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = compiled(layer, first, source, *tensors)
    for one, other in zip(plain, under_autocast, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda t: t.update(weights=t["weights"][:-1]), r"weights has the shape"),
        (lambda t: t.update(features=t["features"][:, :-1]), r"features has the shape"),
        (lambda t: t.update(features=t["features"][:-1]), r"features has the shape"),
        (lambda t: t.update(harmonics=t["harmonics"][:, :9]), r"harmonics has 9 columns.*16"),
        (lambda t: t.update(radial=t["radial"][:-1]), r"radial has the shape"),
        (lambda t: t.update(weights=t["weights"].float()), r"weights is torch.float32.*float64"),
        (lambda t: t.update(source=t["source"].int()), r"source must be.*int64"),
        (lambda t: t.update(first=t["first"].clamp(max=9)), r"first ends at 9.* 23 edges"),
    ],
)  # fmt: skip
def test_what_would_be_read_past_its_end_is_refused(harm, message):
    layer = LAYERS["middle"]
    first, source, _, tensors = problem(layer)
    *features, harmonics, radial, weights = (x.detach() for x in tensors)
    given = {
        "features": torch.cat([x.flatten(1) for x in features], dim=1), "harmonics": harmonics,
        "radial": radial, "weights": weights, "first": first, "source": source,
    }  # fmt: skip
    neighbor_sum.neighbor_sum(layer, _coupling, **given)
    harm(given)
    with pytest.raises(ValueError, match=message):
        neighbor_sum.neighbor_sum(layer, _coupling, **given)


def test_threads_give_the_same(monkeypatch):
    """To rounding, and to the bit when repeated."""
    layer = LAYERS["middle"]
    first, source, _, tensors = problem(layer, n=40, edges=900)
    monkeypatch.setattr(neighbor_sum, "EDGES_PER_THREAD", 100)

    def run(threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert len(neighbor_sum._ranges(first)) == threads
        out = compiled(layer, first, source, *tensors)
        loss = sum((x**2).sum() for x in out)
        gradients = torch.autograd.grad(loss, tensors[:-1], create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in gradients), tensors)
        return [*out, *gradients, *second]

    one, three, again = run(1), run(3), run(3)
    for a, b, c in zip(one, three, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)
        assert torch.equal(b, c)


def test_batches_of_any_size_share_their_threads(monkeypatch):
    """Pools are kept: one for each number of parts would be a thread more for every size seen."""
    layer, real, asked = LAYERS["middle"], neighbor_sum._pool, []

    def pool(process: int, threads: int) -> ThreadPoolExecutor:
        asked.append(threads)
        return real(process, threads)

    monkeypatch.setattr(neighbor_sum, "_pool", pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(neighbor_sum, "EDGES_PER_THREAD", 100)
    for edges in (250, 350, 900):
        first, source, _, tensors = problem(layer, n=40, edges=edges)
        compiled(layer, first, source, *tensors)
    assert set(asked) == {3}


def test_ranges_cover_all_centres(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(neighbor_sum, "EDGES_PER_THREAD", 1)
    for counts in ([0, 0, 9, 0], [5], [1, 1, 1, 1, 1, 1, 50], [0, 0, 0], [7, 0, 0, 0, 0]):
        first = torch.tensor([0, *np.cumsum(counts)])
        ranges = neighbor_sum._ranges(first)
        assert ranges[0][0] == 0
        assert ranges[-1][1] == len(counts)
        assert all(a[1] == b[0] for a, b in pairwise(ranges))


@pytest.mark.parametrize("name", ["facet", "facet-L3", "nequip-full", "nequip-sevennet"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_potentials_and_their_training_gradients_agree(name, dtype, monkeypatch):
    """Both kernels, on crystals and a molecule and an atom alone in one batch."""
    potential = build(name).to(dtype).train()
    structures = [
        bulk("C", "diamond", a=3.6) * (2, 1, 1),
        ase.Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)]),
        ase.Atoms("H", [(0, 0, 0)]),
    ]
    graph = collate([AtomGraph.from_atoms(a, potential.cutoff) for a in structures])
    found = []
    for kernels in ("torch", "compiled"):
        monkeypatch.setenv("MLIP_KERNELS", kernels)
        potential.zero_grad(set_to_none=True)
        out = potential(graph)
        loss = (out.energy - out.energy.detach() + 1).square().mean() + out.forces.square().mean()
        (loss + out.virial.square().mean()).backward()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in potential.parameters()
        ]
        found.append([out.energy, out.forces, out.virial, *gradients])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in zip(*found, strict=True):
        scale = max(float(one.detach().abs().max()), 1e-6)
        assert float((one - other).detach().abs().max()) < tolerance * scale


def test_hessians_agree(monkeypatch):
    potential = build("facet-L3").freeze()
    graph = AtomGraph.from_atoms(bulk("C", "diamond", a=3.6), potential.cutoff)
    found = []
    for kernels in ("torch", "compiled"):
        monkeypatch.setenv("MLIP_KERNELS", kernels)
        positions = graph.positions.clone().requires_grad_()
        forces = potential(replace(graph, positions=positions)).forces
        rows = [torch.autograd.grad(f, positions, retain_graph=True)[0] for f in forces.flatten()]
        found.append(torch.stack(rows))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


# -- the compiler --------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache of its own, and nothing remembered of the compiler."""
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLIP_KERNELS", "auto")
    remembered = (compiler.compiler, compiler.obstacle, compiler._compiler_version)
    for function in remembered:
        function.cache_clear()
    yield tmp_path / "cache" / "kernels"
    for function in remembered:
        function.cache_clear()


def test_a_library_is_compiled_once(fresh, monkeypatch):
    source = "int nine(void) { return 9; }\n"
    assert compiler.load(source, "a test").nine() == 9
    (library,) = fresh.glob("*.so")
    stamp = library.stat().st_mtime_ns
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiler.load(source, "a test").nine() == 9
    assert library.stat().st_mtime_ns == stamp
    with pytest.raises(pytest.fail.Exception):
        compiler.load(source + "\n", "another source")


def test_processes_that_start_together_compile_once(fresh):
    code = (
        "from mlip.models.kernels import compiler\n"
        "real = compiler._compile\n"
        "def told(*a): print('compiled', flush=True); real(*a)\n"
        "compiler._compile = told\n"
        "assert compiler.load('int nine(void) { return 9; }\\n', 'a test').nine() == 9\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0]
    assert "".join(printed).count("compiled") == 1
    assert len(list(fresh.glob("*.so"))) == 1


def test_what_does_not_compile_leaves_nothing(fresh):
    with pytest.raises(ConfigError, match=r"could not compile.*MLIP_KERNELS=torch(?s:.)*error"):
        compiler.load("int nine(void) { return }\n", "a test")
    assert not list(fresh.glob("*.so"))
    assert not [p for p in fresh.iterdir() if p.is_dir()]


def test_a_compiler_of_several_words(fresh, monkeypatch):
    real = compiler.compiler()
    monkeypatch.setenv("CC", f"env LC_ALL=C {real[0]}")
    compiler.compiler.cache_clear()
    assert compiler.compiler()[1:] == ("LC_ALL=C", real[0])
    assert compiler.load("int nine(void) { return 9; }\n", "a test").nine() == 9


def test_a_compiler_that_hangs(fresh, monkeypatch):
    monkeypatch.setenv("CC", "sh -c 'case $1 in --version) ;; *) sleep 60 ;; esac' sh")
    monkeypatch.setattr(compiler, "COMPILE_TIMEOUT", 0.2)
    with pytest.raises(ConfigError, match=r"after 0 s; MLIP_KERNELS=torch"):
        compiler.load("int nine(void) { return 9; }\n", "a test")


@pytest.mark.parametrize("content", [b"", b"\x7fELF"], ids=["empty", "cut"])
def test_a_library_cut_short_is_compiled_again(fresh, content):
    source = "int nine(void) { return 9; }\n"
    compiler.own_folder(compiler.cache_folder() / "kernels", "")
    code = f"from mlip.models.kernels import compiler; compiler.load({source!r}, 'a test')"
    subprocess.run([sys.executable, "-c", code], check=True)  # here it would stay loaded
    (library,) = fresh.glob("*.so")
    library.write_bytes(content)
    assert compiler.load(source, "a test").nine() == 9
    assert library.stat().st_size > 1000


def test_a_library_that_never_loads(fresh, monkeypatch):
    def nothing(source, flags, library):
        library.write_bytes(b"")
        library.chmod(0o700)

    monkeypatch.setattr(compiler, "_compile", nothing)
    with pytest.raises(ConfigError, match=r"does not load.*MLIP_KERNELS=torch"):
        compiler.load("int nine(void) { return 9; }\n", "a test")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder, patch: folder.chmod(0o770), "others may write to .*kernels; .*chmod go-w"),
        (lambda folder, patch: next(folder.glob("*.so")).chmod(0o702), "others may write to .*so;"),
        (lambda folder, patch: patch.setattr(os, "getuid", lambda: -1), "another user.*MLIP_CACHE"),
    ],
    ids=["folder", "library", "owner"],
)
def test_nothing_is_loaded_that_others_could_have_written(fresh, harm, message, monkeypatch):
    source = "int nine(void) { return 9; }\n"
    compiler.load(source, "a test")
    harm(fresh, monkeypatch)
    monkeypatch.setattr(compiler.ctypes, "CDLL", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match=message):
        compiler.load(source, "a test")


def test_a_user_without_a_home(fresh, monkeypatch):
    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MLIP_CACHE")
    monkeypatch.setattr(Path, "expanduser", none)
    assert "no home folder" in compiler.obstacle()
    assert not compiler.usable()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder, patch: patch.setenv("CC", "/nowhere/cc"), "no C compiler"),
        (lambda folder, patch: patch.setenv("CC", "false"), "could not compile"),
        (
            lambda folder, patch: (folder.mkdir(parents=True), os.chmod(folder, 0o777)),
            "others may write",
        ),
    ],
    ids=["none", "broken", "unsafe"],
)
def test_without_a_usable_compiler_it_is_torch(fresh, harm, message, monkeypatch, caplog):
    harm(fresh, monkeypatch)
    compiler._tell_once.cache_clear()
    assert not compiler.usable()
    assert not compiler.usable()
    told = [r.getMessage() for r in caplog.records if "slower" in r.getMessage()]
    assert len(told) == 1, "said once"
    assert message in told[0]
    monkeypatch.setenv("MLIP_KERNELS", "compiled")
    with pytest.raises(ConfigError, match=message):
        compiler.usable()


def test_unknown_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", "fast")
    with pytest.raises(ConfigError, match=r"MLIP_KERNELS='fast'.*auto, torch, compiled, triton"):
        compiler.usable()


def test_other_types_and_very_wide_layers_are_summed_by_torch(monkeypatch):
    layer = LAYERS["middle"]
    assert neighbor_sum.fits(layer, torch.float32)
    assert not neighbor_sum.fits(layer, torch.bfloat16)
    monkeypatch.setattr(neighbor_sum, "MAX_STACK", 1000)
    assert not neighbor_sum.fits(layer, torch.float32)


def test_the_edges_choose(monkeypatch):
    shapes = {}
    for kernels in ("torch", "compiled"):
        monkeypatch.setenv("MLIP_KERNELS", kernels)
        edges = Edges.build(geometry([[1, 2, 0], [0, 0, 2]]), lambda r: r[:, None], 2, _coupling)
        assert edges.kernels == kernels
        assert edges.first.tolist() == [0, 2, 2, 3]
        shapes[kernels] = len(edges.source)
    assert shapes == {"torch": 32, "compiled": 3}


@pytest.mark.parametrize(
    ("edges", "message"),
    [([[1, 2, 0], [0, 2, 0]], "sorted"), ([[1, 3, 0], [0, 0, 2]], "0 to 3.*0 to 2"),
     ([[1, -1, 0], [0, 0, 2]], "-1 to 2"), ([[1, 2, 0], [0, 0, 3]], "0 to 3")],
)  # fmt: skip
@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_edges_that_end_at_no_atom_are_refused(edges, message, kernels, monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", kernels)
    with pytest.raises(ValueError, match=message):
        Edges.build(geometry(edges), lambda r: r[:, None], 2, _coupling)
