"""A potential's energies as a function of tensors alone, and whether two ways give the same.

What makes calls faster by remembering them (`compiled`, `captured`) needs a function of vectors of
edges and labels of atoms, without batches: each atom is a graph of its own, with the charge, spin
and head of its structure.

Letters: N atoms, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError
from mlip.models.edges import check_edges
from mlip.models.embedding import check_state
from mlip.models.geometry import Geometry
from mlip.models.potential import Potential, gradient

DIFFERENCE = {torch.float64: 1e-10, torch.float32: 1e-3}  # relative, of the first result


def arguments(geometry: Geometry) -> list[Tensor]:
    """What a local model may look at.

    Returns:
        Edge vectors (E, 3), numbers (N,), edges (2, E), then per atom charge, spin, head (N,) and
        periodic axes (N, 3).
    """
    batch = geometry.batch
    per_atom = (geometry.charge, geometry.spin, geometry.head, geometry.pbc)
    return [
        geometry.edge_vectors.contiguous(),
        geometry.atomic_numbers.contiguous(),
        geometry.edge_index.contiguous(),
        *(x[batch] for x in per_atom),
    ]


def check_arguments(potential: Potential, geometry: Geometry) -> None:
    """Look at the values that a function which is remembered cannot look at any more.

    Raises:
        ValueError: edges (on a CPU) are not sorted by centre, or end at no atom.
        DataError: a charge or spin that there is no row for.
    """
    if geometry.edge_index.device.type == "cpu":  # elsewhere looking would wait for the device
        check_edges(geometry.edge_index, len(geometry.atomic_numbers))
    if potential.uses_charge_spin:
        check_state(geometry.charge, geometry.spin)


class EdgeFunction(nn.Module):
    """`Potential.energies` of `arguments`, as a module whose weights can be replaced for a call."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, vectors: Tensor, numbers: Tensor, edge_index: Tensor, *others: Tensor) -> Any:
        """Return the model's output, of atoms.

        Raises:
            ConfigError: the model returns more than energies and features.
        """
        n = numbers.shape[0]
        charge, spin, head, pbc = others
        geometry = Geometry(
            atomic_numbers=numbers,
            edge_index=edge_index,
            edge_vectors=vectors,
            edge_lengths=torch.linalg.vector_norm(vectors, dim=-1),
            batch=torch.arange(n, device=numbers.device),
            num_graphs=n,
            charge=charge,
            spin=spin,
            head=head,
            pbc=pbc,
        )
        output = self.potential.energies(geometry)
        if output.extras:
            raise ConfigError(f"compiled potentials return no {', '.join(output.extras)}")
        return output


def plain(potential: Potential, geometry: Geometry, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
    """What `expect` compares with, by the potential itself."""
    with torch.enable_grad():
        output = potential.energies(geometry)
        (slope,) = gradient(output.energy, [geometry.edge_vectors], create_graph=bool(leaves))
        features = [] if output.features is None else [output.features]
        return compared([output.energy, slope, *features], leaves)


def compared(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what is compared, by what it is called.

    Args:
        results: energies, derivatives and features, if there are any.
        leaves: weights that are trained; then also the gradient of derivatives by them.
    """
    names = ("energies", "forces", "features")
    out = {name: x.detach() for name, x in zip(names, results, strict=False)}
    if leaves:
        gradients = gradient(results[1].square(), list(leaves), create_graph=False)
        out["gradients of weights"] = torch.cat([g.flatten() for g in gradients])
    return out


def expect(found: dict[str, Tensor], right: dict[str, Tensor], way: str) -> bool:
    """Expect the numbers of the plain way; return whether these are any.

    Args:
        found: by another way.
        right: by the plain one; not finite where a structure is impossible: no comparison then.
        way: what the other is called.

    Raises:
        ConfigError: they differ.
    """
    if not all(bool(torch.isfinite(x).all()) for x in right.values()):
        return False
    for name, expected in right.items():
        error = float((found[name] - expected).abs().max())
        scale = max(float(expected.abs().max()), 1e-3)
        if not error <= DIFFERENCE.get(expected.dtype, 1e-3) * scale:
            raise ConfigError(
                f"compile=true: the {way} {name} differ from the plain ones by {error:.1e} of "
                f"{scale:.1e}; compile=false does without. Please report it with the versions "
                "that `mlip doctor` prints"
            )
    return True
