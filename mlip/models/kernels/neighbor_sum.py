"""Sums over neighbours that never write a message: forward, gradient and its gradient in C.

`neighbor_sum.c` says what is summed. It is specialised here to the shapes of one layer, so that the
compiler knows the length of every loop. Energies need `forward`, forces `backward` and training on
forces `backward_twice`; a third derivative is refused.

Letters: N atoms, E edges sorted by centre, K radial functions, W radial weights.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mlip.models.kernels.compiler import load
from mlip.models.kernels.layout import (
    Coupling,
    feature_size,
    offsets,
    output_sizes,
    products,
    split_outputs,
)
from mlip.models.paths import Paths
from mlip.models.tracing import traced

FUNCTIONS = ("forward", "backward", "backward_twice")
REAL = {torch.float32: "float", torch.float64: "double"}
EDGES_PER_THREAD = 1000  # fewer are not worth waking a thread for
MAX_RADIAL = 16  # more are multiplied with the weights outside, by a matrix product of all edges
# Bytes: what belongs to one atom, to four edges and to one product is kept on a thread's stack.
MAX_STACK = 1_000_000
TILE = 4  # as in neighbor_sum.c


def fits(paths: Paths, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for such a layer: single or double precision, not too wide."""
    product = max((2 * degree + 1) * channels for channels, degree in paths.inputs)
    numbers = 2 * sum(output_sizes(paths)) + 4 * TILE * sum(paths.widths) + 4 * product
    return dtype in REAL and numbers * dtype.itemsize <= MAX_STACK


def neighbor_sum(
    paths: Paths,
    coupling: Coupling,
    features: Tensor,
    harmonics: Tensor,
    radial: Tensor,
    weights: Tensor,
    first: Tensor,
    source: Tensor,
) -> list[Tensor]:
    """Sum messages over the neighbours of each atom.

    Args:
        paths: which products.
        coupling: their constants, in the dtype and on the device asked for.
        features: (N, Σ(2l+1)C), the inputs (2l+1, C) of an atom beside one another.
        harmonics: (E, (L+1)²).
        radial: (E, K).
        weights: (K, W); radial @ weights are the radial weights of the products, side by side.
        first: (N + 1,) where the edges of each atom begin.
        source: (E,) neighbours.

    Returns:
        (N, 2l+1, ΣC) for each output.

    Raises:
        ValueError: shapes, dtypes or devices are not these; C would read past the end.
    """
    if not traced():
        _check(paths, features, harmonics, radial, weights, first, source)
    width = radial.shape[1]
    if width > MAX_RADIAL:
        with torch.autocast("cpu", enabled=False):  # as precise as inside the kernel
            radial, weights, width = radial @ weights, weights.new_empty(0), 0
    kernel = _kernel(paths, coupling, harmonics.shape[1], width, radial.dtype)
    args = [x.contiguous() for x in (features, harmonics, radial, weights)]
    if traced():
        from mlip.models.kernels.operators import operator

        out = operator(kernel)(first, source, *args)
    else:
        out: Tensor = _Sum.apply(kernel, first, source, *args)  # type: ignore[assignment]
    return split_outputs(paths, out, features.shape[0])


def _check(
    paths: Paths, features: Tensor, harmonics: Tensor, radial: Tensor, weights: Tensor,
    first: Tensor, source: Tensor,
) -> None:  # fmt: skip
    """Expect what the C functions take for granted; the entries of `source` are `Edges`'s care."""
    n, edges = len(first) - 1, len(source)
    wanted = {
        "features": (features, (n, feature_size(paths))),
        "harmonics": (harmonics, (edges, harmonics.shape[1])),
        "radial": (radial, (edges, radial.shape[1])),
        "weights": (weights, (radial.shape[1], sum(paths.widths))),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != radial.dtype or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, expected {radial.dtype} on cpu"
            )
    degree = max(l2 for _, (_, l2, _), _ in paths.products)
    if harmonics.shape[1] < (degree + 1) ** 2:
        raise ValueError(
            f"harmonics has {harmonics.shape[1]} columns, expected {(degree + 1) ** 2} or more"
        )
    for name, index in (("first", first), ("source", source)):
        if index.dtype != torch.int64 or not index.is_contiguous() or index.device.type != "cpu":
            raise ValueError(f"{name} must be contiguous int64 on cpu, not {index.dtype}")
    if int(first[-1]) != edges:
        raise ValueError(f"first ends at {int(first[-1])}, but there are {edges} edges")


