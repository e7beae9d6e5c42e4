"""How a potential is taught, independently of which one it is."""

from __future__ import annotations

from collections.abc import Callable

from mlip.errors import ConfigError
from mlip.graph import AtomGraph
from mlip.symmetry import random_rotations, rotated

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
    return rotated(graph, random_rotations(graph.num_graphs))


OBJECTIVES: dict[str, Objective] = {"standard": standard, "augmented": augmented}
