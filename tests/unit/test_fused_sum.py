"""Sums over neighbours in Triton: their numbers by its interpreter, and that GPUs can have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ase
import pytest
import torch
from ase.build import bulk
from conftest import build
from layers import LAYERS, geometry, paths, problem, written_out

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.edges import Edges
from mlip.models.facet import _coupling
from mlip.models.kernels import fused_sum

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not fused_sum.interpreted(), reason="where there is a GPU: pytest -m gpu tests/unit/test_gpu.py"
)


# more channels than a program takes at a time, and fewer than a power of two
SHAPES = {name: LAYERS[name] for name in ("first", "middle", "last")} | {
    "wide": paths((40, 9), outputs=(0, 1))
}


def fused(layer, first, source, *tensors):
    *features, harmonics, radial, weights = tensors
    packed = torch.cat([x.flatten(1) for x in features], dim=1)
    centre = torch.repeat_interleave(torch.arange(len(first) - 1), first.diff())
    return fused_sum.fused_sum(
        layer, _coupling, packed, harmonics, radial, weights, first, source, centre
    )


def derivatives(function, layer, first, source, *tensors, orders=2):
    """Of a sum of squares: those that forces need, then those that training on forces needs."""
    out = function(layer, first, source, *tensors)
    total, found = sum((k + 1) * x.square().sum() for k, x in enumerate(out)), []
    for order in range(1, orders + 1):
        wanted = tensors if order == orders else tensors[:-1]
        found += torch.autograd.grad(total, wanted, create_graph=order < orders)
        total = sum(x.square().sum() for x in found)
    return *out, *found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_and_derivatives_are_those_of_all_messages(name, dtype):
    layer = SHAPES[name]
    first, source, _, tensors = problem(layer, dtype=dtype)
    exact = derivatives(
        written_out, layer, first, source,
        *(x.detach().double().requires_grad_() for x in tensors),
    )  # fmt: skip
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    ours = derivatives(fused, layer, first, source, *tensors)
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == dtype
        error = float((one - other).detach().abs().max())
        assert error < tolerance * float(other.detach().abs().max())


def test_third_derivatives():
    """There is no last one: each is made of the same two sums."""
    layer = paths((2, 1), outputs=(0, 1))
    first, source, _, tensors = problem(layer, n=4, edges=9)
    ours = derivatives(fused, layer, first, source, *tensors, orders=3)
    exact = derivatives(written_out, layer, first, source, *tensors, orders=3)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_without_edges():
    layer = LAYERS["one-radial"]
    first, source, _, tensors = problem(layer)
    *features, harmonics, radial, weights = tensors
    none = [x[:0].detach().requires_grad_() for x in (harmonics, radial)]
    found = derivatives(
        fused, layer, torch.zeros_like(first), source[:0], *features, *none, weights
    )
    assert not any(bool(x.detach().any()) for x in found)


@pytest.mark.parametrize("name", ["facet-L3", "nequip"])
def test_potentials_and_their_training_gradients_agree(name, monkeypatch):
    potential = build(name).train()
    structures = [bulk("C", "fcc", a=4.2), ase.Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)])]
    graph = collate([AtomGraph.from_atoms(a, potential.cutoff) for a in structures])
    found = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("MLIP_KERNELS", kernels)
        potential.zero_grad(set_to_none=True)
        out = potential(graph)
        loss = (out.energy - out.energy.detach() + 1).square().mean() + out.forces.square().mean()
        (loss + out.virial.square().mean()).backward()
        gradients = [p.grad.clone() for p in potential.parameters() if p.grad is not None]
        found.append([out.energy, out.forces, out.virial, *gradients])
    for one, other in zip(*found, strict=True):
        scale = max(float(one.detach().abs().max()), 1e-6)
        assert float((one - other).detach().abs().max()) < 1e-10 * scale


def test_the_edges_choose(monkeypatch):
    def chosen():
        batch = geometry([[1, 2, 0], [0, 0, 2]])
        return Edges.build(batch, lambda r: r[:, None], 2, _coupling).kernels

    monkeypatch.setenv("MLIP_KERNELS", "triton")
    assert chosen() == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert chosen() in ("compiled", "torch"), "Triton is for accelerators"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fused_sum, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"MLIP_KERNELS=triton.*pip install triton"):
        chosen()


COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from layers import paths
from mlip.models.facet import _coupling
from mlip.models.kernels.fused_sum import _Layer

found = {}
for real in ("fp32", "fp64"):
    for one in _Layer(paths((128, 32, 16, 8)), _coupling, 16)._inputs:
        for name, options in (("collect", ()), ("spread", ("WITH_H", "WITH_Y", "WITH_W"))):
            kernel = one.kernels[name]
            constants = {"ROWS": one.rows, "WIDTH": one.width} | dict.fromkeys(options, True)
            types = {"first": "*i64", "source": "*i64", "centre": "*i64", "atoms": "i32",
                     "edges": "i32"}
            signature = {a: "constexpr" if a in constants else types.get(a, "*" + real)
                         for a in kernel.arg_names}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            done = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                                  options={"num_warps": 1})
            found[f"{real} {name} {one.channels}"] = [
                len(done.asm["cubin"]), ".f32" in done.asm["ptx"], ".f64" in done.asm["ptx"],
                ".local" in done.asm["ptx"]]
print(json.dumps(found))
"""


def test_they_compile_for_a_gpu_and_keep_their_precision(tmp_path):
    """The middle layer of facet-s, for NVIDIA's architecture 9.0, which no GPU is needed for."""
    environment = dict(os.environ, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 16
    for name, (size, single, double, local) in found.items():
        assert size > 1000
        assert (single, double) == ((True, False) if "fp32" in name else (False, True)), name
        assert not local, f"{name} keeps its sums in memory"
