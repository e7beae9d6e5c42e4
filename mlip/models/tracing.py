"""Whether code runs to be written down instead of to compute, and what a graph must not lose.

A tracer (`compiled`) calls a model with tensors that have shapes and no values. What looks at
values must not, and what a tracer cannot see into must be an operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TRACED: ContextVar[bool] = ContextVar("traced", default=False)

torch.library.define("mlip::constant", "(Tensor x) -> Tensor")
torch.library.register_autograd("mlip::constant", lambda _, gradient: None)


def traced() -> bool:
    """Whether the tensors of this thread have no values now."""
    return _TRACED.get()


@contextmanager
def tracing() -> Iterator[None]:
    """Say so within."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


@torch.library.impl("mlip::constant", "CompositeExplicitAutograd")
def _constant(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.register_fake("mlip::constant")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Constants(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.detach, torch.detach):
            return torch.ops.mlip.constant(*args)
        return func(*args, **(kwargs or {}))


def constants_kept() -> TorchFunctionMode:
    """Within, `detach` is written as an operator of its own: see `keep_only_constants`."""
    return _Constants()


def keep_only_constants(graph: torch.fx.GraphModule) -> None:
    """Make a traced derivative differentiable, and leave constant what a model declares to be.

    Autograd saves results such as exp(x), and a tracer writes each as detached, which is right for
    the derivative that it writes and wrong for the next one.
    """
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.target is torch.ops.mlip.constant.default:
            node.target = torch.ops.aten.detach.default
        elif node.target is torch.ops.aten.sgn.default:
            # what abs leaves behind: its derivative is zero, and PyTorch's would settle a size
            with graph.graph.inserting_before(node):
                constant = graph.graph.call_function(torch.ops.aten.detach.default, node.args)
            constant.meta.update(node.meta)
            node.args = (constant,)
    graph.recompile()
