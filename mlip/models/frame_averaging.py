"""Frame averaging: any architecture made exactly invariant to rotations, in training and in use.

A structure is turned into a frame of its own before the model sees it, so that it does not matter
how it was turned before. The frame of a graph is made of the eigenvectors R of the symmetric tensor

    M = Σ_ij w(r_ij) r_ij ⊗ r_ij      (sum over edges, w the envelope that ends at the cutoff),

which translations, lattice vectors, permutations and the choice of a cell leave alone, and which
turns with the structure. (For a model that sees positions and a graph without periodic axes it is
the sum over all pairs of atoms, without envelope: principal axes as published.) Eigenvectors have
no sign, so the energy is the mean over signs S, with det RS = 1 for SO(3) and all of them for O(3):

    E(x) = 1/|S| Σ_S E_model((R S)ᵀ x),      |S| = 4 for SO(3), 8 for O(3).

Forces stay the exact gradient of this energy: R is differentiated, dR = R Ω with
Ω_ab = (Rᵀ dM R)_ab / (λ_b − λ_a). A prediction costs 4 or 8 of the model's.

What it does not do:

- One frame serves a whole graph. A far fragment turns it, so the result is neither local nor
  extensive, whatever the model is (`is_local` is False). Supercells are exact: M is a multiple.
- Where two eigenvalues meet, the frame is not defined and the energy is discontinuous: it depends
  on which way the degenerate pair is approached, and forces grow like the inverse of the distance
  between the eigenvalues. No choice of finitely many frames is continuous everywhere (Dym et al.,
  arXiv:2402.16077). This concerns what is turned about an axis by less than 180 degrees onto
  itself: NH3, benzene, CH4, tetragonal, hexagonal and above all cubic crystals; near them dynamics
  do not conserve energy and training sees large forces. The jump is what is left, after averaging
  over signs, of the change of the model's own energy when such a structure is turned: measured in
  tests/physics/test_frames.py, and for its model with O(3) 0.2 % of that change for C6H6 and NH3,
  20 % for CH4 and 60 % for diamond. A model that learned its symmetry has smaller ones.
- Exactly on such a structure (eigenvalues equal to 1e-8 of their sum) the frame is one of the many,
  without derivative: everything is finite, and invariant only as far as the model is.

Linear molecules, pairs and single atoms have degenerate frames as well, but no energy depends on
which one is taken: they are exact. So are planar structures.

Source: Puny et al., "Frame averaging for invariant and equivariant network design", ICLR 2022,
arXiv:2110.03336.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mlip.errors import ConfigError
from mlip.graph import mean_of_graphs
from mlip.models.geometry import Geometry, NodeOutput
from mlip.models.options import check_word
from mlip.models.radial import polynomial_envelope

FRAMES = {"none": "none", "so3": "SO(3)", "o3": "O(3)"}
ENVELOPE_POWER = 6
# Eigenvalues closer than this fraction of their sum count as equal. Exactly linear molecules have
# two, which single precision splits by 1e-14; a force good to (1e-8/gap)⁴ is exact elsewhere.
EQUAL = 1e-8


class FrameAveraged(nn.Module):
    """The mean of a model's output over the frames of each graph (an `EnergyModel`)."""

    is_local = False

    def __init__(self, model: nn.Module, frames: str) -> None:
        """Wrap `model`.

        Args:
            model: an `EnergyModel` that lacks the symmetry.
            frames: `so3` (rotations, 4 frames) or `o3` (reflections as well, 8).

        Raises:
            ConfigError: no such frames, or the model has that symmetry already.
        """
        super().__init__()
        check_word("frames", frames, [name for name in FRAMES if name != "none"])
        has = str(getattr(model, "symmetry", "none"))
        if has == "O(3)" or has == FRAMES[frames]:
            raise ConfigError(
                f"model.frames={frames} would cost {2 if frames == 'so3' else 4} times and more "
                f"and change nothing: this architecture is exactly {has}-equivariant by itself; "
                "use model.frames=none"
            )
        self.model, self.symmetry = model, FRAMES[frames]
        wrapped: Any = model
        self.cutoff, self.species = float(wrapped.cutoff), tuple(wrapped.species)
        for name, default in (
            ("needs_positions", False),
            ("conservative", True),
            ("uses_charge_spin", False),
            ("accepts_periodic", True),
        ):
            setattr(self, name, bool(getattr(model, name, default)))
        signs = [s for s in product((1.0, -1.0), repeat=3) if frames == "o3" or s[0] * s[1] == s[2]]
        self.register_buffer("signs", torch.tensor(signs), persistent=False)
        self.signs: Tensor  # (F, 3)

    def forward(self, geometry: Geometry) -> NodeOutput:
        """See `EnergyModel`."""
        axes = principal_axes(self.tensor(geometry))
        count, n = len(self.signs), len(geometry.batch)
        output = self.model(_in_frames(geometry, axes, self.signs))

        def mean(x: Tensor) -> Tensor:
            return x.view(count, n, *x.shape[1:]).mean(0)

        forces = output.forces
        if forces is not None:  # F = R S F', turned back
            turned = (forces.view(count, n, 3) * self.signs[:, None].to(forces)).mean(0)
            forces = torch.einsum("nxa,na->nx", axes[geometry.batch].to(turned), turned)
        return NodeOutput(
            energy=mean(output.energy),
            features=None if output.features is None else mean(output.features),
            forces=forces,
            extras={name: mean(value) for name, value in output.extras.items()},
        )

    def tensor(self, geometry: Geometry) -> Tensor:
        """Return M (B, 3, 3) of the module's docstring, Å², float64."""
        r = geometry.edge_vectors.double()
        distance = torch.linalg.vector_norm(r, dim=-1)
        weight = polynomial_envelope(distance / self.cutoff, ENVELOPE_POWER)
        graph_of_edge = geometry.batch[geometry.edge_index[1]]
        edges = r.new_zeros(geometry.num_graphs, 3, 3).index_add(
            0, graph_of_edge, weight[:, None, None] * r[:, :, None] * r[:, None, :]
        )
        if geometry.positions is None:
            return edges
        x, batch = geometry.positions.double(), geometry.batch
        count = torch.bincount(batch, minlength=geometry.num_graphs).to(x)
        d = x - mean_of_graphs(x, batch, geometry.num_graphs)[batch]
        pairs = torch.zeros_like(edges).index_add(0, batch, d[:, :, None] * d[:, None, :])
        periodic = geometry.pbc.any(1)[:, None, None]
        return torch.where(periodic, edges, 2.0 * count[:, None, None] * pairs)


