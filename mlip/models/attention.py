"""Attention with rotary phases of coordinates: over all atoms of molecules, or over neighbours.

With phases θ_i = ω·x_i, (R(θ_i) q_i)·(R(θ_j) k_j) = q_i·R(ω·(x_j − x_i)) k_j: logits depend on
relative vectors alone. Values are turned too, and turned back at the centre, R(−θ_i) R(θ_j) v_j, so
that directions reach tokens as values and not only through attention weights, which are bounded.
Sources: Su et al., arXiv:2104.09864, for the rotary embedding; learned frequencies in three
dimensions and rotary values as in the code of the Platonic Transformer.

Written out, because torch's fused attention has no second derivative and training on forces needs
one. What would take much memory is done in pieces, each recomputed for every derivative.

Letters: N atoms, E edges, D width of a token, H heads of D/H = 2 F channels, K radial functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mlip.graph import mean_of_graphs
from mlip.models.geometry import Geometry
from mlip.models.radial import BesselBasis, polynomial_envelope
from mlip.models.recompute import recomputed

EPS = 1e-6  # added to mean squares of order one
EXPONENT = 50.0  # e^50 is 1/u for the smallest envelope u > 0 that single precision can have
MAX_WEIGHTS = 2**24  # attention weights, and their products, computed at once, all heads together
REACH = 2.0  # Å, over which what global attention sees of a distance decays
# Numbers in an (edges, D) array of a piece: little enough for a cache, enough to fill a device.
PIECE = {"cpu": 2**20, "other": 2**22}
KEPT = 4  # pieces of a layer that are not recomputed


@dataclass(slots=True)
class Molecules:
    """Atoms sorted so that molecules of one size are side by side: batches without padding."""

    order: Tensor  # (N,) sorted to given
    inverse: Tensor  # (N,) given to sorted
    groups: list[Tensor]  # (G, n, 3) Å, from the centroid, of the G molecules of n atoms
    whole: list[bool]  # whether a layer has room for all pairs of a group at once
    distances: list[Tensor | None]  # (G, K, n, n) by `expand_pairs` of those that are, if wanted
    cos: Tensor  # (N, H, F) of the phases ω·x, sorted
    sin: Tensor

    @classmethod
    def build(
        cls, geometry: Geometry, positions: Tensor, frequencies: Tensor, num_basis: int
    ) -> Molecules:
        """Sort atoms by the size of their molecule, centred: only relative positions matter.

        Args:
            geometry: the batch; atoms of a molecule are side by side.
            positions: (N, 3) Å, float64.
            frequencies: ω (H, F, 3), 1/Å.
            num_basis: functions K that distances are expanded in; 0: distances are not looked at.
        """
        # Centred before the cast: single precision would lose 1e-3 Å at 10,000 Å from the origin.
        centred = (
            positions
            - mean_of_graphs(positions, geometry.batch, geometry.num_graphs)[geometry.batch]
        )
        sizes = torch.bincount(geometry.batch, minlength=geometry.num_graphs)
        order = torch.argsort(sizes[geometry.batch], stable=True)
        values, counts = torch.unique(sizes, return_counts=True)
        pairs = zip(counts.tolist(), values.tolist(), strict=True)
        groups = [(count, size) for count, size in pairs if size]
        moved = centred.to(frequencies.dtype)[order]
        split = moved.split([count * size for count, size in groups])
        of_groups = [x.unflatten(0, shape) for x, shape in zip(split, groups, strict=True)]
        whole, distances, room = [], [], MAX_WEIGHTS
        for x in of_groups:
            room -= x.shape[0] * len(frequencies) * (1 + num_basis) * x.shape[1] ** 2
            whole.append(room >= 0)
            wanted = num_basis and whole[-1]
            distances.append(expand_pairs(x, x, num_basis) if wanted else None)
        phases = torch.einsum("nx,hfx->nhf", moved, frequencies)
        return cls(
            order=order,
            inverse=torch.argsort(order),
            groups=of_groups,
            whole=whole,
            distances=distances,
            cos=torch.cos(phases),
            sin=torch.sin(phases),
        )


def expand_pairs(rows: Tensor, columns: Tensor, num_basis: int) -> Tensor:
    """Expand the distances r of atoms in sin(k π e^(-r/REACH)), k = 1..K.

    They are smooth, resolve short distances best and vanish for long ones. There is no cutoff, and
    of an atom and itself they are zero.

    Args:
        rows: (G, m, 3) Å.
        columns: (G, n, 3) Å.
        num_basis: K.

    Returns:
        (G, K, m, n).
    """
    square = (rows[:, :, None] - columns[:, None]).square().sum(3)
    own = square == 0.0  # no root is taken there, which would have no derivative
    u = torch.exp(-(square + own).sqrt() / REACH)
    order = math.pi * torch.arange(1, num_basis + 1, dtype=u.dtype, device=u.device)
    return torch.sin(order[:, None, None] * u[:, None]) * ~own[:, None]


@dataclass(slots=True)
class Neighbourhoods:
    """What edges carry, shared by all layers; whole neighbourhoods side by side make a piece."""

    source: Tensor  # (E,) the neighbour
    centre: Tensor  # (E,)
    within: Tensor  # (E,) the centre, counted from the first atom of its piece
    envelope: Tensor  # (E,)
    radial: Tensor  # (E, K), envelope included
    unit: Tensor  # (E, 3) direction
    features: Tensor  # (E, 4 K) radial times 1, x, y, z of the direction
    cos: Tensor  # (E, H, F) of the phases ω·r_ij
    sin: Tensor
    atoms: list[int]  # of each piece
    edges: list[int]

    @classmethod
    def build(cls, geometry: Geometry, basis: BesselBasis, frequencies: Tensor) -> Neighbourhoods:
        """Expand the edges of a batch, which are sorted by centre.

        Args:
            geometry: the batch.
            basis: K radial functions and their envelope.
            frequencies: ω (H, F, 3), 1/Å.
        """
        r, vectors = geometry.edge_lengths, geometry.edge_vectors
        source, centre = geometry.edge_index
        radial = basis(r)
        unit = vectors / r[:, None]
        shape = torch.cat([torch.ones_like(r)[:, None], unit], dim=1)  # (E, 4)
        phases = torch.einsum("ex,hfx->ehf", vectors, frequencies)
        numbers = PIECE["cpu" if r.device.type == "cpu" else "other"]
        width = 2 * frequencies.shape[0] * frequencies.shape[1]
        atoms, edges = _pieces(centre, len(geometry.batch), max(1, numbers // width))
        first = torch.tensor([0, *atoms[:-1]]).cumsum(0).to(centre.device)
        sizes = torch.tensor(edges, device=centre.device)
        return cls(
            source=source,
            centre=centre,
            within=centre - torch.repeat_interleave(first, sizes, output_size=len(centre)),
            envelope=polynomial_envelope(r / basis.cutoff, basis.envelope_power),
            radial=radial,
            unit=unit,
            features=(shape[:, :, None] * radial[:, None, :]).flatten(1),
            cos=torch.cos(phases),
            sin=torch.sin(phases),
            atoms=atoms,
            edges=edges,
        )


def _pieces(centre: Tensor, num_atoms: int, limit: int) -> tuple[list[int], list[int]]:
    """Cut atoms into runs whose edges are at most `limit` together, those of one atom at least.

    Returns:
        How many atoms and how many edges each has.
    """
    if len(centre) <= limit:
        return [num_atoms], [len(centre)]
    ends = torch.bincount(centre, minlength=num_atoms).cumsum(0).cpu().numpy()
    atoms, edges, atom, edge = [], [], 0, 0
    while atom < num_atoms:
        stop = max(atom + 1, int(np.searchsorted(ends, edge + limit, side="right")))
        atoms.append(stop - atom)
        edges.append(int(ends[stop - 1]) - edge)
        atom, edge = stop, int(ends[stop - 1])
    return atoms, edges


class _Heads(nn.Module):
    """Project tokens to heads; queries and keys are normalised, which bounds the logits."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, width = num_heads, dim // num_heads
        self.scale = width**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=EPS), nn.RMSNorm(width, eps=EPS)
        self.out = nn.Linear(dim, dim, bias=False)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, with the scale of the logits, keys and values, (N, H, D/H) each."""
        q, k, v = self.qkv(h).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        return self.norm_q(q) * self.scale, self.norm_k(k), v


class GlobalAttention(_Heads):
    """Every atom of a molecule attends to all of it.

    w_ij = softmax_j(q_i·k_j + Σ_k b_k f_k(r_ij)), o_i = Σ_j w_ij (1 + Σ_k c_k f_k(r_ij)) v_j, with
    f from `expand_pairs`; b is of a head, c of two channels that a phase turns together. No
    source says that the published model has either; without (`num_basis=0`) rotary phases are all.

    Memory: a layer keeps a few arrays of at most `MAX_WEIGHTS` numbers for the backward pass: a
    weight, and its product with each function, of each pair and head. Molecules that would take
    more are gone through in pieces (some molecules, or some queries of one) of at most as many,
    which are recomputed: a constant multiple of `MAX_WEIGHTS`, whatever the molecules, in training
    on gradient forces, too.
    """

    def __init__(self, dim: int, num_heads: int, num_basis: int) -> None:
        super().__init__(dim, num_heads)
        self.num_basis = num_basis
        if num_basis:
            self.bias = nn.Linear(num_basis, num_heads, bias=False)
            # one for both channels of a pair, so that it does not matter when they are turned
            self.filter = nn.Linear(num_basis, dim // 2, bias=False)

    def forward(self, h: Tensor, context: Molecules) -> Tensor:
        """Map sorted tokens (N, D) to (N, D)."""
        q, k, v = self.project(h)
        cos, sin = context.cos, context.sin
        q, k, v = (_turn(x, cos, sin) for x in (q, k, v))
        sizes = [x.shape[0] * x.shape[1] for x in context.groups]
        parts = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
        shared: tuple[Tensor, ...] = ()
        if self.num_basis:
            filters = self.filter.weight.T.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
            shared = (self.bias.weight, filters.repeat(1, 1, 2))
        out = []
        groups = zip(context.groups, context.whole, context.distances, parts, strict=True)
        for x, whole, distances, part in groups:
            q, k, v = (y.unflatten(0, x.shape[:2]).transpose(1, 2) for y in part)
            if whole:
                mixed = _attention(q, k, v, distances, shared)
            else:
                mixed = _attention_in_pieces(q, k, v, x, shared)
            out.append(mixed.transpose(1, 2).flatten(0, 1))
        return self.out(_turn(torch.cat(out), cos, -sin).flatten(1))


class NeighbourAttention(_Heads):
    """An atom attends to itself, to its neighbours and to a null key without value.

    w_ij = u_ij e^{s_ij} / (e^{s_null} + e^{s_ii} + Σ_k u_ik e^{s_ik}), u being the envelope. The
    null key starts with the weight of `avg_num_neighbors` neighbours, so that the sum of weights
    still tells how many there are; the output is multiplied by the square root of that number,
    because the mean of n values of unit variance has variance 1/n. Values are filtered by a linear
    map of radial functions and directions, logits get a bias from the same. All are choices.

    Memory: training on forces keeps what second derivatives need of `KEPT` pieces; what goes beyond
    is recomputed, which costs time.
    """

    def __init__(
        self, dim: int, num_heads: int, edge_features: int, avg_num_neighbors: float
    ) -> None:
        super().__init__(dim, num_heads)
        self.filter = nn.Linear(edge_features, dim, bias=False)
        self.bias = nn.Linear(edge_features, num_heads, bias=False)
        expected = max(float(avg_num_neighbors), 1.0)
        self.null = nn.Parameter(torch.full((num_heads,), math.log(expected)))
        self.gain = math.sqrt(expected)

    def forward(self, h: Tensor, context: Neighbourhoods) -> Tensor:
        """Map tokens (N, D) to (N, D)."""
        q, k, v = self.project(h)
        of_atoms = ((q * k).sum(2), q, v)
        of_edges = (
            context.source, context.within, context.envelope, context.features, context.cos,
            context.sin,
        )  # fmt: skip
        shared = (k, v, self.filter.weight, self.bias.weight, self.null)
        pieces = zip(
            *(x.split(context.atoms) for x in of_atoms),
            *(x.split(context.edges) for x in of_edges),
            strict=True,
        )
        mixed = [
            _mixed(*arguments) if k < KEPT else recomputed(_mixed, *arguments)
            for k, arguments in enumerate([*piece, *shared] for piece in pieces)
        ]
        return self.out(self.gain * torch.cat(mixed).flatten(1))


def _mixed(
    own: Tensor, query: Tensor, own_value: Tensor,
    source: Tensor, centre: Tensor, envelope: Tensor, features: Tensor, cos: Tensor, sin: Tensor,
    key: Tensor, value: Tensor, filters: Tensor, bias: Tensor, null: Tensor,
) -> Tensor:  # fmt: skip
    """Average the values that n centres see along their e edges, (n, H, C).

    Args:
        own: (n, H) logits of the centres for themselves.
        query: (n, H, C).
        own_value: (n, H, C).
        source: (e,) among all N atoms.
        centre: (e,) among the n.
        envelope: (e,).
        features: (e, 4 K).
        cos: (e, H, F).
        sin: (e, H, F).
        key: (N, H, C).
        value: (N, H, C).
        filters: (D, 4 K).
        bias: (H, 4 K).
        null: (H,).
    """
    # not query[centre]: the backward of index_select is several times faster
    query, key, value = (
        x.index_select(0, at) for x, at in ((query, centre), (key, source), (value, source))
    )
    logits = (query * _turn(key, cos, sin)).sum(2) + features @ bias.T
    null = null.expand_as(own)
    # Any shift gives the same weights and none of their derivatives: a constant will do. The
    # exponent of the largest term, envelope included, keeps the denominator at one or more.
    shift = torch.maximum(own, null).detach()
    index = centre[:, None].expand_as(logits)
    largest = logits.detach() + envelope.detach().log()[:, None]
    shift = shift.scatter_reduce(0, index, largest, "amax")
    # bounded for edges of zero envelope, which the shift does not know
    exponent = (logits - shift.index_select(0, centre)).clamp(max=EXPONENT)
    near = envelope[:, None] * torch.exp(exponent)
    itself = torch.exp(own - shift)
    total = (itself + torch.exp(null - shift)).index_add(0, centre, near)
    scale = 1.0 + (features @ filters.T).unflatten(1, value.shape[1:])
    value = scale * _turn(value, cos, sin)
    summed = (itself[:, :, None] * own_value).index_add(0, centre, near[:, :, None] * value)
    return summed / total[:, :, None]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel f with channel F + f of (·, H, 2 F) by the phases whose cos, sin (·, H, F)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, distances: Tensor | None, shared: Sequence[Tensor]
) -> Tensor:
    """Softmax attention of queries on keys and values, which may look at distances.

    Args:
        q: (G, H, m, C).
        k: (G, H, n, C).
        v: (G, H, n, C).
        distances: (G, K, m, n), expanded.
        shared: what is learnt about them, biases (H, K) and filters (H, K, C).

    Returns:
        (G, H, m, C).
    """
    logits = q @ k.transpose(2, 3)
    if distances is None:
        return torch.softmax(logits, dim=3) @ v
    bias, filters = shared
    weights = torch.softmax(logits + torch.einsum("gkmn,hk->ghmn", distances, bias), dim=3)
    # Filtered by one function at a time, and then mixed: nothing of size (G, m, n, D) is written.
    seen = (weights[:, :, None] * distances[:, None]).flatten(2, 3) @ v
    seen = seen.unflatten(2, (distances.shape[1], -1))  # (G, H, K, m, C)
    return weights @ v + (seen * filters[:, :, None]).sum(2)


def _attention_at(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *shared: Tensor
) -> Tensor:
    """`_attention` of queries at `rows` (G, m, 3) on what is at `columns` (G, n, 3)."""
    distances = expand_pairs(rows, columns, shared[0].shape[1]) if shared else None
    return _attention(q, k, v, distances, shared)


def _attention_in_pieces(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, shared: Sequence[Tensor]
) -> Tensor:
    """`_attention` with at most `MAX_WEIGHTS` numbers at a time (one row of queries at least)."""
    _, heads, n, _ = q.shape
    numbers = heads * n * (1 + shared[0].shape[1] if shared else 1)  # of a query
    together = max(1, MAX_WEIGHTS // (n * numbers))  # molecules
    rows = max(1, min(n, MAX_WEIGHTS // numbers))  # queries of each
    out = []
    for some in zip(*(x.split(together) for x in (q, k, v, positions)), strict=True):
        query, key, value, at = some
        pieces = zip(query.split(rows, dim=2), at.split(rows, dim=1), strict=True)
        mixed = [recomputed(_attention_at, part, key, value, x, at, *shared) for part, x in pieces]
        out.append(torch.cat(mixed, dim=2))
    return torch.cat(out)
