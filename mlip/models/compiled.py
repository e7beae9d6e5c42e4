"""Energies and their derivatives with respect to edges as one compiled function, if asked for.

A call of a small potential is hundreds of short PyTorch operations. `make_fx` writes them down, the
derivative that forces are made of included, with symbols for the numbers of atoms and edges, so
that one graph serves structures and batches of every size; Inductor compiles it, and for training
its derivative with respect to the weights. Weights are arguments: a step of an optimiser or an
average of weights changes nothing that is compiled, and nothing compiled reaches a file of ours.
What is compiled waits in the cache folder, under a name made of graph, compiler and processor.

Not for everything: see `obstacle`. The first result is compared with that of the plain way.

Letters: N atoms, E edges.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlip.cache_folder import cache_folder
from mlip.errors import ConfigError
from mlip.models import captured
from mlip.models.edge_function import (
    EdgeFunction,
    arguments,
    check_arguments,
    compared,
    expect,
    plain,
)
from mlip.models.geometry import Geometry, NodeOutput, join
from mlip.models.kernels import compiler, fused_sum
from mlip.models.potential import Potential, gradient
from mlip.models.tracing import constants_kept, keep_only_constants, tracing

log = logging.getLogger("mlip")
# Of what is traced: any but 0 and 1 would do, as long as a model has no width like it.
ATOMS, EDGES = 1009, 20011
SIZES = (2, 3, 4, 8, 12, 64, 1000, 4096, 10**6)  # that must take the same way through the graph
Function = Callable[..., list[Tensor]]


def compile_potential(potential: Potential) -> Potential:
    """Let `potential` compile itself when it is first called, and return it.

    On a GPU its kernels are captured instead (`captured`), for use only. Copies of it share what is
    compiled; `potential.compiled = None` is the way back.

    Raises:
        ConfigError: it cannot be compiled; the message says why.
    """
    if reason := obstacle(potential):
        raise ConfigError(f"compile=true cannot be had: {reason}")
    on_cpu = potential.device.type == "cpu"
    potential.compiled = Compiled() if on_cpu else captured.Captured()
    return potential


def obstacle(potential: Potential) -> str | None:
    """Why a potential cannot be compiled, or None."""
    if not potential.conservative:
        return "direct forces need no derivative, which is what it saves"
    if not potential.is_local or getattr(potential.model, "needs_positions", False):
        return "it is for local architectures, not for attention over all atoms or model.frames"
    if not getattr(potential.model, "traceable", True):
        return "attention goes through its edges in pieces, and a graph has no place for such cuts"
    if potential.device.type == "cuda":
        return captured.obstacle(potential)
    if potential.device.type != "cpu":
        return f"it is for CPUs and NVIDIA's GPUs, and the potential is on {potential.device}"
    in_c = ("auto", "compiled") if fused_sum.interpreted() else ("auto", "compiled", "triton")
    if compiler.mode() not in in_c:
        return f"it needs the kernels in C, and MLIP_KERNELS={compiler.mode()} asks for others"
    if reason := compiler.obstacle():
        return reason
    cxx = os.environ.get("CXX", "g++")
    return None if shutil.which(cxx) else f"there is no C++ compiler ({cxx}; or CXX=PATH)"


class Compiled:
    """The compiled functions of a potential and its copies, one for each kind of use."""

    def __init__(self) -> None:
        self._functions: dict[Any, Function] = {}
        self._compared: set[Any] = set()  # keys of those that have given the plain numbers

    def __deepcopy__(self, memo: Any) -> Compiled:
        """Return itself: weights are arguments."""
        return self

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        """Send another process nothing: it compiles, or finds in the cache, what it needs."""
        return Compiled, ()

    def __call__(
        self, potential: Potential, geometry: Geometry, create_graph: bool
    ) -> tuple[NodeOutput, list[Tensor]]:
        """Return what `potential.energies` returns and the derivative of its sum (E, 3).

        Args:
            potential: with weights like those of the first call.
            geometry: of at least one edge; what graphs it is of does not matter.
            create_graph: whether results are to be differentiated.

        Raises:
            ConfigError: it cannot be compiled, what is compiled gives other numbers, or forces are
                to be differentiated with respect to positions.
        """
        if create_graph and geometry.edge_vectors.grad_fn is not None:
            raise ConfigError(
                "compiled potentials have no Hessians; take the plain one, which is the same after "
                "potential.compiled = None"
            )
        check_arguments(potential, geometry)
        n = len(geometry.atomic_numbers)
        if n == 1:  # tracers take one for a size that is broadcast: let there be another atom
            geometry = join(geometry, potential.edgeless(geometry.atomic_numbers, geometry.head))
        weights = [*potential.parameters(), *potential.buffers()]
        tensors = arguments(geometry)
        trained = tuple(w.requires_grad for w in weights)
        trains = any(trained)
        key = potential.dtype, potential.device, trained
        sizes = tensors[1].shape[0], tensors[0].shape[0]
        if not trains:
            tensors[0] = tensors[0].detach()
        with torch.set_grad_enabled(create_graph and trains):
            if key not in self._compared:
                leaves = [w for w in weights if w.requires_grad]
                right = plain(potential, geometry, leaves)  # also makes the constants of the model
                if key not in self._functions:
                    self._functions[key] = _compile(potential, weights, trains)
                with torch.set_grad_enabled(trains):
                    found = compared(self._functions[key](*sizes, *weights, *tensors), leaves)
                if expect(found, right, "compiled"):
                    self._compared.add(key)
            energy, slope, *features = self._functions[key](*sizes, *weights, *tensors)
        return NodeOutput(energy[:n], features[0][:n] if features else None), [slope]


def _compile(potential: Potential, weights: Sequence[Tensor], trains: bool) -> Function:
    reason = obstacle(potential)
    if potential.device.type != "cpu":
        reason = f"the potential was on the CPU and is now on {potential.device}; compile it again"
    if reason:
        raise ConfigError(f"compile=true cannot be had: {reason}")
    use = "training" if trains else "use"
    log.info("compiling the potential for %s: about a minute, less from the cache", use)
    _remove_cut_short(_own_cache())
    try:
        return _traced_and_compiled(potential, weights, trains)
    except ConfigError:
        raise
    except Exception as error:  # whatever tracer, Inductor and the C++ compiler have to say
        words = " ".join(str(error).split())[:1000]
        raise ConfigError(
            f"compile=true: this potential could not be compiled ({type(error).__name__}: "
            f"{words}); compile=false does without"
        ) from error


def _own_cache() -> Path:
    """Return Inductor's cache: ours, unless the user has set another.

    Raises:
        ConfigError: others could write what would be loaded.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # A folder in /tmp whose name anybody can guess; torch sets the variable to it when imported.
    default, name = os.path.abspath(default_cache_dir()), "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name, default) == default:
        os.environ[name] = str(cache_folder().absolute() / "inductor")
    cache = Path(os.environ[name])
    compiler.own_folder(cache, f"set {name} to a folder of your own")
    # Compiled headers go to the default, whatever is set.
    compiler.own_folder(Path(default), "set TMPDIR to a folder of your own")
    return cache


