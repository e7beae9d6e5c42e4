"""From per-atom energies to energy, forces and stress.

The only `torch.autograd.grad` in the package is here. An architecture implements `EnergyModel`
(geometry in, per-atom energies out) and gets conservative forces, a consistent stress, reference
energies, the calculator and the trainer for free.

With r_ij = x_j + n·cell − x_i the energy is a function of edge vectors alone, so one derivative
g_ij = ∂E/∂r_ij gives everything: F_i = Σ_j (g_ij − g_ji) and the strain derivative
∂E/∂ε = Σ_ij r_ij ⊗ g_ij. Stress follows ASE: σ = (1/V) ∂E/∂ε, positive under tension.
Source: Knuth et al., Comput. Phys. Commun. 190, 33 (2015), doi:10.1016/j.cpc.2015.01.003.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph
from mlip.models.geometry import Geometry, NodeOutput, join

MAX_Z = 118


@runtime_checkable
class EnergyModel(Protocol):
    """What an architecture must offer; optional: `needs_positions`, `conservative`,
    `uses_charge_spin`, `accepts_periodic`, `traceable`, each False, True, False, True, True where
    absent.
    """

    cutoff: float  # Å
    species: tuple[int, ...]  # atomic numbers it was built for
    symmetry: str  # "O(3)", "SO(3)" or "none": what holds exactly; the physics suite checks it
    is_local: bool  # False if atoms interact beyond the graph

    def __call__(self, geometry: Geometry) -> NodeOutput:
        """Return per-atom interaction energies (N,), eV."""
        ...


@dataclass(slots=True)
class Prediction:
    """What a potential returns for a batch of B graphs with N atoms."""

    energy: Tensor  # (B,) eV, float64, reference energies included
    forces: Tensor  # (N, 3) eV/Å, float64
    virial: Tensor  # (B, 3, 3) eV, ∂E/∂ε, symmetric, always finite
    stress: Tensor  # (B, 3, 3) eV/Å³; NaN unless periodic along all three axes
    node_energy: Tensor  # (N,) eV, float64, reference energies included: sums to energy
    features: Tensor | None = None  # (N, C)
    extras: dict[str, Tensor] = field(default_factory=dict)


class Potential(nn.Module):
    """An `EnergyModel` plus priors and reference energies, differentiated once."""

    def __init__(
        self,
        model: nn.Module,
        reference_energies: Mapping[int, float] | Sequence[Mapping[int, float]],
        priors: Sequence[nn.Module] = (),
        head_names: Sequence[str] = ("default",),
    ) -> None:
        """Wrap `model`.

        Args:
            model: the `EnergyModel`.
            reference_energies: E0, the energy of an isolated neutral atom by atomic number, eV; one
                table per head if there are several, each of the elements that head knows.
            priors: `EnergyModel`s whose energies are added (ZBL); they must vanish for an isolated
                atom.
            head_names: names of the levels of theory, one per table.
        """
        super().__init__()
        self.model = model
        self.priors = nn.ModuleList(priors)
        self.head_names = tuple(head_names)
        tables = (
            [reference_energies] if isinstance(reference_energies, Mapping) else reference_energies
        )
        e0 = torch.full((len(tables), MAX_Z + 1), torch.nan, dtype=torch.float64)
        for head, table in enumerate(tables):
            for z, energy in table.items():
                e0[head, int(z)] = energy
        self.register_buffer("e0", e0)
        self.e0: Tensor
        self._isolated: Tensor | None = None  # (heads, MAX_Z + 1) after `freeze`
        self.spec: Any = None  # the PotentialSpec it was built from, if it was
        self.metadata: dict[str, Any] = {}  # of the file it was loaded from, if it was
        self.compiled: Any = None  # what `compile_potential` puts here; no module, never saved

    # -- what users and callers ask ------------------------------------------------------------

    @property
    def cutoff(self) -> float:
        """Radius the neighbour list must have, Å."""
        return max([float(self.model.cutoff), *(float(p.cutoff) for p in self.priors)])  # type: ignore[arg-type]

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers it knows."""
        return tuple(self.model.species)  # type: ignore[arg-type]

    def species_of(self, head: int) -> tuple[int, ...]:
        """Atomic numbers that a head was trained on: those it has a reference energy for."""
        unknown = torch.isnan(self.e0[head]).tolist()
        return tuple(z for z in self.species if not unknown[z])

    def head_index(self, name: str | None) -> int:
        """Return the number of a head; None is the only one there is.

        Raises:
            ConfigError: no such head, or None where there are several; the message names them.
        """
        names = ", ".join(self.head_names)
        if name is None and len(self.head_names) > 1:
            raise ConfigError(
                f"this potential knows several levels of theory; choose one by head=NAME (--head): "
                f"{names}"
            )
        if name is not None and name not in self.head_names:
            raise ConfigError(f"this potential has no head {name!r}; it has: {names}")
        return 0 if name is None else self.head_names.index(name)

    @property
    def symmetry(self) -> str:
        """The symmetry that holds exactly: "O(3)", "SO(3)" or "none"."""
        return str(self.model.symmetry)

    @property
    def is_local(self) -> bool:
        """Whether atoms interact only through the graph."""
        return bool(self.model.is_local)

    @property
    def conservative(self) -> bool:
        """Whether forces are minus the gradient of the energy."""
        return bool(getattr(self.model, "conservative", True))

    @property
    def uses_charge_spin(self) -> bool:
        """Whether total charge and spin change the prediction."""
        return bool(getattr(self.model, "uses_charge_spin", False))

    @property
    def accepts_periodic(self) -> bool:
        """Whether structures may have periodic axes; otherwise they are refused."""
        return bool(getattr(self.model, "accepts_periodic", True))

    @property
    def extensive(self) -> bool:
        """Whether two far fragments add up, whatever their charge and spin."""
        return self.is_local and not self.uses_charge_spin

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the arithmetic (energies are float64 always)."""
        return next((p.dtype for p in self.parameters()), torch.float64)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.e0.device

    @property
    def frozen(self) -> Tensor | None:
        """What `freeze` found for isolated atoms, another tensor each time; None if not frozen."""
        return self._isolated

    # -- computation ---------------------------------------------------------------------------

    def forward(self, graph: AtomGraph, *, derivatives: bool = True) -> Prediction:
        """Predict energy, forces and stress of a batch.

        Args:
            graph: the batch, with neighbours up to `cutoff`. If its positions require grad the
                result is differentiable with respect to them (Hessians).
            derivatives: False skips forces and stress, which are then NaN.

        Under `torch.no_grad()` the result carries no graph; otherwise forces and stress are
        differentiable (training on forces, Hessians).

        Raises:
            ConfigError: under `torch.inference_mode()`, where there are no derivatives.
        """
        create_graph = torch.is_grad_enabled()  # a caller under no_grad wants plain numbers
        differentiate = derivatives and self.conservative
        if differentiate and torch.is_inference_mode_enabled():
            raise ConfigError(
                "forces are derivatives, which torch.inference_mode() has none of; use "
                "torch.no_grad()"
            )
        with torch.set_grad_enabled(create_graph or differentiate):
            geometry, leaves, strain = self._geometry(graph, differentiate)
            whole, alone = self._with_isolated(geometry)
            if differentiate and self.compiled is not None and len(geometry.edge_vectors):
                output, grads = self.compiled(self, whole, create_graph)
                output, interaction = self._interaction(output, geometry, alone)
            else:
                output, interaction = self._interaction(self.energies(whole), geometry, alone)
                grads = gradient(interaction, leaves, create_graph) if differentiate else None
        if not create_graph:
            interaction, output = interaction.detach(), _detached(output)

        e0 = self.e0[graph.head[graph.batch], graph.atomic_numbers]
        node_energy = interaction.double() + e0
        energy = node_energy.new_zeros(graph.num_graphs).index_add(0, graph.batch, node_energy)
        if grads is not None:
            forces, virial = _assemble(graph, geometry, grads, has_positions=strain is not None)
        else:
            forces = torch.full_like(graph.positions, torch.nan)
            virial = torch.full_like(graph.cell, torch.nan)
            if output.forces is not None:
                forces = output.forces[: len(graph.atomic_numbers)].double()
        return Prediction(
            energy=energy,
            forces=forces,
            virial=virial,
            stress=_stress(virial, graph),
            node_energy=node_energy,
            features=output.features,
            extras=output.extras,
        )

    def feature_dim(self) -> int | None:
        """C of the latent features (N, C) that predictions carry, None if the model has none."""
        with torch.no_grad():
            one = torch.tensor(self.species[:1], device=self.device)
            features = self.model(self.edgeless(one, torch.zeros_like(one))).features
        return None if features is None else features.shape[1]

    def freeze(self) -> Potential:
        """Declare the weights final: evaluation mode, no parameter gradients, E0 correction cached.

        Call it again after changing dtype, device or weights; `train()` undoes it.
        """
        self.eval().requires_grad_(False)
        self._isolated = None
        known = torch.tensor(self.species, device=self.device)
        with torch.no_grad():
            table = torch.zeros(self.e0.shape, dtype=self.dtype, device=self.device)
            for head in range(len(table)):
                alone = self.edgeless(known, torch.full_like(known, head))
                table[head, known] = self.model(alone).energy
        self._isolated = table
        return self

    def train(self, mode: bool = True) -> Potential:
        """Set training mode; drops what `freeze` cached."""
        if mode:
            self._isolated = None
        return super().train(mode)

    def _geometry(
        self, graph: AtomGraph, differentiate: bool
    ) -> tuple[Geometry, list[Tensor], Tensor | None]:
        """Return what the model sees and the tensors to differentiate with respect to."""
        positions, cell, strain = graph.positions, graph.cell, None
        needs_positions = bool(getattr(self.model, "needs_positions", False))
        vectors = edge_vectors(graph, positions, cell).to(self.dtype)
        if differentiate and not vectors.requires_grad:
            vectors.requires_grad_(True)
        leaves = [vectors]
        if needs_positions:  # a second way for the geometry to enter, strained as a whole
            strain = torch.zeros_like(cell).requires_grad_(differentiate)
            if not positions.requires_grad:
                positions = positions.detach().clone().requires_grad_(differentiate)
            leaves += [positions, strain]
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            cell = cell + cell @ symmetric
            positions = positions + torch.einsum("nx,nxy->ny", positions, symmetric[graph.batch])
        geometry = Geometry(
            atomic_numbers=graph.atomic_numbers,
            edge_index=graph.edge_index,
            edge_vectors=vectors,
            edge_lengths=torch.linalg.vector_norm(vectors, dim=-1),
            batch=graph.batch,
            num_graphs=graph.num_graphs,
            charge=graph.charge,
            spin=graph.spin,
            head=graph.head,
            pbc=graph.pbc,
            positions=positions if needs_positions else None,
            cell=cell.to(self.dtype) if needs_positions else None,
        )
        return geometry, leaves, strain

    def energies(self, geometry: Geometry) -> NodeOutput:
        """Return the model's output with the energies of priors; isolated atoms may have some."""
        output = self.model(geometry)
        for prior in self.priors:
            output = replace(output, energy=output.energy + prior(geometry).energy)
        return output

    def _with_isolated(self, geometry: Geometry) -> tuple[Geometry, Tensor | None]:
        """Append what must be subtracted and say which row it is for each atom.

        While weights change, each element's edgeless atom rides along as one more graph, for each
        head that it occurs with; once they are frozen there is a table.
        """
        if self._isolated is not None:
            return geometry, None
        width = MAX_Z + 1
        labels = geometry.head[geometry.batch] * width + geometry.atomic_numbers
        present, index = torch.unique(labels, return_inverse=True)
        return join(geometry, self.edgeless(present % width, present // width)), index

    def _interaction(
        self, output: NodeOutput, geometry: Geometry, alone: Tensor | None
    ) -> tuple[NodeOutput, Tensor]:
        """Return the output and the energies (N,) that vanish for isolated atoms."""
        z, n = geometry.atomic_numbers, len(geometry.atomic_numbers)
        if alone is None and self._isolated is not None:
            isolated = self._isolated[geometry.head[geometry.batch], z]
        else:
            isolated = output.energy[n:][alone]
        energy = output.energy[:n] - isolated
        features = None if output.features is None else output.features[:n]
        extras = {name: value[:n] for name, value in output.extras.items()}
        return NodeOutput(energy, features, output.forces, extras), energy

    def edgeless(self, numbers: Tensor, heads: Tensor) -> Geometry:
        """One isolated neutral atom per entry of `numbers` and `heads` (S,), each its own graph."""
        s = len(numbers)
        zero = numbers.new_zeros(s)
        none = torch.zeros(0, 3, dtype=self.dtype, device=self.device)
        origin = torch.zeros(s, 3, dtype=self.dtype, device=self.device)
        needs = bool(getattr(self.model, "needs_positions", False))
        return Geometry(
            atomic_numbers=numbers,
            edge_index=numbers.new_zeros(2, 0),
            edge_vectors=none,
            edge_lengths=none[:, 0],
            batch=torch.arange(s, device=self.device),
            num_graphs=s,
            charge=zero,
            spin=zero,
            head=heads,
            pbc=torch.zeros(s, 3, dtype=torch.bool, device=self.device),
            positions=origin if needs else None,
            cell=origin.new_zeros(s, 3, 3) if needs else None,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast; reference energies stay float64 to the last bit."""
        e0 = self.e0
        result = super()._apply(fn, recurse)
        self.e0 = e0.to(self.e0.device)
        self._isolated = None
        return result


def edge_vectors(graph: AtomGraph, positions: Tensor, cell: Tensor) -> Tensor:
    """Vectors r_ij from centre i to neighbour j, (E, 3), Å, in the dtype of `positions`."""
    j, i = graph.edge_index
    shift = graph.edge_shift.to(positions.dtype)
    images = torch.einsum("ek,ekx->ex", shift, cell[graph.batch[i]])
    return positions[j] - positions[i] + images


def check_species(atomic_numbers: Iterable[Any], species: Sequence[int]) -> None:
    """Refuse elements the potential has never seen.

    Raises:
        DataError: at least one is unknown; the message lists both sets.
    """
    if unknown := sorted({int(z) for z in atomic_numbers} - set(species)):
        raise DataError(
            f"the structure has {_symbols(unknown)}, which this potential was not trained on "
            f"(it knows {_symbols(sorted(species))}); use a potential trained on them"
        )


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] if 0 <= z <= MAX_Z else f"Z={z}" for z in numbers)


def _detached(output: NodeOutput) -> NodeOutput:
    """Cut what a caller may keep from the graph that the forces needed."""
    return NodeOutput(
        output.energy.detach(),
        None if output.features is None else output.features.detach(),
        None if output.forces is None else output.forces.detach(),
        {name: value.detach() for name, value in output.extras.items()},
    )


def gradient(energy: Tensor, leaves: list[Tensor], create_graph: bool) -> Sequence[Tensor]:
    """Differentiate the sum of `energy`; what it does not depend on gets zeros."""
    if not energy.requires_grad:  # nothing depends on the geometry (no edges at all)
        return [torch.zeros_like(x) for x in leaves]
    return torch.autograd.grad(
        energy.sum(), leaves, create_graph=create_graph, materialize_grads=True
    )


def _assemble(
    graph: AtomGraph, geometry: Geometry, grads: Sequence[Tensor], *, has_positions: bool
) -> tuple[Tensor, Tensor]:
    """Sum edge derivatives to forces (N, 3) and symmetric virials (B, 3, 3), float64."""
    j, i = graph.edge_index
    g = grads[0].double()
    r = geometry.edge_vectors.double()
    forces = torch.zeros_like(graph.positions).index_add(0, i, g).index_add(0, j, -g)
    outer = r[:, :, None] * g[:, None, :]
    virial = torch.zeros_like(graph.cell).index_add(0, graph.batch[i], outer)
    if has_positions:
        forces = forces - grads[1]
        virial = virial + grads[2]
    return forces, 0.5 * (virial + virial.transpose(1, 2))


def _stress(virial: Tensor, graph: AtomGraph) -> Tensor:
    periodic = graph.pbc.all(dim=1)
    # |det|: a left-handed cell is a cell; its stress must not change sign
    volume = torch.where(periodic, torch.linalg.det(graph.cell).abs(), 1.0)
    return torch.where(periodic[:, None, None], virial / volume[:, None, None], torch.nan)
