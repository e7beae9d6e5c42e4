"""One read-out per level of theory: what several data sets share is the backbone before it.

PBE and ωB97M-V differ by more than shifts of free atoms, so each head has weights of its own from
the atoms' features on. All heads are computed for all atoms and the atom's own is chosen: no shape
depends on the data, and every weight takes part in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlip.models.geometry import Geometry


class PerHead(nn.ModuleList):
    """Modules of the same shape, one a head; which one speaks for an atom is its structure's."""

    def forward(self, geometry: Geometry, *inputs: Any) -> Tensor:
        """Return (N, ...), each row from the module that `geometry.head` names."""
        values = torch.stack([module(*inputs) for module in self])  # (heads, N, ...)
        head = geometry.head[geometry.batch]
        return values[head, torch.arange(head.shape[0], device=head.device)]


def per_head(make: Callable[[], nn.Module], count: int) -> nn.Module:
    """Return what `make` makes, or for several heads a `PerHead` of as many.

    A potential with one head has the tensors it would have if heads did not exist.
    """
    return make() if count == 1 else PerHead(make() for _ in range(count))


def read_out(readout: nn.Module, geometry: Geometry, *inputs: Any) -> Tensor:
    """Apply what `per_head` returned to per-atom inputs; its outputs are (N, ...)."""
    return readout(geometry, *inputs) if isinstance(readout, PerHead) else readout(*inputs)
