"""What a trained potential is off by on structures it was not trained on, by part and source."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlip.data.prepare import PreparedData
from mlip.evaluate import Evaluation, SourceErrors, evaluate_batches
from mlip.graph import AtomGraph
from mlip.models.potential import Potential, Prediction
from mlip.quantities import MILLI, QUANTITIES
from mlip.symmetry import turned
from mlip.training.loss import HuberLoss, LossTotal

log = logging.getLogger("mlip")


def evaluate_held_out(
    data: PreparedData, potential: Potential, loss: HuberLoss, rotations: int = 1
) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """Measure and log errors.

    Args:
        data: of the run.
        potential: frozen, on the device to use.
        loss: that was minimised.
        rotations: of each structure, if the potential has no exact symmetry.

    Returns:
        Evaluations by part (and `part/source` where there are several sources), and all metrics as
        `part/forces_mae`.
    """
    evaluations: dict[str, Evaluation] = {}
    metrics: dict[str, float] = {}
    for part, batches, times in _held_out(data, potential.symmetry != "none", rotations):
        total, by_source = LossTotal(loss), SourceErrors(data.source_names)

        def observe(
            prediction: Prediction,
            graph: AtomGraph,
            total: LossTotal = total,
            by_source: SourceErrors = by_source,
        ) -> None:
            total.add(loss.sums(prediction, graph))
            by_source.update(prediction, graph)

        evaluations[part] = evaluate_batches(
            potential, batches, times=times, collect=True, observe=observe
        )
        metrics[f"{part}/loss"] = total.mean()
        own = by_source.evaluations(times)
        evaluations |= {f"{part}/{name}": own[name] for name in own if own[name].metrics}
    for name, evaluation in evaluations.items():
        metrics |= {f"{name}/{k}": v for k, v in evaluation.metrics.items()}
        log.info(f"Errors   {name}: {_in_milli(evaluation.metrics)}")
    return evaluations, metrics


def source_columns(sources: Sequence[str]) -> list[str]:
    """Return the names of what is logged every epoch of each source."""
    return [
        f"{part}/{source}/{quantity}_{kind}"
        for source in sources
        for part, kinds in (("train", ("mae",)), ("val", ("mae", "rmse")))
        for quantity in ("energy_per_atom", "forces", "stress")
        for kind in kinds
    ]


def _held_out(
    data: PreparedData, symmetric: bool, rotations: int
) -> Iterator[tuple[str, Iterable[AtomGraph], int]]:
    """Yield what errors are reported on, and how often each structure occurs.

    Without exact symmetry they are turned at random, and once more as they were given.
    """
    for part in ("val", "test"):
        loader = data.loader(part)
        if loader is None:
            continue
        if not symmetric:
            yield part, turned(loader, rotations), rotations
            yield f"{part}_frame", loader, 1
        else:
            yield part, loader, 1


def _in_milli(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{q.words} MAE {MILLI * metrics[f'{q.name}_mae']:.2f} "
        f"RMSE {MILLI * metrics[f'{q.name}_rmse']:.2f} {q.ascii_unit}"
        for q in QUANTITIES.values()
        if f"{q.name}_mae" in metrics
    )
