"""What autograd keeps for a backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Held:
    """A saved tensor; gone with the graph that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved_tensors() -> Iterator[Callable[[], list[Tensor]]]:
    """Give a function that returns the tensors saved within the block that are kept still."""
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        out = _Held(tensor)
        held.append(weakref.ref(out))
        return out

    def kept() -> list[Tensor]:
        found = (reference() for reference in held)
        return [one.tensor for one in found if one is not None]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        yield kept
