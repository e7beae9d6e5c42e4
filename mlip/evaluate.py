"""Errors of a potential as exact sums over counts: the same for any batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mlip.graph import AtomGraph, structure_arrays
from mlip.models.potential import Potential, Prediction, check_species
from mlip.quantities import QUANTITIES


class ErrorSums:
    """Accumulate errors of energies (eV), forces (eV/Å) and stresses (eV/Å³) over components.

    Sums stay where the predictions are until somebody asks for them: an accelerator is not waited
    for after every batch.
    """

    NAMES = tuple(QUANTITIES)

    def __init__(self) -> None:
        self._state = torch.zeros(3 * len(self.NAMES) + 4, dtype=torch.float64)

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
        """Add a batch. Labels that are NaN are not counted; predictions that are NaN must show."""
        energy = prediction.energy - graph.energy
        crystals = graph.pbc.all(1)[:, None, None]  # stress has no meaning elsewhere
        has_energy = ~torch.isnan(graph.energy)
        errors = (
            (energy, has_energy),
            (energy / graph.num_atoms, has_energy),
            (prediction.forces - graph.forces, ~torch.isnan(graph.forces)),
            (prediction.stress - graph.stress, ~torch.isnan(graph.stress) & crystals),
        )
        found: list[Tensor] = []
        for error, labelled in errors:
            known = error.detach().double().where(labelled, 0.0)
            found += [known.abs().sum(), known.square().sum(), labelled.sum()]
        labelled = ~torch.isnan(graph.forces).any(1)
        true = graph.forces.double().where(labelled[:, None], 0.0)
        predicted = prediction.forces.detach().double().where(labelled[:, None], 0.0)
        known = labelled & (true.norm(dim=1) > 1e-3)
        cosine = torch.cosine_similarity(predicted, true).where(known, 0.0)
        found += [cosine.sum(), known.sum(), (true * predicted).sum(), true.square().sum()]
        self._state = self._state.to(energy.device) + torch.stack([x.double() for x in found])

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
        self.sums = {name: ErrorSums() for name in names}
        self._sizes = torch.zeros(len(names), 2, dtype=torch.int64)  # structures, atoms

    def update(self, prediction: Prediction, graph: AtomGraph) -> None:
        """Add a batch: to each source, with the labels of the others taken away."""
        sizes = []
        for k, sums in enumerate(self.sums.values()):
            own = graph.source == k
            sizes.append(torch.stack([own.sum(), (own * graph.num_atoms).sum()]))
            sums.update(prediction, _with_labels_of(graph, own))
        if sizes:
            self._sizes = self._sizes.to(graph.source.device) + torch.stack(sizes)

    def compute(self) -> dict[str, float]:
        """Return the errors of all, as SOURCE/forces_mae."""
        return {f"{n}/{k}": v for n, sums in self.sums.items() for k, v in sums.compute().items()}

    def evaluations(self) -> dict[str, Evaluation]:
        """Return errors and counts by source."""
        pairs = zip(self.sums.items(), self._sizes.tolist(), strict=True)
        return {name: Evaluation.of(sums, *sizes) for (name, sums), sizes in pairs}


class NamedErrors:
    """Errors by a name that each structure has, such as the part of a data set that it is of."""

    def __init__(self) -> None:
        self._sums: dict[str, ErrorSums] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # structures, atoms

    def update(self, prediction: Prediction, graph: AtomGraph, names: Sequence[str]) -> None:
        """Add a batch.

        Args:
            prediction: of the batch.
            graph: the batch.
            names: of its structures.
        """
        num_atoms = graph.num_atoms.tolist()
        for name in set(names):
            own = [other == name for other in names]
            chosen = torch.tensor(own, device=graph.energy.device)
            sums = self._sums.setdefault(name, ErrorSums())
            sums.update(prediction, _with_labels_of(graph, chosen))
            structures, atoms = self._sizes.get(name, (0, 0))
            more = sum(compress(num_atoms, own))
            self._sizes[name] = structures + sum(own), atoms + more

    def evaluations(self) -> dict[str, Evaluation]:
        """Return errors and counts by name."""
        found = sorted(self._sums.items())
        return {name: Evaluation.of(sums, *self._sizes[name]) for name, sums in found}


def _with_labels_of(graph: AtomGraph, own: Tensor) -> AtomGraph:
    return replace(
        graph,
        energy=graph.energy.where(own, math.nan),
        forces=graph.forces.where(own[graph.batch, None], math.nan),
        stress=graph.stress.where(own[:, None, None], math.nan),
    )


@dataclass
class Evaluation:
    """Errors, the counts they are over, and the pairs of values for parity plots."""

    metrics: dict[str, float]
    counts: dict[str, int]
    forces_mae_per_element: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # true, predicted

    @classmethod
    def of(cls, sums: ErrorSums, structures: int, atoms: int, **more: Any) -> Evaluation:
        """Return what was summed over so many structures and atoms."""
        counts = {"structures": structures, "atoms": atoms, **sums.counts()}
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
    collect: bool = False,
    observe: Callable[[Prediction, AtomGraph], None] | None = None,
) -> Evaluation:
    """Compare predictions with labels.

    Args:
        potential: frozen, on the device to use.
        batches: with labels (NaN = none); consumed one by one.
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
        structures,
        atoms,
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

    def graph() -> AtomGraph:
        arrays = [structure_arrays(atoms) for atoms in waiting]
        return AtomGraph.connected(arrays, potential.cutoff, potential.device).with_head(number)

    for atoms in structures:
        check_species(atoms.numbers, known)
        if waiting and size + len(atoms) > max_atoms:
            yield waiting, graph()
            waiting, size = [], 0
        waiting.append(atoms)
        size += len(atoms)
    if waiting:
        yield waiting, graph()
