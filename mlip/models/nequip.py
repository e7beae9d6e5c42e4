"""NequIP: equivariant message passing by tensor products, the baseline that Facet is compared with.

Messages are tensor products of neighbours' features with spherical harmonics, weighted per path and
channel by an MLP of the distance; nodes mix channels, add a self-connection and pass a gate.
Source: Batzner et al., Nat. Commun. 13, 2453 (2022), with its authors' code; SevenNet-0's layout
(Park et al., J. Chem. Theory Comput. 20, 4857 (2024), and code) is a choice of options.

What is not as published: sums over neighbours are batched matrix products over blocks of edges
(`Edges`) instead of e3nn's generated tensor product and a scatter; weights are drawn with
their fan-in in their standard deviation instead of dividing by it on every call; the envelope
always has two continuous derivatives (SevenNet-0's XPLOR has one); isolated atoms, shifts and
scales per element are the potential's and not the network's. e3nn keeps the books of irreducible
representations and gives the Clebsch-Gordan coefficients; tests compare with its products and gate.

Letters: N atoms, E edges, C channels, K basis functions; degree l has 2l+1 components, and parity p
is +1 (even) or −1 (odd); features are a list of (N, 2l+1, C), one per irreducible representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody uses

from mlip.models.edges import Edges
from mlip.models.embedding import AtomEmbedding
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.options import check_at_least, check_degrees, check_word
from mlip.models.paths import Paths
from mlip.models.radial import BesselBasis
from mlip.models.readout import per_head, read_out

Features = list[Tensor]
Irreps = Sequence[tuple[int, o3.Irrep]]  # channels of each irreducible representation
PARITIES = ("natural", "full", "none")
SELF_CONNECTIONS = ("element", "linear")

# What makes <f(z)²> = 1 for z from a unit normal distribution, as e3nn's `normalize2mom` does.
SILU_GAIN, TANH_GAIN = 1.676532470331091, 1.5925374197228312


class NequIP(nn.Module):
    """Per-atom energies from a radius graph (an `EnergyModel`)."""

    is_local = True

    def __init__(
        self,
        *,
        cutoff: float,
        species: Sequence[int],
        avg_num_neighbors: float,
        force_scale: float = 1.0,
        charge_spin: bool = False,
        readouts: int = 1,
        channels: Sequence[int] = (128, 64),
        num_layers: int = 2,
        parity: str = "natural",
        self_connection: str = "element",
        embedding: int | None = 32,
        num_basis: int = 8,
        trainable_basis: bool = False,
        envelope_power: int = 6,
        radial_widths: Sequence[int] = (128,),
        readout_width: int | None = None,
        neighbor_exponent: float = 0.5,
    ) -> None:
        """Build it.

        Args:
            cutoff: Å.
            species: atomic numbers to know.
            avg_num_neighbors: mean number of neighbours within the cutoff in the training set.
            force_scale: typical force of the training set, eV/Å; the unit of the output.
            charge_spin: whether total charge and spin multiplicity condition the energy.
            readouts: levels of theory, each with a read-out of its own.
            channels: number of channels of degree 0, 1, ..., L (at most 4).
            num_layers: message-passing layers; the last one keeps only even scalars.
            parity: "natural", features of parity (−1)^l (NequIP's `parity: false`); "full", both
                parities of every degree (its `parity: true`); "none", SO(3) only, reflections are
                no symmetry (SevenNet's `is_parity: false`).
            self_connection: "element", a matrix that is linear in the element's embedding, from the
                second layer on (NequIP); "linear", one matrix for all, in every layer (SevenNet-0).
            embedding: size of an element's embedding; null for channels[0].
            num_basis: radial basis functions.
            trainable_basis: whether the frequencies of the Bessel basis are trained.
            envelope_power: order of the polynomial envelope; larger falls later and steeper.
            radial_widths: hidden layers of the MLP from the radial basis to the path weights.
            readout_width: of a second linear map before the energy; null for none.
            neighbor_exponent: messages are divided by avg_num_neighbors to this power.

        Raises:
            ConfigError: an option has no such value.
        """
        super().__init__()
        check_word("parity", parity, PARITIES)
        check_word("self_connection", self_connection, SELF_CONNECTIONS)
        check_degrees(channels)
        embedding = channels[0] if embedding is None else embedding
        check_at_least(
            1,
            num_layers=num_layers,
            radial_widths=radial_widths,
            num_basis=num_basis,
            embedding=embedding,
            readout_width=1 if readout_width is None else readout_width,
        )
        check_at_least(2, envelope_power=envelope_power)
        self.cutoff = float(cutoff)
        self.species = tuple(int(z) for z in species)
        self.symmetry = "SO(3)" if parity == "none" else "O(3)"
        self.uses_charge_spin = charge_spin
        self.force_scale = float(force_scale)
        self.max_degree = len(channels) - 1

        self.embed = AtomEmbedding(self.species, embedding, charge_spin)
        basis = TrainableBesselBasis if trainable_basis else BesselBasis
        self.basis = basis(self.cutoff, num_basis, envelope_power)

        harmonics = _irreps([1] * len(channels), "none" if parity == "none" else "natural")
        hidden, current = _irreps(channels, parity), _irreps([embedding], "natural")
        layers = []
        for t in range(num_layers):
            last = t == num_layers - 1
            # Without one in the first layer a lone atom has no features, as published; a lone ion
            # must have some.
            connected = t > 0 or self_connection == "linear" or charge_spin
            layer = Layer(
                current,
                harmonics,
                _irreps(channels[:1], "natural") if last else hidden,
                attributes={"element": embedding, "linear": 0}[self_connection],
                connected=connected,
                radial_sizes=(num_basis, *radial_widths),
                norm=float(max(avg_num_neighbors, 1.0)) ** -neighbor_exponent,
            )
            layers.append(layer)
            current = layer.irreps_out
        self.layers = nn.ModuleList(layers)
        sizes = [channels[0], *([readout_width] if readout_width else []), 1]
        self.readout = per_head(
            lambda: nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))),
            readouts,
        )

    def forward(self, geometry: Geometry) -> NodeOutput:
        """See `EnergyModel`."""
        edges = Edges.build(geometry, self.basis, self.max_degree, _coupling)
        attributes = self.embed(geometry)
        h: Features = [attributes[:, None, :]]
        for layer in self.layers:
            h = layer(h, edges, attributes)
        scalars = h[0][:, 0]
        energy = read_out(self.readout, geometry, scalars)[:, 0]
        return NodeOutput(self.force_scale * energy, features=scalars)


class TrainableBesselBasis(BesselBasis):
    """The same with frequencies that are learned; the envelope alone makes it end smoothly."""

    def __init__(self, cutoff: float, num_basis: int, envelope_power: int) -> None:
        super().__init__(cutoff, num_basis, envelope_power)
        frequencies = self.frequencies
        del self.frequencies
        self.frequencies = nn.Parameter(frequencies)


class Convolution(nn.Module):
    """A_i = norm · Σ_j R_p(r_ij) · (h_j ⊗ Y(r_ij))_p over all paths p.

    A path couples one representation of the neighbours with one degree of the harmonics to one of
    the outputs; R is an MLP without biases, so it vanishes with the radial basis at the cutoff.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_edge: Irreps,
        irreps_out: Irreps,
        radial_sizes: Sequence[int],
        norm: float,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.paths = Paths(
            inputs=tuple((mul, ir.l) for mul, ir in irreps_in),
            outputs=tuple(ir.l for _, ir in irreps_out),
            products=tuple(
                (i, (ir_in.l, edge.l, ir_out.l), o)
                for o, (_, ir_out) in enumerate(irreps_out)
                for i, (_, ir_in) in enumerate(irreps_in)
                for _, edge in irreps_edge
                if ir_out in ir_in * edge
            ),
        )
        sizes = [*radial_sizes, sum(self.paths.widths)]
        gains = [1.0] + [SILU_GAIN] * len(radial_sizes[1:])  # of what comes before each matrix
        self.radial = nn.ParameterList(
            _draw(a, b, gain=g) for a, b, g in zip(sizes, sizes[1:], gains, strict=False)
        )

    def forward(self, h: Features, edges: Edges) -> Features:
        """Sum messages to (N, 2l+1, ΣC), the paths of each output beside one another."""
        *hidden, last = self.radial
        radial = edges.radial
        for matrix in hidden:
            radial = F.silu(radial @ matrix)
        packed = torch.cat([x.flatten(1) for x in h], dim=1)
        return edges.sum(self.paths, packed, radial, self.norm * last)


class Layer(nn.Module):
    """h ← gate(mix(conv(mix(h))) + self_connection(h))."""

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_edge: Irreps,
        irreps_out: Irreps,
        *,
        attributes: int,
        connected: bool,
        radial_sizes: Sequence[int],
        norm: float,
    ) -> None:
        super().__init__()
        reached = {ir for _, a in irreps_in for _, e in irreps_edge for ir in a * e}
        self.irreps_out = [(mul, ir) for mul, ir in irreps_out if ir in reached]
        self.gate = Gate(self.irreps_out)
        before = self.gate.irreps_in
        self.mix_in = Mix(irreps_in, irreps_in)
        self.convolution = Convolution(irreps_in, irreps_edge, before, radial_sizes, norm)
        widths = self.convolution.paths.gathered
        gathered = [(width, ir) for width, (_, ir) in zip(widths, before, strict=True)]
        self.mix_out = Mix(gathered, before)
        self.self_connection = Mix(irreps_in, before, attributes) if connected else None

    def forward(self, h: Features, edges: Edges, attributes: Tensor) -> Features:
        """Return the next features; `attributes` (N, A) belong to the atom alone."""
        x = self.mix_out(self.convolution(self.mix_in(h), edges))
        if self.self_connection is not None:
            kept = self.self_connection(h, attributes)
            for k, value in zip(self.self_connection.outputs, kept, strict=True):
                x[k] = x[k] + value
        return self.gate(x)


class Mix(nn.Module):
    """Mix the channels of each representation, no bias: one matrix, or one linear in attributes."""

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, attributes: int = 0) -> None:
        super().__init__()
        order = [ir for _, ir in irreps_in]
        self.outputs = [k for k, (_, ir) in enumerate(irreps_out) if ir in order]
        self.inputs = [order.index(irreps_out[k][1]) for k in self.outputs]
        self.attributes = attributes
        self.weights = nn.ParameterList(
            _draw(max(attributes, 1) * irreps_in[i][0], irreps_out[k][0])
            for i, k in zip(self.inputs, self.outputs, strict=True)
        )

    def forward(self, x: Features, attributes: Tensor | None = None) -> Features:
        """Map (N, 2l+1, C_in) to (N, 2l+1, C_out) for each of `outputs`."""
        x = [x[i] for i in self.inputs]
        if self.attributes and attributes is not None:
            a = attributes[:, None, :, None]
            x = [(a * value[:, :, None, :]).flatten(2) for value in x]
        return [value @ weight for value, weight in zip(x, self.weights, strict=True)]


