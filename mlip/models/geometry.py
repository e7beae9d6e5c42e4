"""What a model sees of a batch and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Geometry:
    """What a model may see of a batch: N atoms, E edges, B graphs, all differentiable."""

    atomic_numbers: Tensor  # (N,) int64
    edge_index: Tensor  # (2, E) int64: row 0 the neighbour j, row 1 the centre i; sorted by i
    edge_vectors: Tensor  # (E, 3) Å, from i to j
    edge_lengths: Tensor  # (E,) Å
    batch: Tensor  # (N,) int64
    num_graphs: int
    charge: Tensor  # (B,) int64, e
    spin: Tensor  # (B,) int64, multiplicity; 0 = unknown
    head: Tensor  # (B,) int64
    pbc: Tensor  # (B, 3) bool
    # (N, 3) Å, only if the model sets `needs_positions`; float64: subtract an origin, then cast
    positions: Tensor | None = None
    cell: Tensor | None = None  # (B, 3, 3) Å, likewise


@dataclass(slots=True)
class NodeOutput:
    """What a model returns."""

    energy: Tensor  # (N,) eV
    features: Tensor | None = None  # (N, C) latent, for objectives
    forces: Tensor | None = None  # (N, 3) eV/Å, from a direct head (then not conservative)
    extras: dict[str, Tensor] = field(default_factory=dict)  # magmoms, charges, ...


def join(a: Geometry, b: Geometry) -> Geometry:
    """Append the edgeless atoms `b` to the batch `a`."""

    def cat(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else torch.cat([x, y])

    return Geometry(
        atomic_numbers=torch.cat([a.atomic_numbers, b.atomic_numbers]),
        edge_index=a.edge_index,
        edge_vectors=a.edge_vectors,
        edge_lengths=a.edge_lengths,
        batch=torch.cat([a.batch, b.batch + a.num_graphs]),
        num_graphs=a.num_graphs + b.num_graphs,
        charge=torch.cat([a.charge, b.charge]),
        spin=torch.cat([a.spin, b.spin]),
        head=torch.cat([a.head, b.head]),
        pbc=torch.cat([a.pbc, b.pbc]),
        positions=cat(a.positions, b.positions),
        cell=cat(a.cell, b.cell),
    )
