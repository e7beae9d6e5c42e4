"""Errors of a potential as exact sums over counts: the same for any batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mlip.graph import AtomGraph, structure_arrays
from mlip.models.potential import Potential, Prediction, check_species
from mlip.quantities import QUANTITIES


def structure_errors(prediction: Prediction, graph: AtomGraph) -> Tensor:
    """Errors of each of B structures, as sums that are to be added up.

    Labels that are NaN are not counted; predictions that are NaN must show.

    Returns:
        (B, 3·4 + 4), float64: of each of `ErrorSums.NAMES` |x|, x² and count, over components; the
        cosines between predicted and true forces and their count; predicted forces along the true
        ones, and these along themselves.
    """
    b, n = graph.num_graphs, graph.num_atoms
    crystals = graph.pbc.all(1)[:, None, None]  # stress has no meaning elsewhere
    energy, has_energy = prediction.energy - graph.energy, ~torch.isnan(graph.energy)
    whole = (
        (energy[:, None], has_energy[:, None]),
        ((energy / n)[:, None], has_energy[:, None]),
        (prediction.stress - graph.stress, ~torch.isnan(graph.stress) & crystals),
    )
    of_energy, of_energy_per_atom, of_stress = (_sizes(error, known) for error, known in whole)
    labelled = ~torch.isnan(graph.forces)
    all_three = labelled.all(1)
    true = graph.forces.double().where(all_three[:, None], 0.0)
    predicted = prediction.forces.detach().double().where(all_three[:, None], 0.0)
    large = all_three & (true.norm(dim=1) > 1e-3)
    cosine = torch.cosine_similarity(predicted, true).where(large, 0.0)
    along = [cosine, large, (true * predicted).sum(1), true.square().sum(1)]
    of_atoms = torch.cat(
        [_sizes(prediction.forces - graph.forces, labelled), torch.stack(along, dim=1)], dim=1
    )
    of_forces = of_atoms.new_zeros(b, of_atoms.shape[1]).index_add(0, graph.batch, of_atoms)
    return torch.cat(
        [of_energy, of_energy_per_atom, of_forces[:, :3], of_stress, of_forces[:, 3:]], 1
    )


def _sizes(error: Tensor, labelled: Tensor) -> Tensor:
    """Sums of |x|, x² and the count over all but the first dimension of (R, ...): (R, 3)."""
    known = error.detach().double().where(labelled, 0.0).flatten(1)
    return torch.stack([known.abs().sum(1), known.square().sum(1), labelled.flatten(1).sum(1)], 1)


class ErrorSums:
    """Errors of energies (eV), forces (eV/Å) and stresses (eV/Å³) over components.

    Sums stay where the predictions are until somebody asks for them: an accelerator is not waited
    for after every batch.
    """

    NAMES = tuple(QUANTITIES)
    SIZE = 3 * len(NAMES) + 4  # columns of `structure_errors`

    def __init__(self, state: Tensor | None = None) -> None:
        self._state = torch.zeros(self.SIZE, dtype=torch.float64) if state is None else state

    @property
    def sums(self) -> Tensor:
        """For each of `NAMES` |x|, x², count."""
        return self._state[:-4].view(-1, 3)

    @property
    def cosine(self) -> Tensor:
        """Sum of the cosines between predicted and true forces, and count."""
        return self._state[-4:-2]

    @property
    def slope(self) -> Tensor:
        """Predicted forces along the true ones, and these along themselves."""
        return self._state[-2:]

    def update(self, prediction: Prediction, graph: AtomGraph) -> None:
        """Add a batch."""
        self.add(structure_errors(prediction, graph))

    def add(self, errors: Tensor) -> None:
        """Add `structure_errors` of a batch."""
        self._state = self._state.to(errors.device) + errors.sum(0)

    def compute(self) -> dict[str, float]:
        """Return `*_mae`, `*_rmse`, `forces_cos` and `forces_slope` of the labels that occurred.

        `forces_slope` is the regression of predicted on true forces through the origin; below one,
        the potential is too soft (Deng et al., npj Comput. Mater. 11, 9, 2025).
        """
        out: dict[str, float] = {}
        self._state = self._state.cpu()
        for name, (absolute, square, count) in zip(self.NAMES, self.sums.tolist(), strict=True):
            if count:
                out[f"{name}_mae"] = absolute / count
                out[f"{name}_rmse"] = (square / count) ** 0.5
        if self.cosine[1]:
            out["forces_cos"] = float(self.cosine[0] / self.cosine[1])
        if self.slope[1]:
            out["forces_slope"] = float(self.slope[0] / self.slope[1])
        return out

    def counts(self) -> dict[str, int]:
        """Return how many numbers each error is over."""
        return {n: int(c) for n, c in zip(self.NAMES, self.sums[:, 2].tolist(), strict=True)}

    def state(self) -> Tensor:
        """Return everything as one tensor, to be summed over ranks."""
        return self._state

    def load(self, state: Tensor) -> None:
        """Take what `state` returned."""
        self._state = state.double()


class SourceErrors:
    """Errors of each of several sources; `AtomGraph.source` says which structure is whose."""

    def __init__(self, names: Sequence[str]) -> None:
        self._groups = _Groups(names)

    @property
    def sums(self) -> dict[str, ErrorSums]:
        """The errors by source."""
        return self._groups.sums

    def update(self, prediction: Prediction, graph: AtomGraph) -> None:
        """Add a batch: to each source its structures."""
        self.add(structure_errors(prediction, graph), graph)

    def add(self, errors: Tensor, graph: AtomGraph) -> None:
        """Add `structure_errors` of a batch; structures of no source are left out."""
        if count := len(self._groups.names):
            named = (graph.source >= 0) & (graph.source < count)
            self._groups.add(errors, graph, (graph.source + 1).where(named, 0))

    def compute(self) -> dict[str, float]:
        """Return the errors of all, as SOURCE/forces_mae."""
        return {f"{n}/{k}": v for n, sums in self.sums.items() for k, v in sums.compute().items()}

    def evaluations(self, times: int = 1) -> dict[str, Evaluation]:
        """Return errors and counts by source, of structures that were added so many times."""
        return self._groups.evaluations(times)


class NamedErrors:
    """Errors by a name that each structure has, such as the part of a data set that it is of."""

    def __init__(self) -> None:
        self._groups = _Groups(())

    def update(self, prediction: Prediction, graph: AtomGraph, names: Sequence[str]) -> None:
        """Add a batch.

        Args:
            prediction: of the batch.
            graph: the batch.
            names: of its structures.
        """
        groups = torch.tensor([self._groups.number(name) for name in names])
        errors = structure_errors(prediction, graph)
        self._groups.add(errors, graph, groups.to(errors.device))

    def evaluations(self) -> dict[str, Evaluation]:
        """Return errors and counts by name."""
        return dict(sorted(self._groups.evaluations().items()))


class _Groups:
    """Sums of `structure_errors`, and numbers of structures and atoms, by group.

    Group 0 is of structures without a name, and told to nobody.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {name: 1 + k for k, name in enumerate(names)}
        self._rows = torch.zeros(len(names) + 1, ErrorSums.SIZE + 2, dtype=torch.float64)

    @property
    def sums(self) -> dict[str, ErrorSums]:
        return {name: ErrorSums(self._rows[k, :-2]) for name, k in self.names.items()}

    def number(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names) + 1)

    def add(self, errors: Tensor, graph: AtomGraph, groups: Tensor) -> None:
        """Add each structure to its group (B,)."""
        rows = self._rows.to(errors.device)
        if missing := len(self.names) + 1 - len(rows):
            rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        sizes = torch.stack([torch.ones_like(graph.num_atoms), graph.num_atoms], dim=1)
        self._rows = rows.index_add(0, groups, torch.cat([errors, sizes.double()], dim=1))

    def evaluations(self, times: int = 1) -> dict[str, Evaluation]:
        sizes = (self._rows[:, -2:].long() // times).tolist()
        return {
            n: Evaluation.of(s, *sizes[self.names[n]], times=times) for n, s in self.sums.items()
        }


@dataclass
class Evaluation:
    """Errors, the counts they are over, and the pairs of values for parity plots."""

    metrics: dict[str, float]
    counts: dict[str, int]
    forces_mae_per_element: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # true, predicted

    @classmethod
    def of(
        cls, sums: ErrorSums, structures: int, atoms: int, *, times: int = 1, **more: Any
    ) -> Evaluation:
        """Return what was summed over so many structures and atoms, each so many times."""
        own = {name: count // times for name, count in sums.counts().items()}
        counts = {"structures": structures, "atoms": atoms, **own}
        return cls(metrics=sums.compute(), counts=counts, **more)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able values; what is not finite is null."""
        return {
            "metrics": _finite(self.metrics),
            "counts": self.counts,
            "forces_mae_per_element": _finite(self.forces_mae_per_element),
        }


def evaluate_batches(
    potential: Potential,
    batches: Iterable[AtomGraph],
    *,
    times: int = 1,
    collect: bool = False,
    observe: Callable[[Prediction, AtomGraph], None] | None = None,
) -> Evaluation:
    """Compare predictions with labels.

    Args:
        potential: frozen, on the device to use.
        batches: with labels (NaN = none); consumed one by one.
        times: how often each structure occurs in them; counts are of structures all the same.
        collect: keep the pairs of values for parity plots (up to about 200,000 each, of those
            with a finite prediction; `counts` and `metrics` are of all).
        observe: also called with every prediction and its batch.
    """
    sums = ErrorSums()
    element_sum, element_count = torch.zeros(119).double(), torch.zeros(119).double()
    structures, atoms = 0, 0
    pairs: dict[str, list[np.ndarray]] = {"energy": [], "forces": [], "stress": []}
    kept = dict.fromkeys(pairs, 0)
    for batch in batches:
        graph = batch.to(potential.device)
        with torch.no_grad():
            prediction = potential(graph)
        sums.update(prediction, graph)
        if observe:
            observe(prediction, graph)
        structures += graph.num_graphs
        atoms += len(graph.atomic_numbers)
        error = (prediction.forces - graph.forces).abs().mean(1).cpu()
        known = ~torch.isnan(graph.forces).any(1).cpu()
        z = graph.atomic_numbers.cpu()[known]
        element_sum.index_add_(0, z, error[known])
        element_count.index_add_(0, z, torch.ones(len(z)).double())
        if collect:
            n = graph.num_atoms
            molecules = ~graph.pbc.all(1)[:, None, None]  # their stress is not counted either
            stress = graph.stress.masked_fill(molecules, math.nan)
            for name, true, predicted in (
                ("energy", graph.energy / n, prediction.energy / n),
                ("forces", graph.forces.flatten(), prediction.forces.flatten()),
                ("stress", stress.flatten(), prediction.stress.flatten()),
            ):
                ok = ~torch.isnan(true) & torch.isfinite(predicted)
                if kept[name] < 200_000:
                    pairs[name].append(torch.stack([true[ok], predicted[ok]]).cpu().numpy())
                    kept[name] += int(ok.sum())
    per_element = {
        chemical_symbols[z]: float(element_sum[z] / element_count[z])
        for z in range(119)
        if element_count[z]
    }
    joined = {k: np.concatenate(v, axis=1) for k, v in pairs.items() if v}
    return Evaluation.of(
        sums,
        structures // times,
        atoms // times,
        times=times,
        forces_mae_per_element=per_element,
        pairs={k: (v[0], v[1]) for k, v in joined.items() if v.shape[1]},
    )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def batches_of(
    structures: Iterable[ase.Atoms],
    potential: Potential,
    max_atoms: int = 512,
    head: str | None = None,
) -> Iterator[tuple[list[ase.Atoms], AtomGraph]]:
    """Group a stream of structures into batches of at most `max_atoms` atoms (or one structure).

    Args:
        structures: consumed one by one.
        potential: for its cutoff, its elements and the device that batches are to be on.
        max_atoms: of a batch.
        head: name of the level of theory that predictions are to be of.

    Raises:
        DataError: an element that the potential (that head of it) does not know.
        ConfigError: no such head, or none chosen of several.
    """
    number = potential.head_index(head)
    known = potential.species_of(number)
    waiting: list[ase.Atoms] = []
    size = 0

    before = 0

    def graph() -> AtomGraph:
        arrays = [structure_arrays(atoms) for atoms in waiting]
        out = AtomGraph.connected(arrays, potential.cutoff, potential.device).with_head(number)
        return replace(out, sample_id=before + torch.arange(len(waiting), device=potential.device))

    for atoms in structures:
        check_species(atoms.numbers, known)
        if waiting and size + len(atoms) > max_atoms:
            yield waiting, graph()
            before += len(waiting)
            waiting, size = [], 0
        waiting.append(atoms)
        size += len(atoms)
    if waiting:
        yield waiting, graph()
