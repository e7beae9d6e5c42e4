"""What a trained potential is off by on structures it was not trained on, by part and source."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlip.data.prepare import PreparedData
from mlip.evaluate import Evaluation, SourceErrors, evaluate_batches
from mlip.graph import AtomGraph
from mlip.models.potential import Potential, Prediction
from mlip.quantities import MILLI, QUANTITIES
from mlip.symmetry import randomly_turned
from mlip.training.loss import HuberLoss, LossTotal

log = logging.getLogger("mlip")


def evaluate_held_out(
    data: PreparedData, potential: Potential, loss: HuberLoss
) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """Measure and log errors.

    Args:
        data: of the run.
        potential: frozen, on the device to use.
        loss: that was minimised.

    Returns:
        Evaluations by part (and `part/source` where there are several sources), and all metrics as
        `part/forces_mae`.
    """
    evaluations: dict[str, Evaluation] = {}
    metrics: dict[str, float] = {}
    for part, batches in _held_out(data, turned=potential.symmetry == "none"):
        total, by_source = LossTotal(loss), SourceErrors(data.source_names)

        def observe(
            prediction: Prediction,
            graph: AtomGraph,
            total: LossTotal = total,
            by_source: SourceErrors = by_source,
        ) -> None:
            total.add(loss.sums(prediction, graph))
            by_source.update(prediction, graph)

        evaluations[part] = evaluate_batches(potential, batches, collect=True, observe=observe)
        metrics[f"{part}/loss"] = total.mean()
        own = by_source.evaluations()
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


def _held_out(data: PreparedData, turned: bool) -> Iterator[tuple[str, Iterable[AtomGraph]]]:
    """Yield what errors are reported on; without exact symmetry, turned at random and as given."""
    for part in ("val", "test"):
        loader = data.loader(part)
        if loader is None:
            continue
        if turned:
            yield part, randomly_turned(loader)
            yield f"{part}_frame", loader
        else:
            yield part, loader


def _in_milli(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{q.words} MAE {MILLI * metrics[f'{q.name}_mae']:.2f} "
        f"RMSE {MILLI * metrics[f'{q.name}_rmse']:.2f} {q.ascii_unit}"
        for q in QUANTITIES.values()
        if f"{q.name}_mae" in metrics
    )
