"""Energies and their derivatives as CUDA graphs, for small systems on a GPU.

A call of a small potential is hundreds of kernels, each launched by Python. A CUDA graph is
launched once; it repeats its kernels on the memory it was captured with. So sizes are fixed: a
system is filled up with lone atoms, and with edges from each of these to itself, to one of few
sizes, and a size that is met again is captured. What makes edges and forces of a structure, and
what fills up, is not part of it.

Nothing here has run on a GPU yet, and how much it saves is not known. A capture is made of lone
atoms and then has to give the numbers of the plain way for the system it is for: what it did not
capture, it cannot get right. In tests, a graph of PyTorch's operations takes the place of one of
kernels, and what would be captured is seen to ask nothing of the numbers it is given.

Letters: N atoms, E edges.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mlip.errors import ConfigError
from mlip.models.edge_function import (
    EdgeFunction,
    arguments,
    check_arguments,
    compared,
    expect,
    plain,
)
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.kernels import compiler
from mlip.models.potential import Potential, gradient
from mlip.models.tracing import tracing

log = logging.getLogger("mlip")
LARGEST = 100_000  # edges; a guess at where kernels take longer than their launches
KEPT, MET = 8, 1000  # captures, and sizes that were met: those used last
WARM_UP = 3  # calls before a capture: Triton compiles, libraries take what memory they need
Function = Callable[..., list[Tensor]]
Replay = Callable[[], None]
# Takes a function and its inputs; returns its outputs and what computes them anew in place.
Recorder = Callable[[Function, Sequence[Tensor]], tuple[list[Tensor], Replay]]


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
    """The captures of a potential and its copies; calls of several threads wait for each other.

    Each has memory of its own for what lies between its inputs and outputs.
    """

    def __init__(self, record: Recorder | None = None) -> None:
        """Capture nothing yet.

        Args:
            record: captures a function; by default as a CUDA graph.
        """
        self._record = record
        self._captures: OrderedDict[Any, _Capture | None] = OrderedDict()  # None: met once
        self._lock = Lock()
        self._told: set[str] = set()

    def __deepcopy__(self, memo: Any) -> Captured:
        """Return itself: captures know what they are of."""
        return self

    def __reduce__(self) -> tuple[type[Captured], tuple[()]]:
        """Send another process nothing: it captures what it needs."""
        return Captured, ()

    def __call__(
        self, potential: Potential, geometry: Geometry, create_graph: bool
    ) -> tuple[NodeOutput, list[Tensor]]:
        """Return what `potential.energies` returns and the derivative of its sum (E, 3).

        Args:
            potential: frozen; after its weights have changed, frozen again.
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
        try:
            if potential.frozen is None:
                self._tell("this potential is not frozen, so it is not captured: call its freeze()")
            elif geometry.edge_index.shape[1] <= LARGEST:
                with self._lock:
                    return self._captured(potential, geometry)
            return _plainly(potential, geometry)
        except torch.OutOfMemoryError:  # a caller may go on with less
            with self._lock:
                self._captures.clear()
            raise

    def _captured(
        self, potential: Potential, geometry: Geometry
    ) -> tuple[NodeOutput, list[Tensor]]:
        given = [x.detach() for x in arguments(geometry)]
        sizes = room(len(given[1]) + 1), room(len(given[0]))
        key = (id(potential.frozen), stream_of(given[0].device), *sizes)
        if key not in self._captures:
            self._keep(key, None)
            return _plainly(potential, geometry)
        capture = self._captures[key]
        if capture is None:
            right = plain(potential, geometry, [])  # also makes the constants of the model
            if not all(bool(torch.isfinite(x).all()) for x in right.values()):
                return NodeOutput(right["energies"], right.get("features")), [right["forces"]]
            capture = self._new(potential, given, sizes)
            expect(compared(capture(given), []), right, "captured")
            self._keep(key, capture)
        else:
            self._captures.move_to_end(key)
        energy, slope, *features = capture(given)
        return NodeOutput(energy, features[0] if features else None), [slope]

    def _new(
        self, potential: Potential, given: Sequence[Tensor], sizes: tuple[int, int]
    ) -> _Capture:
        record = self._record
        if record is None:
            if reason := _elsewhere(potential) or obstacle(potential):
                raise ConfigError(f"compile=true cannot be had: {reason}")
            record = cuda_graph
        memory = _Memory(potential, given, *sizes)
        log.debug("capturing the potential for %d atoms and %d edges", *sizes)
        try:
            outputs, replay = record(_function(potential), memory.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what is not permitted while a stream captures
            words = " ".join(str(error).split())[:500]
            raise ConfigError(
                f"compile=true: this potential could not be captured ({words}); compile=false "
                "does without"
            ) from error
        weights = [x.detach() for x in (*potential.parameters(), *potential.buffers())]
        return _Capture(memory, outputs, replay, (potential.frozen, weights))

    def _keep(self, key: Any, capture: _Capture | None) -> None:
        self._captures[key] = capture
        self._captures.move_to_end(key)
        if len(self._captures) > MET:
            self._captures.popitem(last=False)
        made = [k for k, other in self._captures.items() if other is not None]
        if len(made) > KEPT:
            del self._captures[made[0]]
            self._tell(
                f"systems of more than {KEPT} sizes in turns are captured again and again, which "
                "takes longer than compile=false"
            )

    def _tell(self, words: str) -> None:
        if words not in self._told:
            log.warning("compile=true: %s", words)
        self._told.add(words)


def room(count: int) -> int:
    """The next size up that is captured: at most an eighth, or 7, more than `count`."""
    step = 1 << max(count.bit_length() - 4, 3)
    return -(-count // step) * step


class _Memory:
    """What a capture reads: arguments of an `EdgeFunction`, with room for more atoms and edges."""

    def __init__(
        self, potential: Potential, like: Sequence[Tensor], atoms: int, edges: int
    ) -> None:
        """Hold lone atoms.

        Args:
            potential: whose first element lone atoms are.
            like: arguments of the same kinds, on the same device.
            atoms: how many fit; the last is never written over.
            edges: how many fit.
        """
        vectors, numbers, edge_index, *others = like
        self.inputs = [
            vectors.new_zeros(edges, 3),
            numbers.new_full((atoms,), potential.species[0]),
            edge_index.new_zeros(2, edges),
            *(x.new_zeros(atoms, *x.shape[1:]) for x in others),
        ]
        self._far = 2.0 * potential.cutoff  # Å
        self._fill_up(0, 0)

    def fill(self, given: Sequence[Tensor]) -> tuple[int, int]:
        """Write a system over what was there, and return how many atoms and edges it has."""
        vectors, numbers, edge_index, *others = self.inputs
        n, e = len(given[1]), len(given[0])
        vectors[:e].copy_(given[0])
        edge_index[:, :e].copy_(given[2])
        for kept, new in zip((numbers, *others), (given[1], *given[3:]), strict=True):
            kept[:n].copy_(new)
        if self._filled != (n, e):
            self._fill_up(n, e)
        return n, e

    def _fill_up(self, n: int, e: int) -> None:
        """Divide the other edges equally among the other atoms, each from an atom to itself."""
        vectors, numbers, edge_index, *others = self.inputs
        lone, rest = len(numbers) - n, len(vectors) - e
        vectors[e:] = 0.0
        vectors[e:, 0] = self._far
        edge_index[:, e:] = n + torch.arange(rest, device=edge_index.device) * lone // max(rest, 1)
        numbers[n:] = numbers[-1].clone()
        for x in others:
            x[n:] = 0
        self._filled = n, e


@dataclass(frozen=True)
class _Capture:
    """A captured function: what it reads, what it writes, and what makes it do so."""

    memory: _Memory
    outputs: Sequence[Tensor]
    replay: Replay
    kept: Any  # what has the id in the key, so that nothing else gets it, and the weights it reads

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return energies (N,), derivatives (E, 3) and features, if any, (N, C)."""
        n, e = self.memory.fill(given)
        self.replay()
        energy, slope, *features = self.outputs  # the next replay writes over them
        return [energy[:n].clone(), slope[:e].clone(), *(x[:n].clone() for x in features)]


def _plainly(potential: Potential, geometry: Geometry) -> tuple[NodeOutput, list[Tensor]]:
    output = potential.energies(geometry)
    return output, list(gradient(output.energy, [geometry.edge_vectors], create_graph=False))


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


def _elsewhere(potential: Potential) -> str | None:
    if potential.device.type == "cuda":
        return None
    return f"the potential was on a GPU and is now on {potential.device}; compile it again"


def stream_of(device: torch.device) -> int:
    """Number of the stream that work on a device is now queued in: captures belong to one."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


_capturing = Lock()  # of all potentials of a process: they share the stream below


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """The stream that all captures of a device are made in; libraries keep memory for each."""
    return torch.cuda.Stream(device)


def cuda_graph(function: Function, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Replay]:
    """Capture a function of tensors on a GPU; return its outputs and what replays it.

    Raises:
        RuntimeError: the function does what cannot be captured.
    """
    device = inputs[0].device
    here, aside, graph = torch.cuda.current_stream(device), _aside(device), torch.cuda.CUDAGraph()
    with _capturing:
        aside.wait_stream(here)
        try:
            with torch.cuda.device(device), torch.cuda.stream(aside):  # restored if it fails
                for _ in range(WARM_UP):
                    function(*inputs)
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    outputs = function(*inputs)
        finally:
            here.wait_stream(aside)
    return outputs, graph.replay