class Kernel:
    """The three functions for the shapes of one layer, each compiled when it is first called."""

    def __init__(
        self, paths: Paths, coupling: Coupling, harmonics: int, radial: int, dtype: torch.dtype
    ) -> None:
        self.paths = paths
        self.out_size = sum(output_sizes(paths))
        self._source = _header(paths, coupling, harmonics, radial, dtype, self.out_size) + (
            files("mlip.models.kernels") / "neighbor_sum.c"
        ).read_text(encoding="utf-8")
        self.name = hashlib.sha256(self._source.encode()).hexdigest()[:24]
        self._what = f"{len(paths.products)} products, {REAL[dtype]}"
        self._functions: dict[str, Any] = {}

    def function(self, name: str) -> Any:
        """Return the function, compiled if it must be."""
        if name not in self._functions:
            define = f"#define FUNCTION {FUNCTIONS.index(name)}\n"
            function = load(define + self._source, f"{name} of {self._what}")[name]
            function.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * {
                "forward": 7, "backward": 11, "backward_twice": 15
            }[name]  # fmt: skip
            function.restype = None
            self._functions[name] = function
        return self._functions[name]

    def forward(
        self, first: Tensor, source: Tensor,
        h: Tensor, harmonics: Tensor, radial: Tensor, weights: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return all outputs of all atoms, behind one another; every argument is contiguous."""
        out = h.new_empty(h.shape[0] * self.out_size)
        self.run("forward", first, [source, h, harmonics, radial, weights], [], lambda _: [out])
        return out

    def backward(
        self, with_weights: bool, first: Tensor, source: Tensor,
        h: Tensor, harmonics: Tensor, radial: Tensor, weights: Tensor, g: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Return the gradients of features, harmonics, radial functions and, if asked, weights."""
        d_harmonics, d_radial = torch.empty_like(harmonics), torch.empty_like(radial)
        scattered = [torch.zeros_like(h), torch.zeros_like(weights) if with_weights else None]
        d_h, d_weights = self.run(
            "backward", first, [source, h, harmonics, radial, weights, g], scattered,
            lambda own: [own[0], d_harmonics, d_radial, own[1]],
        )  # fmt: skip
        return d_h, d_harmonics, d_radial, d_weights  # type: ignore[return-value]

    def backward_twice(
        self, first: Tensor, source: Tensor,
        h: Tensor, harmonics: Tensor, radial: Tensor, weights: Tensor, g: Tensor, *u: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """See `second_derivatives`; `u` are the first three cotangents."""
        v_g = torch.empty_like(g)
        v_harmonics, v_radial = torch.empty_like(harmonics), torch.empty_like(radial)
        v_h, v_weights = self.run(
            "backward_twice", first, [source, h, harmonics, radial, weights, g, *u],
            [torch.zeros_like(h), torch.zeros_like(weights)],
            lambda own: [v_g, own[0], v_harmonics, v_radial, own[1]],
        )  # fmt: skip
        return v_h, v_harmonics, v_radial, v_weights, v_g  # type: ignore[return-value]

    def run(
        self, name: str, first: Tensor, fixed: Sequence[Tensor], scattered: Sequence[Tensor | None],
        order: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]],
    ) -> list[Tensor | None]:  # fmt: skip
        """Run a function on all centres, in as many threads as PyTorch has.

        Args:
            name: of the function.
            first: (N + 1,).
            fixed: the tensors before those that are written.
            scattered: zeros that are added to; each thread gets its own and they are summed, in
                the order of the threads.
            order: puts the scattered ones (of one thread) among the other outputs.

        Returns:
            The sums of the scattered.
        """
        function = self.function(name)
        ranges = _ranges(first)

        def work(part: tuple[int, int], own: Sequence[Tensor | None]) -> None:
            tensors = [first, *fixed, *order(own)]
            function(len(first) - 1, *part, *map(_pointer, tensors))

        if len(ranges) == 1:
            work(ranges[0], scattered)
            return list(scattered)
        copies = [[None if x is None else torch.zeros_like(x) for x in scattered] for _ in ranges]
        list(_pool(os.getpid(), torch.get_num_threads()).map(work, ranges, copies))
        total, *others = copies
        for own in others:
            for into, part in zip(total, own, strict=True):
                if into is not None and part is not None:
                    into.add_(part)
        return total


