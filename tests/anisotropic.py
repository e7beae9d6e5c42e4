"""A model without rotational symmetry, and with everything else: what averaging is tested on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.radial import polynomial_envelope


class Anisotropic(nn.Module):
    """E_i = u(Σ_j e(r_ij) a_j (1 + tanh(w·r_ij + b))), u(x) = x + x²/4: smooth, local, not even.

    Translations, permutations and lattices hold exactly; it has a preferred direction `w` per
    channel, so rotations and reflections do not. `features` are the sums over neighbours.
    """

    symmetry = "none"
    is_local = True

    def __init__(
        self,
        *,
        cutoff: float,
        species: Sequence[int],
        channels: int = 4,
        force_scale: float = 1.0,
        **_: object,
    ) -> None:
        super().__init__()
        self.cutoff, self.species, self.scale = float(cutoff), tuple(species), force_scale
        self.embed = nn.Embedding(119, channels)
        self.directions = nn.Parameter(0.4 * torch.randn(3, channels))
        self.bias = nn.Parameter(torch.randn(channels))
        self.readout = nn.Parameter(torch.ones(channels))

    def forward(self, geometry: Geometry) -> NodeOutput:
        j, i = geometry.edge_index
        envelope = polynomial_envelope(geometry.edge_lengths / self.cutoff, 6)[:, None]
        phase = geometry.edge_vectors @ self.directions + self.bias
        z = geometry.atomic_numbers
        messages = envelope * self.embed(z)[j] * self.embed(z)[i] * (1.0 + torch.tanh(phase))
        x: Tensor = messages.new_zeros(len(z), messages.shape[1]).index_add(0, i, messages)
        return NodeOutput(self.scale * ((x + 0.25 * x * x) @ self.readout), features=x)
