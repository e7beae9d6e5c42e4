"""TransIP: a plain Transformer over atoms that is taught its symmetry instead of built with it.

One token per atom; pre-norm RMSNorm blocks of attention and a feed-forward network; coordinates
enter attention by a learned rotary embedding in three dimensions, and by distances; charge and
spin are added to every token. Translations and permutations hold exactly, rotations only as far as
training taught them (`symmetry = "none"`). Source: "Learning inter-atomic potentials without
explicit equivariance", arXiv:2510.00027. Its sizes and the form of its rotary embedding are not
published in detail: ours are choices, and so are distances, the neighbour mode and everything said
to be one below.

Two ways to attend, with the same rotary algebra:

- `global`: every atom of a molecule sees every other, by rotary phases and by its distance, which
  no source says of the published model. No token knows where it is, only where others are from it:
  a fragment far from the rest is seen as well as one in the middle. Not local, not extensive, only
  for structures without periodic axes. Edges are not read.
- `neighbours`: an atom sees itself, its neighbours within the cutoff through relative vectors, and
  a null key. All that comes along an edge carries a smooth envelope, so the energy is C2 where a
  neighbour enters, be it the first one; no quantity of the whole graph enters, so it is extensive
  and works for any periodicity.

Letters: N atoms, B structures, D = `dim`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError, DataError
from mlip.graph import mean_of_graphs
from mlip.models.attention import (
    EPS,
    GlobalAttention,
    Molecules,
    NeighbourAttention,
    Neighbourhoods,
)
from mlip.models.embedding import AtomEmbedding
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.options import check_at_least, check_word
from mlip.models.radial import BesselBasis
from mlip.models.readout import per_head, read_out

ATTENTIONS = ("auto", "global", "neighbours")
FORCES = ("gradient", "direct")
PAIR_CHANNELS = 32  # of the direct forces between neighbours
NOT_PERIODIC = (
    "global attention has no images and is for molecules, but {}; use a potential trained with "
    "model.attention=neighbours (or auto), or set pbc=False for molecules in a box"
)


class TransIP(nn.Module):
    """Per-atom energies from attention over all atoms or over neighbours (an `EnergyModel`)."""

    symmetry = "none"
    traceable = False  # pieces of attention depend on the data

    def __init__(
        self,
        *,
        cutoff: float,
        species: Sequence[int],
        avg_num_neighbors: float,
        force_scale: float = 1.0,
        charge_spin: bool = False,
        readouts: int = 1,
        attention: str = "auto",
        dim: int = 384,
        num_layers: int = 8,
        num_heads: int = 6,
        ffn_multiple: int = 4,
        num_basis: int = 8,
        rope_sigma: float = 0.5,
        distances: bool = True,
        forces: str = "gradient",
    ) -> None:
        """Build it.

        Args:
            cutoff: Å; global attention has none and ignores the edges.
            species: atomic numbers to know.
            avg_num_neighbors: mean number of neighbours within the cutoff in the training set; the
                null key starts with the weight of as many neighbours.
            force_scale: typical force of the training set, eV/Å; the unit of the output.
            charge_spin: whether total charge and spin multiplicity condition the energy.
            readouts: levels of theory, each with a read-out of its own.
            attention: "global", "neighbours", or "auto": training replaces it by what its data need
                (`resolve_options`); until then it means neighbours, which suit any structure.
            dim: width D of a token.
            num_layers: blocks.
            num_heads: attention heads; D / num_heads must be even.
            ffn_multiple: hidden width of the feed-forward network over D.
            num_basis: radial basis functions of distances.
            rope_sigma: standard deviation of the initial frequencies' components, 1/Å.
            distances: whether global attention sees distances beside rotary phases, as attention
                to neighbours always does. No source says that the published model does; ours
                learns little without in a short training.
            forces: "gradient" of the energy, or "direct": a head of their own, faster and not
                conservative.

        Raises:
            ConfigError: an option has no such value.
        """
        super().__init__()
        check_word("attention", attention, ATTENTIONS)
        check_word("forces", forces, FORCES)
        check_word("distances", distances, (True, False))
        check_at_least(
            1,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_multiple=ffn_multiple,
            num_basis=num_basis,
        )
        if dim % (2 * num_heads):
            raise ConfigError(
                f"model.dim={dim} must be an even multiple of model.num_heads={num_heads}"
            )
        self.cutoff = float(cutoff)
        self.species = tuple(int(z) for z in species)
        self.force_scale = float(force_scale)
        self.uses_charge_spin = charge_spin
        self.conservative = forces == "gradient"
        self.is_local = attention != "global"
        self.needs_positions = not self.is_local
        self.accepts_periodic = self.is_local

        self.embed = AtomEmbedding(self.species, dim, charge_spin)
        # One set of frequencies for all layers: their sines are computed once.
        self.frequencies = nn.Parameter(
            rope_sigma * torch.randn(num_heads, dim // num_heads // 2, 3)
        )
        if self.is_local:
            self.basis = BesselBasis(self.cutoff, num_basis)
        self.num_pair_basis = num_basis if distances else 0  # of global attention
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            attention_layer = (
                NeighbourAttention(dim, num_heads, 4 * num_basis, avg_num_neighbors)
                if self.is_local
                else GlobalAttention(dim, num_heads, self.num_pair_basis)
            )
            self.layers.append(Block(attention_layer, dim, ffn_multiple))
        self.norm = nn.RMSNorm(dim, eps=EPS)
        self.readout = per_head(
            lambda: nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1, bias=False)),
            readouts,
        )
        if not self.conservative:
            self.force_head = per_head(
                lambda: (
                    PairForces(dim, num_basis) if self.is_local else nn.Linear(dim, 3, bias=False)
                ),
                readouts,
            )
        self._initialise()

    @staticmethod
    def resolve_options(options: Mapping[str, Any], *, periodic: bool) -> dict[str, Any]:
        """Replace `attention: auto` by what the training set needs.

        Args:
            options: the model's options.
            periodic: whether any structure has a periodic axis.

        Raises:
            DataError: global attention was asked for, and there are periodic structures.
        """
        attention = options.get("attention", "auto")
        if attention == "global" and periodic:
            raise DataError(NOT_PERIODIC.format("the data have structures with periodic axes"))
        if attention == "auto":
            attention = "neighbours" if periodic else "global"
        return {**options, "attention": attention}

    def forward(self, geometry: Geometry) -> NodeOutput:
        """See `EnergyModel`.

        Raises:
            DataError: global attention, and a structure has a periodic axis.
        """
        context = self._context(geometry)
        h = self.embed(geometry)
        if isinstance(context, Molecules):
            h = h[context.order]
        for layer in self.layers:
            h = layer(h, context)
        h = self.norm(h)
        if isinstance(context, Molecules):
            h = h[context.inverse]
        energy = self.force_scale * read_out(self.readout, geometry, h)[:, 0]
        if self.conservative:
            return NodeOutput(energy, features=h)
        if isinstance(context, Molecules):
            raw = read_out(self.force_head, geometry, h)
            # there is no net force in nature
            net = mean_of_graphs(raw, geometry.batch, geometry.num_graphs)
            forces = raw - net[geometry.batch]
        else:
            forces = read_out(self.force_head, geometry, h, context)
        return NodeOutput(energy, features=h, forces=self.force_scale * forces)

    def _initialise(self) -> None:
        """Linear maps that keep the variance; blocks whose sum does not grow with their number."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for module in self.readout.modules():
                if isinstance(module, nn.Linear) and module.out_features == 1:
                    module.weight.mul_(0.1)  # forces start small
            for block in self.layers:
                for last in (block.attention.out, block.ffn[2]):  # type: ignore[union-attr, index]
                    last.weight.mul_((2 * len(self.layers)) ** -0.5)  # type: ignore[union-attr]

    def _context(self, geometry: Geometry) -> Molecules | Neighbourhoods:
        """Return what all layers attend over."""
        if self.is_local:
            return Neighbourhoods.build(geometry, self.basis, self.frequencies)
        if geometry.positions is None or bool(geometry.pbc.any()):
            count = int(geometry.pbc.any(1).sum())
            raise DataError(NOT_PERIODIC.format(f"this batch has {count} periodic structure(s)"))
        return Molecules.build(geometry, geometry.positions, self.frequencies, self.num_pair_basis)