def _pointer(tensor: Tensor | None) -> int | None:
    try:
        return None if tensor is None else tensor.data_ptr()
    except RuntimeError as error:  # a tensor of torch.func or of is_grads_batched has no memory
        raise NotImplementedError(
            "compiled kernels cannot be vectorised over batches of gradients (is_grads_batched, "
            "torch.func); loop over them, or set the environment variable MLIP_KERNELS=torch"
        ) from error


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *tensors: Tensor) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(*tensors)
        return kernel.forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        d = _Gradient.apply(
            ctx.kernel, ctx.needs_input_grad[-1], *ctx.saved_tensors, g.contiguous()
        )
        return (None, None, None, *d)  # type: ignore[misc]


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, with_weights: bool, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return kernel.backward(with_weights, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            # `once_differentiable` would not do: autograd.grad skips the node that would complain
            raise NotImplementedError(
                "compiled kernels have two derivatives, and create_graph asks for the third; set "
                "the environment variable MLIP_KERNELS=torch"
            )
        return (
            None,
            None,
            None,
            None,
            *second_derivatives(ctx.kernel, ctx.saved_tensors, cotangents),
        )


def second_derivatives(
    kernel: Kernel, tensors: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Differentiate `Kernel.backward`.

    Args:
        kernel: a kernel, or what stands for it.
        tensors: the arguments, without `with_weights`.
        cotangents: of the four results; None is zero.

    Returns:
        With respect to features, harmonics, radial functions, weights and g.

    Raises:
        NotImplementedError: the gradient of the weights has a cotangent.
    """
    *given, u_weights = cotangents
    if u_weights is not None:
        raise NotImplementedError(
            "compiled kernels have no derivative of the gradient of their radial weights; set "
            "the environment variable MLIP_KERNELS=torch"
        )
    u = [
        torch.zeros_like(like) if value is None else value.contiguous()
        for value, like in zip(given, tensors[2:5], strict=True)
    ]
    return kernel.backward_twice(*tensors, *u)


@cache
def _kernel(
    paths: Paths, coupling: Coupling, harmonics: int, radial: int, dtype: torch.dtype
) -> Kernel:
    return Kernel(paths, coupling, harmonics, radial, dtype)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # `process`: a fork has no threads
    return ThreadPoolExecutor(threads, thread_name_prefix="mlip-kernel")


def _ranges(first: Tensor) -> list[tuple[int, int]]:
    """Split the centres into parts of about as many edges."""
    n, edges = len(first) - 1, int(first[-1])
    parts = max(1, min(torch.get_num_threads(), edges // EDGES_PER_THREAD, n))
    if parts == 1:
        return [(0, n)]
    wanted = torch.arange(1, parts) * (edges / parts)
    inner = torch.searchsorted(first, wanted.to(first.dtype)).tolist()
    return list(pairwise([0, *inner, n]))


def _header(
    paths: Paths, coupling: Coupling, harmonics: int, radial: int, dtype: torch.dtype, out: int
) -> str:
    """What `neighbor_sum.c` expects in front of it."""
    at_output = offsets(output_sizes(paths))
    outputs = [f"DO({a}, {b - a})" for a, b in pairwise(at_output)]
    tables: dict[str, str] = {}
    rows = []
    for p in products(paths):
        name = "coupling_{}_{}_{}".format(*p.path)
        d1, d2, d3 = p.dimensions
        tables[name] = _table(name, coupling(p.path, torch.float64, torch.device("cpu")), d1)
        rows.append(
            f"DO({name}, {d1}, {d2}, {d3}, {p.channels}, {p.at_feature}, {p.at_harmonic}, "
            f"{p.at_weight}, {p.at_output + p.column}, {p.stride})"
        )
    sizes = {
        "RADIAL": radial, "WEIGHTS": sum(paths.widths), "FEATURES": feature_size(paths),
        "HARMONICS": harmonics, "OUT": out,
    }  # fmt: skip
    return "\n".join(
        [
            f"typedef {REAL[dtype]} real;",
            *(f"#define {name} {size}" for name, size in sizes.items()),
            *tables.values(),
            "#define FOR_EACH_TABLE(DO) " + " ".join(f"DO({name})" for name in tables),
            "#define FOR_EACH_PATH(DO) \\\n    " + " \\\n    ".join(rows),
            "#define FOR_EACH_OUTPUT(DO) " + " ".join(outputs),
            "",
        ]
    )


def _table(name: str, constants: Tensor, d1: int) -> str:
    """A coupling (2l2+1, (2l3+1)(2l1+1)) as an array, and its terms."""
    numbers = ", ".join(map(repr, constants.flatten().tolist()))
    terms = [
        f"TERM({column % d1}, {m2}, {column // d1}, {value!r})"
        for m2, row in enumerate(constants.tolist())
        for column, value in enumerate(row)
        if value
    ]
    array = f"static const real {name}[] = {{{numbers}}};"
    return f"{array}\n#define {name}_terms(TERM) {' '.join(terms)}"
