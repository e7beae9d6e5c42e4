"""Facet with what it does without: gates instead of grids, an MLP instead of a linear radial map.

For `ablation.py` only. Both are as in NequIP: gates are SiLU of scalars, and the MLP has no biases,
so that radial weights vanish with the basis at the cutoff.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody uses

from mlip.models.edges import Edges
from mlip.models.facet import Convolution, DegreeLinear, Facet, Features, Layer, ProductUpdate

HIDDEN = (64, 64)  # widths of the MLP, the default of NequIP's and SevenNet's packages


class GateUpdate(nn.Module):
    """SiLU of scalars; channels of higher degrees times SiLU of a scalar each."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(channels)
        self.up = DegreeLinear(channels, channels)
        self.scalar = nn.Linear(channels[0], sum(channels))
        self.down = DegreeLinear(channels, channels)

    def forward(self, x: Features) -> Features:
        """Map (N, 2l+1, C_l) to the same shapes."""
        mixed = self.up(x)
        scalars, *gates = F.silu(self.scalar(mixed[0])).split(self.widths, dim=2)
        gated = [value * gate for value, gate in zip(mixed[1:], gates, strict=True)]
        return self.down([scalars, *gated])


class MLPConvolution(nn.Module):
    """The convolution of Facet with radial weights from an MLP on every edge."""

    def __init__(self, linear: Convolution) -> None:
        super().__init__()
        self.norm, self.paths, self.mix = linear.norm, linear.paths, linear.mix
        sizes = [linear.radial.shape[0], *HIDDEN, linear.radial.shape[1]]
        self.radial = nn.ParameterList(torch.randn(a, b) * a**-0.5 for a, b in pairwise(sizes))

    def forward(self, h: Tensor, edges: Edges) -> Features:
        """Sum messages to (N, 2l+1, C_l)."""
        *hidden, last = self.radial
        radial = edges.radial
        for matrix in hidden:
            radial = F.silu(radial @ matrix)
        return self.mix(edges.sum(self.paths, h, radial, self.norm * last))


class Ablated(Facet):
    """Facet with some parts replaced."""

    gates = mlp = False

    @wraps(Facet.__init__)  # its options are looked up there
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if self.gates and isinstance(layer.update, ProductUpdate):
                layer.update = GateUpdate(layer.norm.channels)
            if self.mlp:
                layer.convolution = MLPConvolution(layer.convolution)  # type: ignore[assignment]


class Gated(Ablated):
    """With gates."""

    gates = True


class MLPRadial(Ablated):
    """With an MLP."""

    mlp = True


class GatedMLPRadial(Ablated):
    """With both: a NequIP of Facet's layout."""

    gates = mlp = True
