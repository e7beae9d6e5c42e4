"""Edges of a batch, expanded in radial functions and harmonics, and sums of messages over them.

A message is a product of a neighbour's features, a radial weight and a coupling with the spherical
harmonics of the edge. Written out it is (E, 2l+1, C) and has to be scattered to the centres. Two
ways do not: generated loops keep it in registers (`kernels.neighbor_sum` on a CPU with a compiler,
`kernels.fused_sum` on an accelerator if asked for); else edges of each centre lie in padded blocks
of `BLOCK`, where the sum over edges is part of a matrix product. For Facet-S blocks are 2.3 times
faster for 28 neighbours and 2.6 times for 60 than blocks of one edge, which are the plain scatter
(one thread, energy and forces; data/results/edge-blocks.json).

Letters: N atoms, E edges, T blocks, K basis functions; degree l has 2l+1 components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlip.models.geometry import Geometry
from mlip.models.harmonics import spherical_harmonics
from mlip.models.kernels import compiler, fused_sum
from mlip.models.kernels.layout import Coupling
from mlip.models.kernels.neighbor_sum import fits, neighbor_sum
from mlip.models.paths import Path, Paths
from mlip.models.tracing import traced

BLOCK = 16  # edges of one centre that are contracted together


@dataclass(slots=True)
class Edges:
    """The edges of each centre in blocks of `block`, the last one padded with zeros.

    Generated kernels need no padding: their blocks are of one edge.
    """

    block: int
    kernels: str  # "torch", "compiled" or "triton"
    first: Tensor  # (N + 1,) where the edges of each atom begin, before padding
    source: Tensor  # (T·block,) the neighbour; padding points at atom 0 with zero radial basis
    block_node: Tensor  # (T,) the centre of each block
    radial: Tensor  # (T·block, K)
    angular: Tensor  # (T·block, (L+1)²)
    num_nodes: int
    coupling: Coupling
    matrices: dict[Path, Tensor]  # filled on demand, shared by layers

    @classmethod
    def build(
        cls, geometry: Geometry, basis: nn.Module, max_degree: int, coupling: Coupling
    ) -> Edges:
        """Expand the edges of `geometry`, which are sorted by centre.

        Args:
            geometry: N atoms, E edges.
            basis: maps lengths (E,) to (E, K).
            max_degree: L of the harmonics.
            coupling: constants of a path, in the dtype and on the device asked for.

        Raises:
            ValueError: edges (on a CPU) are not sorted by centre, or end at no atom.
        """
        j, i = geometry.edge_index
        n = geometry.atomic_numbers.shape[0]
        if i.device.type == "cpu" and not traced():  # elsewhere looking would wait for the device
            check_edges(geometry.edge_index, n)
        kernels = _kernels(i.device)
        block = BLOCK if kernels == "torch" else 1
        first = torch.searchsorted(i.contiguous(), torch.arange(n + 1, device=i.device))
        r = geometry.edge_lengths
        unit = geometry.edge_vectors / r[:, None]
        radial, harmonics = basis(r), spherical_harmonics(max_degree, unit)
        if block == 1:
            j, i = j.contiguous(), i.contiguous()
            return cls(1, kernels, first, j, i, radial, harmonics, n, coupling, {})

        blocks = (first.diff() + block - 1) // block
        block_node = torch.repeat_interleave(blocks)
        slots = block_node.shape[0] * block
        first_slot = (blocks.cumsum(0) - blocks) * block
        slot = torch.arange(len(i), device=i.device) + (first_slot - first[:-1])[i]
        values = torch.cat([radial, harmonics], dim=1)
        padded = values.new_zeros(slots, values.shape[1]).index_copy(0, slot, values)
        radial, harmonics = padded.split([radial.shape[1], harmonics.shape[1]], dim=1)
        source = torch.zeros(slots, dtype=torch.int64, device=j.device).index_copy(0, slot, j)
        return cls(
            block, kernels, first, source, block_node, radial, harmonics, n, coupling, {}
        )  # fmt: skip

    def sum(self, paths: Paths, features: Tensor, radial: Tensor, weights: Tensor) -> list[Tensor]:
        """Sum messages over the neighbours of each atom.

        Args:
            paths: which products of features and harmonics.
            features: (N, Σ(2l+1)C), the inputs (2l+1, C) of an atom beside one another.
            radial: (T·block, K); zero where the edge is padding.
            weights: (K, W); radial @ weights are the radial weights of the products, side by side.

        Returns:
            (N, 2l+1, ΣC) for each output, its products beside one another.
        """
        args = (features, self.angular, radial, weights, self.first, self.source)
        if self.kernels == "compiled" and fits(paths, radial.dtype):
            return neighbor_sum(paths, self.coupling, *args)
        if self.kernels == "triton" and radial.dtype in fused_sum.REAL:
            return fused_sum.fused_sum(paths, self.coupling, *args, centre=self.block_node)
        neighbors = paths.unpack(features.index_select(0, self.source))  # (T·block, 2l1+1, C)
        parts: list[list[Tensor]] = [[] for _ in paths.outputs]
        split = (radial @ weights).split(paths.widths, dim=1)
        for (i, path, output), weight in zip(paths.products, split, strict=True):
            parts[output].append(self._product(path, weight, neighbors[i]))
        return [self._total(products) for products in parts]

    def _matrix(self, path: Path) -> Tensor:
        """Coupling with the edge harmonics: (T, 2l3+1, block·(2l1+1))."""
        if path not in self.matrices:
            l1, l2, l3 = path
            y = self.angular[:, l2**2 : (l2 + 1) ** 2]
            c = self.coupling(path, y.dtype, y.device)
            b = (y @ c).view(-1, self.block, 2 * l3 + 1, 2 * l1 + 1)
            self.matrices[path] = b.transpose(1, 2).flatten(2)
        return self.matrices[path]

    def _product(self, path: Path, weight: Tensor, neighbors: Tensor) -> Tensor:
        """Sum the messages of one path within each block: (T, 2l3+1, C)."""
        b = self._matrix(path)
        message = weight[:, None, :] * neighbors
        return torch.bmm(b, message.view(b.shape[0], b.shape[2], message.shape[2]))

    def _total(self, parts: list[Tensor]) -> Tensor:
        """Add the blocks of each centre: paths (T, 2l+1, C) beside one another to (N, 2l+1, ΣC)."""
        blocks = torch.cat(parts, dim=2)
        total = blocks.new_zeros(self.num_nodes, *blocks.shape[1:])
        return total.index_add(0, self.block_node, blocks)


def _kernels(device: torch.device) -> str:
    """Which kind of sums is wanted and can be had on a device."""
    if compiler.mode() == "triton" and (device.type != "cpu" or fused_sum.interpreted()):
        fused_sum.require()
        return "triton"
    return "compiled" if device.type == "cpu" and compiler.usable() else "torch"


def check_edges(edge_index: Tensor, n: int) -> None:
    """Expect edges that are sorted by centre and end at atoms 0 to n − 1.

    Raises:
        ValueError: they are not.
    """
    j, i = edge_index
    if not len(i):
        return
    if bool((i[1:] < i[:-1]).any()):
        raise ValueError("edge_index[1], the centres, must be sorted")
    lowest, highest = min(int(j.min()), int(i[0])), max(int(j.max()), int(i[-1]))
    if lowest < 0 or highest >= n:
        raise ValueError(
            f"edge_index goes from {lowest} to {highest}, but atoms are numbered 0 to {n - 1}"
        )
