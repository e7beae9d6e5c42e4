"""What the tests of training build: the Lightning module without a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlip.models.potential import Potential
from mlip.training.loss import HuberLoss
from mlip.training.module import Limits, PotentialModule
from mlip.training.objectives import Standard


def _module(potential: Potential, steps_per_epoch: int = 1, **more: Any) -> PotentialModule:
    return PotentialModule(
        potential,
        HuberLoss(1.0, 1.0, 0.0, delta=0.5, force_scale=1.0),
        Standard(),
        optimizer={"name": "adamw", "lr": 1e-2, "weight_decay": 0.0},
        scheduler={"warmup": 0.0, "final": 1.0},
        limits=Limits(1, None, None),
        steps_per_epoch=steps_per_epoch,
        seed=0,
        **more,
    )


@pytest.fixture
def module_of() -> Callable[..., PotentialModule]:
    """One epoch of AdamW at a constant rate: `module_of(potential, steps_per_epoch=1)`."""
    return _module