class Gate(nn.Module):
    """SiLU of even scalars, tanh of odd ones, and everything else times SiLU of a scalar.

    The gates are the last channels of the even scalars.
    """

    def __init__(self, irreps_out: Irreps) -> None:
        super().__init__()
        self.parities = [ir.p for _, ir in irreps_out if ir.l == 0]
        self.widths = [irreps_out[0][0], *(mul for mul, ir in irreps_out if ir.l > 0)]
        (_, even), *rest = irreps_out
        self.irreps_in = [(sum(self.widths), even), *rest]

    def forward(self, x: Features) -> Features:
        """Map (N, 2l+1, C) to the same without the gates."""
        scalars, *gates = (SILU_GAIN * F.silu(x[0])).split(self.widths, dim=2)
        count = len(self.parities)  # 1, or 2 with odd scalars
        odd = [TANH_GAIN * torch.tanh(value) for value in x[1:count]]
        gated = [value * gate for value, gate in zip(x[count:], gates, strict=True)]
        return [scalars, *odd, *gated]


def _irreps(channels: Sequence[int], parity: str) -> Irreps:
    """Channels of degree 0, 1, ... in each of the parities that `parity` stands for."""
    out: list[tuple[int, Any]] = []
    for degree, mul in enumerate(channels):
        parities = {"natural": [(-1) ** degree], "full": [1, -1], "none": [1]}[parity]
        out += [(mul, o3.Irrep(degree, p)) for p in parities]
    return out


def _draw(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
    """A matrix that keeps unit variance."""
    return nn.Parameter(torch.randn(rows, columns) * (gain * rows**-0.5))


# Constants live outside the modules: a buffer cast to float32 and back keeps only seven digits,
# and symmetries would hold only to seven digits in float64.


@cache
def _coupling(path: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Clebsch-Gordan coefficients (2l2+1, (2l3+1)(2l1+1)) with Σ C² = 2l3 + 1.

    e3nn's polar axis is y and ours is z: a rotation of the axes, which they do not depend on.
    """
    l1, l2, l3 = path
    with torch.inference_mode(False):
        c = o3.wigner_3j(l1, l2, l3, dtype=torch.float64, device="cpu") * (2 * l3 + 1) ** 0.5
        c = torch.where(c.abs() < 1e-12, 0.0, c).permute(1, 2, 0)
        return c.reshape(2 * l2 + 1, -1).to(device=device, dtype=dtype).contiguous()