def _remove_cut_short(cache: Path) -> None:
    """Remove libraries that end before their table of sections does: loading one may be fatal.

    The linker writes in place, so a process that is killed meanwhile leaves part of a file.
    """
    if sys.platform != "linux":
        return
    for library in cache.rglob("*.so"):
        with suppress(OSError):  # another process may have removed it
            size = library.stat().st_size
            with library.open("rb") as file:
                head = file.read(64).ljust(64, b"\0")
            (table,) = struct.unpack_from("<Q", head, 0x28)
            width, count = struct.unpack_from("<HH", head, 0x3A)
            if not head.startswith(b"\x7fELF") or not 0 < table + width * count <= size:
                library.unlink()


def _traced_and_compiled(potential: Potential, weights: Sequence[Tensor], trains: bool) -> Function:
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    module = EdgeFunction(potential)
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]

    def function(atoms: int, edges: int, *given: Tensor) -> list[Tensor]:
        own, (vectors, *others) = given[: len(names)], given[len(names) :]
        if not trains:
            vectors = vectors.detach().requires_grad_()
        replaced = dict(zip(names, own, strict=True))
        with constants_kept():
            output = torch.func.functional_call(module, replaced, (vectors, *others))
        (slope,) = gradient(output.energy, [vectors], create_graph=trains)
        out = [output.energy, slope, *([] if output.features is None else [output.features])]
        return out if trains else [x.detach() for x in out]

    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)

    def fake(tensor: Tensor, dynamic: Iterable[int] = ()) -> Tensor:
        kinds = [DimDynamic.STATIC] * tensor.dim()
        for dim in dynamic:
            kinds[dim] = DimDynamic.DUCK
        return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(kinds))

    def per_atom() -> Tensor:  # a new one each time: a tensor has one fake
        return fake(torch.zeros(ATOMS, dtype=torch.int64), [0])

    vectors = torch.ones(EDGES, 3, dtype=potential.dtype, requires_grad=trains)
    index = torch.zeros(2, EDGES, dtype=torch.int64)
    pbc = torch.zeros(ATOMS, 3, dtype=torch.bool)
    tensors = [fake(vectors, [0]), per_atom(), fake(index, [1])]
    tensors += [per_atom(), per_atom(), per_atom(), fake(pbc, [0])]
    # The sizes are arguments too: Inductor's cache knows symbols by those.
    sizes: list[Any] = [tensors[1].shape[0], tensors[0].shape[0]]
    given = [*sizes, *map(fake, weights), *tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on other devices and on torch's own internals
        with mode, tracing(), torch.enable_grad():
            graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*given)
        keep_only_constants(graph)
        _check_sizes(shapes.guards)
        with torch.set_grad_enabled(trains):
            compiled: Any = compile_fx(graph, given)
    # Inductor may choose between ways that are right for every size, but not settle one.
    _check_sizes(g for g in shapes.guards if getattr(g.expr, "rel_op", "") == "==")
    return compiled


def _check_sizes(guards: Iterable[Any]) -> None:
    """Expect decisions that depended on sizes to be the same for all sizes from 2 on.

    Raises:
        ConfigError: one is not, and the graph would be wrong for other sizes.
    """
    for guard in guards:
        symbols = sorted(guard.expr.free_symbols, key=str)
        for shift in range(len(SIZES)):
            values = {s: SIZES[(k * 5 + shift) % len(SIZES)] for k, s in enumerate(symbols)}
            if not bool(guard.expr.subs(values)):
                raise ConfigError(
                    f"this architecture takes another way for other numbers of atoms or edges "
                    f"({guard.expr}), and a compiled potential has only one"
                )