def principal_axes(tensor: Tensor) -> Tensor:
    """Return eigenvectors of symmetric matrices as columns, right-handed, differentiable twice.

    Args:
        tensor: (B, 3, 3), float64, positive semi-definite.

    Returns:
        (B, 3, 3), by rising eigenvalue; where eigenvalues are equal, some choice whose derivative
        within the degenerate space is zero.
    """
    trace = torch.diagonal(tensor.detach(), dim1=1, dim2=2).sum(1)
    scale = torch.where(trace > 1e-100, trace, 1.0)  # axes do not depend on it: a constant
    _, axes = _Eigen.apply(tensor / scale[:, None, None])  # type: ignore[misc]
    handed = torch.linalg.det(axes.detach()).sign()
    return torch.cat([axes[:, :, :2], axes[:, :, 2:] * handed[:, None, None]], dim=2)


class _Eigen(torch.autograd.Function):
    """Eigenvalues (B, 3) and eigenvectors (B, 3, 3) of symmetric matrices.

    As `torch.linalg.eigh`, whose derivative divides by differences of eigenvalues, with 1/g
    replaced by g³/(g⁴ + EQUAL⁴). Its derivative is made of differentiable steps, itself included.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        by_value, by_vector = gradients
        values, vectors = ctx.saved_tensors
        gap = values[:, None, :] - values[:, :, None]  # λ_b − λ_a
        inverse = gap**3 / (gap**4 + EQUAL**4)
        inner = (vectors.transpose(1, 2) @ by_vector) * inverse + torch.diag_embed(by_value)
        outer = vectors @ inner @ vectors.transpose(1, 2)
        return 0.5 * (outer + outer.transpose(1, 2))


def _in_frames(geometry: Geometry, axes: Tensor, signs: Tensor) -> Geometry:
    """Return F = len(signs) copies of a batch as one, copy f in the frame R S_f of each graph.

    Args:
        geometry: B graphs.
        axes: (B, 3, 3) R, columns are the axes.
        signs: (F, 3) diagonals of S.
    """
    count, b, n = len(signs), geometry.num_graphs, len(geometry.batch)
    copy = torch.arange(count, device=axes.device)[:, None]

    def turned(rows: Tensor, graph: Tensor) -> Tensor:
        """Rows x (K, 3) as (R S)ᵀ x, (F K, 3)."""
        inside = torch.einsum("kx,kxa->ka", rows, axes[graph].to(rows))
        return (inside * signs[:, None].to(rows)).flatten(0, 1)

    positions, cell = geometry.positions, geometry.cell
    if positions is not None:
        positions = turned(positions, geometry.batch)
    if cell is not None:
        inside = cell @ axes.to(cell)
        cell = (inside * signs[:, None, None].to(cell)).flatten(0, 1)
    return Geometry(
        atomic_numbers=geometry.atomic_numbers.repeat(count),
        edge_index=(geometry.edge_index[:, None] + n * copy).flatten(1),
        edge_vectors=turned(geometry.edge_vectors, geometry.batch[geometry.edge_index[1]]),
        edge_lengths=geometry.edge_lengths.repeat(count),
        batch=(geometry.batch + b * copy).flatten(),
        num_graphs=count * b,
        charge=geometry.charge.repeat(count),
        spin=geometry.spin.repeat(count),
        head=geometry.head.repeat(count),
        pbc=geometry.pbc.repeat(count, 1),
        positions=positions,
        cell=cell,
    )
