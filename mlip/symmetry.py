"""Rotations of whole batches, and how far a potential is from the symmetry that nature has.

Every trained potential carries the numbers measured here: zero to rounding for an equivariant
architecture, a learned and finite error for others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mlip.graph import AtomGraph
from mlip.models.potential import Potential


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform proper rotations (count, 3, 3), float64, on the CPU."""
    normal = torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(normal)
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None, :]
    return q * torch.linalg.det(q)[:, None, None].sign()


def rotated(graph: AtomGraph, q: Tensor) -> AtomGraph:
    """Turn each structure, labels included, by its own orthogonal matrix.

    Args:
        graph: B structures; neighbours stay as they are.
        q: (B, 3, 3), float64; x becomes q x.
    """
    q = q.to(graph.cell)
    per_atom = q[graph.batch]

    def turn(vectors: Tensor) -> Tensor:
        return torch.einsum("nxy,ny->nx", per_atom, vectors)

    return replace(
        graph,
        positions=turn(graph.positions),
        forces=turn(graph.forces),
        cell=graph.cell @ q.transpose(1, 2),
        stress=q @ graph.stress @ q.transpose(1, 2),
    )


def symmetry_errors(
    potential: Potential, graph: AtomGraph, rotations: int = 4
) -> dict[str, dict[str, float]]:
    """Measure how much predictions change when structures are rotated or inverted.

    Args:
        potential: frozen, on the device of `graph`.
        graph: some structures, a batch of the validation set for example.
        rotations: fixed random rotations per structure.

    Returns:
        For `rotation` and `inversion` the root mean squares `energy_per_atom_rmse` (eV/atom) and
        `forces_rmse` (eV/Å, over components) of the difference to the unrotated prediction.
    """
    with torch.no_grad():
        reference = potential(graph)

    def differences(operations: list[Tensor]) -> dict[str, float]:
        energy, forces = [], []
        for q in operations:
            turned = rotated(replace(graph, forces=reference.forces), q)
            with torch.no_grad():
                prediction = potential(turned)
            energy.append((prediction.energy - reference.energy) / graph.num_atoms)
            forces.append(prediction.forces - turned.forces)
        return {
            "energy_per_atom_rmse": float(torch.cat(energy).square().mean().sqrt()),
            "forces_rmse": float(torch.cat(forces).square().mean().sqrt()),
        }

    generator = torch.Generator().manual_seed(0)
    b = graph.num_graphs
    inversion = -torch.eye(3, dtype=torch.float64).expand(b, 3, 3)
    return {
        "rotation": differences([random_rotations(b, generator) for _ in range(rotations)]),
        "inversion": differences([inversion]),
    }
