"""How a potential is taught, independently of which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mlip.errors import ConfigError
from mlip.graph import AtomGraph

Objective = Callable[[AtomGraph], AtomGraph]
DEFAULTS: dict[str, str] = {}  # architecture -> its own objective; `standard` for the others


def make_objective(name: str, architecture: str) -> tuple[str, Objective]:
    """Return the resolved name and the function that turns a batch into what is learnt from.

    Raises:
        ConfigError: no such objective.
    """
    if name == "auto":
        name = DEFAULTS.get(architecture, "standard")
    if name not in OBJECTIVES:
        raise ConfigError(f"objective={name!r} must be auto or one of {', '.join(OBJECTIVES)}")
    return name, OBJECTIVES[name]


def standard(graph: AtomGraph) -> AtomGraph:
    """Learn from the data as they are."""
    return graph


def augmented(graph: AtomGraph) -> AtomGraph:
    """Learn from a random rotation of every structure, labels included."""
    q = random_rotations(graph.num_graphs).to(graph.cell)
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


def random_rotations(count: int) -> Tensor:
    """Uniform proper rotations (count, 3, 3), float64, from torch's global generator."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None, :]
    return q * torch.linalg.det(q)[:, None, None].sign()


OBJECTIVES: dict[str, Objective] = {"standard": standard, "augmented": augmented}
