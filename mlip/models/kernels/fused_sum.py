"""Sums over neighbours that never write a message, for accelerators, in Triton.

The same sums as `neighbor_sum`, and linear in each argument as they are:

    out_i[p, m3, c] = sum_j w_ij[p, c] sum_m1 b_p(r_ij)[m3, m1] h_j[m1, c]
    b_p[m3, m1] = sum_m2 C_p[m2, m3, m1] Y(r_ij)[m2]

so two kernels are enough: `collect` gives out, `spread` the gradients of <g, out>, and derivatives
of any order are made of both. Radial weights w are multiplied out beforehand, by one matrix product
of all edges. Kernels are generated for each input of a layer (`fused_source`), with its couplings
as constants; Triton compiles them for the device and keeps them in its own cache.

Checked against float64 in Triton's interpreter and compiled for GPUs without one at hand; what they
take there has not been measured, so they are used only where MLIP_KERNELS is `triton`.

Letters: N atoms, E edges sorted by centre, W radial weights, H harmonics, F features of an atom.
"""

from __future__ import annotations

import hashlib
import linecache
import os
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mlip.errors import ConfigError
from mlip.models.kernels.fused_source import write
from mlip.models.kernels.layout import (
    Coupling,
    Product,
    feature_size,
    output_sizes,
    products,
    split_outputs,
)
from mlip.models.paths import Paths

CHANNELS = 32  # of one program at most: one for each lane of a warp
NUMBERS = 64  # edges times channels that a program works on at a time

REAL = (torch.float32, torch.float64)
Edges = tuple[Tensor, Tensor, Tensor]  # first, source, centre
Wanted = tuple[bool, bool, bool]  # the gradients of features, harmonics, weights


def interpreted() -> bool:
    """Whether Triton's kernels run as Python on the CPU, which is how they are tested."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require() -> None:
    """Refuse to go on without Triton.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("triton") is None:
        raise ConfigError(
            "MLIP_KERNELS=triton, but Triton is not installed: pip install triton (PyTorch for "
            "CUDA brings it), or unset MLIP_KERNELS"
        )


def fused_sum(
    paths: Paths,
    coupling: Coupling,
    features: Tensor,
    harmonics: Tensor,
    radial: Tensor,
    weights: Tensor,
    first: Tensor,
    source: Tensor,
    centre: Tensor,
) -> list[Tensor]:
    """Sum messages over the neighbours of each atom.

    Args:
        paths: which products.
        coupling: their constants, in the dtype and on the device asked for.
        features: (N, F), the inputs (2l+1, C) of an atom beside one another.
        harmonics: (E, H).
        radial: (E, K).
        weights: (K, W); radial @ weights are the radial weights of the products, side by side.
        first: (N + 1,) where the edges of each atom begin.
        source: (E,) neighbours.
        centre: (E,) centres, ascending.

    Returns:
        (N, 2l+1, ΣC) for each output.
    """
    with torch.autocast(features.device.type, enabled=False):
        layer = _layer(paths, coupling, harmonics.shape[1])
        edges = (first, source, centre)
        out: Tensor = _Collect.apply(layer, edges, features, harmonics, radial @ weights)  # type: ignore[assignment]
    return split_outputs(paths, out, len(features))


