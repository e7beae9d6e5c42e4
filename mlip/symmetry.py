"""Rotations of whole batches, and how far a potential is from the symmetry that nature has.

Every trained potential carries the numbers measured here: zero to rounding for an equivariant
architecture, a learned and finite error for others. What is left of the error can be averaged out
in use, over a finite group of rotations (`group_averaged`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models.potential import Potential, Prediction

GROUPS = {1: "none", 12: "tetrahedral", 24: "octahedral", 60: "icosahedral"}
MAX_EDGES = 100_000  # of one batch of rotated copies: bounds the memory of an average


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform proper rotations (count, 3, 3), float64, on the CPU."""
    normal = torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(normal)
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None, :]
    return q * torch.linalg.det(q)[:, None, None].sign()


def fixed_rotations(graph: AtomGraph, number: int = 0) -> Tensor:
    """Uniform proper rotations (B, 3, 3), float64: those of a structure in whatever batch it is.

    They depend on `number` and on where the structure comes from (`source` and `sample_id`), so
    that errors on turned structures depend neither on the size of batches nor on how many processes
    share them; where that is not known, on its place in the batch. Frames of one number in several
    files of a source are turned alike. Nothing is waited for.
    """
    row = graph.sample_id.where(
        graph.sample_id >= 0, torch.arange(graph.num_graphs, device=graph.sample_id.device)
    )
    seed = (row << 20) + graph.source + 1
    share, *angles = (_uniform(seed, 3 * number + draw) for draw in range(3))
    # a uniform quaternion from three uniform numbers (Shoemake, Graphics Gems III, 1992)
    first, second = (2.0 * math.pi * angle for angle in angles)
    near, far = share.sqrt(), (1.0 - share).sqrt()
    x, y, z, w = far * first.sin(), far * first.cos(), near * second.sin(), near * second.cos()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _uniform(seed: Tensor, draw: int) -> Tensor:
    """Numbers (B,) between 0 and 1, made of their seeds (B,) by the finaliser of SplitMix64."""

    def signed(x: int) -> int:
        return x - 2**64 if x >= 2**63 else x

    def shifted(x: Tensor, by: int) -> Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    x = seed * signed(0x9E3779B97F4A7C15) + signed((draw + 1) * 0xD1342543DE82EF95 % 2**64)
    for by, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ shifted(x, by)) * signed(factor)
    return (shifted(x ^ shifted(x, 31), 11).double() + 0.5) * 2.0**-53


@cache
def rotation_group(order: int) -> Tensor:
    """Proper rotations of a regular body, (order, 3, 3), float64: all products of its generators.

    Args:
        order: 12 (tetrahedron), 24 (cube and octahedron), 60 (icosahedron and dodecahedron), or 1
            (the identity alone). The bodies share their twofold axes x, y, z and threefold axis
            (1, 1, 1); the icosahedron has a vertex along (0, 1, golden ratio).

    Raises:
        ConfigError: there is no such group here.
    """
    if isinstance(order, bool) or order not in GROUPS:
        known = ", ".join(f"{k} ({name})" for k, name in GROUPS.items())
        raise ConfigError(f"rotations={order!r} must be the order of a group: {known}")
    golden = 0.5 * (1.0 + math.sqrt(5.0))
    third = torch.eye(3, dtype=torch.float64).roll(1, 0)  # x -> y -> z -> x
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    quarter = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    generators = {
        1: [],
        12: [third, half],
        24: [third, quarter],
        60: [third, half, _turn((0.0, 1.0, golden), 2.0 * math.pi / 5.0)],
    }[order]
    group = [torch.eye(3, dtype=torch.float64)]
    for member in group:  # grows while it is walked
        for generator in generators:
            product = generator @ member
            if (torch.stack(group) - product).abs().amax((1, 2)).min() > 1e-6:
                group.append(product)
    return torch.stack(group)


