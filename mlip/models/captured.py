"""Energies and their derivatives as CUDA graphs, for small systems on a GPU.

A call of a small potential is hundreds of kernels that take a GPU less time than Python needs to
launch them. A CUDA graph is launched once; it repeats its kernels on the memory it was captured
with. So sizes are fixed: a system is filled up with lone atoms, and with edges among those that are
longer than the cutoff, to one of few sizes, and each of these is captured when it is first met.
Every capture is compared with the plain way before it is used.

Nothing here has run on a GPU yet. Its tests let a plain call take the place of a captured one, and
see that what would be captured asks nothing of the numbers it is given.

Letters: N atoms, E edges.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlip.errors import ConfigError
from mlip.models.edge_function import EdgeFunction, arguments, check_arguments, expect, plain
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.kernels import compiler
from mlip.models.potential import Potential, gradient
from mlip.models.tracing import tracing

log = logging.getLogger("mlip")
LARGEST = 100_000  # edges; beyond, kernels take longer than their launches
KEPT = 8  # captures, those used last
WARM_UP = 3  # calls before a capture: Triton compiles, libraries take what memory they need
Function = Callable[..., list[Tensor]]
# Takes a function and its inputs; returns its outputs and what computes them anew in place.
Recorder = Callable[[Function, Sequence[Tensor]], tuple[list[Tensor], Callable[[], None]]]


def obstacle(potential: Potential) -> str | None:
    """Why a potential on a GPU cannot be captured, or None."""
    if any(p.requires_grad for p in potential.parameters()):
        return "on a GPU it is for use, not for training"
    if compiler.mode() != "triton":
        return (
            "on a GPU it needs sums over neighbours whose sizes do not depend on numbers, which "
            "MLIP_KERNELS=triton asks for"
        )
    return None


class Captured:
    """The captures of a potential and its copies, by sizes and weights."""

    def __init__(self, record: Recorder | None = None) -> None:
        """Capture nothing yet.

        Args:
            record: captures a function; by default as a CUDA graph.
        """
        self._record = record or cuda_graph
        self._captures: OrderedDict[Any, _Capture] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> Captured:
        """Return itself: captures know the weights they read."""
        return self

    def __reduce__(self) -> tuple[type[Captured], tuple[()]]:
        """Send another process nothing: it captures what it needs."""
        return Captured, ()

    def __call__(
        self, potential: Potential, geometry: Geometry, create_graph: bool
    ) -> tuple[NodeOutput, list[Tensor]]:
        """Return what `potential.energies` returns and the derivative of its sum (E, 3).

        Args:
            potential: frozen.
            geometry: of at least one edge; what graphs it is of does not matter.
            create_graph: whether results are to be differentiated; they cannot be.

        Raises:
            ConfigError: results are to be differentiated, nothing can be captured, or the numbers
                of a capture differ from those of the plain way.
        """
        if create_graph:
            raise ConfigError(
                "results of captured potentials have no derivatives: call them under "
                "torch.no_grad(), or set potential.compiled = None"
            )
        check_arguments(potential, geometry)
        if geometry.edge_index.shape[1] > LARGEST:
            output = potential.energies(geometry)
            grads = gradient(output.energy, [geometry.edge_vectors], create_graph=False)
            return output, list(grads)
        given = [x.detach() for x in arguments(geometry)]
        weights = [*potential.parameters(), *potential.buffers()]
        atoms, edges = room(len(geometry.atomic_numbers) + 1), room(geometry.edge_index.shape[1])
        key = (atoms, edges, *(w.data_ptr() for w in weights))
        capture = self._captures.get(key)
        if capture is None:
            capture = self._new(potential, geometry, given, (atoms, edges), weights)
            self._captures[key] = capture
            if len(self._captures) > KEPT:
                self._captures.popitem(last=False)
        self._captures.move_to_end(key)
        energy, slope, *features = capture(given)
        return NodeOutput(energy, features[0] if features else None), [slope]

    def _new(
        self,
        potential: Potential,
        geometry: Geometry,
        given: Sequence[Tensor],
        sizes: tuple[int, int],
        weights: list[Tensor],
    ) -> _Capture:
        right = plain(potential, geometry, [])  # also makes the constants of the model
        inputs = lone_atoms(potential, given, *sizes)
        capture = _Capture(inputs, potential.cutoff, weights)
        capture.fill(given)
        log.debug("capturing the potential for %d atoms and %d edges", *sizes)
        try:
            outputs, capture.replay = self._record(_function(potential), inputs)
        except RuntimeError as error:  # what is not permitted while a stream captures
            words = " ".join(str(error).split())[:500]
            raise ConfigError(
                f"compile=true: this potential could not be captured ({words}); compile=false "
                "does without"
            ) from error
        capture.outputs = outputs
        expect(capture(given), right)
        return capture


def room(count: int) -> int:
    """The next size up that is captured: at most an eighth, or 7, more than `count`."""
    step = 1 << max(count.bit_length() - 4, 3)
    return -(-count // step) * step


def lone_atoms(
    potential: Potential, like: Sequence[Tensor], atoms: int, edges: int
) -> list[Tensor]:
    """Arguments of an `EdgeFunction` of neutral atoms, for others to be written over."""
    out = [
        x.new_zeros(*(sizes if k == 2 else (sizes[0], *x.shape[1:])))
        for k, (x, sizes) in enumerate(
            zip(like, [(edges,), (atoms,), (2, edges), *[(atoms,)] * 4], strict=True)
        )
    ]
    out[1].fill_(potential.species[0])
    return out


@dataclass
class _Capture:
    """One capture: the memory that it reads and writes."""

    inputs: list[Tensor]
    cutoff: float
    weights: list[Tensor]  # kept, so that no other weights come to lie where these are
    outputs: Sequence[Tensor] = ()
    replay: Callable[[], None] = lambda: None
    filled: tuple[int, int] = (-1, -1)

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return energies (N,), derivatives (E, 3) and features, if any, (N, C)."""
        self.fill(given)
        self.replay()
        n, e = self.filled
        energy, slope, *features = self.outputs  # the next replay writes over them
        return [energy[:n].clone(), slope[:e].clone(), *(x[:n].clone() for x in features)]

    def fill(self, given: Sequence[Tensor]) -> None:
        """Write what was given over the first atoms and edges, and let nothing be left behind."""
        vectors, numbers, edge_index, *others = self.inputs
        n, e = len(given[1]), len(given[0])
        vectors[:e].copy_(given[0])
        edge_index[:, :e].copy_(given[2])
        for kept, new in zip((numbers, *others), (given[1], *given[3:]), strict=True):
            kept[:n].copy_(new)
        if self.filled != (n, e):
            self._fill_up(n, e)

    def _fill_up(self, n: int, e: int) -> None:
        """Divide the other edges equally among the other atoms, each from an atom to itself."""
        vectors, numbers, edge_index, *others = self.inputs
        lone, rest = len(numbers) - n, len(vectors) - e
        vectors[e:] = 0.0
        vectors[e:, 0] = 2.0 * self.cutoff
        edge_index[:, e:] = n + torch.arange(rest, device=edge_index.device) * lone // max(rest, 1)
        numbers[n:] = numbers[-1]  # the last was never written over
        for x in others:
            x[n:] = 0
        self.filled = (n, e)


def _function(potential: Potential) -> Function:
    """Energies, derivatives and features of the arguments, looking at no values."""
    energies = EdgeFunction(potential)

    def function(vectors: Tensor, *others: Tensor) -> list[Tensor]:
        with tracing(), torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            output = energies(vectors, *others)
            (slope,) = gradient(output.energy, [vectors], create_graph=False)
        features = [] if output.features is None else [output.features.detach()]
        return [output.energy.detach(), slope, *features]

    return function


def cuda_graph(
    function: Function, inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[], None]]:
    """Capture a function of tensors on a GPU; return its outputs and what replays it.

    Raises:
        ConfigError: the tensors are elsewhere.
        RuntimeError: the function does what cannot be captured.
    """
    device = inputs[0].device
    if device.type != "cuda":
        raise ConfigError(
            f"compile=true: the potential was on a GPU and is now on {device}; compile it again"
        )
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function(*inputs)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        outputs = function(*inputs)
    return outputs, graph.replay
