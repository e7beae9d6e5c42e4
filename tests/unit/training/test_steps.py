"""What happens to the weights at a step: averaging, and a gradient that is not finite."""

from __future__ import annotations

import ase
import lightning as L  # noqa: N812
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import SPECIES
from torch.utils.data import DataLoader

from mlip.errors import TrainingError
from mlip.graph import AtomGraph, collate
from mlip.models.pair import LennardJones
from mlip.models.potential import Potential
from mlip.training.callbacks import WarmEMA


class Record(L.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: list[np.ndarray] = []

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs) -> None:
        self.weights.append(weights_of(pl_module.potential))


def untrained(dtype: torch.dtype = torch.float64) -> Potential:
    model = LennardJones(cutoff=4.0, species=SPECIES, epsilon=0.5, sigma=1.0)
    return Potential(model, dict.fromkeys(SPECIES, 0.0)).to(dtype)


def weights_of(potential: Potential) -> np.ndarray:
    return np.array([p.item() for p in potential.parameters()])


def dimer(distance: float, row: int = 0) -> AtomGraph:
    atoms = ase.Atoms("CO", [[0, 0, 0], [0, 0, distance]])
    forces = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    graph = AtomGraph.from_atoms(atoms, 4.0)
    graph.sample_id[:] = row
    return graph


@pytest.fixture
def fit(module_of):
    """`fit(potential, batches, *callbacks)` trains one epoch and returns the weights left."""

    def fit(potential: Potential, batches: list[AtomGraph], *callbacks: L.Callback) -> np.ndarray:
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", callbacks=list(callbacks), gradient_clip_val=10.0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        module = module_of(potential, steps_per_epoch=len(batches))
        trainer.fit(module, DataLoader(batches, batch_size=None))
        return weights_of(potential)

    return fit


def test_averaged_weights_are_the_average(fit):
    """The average begins as the first weights and keeps min(decay, (1 + n)/(10 + n)) of itself."""
    record, decay = Record(), 0.3
    averaged = fit(untrained(), [dimer(1.1 + 0.05 * k) for k in range(8)], WarmEMA(decay), record)
    expected = record.weights[0]
    for n, new in enumerate(record.weights[1:], start=1):
        kept = min(decay, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * new
    assert len(record.weights) == 8
    assert np.abs(averaged - record.weights[-1]).min() > 1e-4, "nothing was averaged"
    np.testing.assert_allclose(averaged, expected, rtol=1e-12)


OVERFLOW = 1e-4  # Å: (σ/r)¹² = 1e48 is beyond single precision


def test_a_step_that_is_not_finite_is_skipped(fit):
    """Two atoms nearly on one point: the weights are those of a run that never saw them."""
    good = [dimer(1.1), dimer(1.2)]
    with_bad = fit(untrained(torch.float32), [good[0], dimer(OVERFLOW), good[1]])
    without = fit(untrained(torch.float32), good)
    assert np.isfinite(with_bad).all()
    assert (without != weights_of(untrained(torch.float32))).all(), "nothing was learnt"
    np.testing.assert_array_equal(with_bad, without)


def test_three_in_a_row_end_the_run_and_name_the_frames(fit):
    bad = [dimer(OVERFLOW, row) for row in (5, 6, 7)]
    with pytest.raises(TrainingError, match=r"3 steps in a row .* at frames \[7\]"):
        fit(untrained(torch.float32), bad)
    apart = [bad[0], bad[1], dimer(1.1), bad[2], dimer(1.1)]
    assert np.isfinite(fit(untrained(torch.float32), apart)).all()


@pytest.mark.parametrize("seed", [0, 1_764_409_200_000_000_000, 2**63 - 1])
def test_any_seed_will_do(module_of, seed):
    """Of a step, too, whose own is made from it; a time in nanoseconds is one."""
    module = module_of(untrained(), steps_per_epoch=1)
    module.seed = seed
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([dimer(1.1)], batch_size=None))
    assert trainer.global_step == 1


def test_frames_are_named_with_their_source(module_of):
    both = collate([dimer(1.1, 3), dimer(1.1, 9)])
    both.source = torch.tensor([1, 0])
    module = module_of(untrained(), steps_per_epoch=1)
    assert module._frames(both) == "file 0: frames [9]; file 1: frames [3]"
    module.sources = ("pbe", "wb97m")
    assert module._frames(both) == "pbe: frames [9]; wb97m: frames [3]"