def group_averaged(potential: Potential, graph: AtomGraph, order: int) -> Prediction:
    """Predict as the mean over a finite group: turn by each rotation, predict, turn back.

    Exactly equivariant under the group, and for other rotations closer to it than one prediction.
    The mean of energies that depend on positions alone is one more such energy, and what is
    returned is its gradient: conservative forces stay conservative.

    Args:
        potential: frozen.
        graph: B structures; copies of all of them go through the potential `order` times, as many
            at once as keep a batch below `MAX_EDGES`. Neighbours are those of `graph`.
        order: of the group, as in `rotation_group`.

    Returns:
        Numbers without a gradient and without `features` and `extras`, which need not be scalars.
    """
    group = rotation_group(order).to(graph.cell)
    b, n = graph.num_graphs, len(graph.atomic_numbers)
    at_once = max(1, MAX_EDGES // max(1, graph.edge_index.shape[1]))
    energy, node = graph.cell.new_zeros(b), graph.cell.new_zeros(n)
    forces, virial, stress = (
        torch.zeros_like(x) for x in (graph.positions, graph.cell, graph.cell)
    )
    for some in group.split(at_once):
        k = len(some)
        with torch.no_grad():
            out = potential(rotated(collate([graph] * k), some.repeat_interleave(b, 0)))
        energy += out.energy.view(k, b).sum(0)
        node += out.node_energy.view(k, n).sum(0)
        forces += torch.einsum("kyx,kny->nx", some, out.forces.view(k, n, 3))
        virial += torch.einsum("kyx,kbyz,kzw->bxw", some, out.virial.view(k, b, 3, 3), some)
        stress += torch.einsum("kyx,kbyz,kzw->bxw", some, out.stress.view(k, b, 3, 3), some)
    for total in (energy, forces, virial, stress, node):
        total /= order
    return Prediction(energy, forces, virial, stress, node)


def _turn(axis: tuple[float, float, float], angle: float) -> Tensor:
    """Rotation by `angle` about `axis` (Rodrigues' formula), float64."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    eye = torch.eye(3, dtype=torch.float64)
    return eye + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


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


def turned(batches: Iterable[AtomGraph], rotations: int = 1) -> Iterator[AtomGraph]:
    """Turn every structure of `batches`, labels included, by each of its `fixed_rotations`."""
    for graph in batches:
        for number in range(rotations):
            yield rotated(graph, fixed_rotations(graph, number))


def symmetry_errors(
    potential: Potential, graphs: Iterable[AtomGraph], rotations: int = 8
) -> dict[str, dict[str, float]]:
    """Measure how much predictions change when structures are rotated or inverted.

    Args:
        potential: frozen, on the device of `graphs`.
        graphs: batches of some structures, of the validation set for example.
        rotations: fixed random rotations per structure.

    Returns:
        For `rotation` and `inversion` how many `structures` were changed by how many `operations`,
        and the mean absolute values and root mean squares `energy_per_atom_mae`,
        `energy_per_atom_rmse` (eV/atom), `forces_mae`, `forces_rmse` (eV/Å, over components) of the
        difference to the prediction that was turned, and the latter relative to the root mean
        square of the forces, `forces_relative`.
    """
    found = {"rotation": _Changes(), "inversion": _Changes()}
    for graph in graphs:
        b = graph.num_graphs
        inversion = -torch.eye(3, dtype=torch.float64).expand(b, 3, 3)
        turns = [fixed_rotations(graph, number) for number in range(rotations)]
        with torch.no_grad():
            reference = potential(graph)
        for changes, operations in zip(found.values(), (turns, [inversion]), strict=True):
            changes.add(potential, graph, reference, operations)
    return {name: changes.errors() for name, changes in found.items()}


class _Changes:
    """Sums over structures and operations of how much a prediction changes."""

    def __init__(self) -> None:
        self.structures = self.operations = 0
        self.sums = {"energy_per_atom": [0.0, 0.0, 0], "forces": [0.0, 0.0, 0]}  # |x|, x², count
        self.size = 0.0  # Σ of squared reference forces, once per operation

    def add(
        self, potential: Potential, graph: AtomGraph, reference: Prediction, turns: list[Tensor]
    ) -> None:
        self.structures += graph.num_graphs
        self.operations = len(turns)
        self.size += len(turns) * float(reference.forces.double().square().sum())
        for q in turns:
            turned = rotated(replace(graph, forces=reference.forces), q)
            with torch.no_grad():
                prediction = potential(turned)
            changes = {
                "energy_per_atom": (prediction.energy - reference.energy) / graph.num_atoms,
                "forces": prediction.forces - turned.forces,
            }
            for name, change in changes.items():
                sums = self.sums[name]
                sums[0] += float(change.abs().double().sum())
                sums[1] += float(change.double().square().sum())
                sums[2] += change.numel()

    def errors(self) -> dict[str, float]:
        out: dict[str, float] = {"structures": self.structures, "operations": self.operations}
        for name, (absolute, squared, count) in self.sums.items():
            out[f"{name}_mae"] = absolute / max(count, 1)
            out[f"{name}_rmse"] = (squared / max(count, 1)) ** 0.5
        relative = (self.sums["forces"][1] / self.size) ** 0.5 if self.size else 0.0
        return out | {"forces_relative": relative}