class _Layer:
    """The kernels of one layer, those of each input, and their launches."""

    def __init__(self, paths: Paths, coupling: Coupling, harmonics: int) -> None:
        self._out_size = sum(output_sizes(paths))
        self._inputs = [
            _Input(list(rows), coupling, harmonics, feature_size(paths), sum(paths.widths))
            for _, rows in groupby(sorted(products(paths), key=_input), key=_input)
        ]

    def collect(self, edges: Edges, h: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Return the outputs, (N·OUT,)."""
        first, source, _ = edges
        n = len(first) - 1
        out = h.new_empty(n * self._out_size)
        with torch.cuda.device_of(h):  # Triton launches on the current device
            for one in self._inputs:
                grid = (n, -(-one.channels // one.width))
                one.kernels["collect"][grid](
                    out, h, y, w, first, source, n, ROWS=one.rows, WIDTH=one.width, num_warps=1
                )
        return out

    def spread(
        self, edges: Edges, wanted: Wanted, g: Tensor, h: Tensor, y: Tensor, w: Tensor
    ) -> list[Tensor | None]:
        """Return the gradients of <g, out> with respect to h, y and w, those that are wanted."""
        first, source, centre = edges
        out = [
            torch.zeros_like(x) if need else None for x, need in zip((h, y, w), wanted, strict=True)
        ]
        with_h, with_y, with_w = wanted
        if not len(source):
            return out
        with torch.cuda.device_of(h):
            for one in self._inputs:
                one.kernels["spread"][(-(-len(source) // one.rows),)](
                    *out, g, h, y, w, source, centre, len(first) - 1, len(source),
                    WITH_H=with_h, WITH_Y=with_y, WITH_W=with_w, ROWS=one.rows, WIDTH=one.width,
                    num_warps=1,
                )  # fmt: skip
        return out


class _Input:
    """The kernels of the products of one input, and how they divide its channels."""

    def __init__(
        self, rows: list[Product], coupling: Coupling, harmonics: int, features: int, weights: int
    ) -> None:
        self.channels = rows[0].channels
        self.width = min(CHANNELS, 1 << (self.channels - 1).bit_length())
        self.rows = NUMBERS // self.width
        constants = [
            coupling(p.path, torch.float64, torch.device("cpu")).view(
                p.dimensions[1], p.dimensions[2], p.dimensions[0]
            )
            for p in rows
        ]
        self.kernels = _define(write(rows, constants, harmonics, features, weights))


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: _Layer, edges: Edges, h: Tensor, y: Tensor, w: Tensor
    ) -> Tensor:  # fmt: skip
        ctx.layer, ctx.edges = layer, edges
        ctx.save_for_backward(h, y, w)
        return layer.collect(edges, h.contiguous(), y.contiguous(), w.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wanted = ctx.needs_input_grad[2:]
        d = _Spread.apply(ctx.layer, ctx.edges, wanted, *gradients, *ctx.saved_tensors)
        return None, None, *d  # type: ignore[misc]


class _Spread(torch.autograd.Function):
    """Gradients of <g, out>. Their own are both sums with one argument after another exchanged."""

    @staticmethod
    def forward(
        ctx: Any, layer: _Layer, edges: Edges, wanted: Wanted,
        g: Tensor, h: Tensor, y: Tensor, w: Tensor,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.layer, ctx.edges = layer, edges
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, h, y, w)
        arguments = [x.contiguous() for x in (g, h, y, w)]
        return tuple(layer.spread(edges, wanted, *arguments))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        g, *arguments = ctx.saved_tensors
        need_g, *needed = ctx.needs_input_grad[3:]
        v_g: Tensor | None = None
        v: list[Tensor | None] = [None, None, None]
        for k, u in enumerate(cotangents):
            if u is None:
                continue
            exchanged = [u if k == m else x for m, x in enumerate(arguments)]
            if need_g:
                v_g = _add(v_g, _Collect.apply(ctx.layer, ctx.edges, *exchanged))
            wanted = tuple(need and m != k for m, need in enumerate(needed))
            if any(wanted):
                found = _Spread.apply(ctx.layer, ctx.edges, wanted, g, *exchanged)
                v = [_add(a, b) for a, b in zip(v, found, strict=True)]  # type: ignore[arg-type]
        return None, None, None, v_g, *v


def _add(one: Tensor | None, other: Any) -> Tensor | None:
    return other if one is None else one if other is None else one + other


@cache
def _layer(paths: Paths, coupling: Coupling, harmonics: int) -> _Layer:
    return _Layer(paths, coupling, harmonics)


def _input(product: Product) -> int:
    return product.input


def _define(code: str) -> dict[str, Any]:
    """Run generated kernels; Triton reads their source where tracebacks do."""
    name = f"<mlip kernel {hashlib.sha256(code.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "mlip_kernel"}
    exec(compile(code, name, "exec"), space)  # noqa: S102  # made of numbers by `write`
    return space