class Block(nn.Module):
    """h ← h + attention(norm(h)); h ← h + ffn(norm(h)): pre-norm, no dropout."""

    def __init__(self, attention: nn.Module, dim: int, ffn_multiple: int) -> None:
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=EPS), nn.RMSNorm(dim, eps=EPS)
        hidden = ffn_multiple * dim
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))

    def forward(self, h: Tensor, context: Molecules | Neighbourhoods) -> Tensor:
        """Map tokens (N, D) to (N, D)."""
        h = h + self.attention(self.norm1(h), context)
        return h + self.ffn(self.norm2(h))


class PairForces(nn.Module):
    """Direct forces along edges: F_i = Σ_j c_ij r_ij/|r_ij| with c_ij = c_ji.

    Local, zero for an isolated atom, without net force or torque: a linear head on each token would
    need the mean of the whole structure subtracted, which is not extensive.
    """

    def __init__(self, dim: int, num_basis: int) -> None:
        super().__init__()
        self.token = nn.Linear(dim, PAIR_CHANNELS)
        self.radial = nn.Linear(num_basis, PAIR_CHANNELS, bias=False)

    def forward(self, h: Tensor, context: Neighbourhoods) -> Tensor:
        """Map tokens (N, D) to forces (N, 3)."""
        a = self.token(h)
        size = self.radial(context.radial) * a[context.source] * a[context.centre]
        pair = size.sum(1, keepdim=True) * context.unit
        return pair.new_zeros(h.shape[0], 3).index_add(0, context.centre, pair)
