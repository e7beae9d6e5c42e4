"""The optimisers a run can choose by name.

`muon`, the default, orthogonalises the updates of weight matrices, so that all directions of a
layer learn at one speed; everything else (embeddings, readout, scales and biases) is left to AdamW.
The runs that chose it are in data/results/recipe.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mlip.errors import ConfigError
from mlip.training.muon import Muon


def make_optimizer(module: nn.Module, options: Mapping[str, Any]) -> Optimizer:
    """Build the optimiser that `options` (the `optimizer` group) names, over `module`.

    Raises:
        ConfigError: no such optimiser.
    """
    name, lr, decay = options["name"], float(options["lr"]), float(options["weight_decay"])
    if name not in ("muon", "adamw"):
        raise ConfigError(f"optimizer.name={name!r} must be 'muon' or 'adamw'")
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden = {id(p) for p in _hidden_matrices(module)} if name == "muon" else set()
    matrices = [p for p in trained if id(p) in hidden]
    tables = [p for p in trained if id(p) not in hidden and p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    adamw = AdamW(
        [
            {"params": tables, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=lr,
    )
    if not matrices:
        return adamw
    return Paired(Muon(matrices, lr, decay), adamw)


class Paired(Optimizer):
    """Two optimisers over different parameters that look like one: one state, one step."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self._pair = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._pair:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on our groups (the schedule sets their rates) and our state."""
        first, second = self._pair
        count = len(first.param_groups)
        first.param_groups = self.param_groups[:count]
        second.param_groups = self.param_groups[count:]
        first.state = second.state = self.state


def _hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Weights that map features to features: no tables of embeddings, no readout to one number."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return [
        p
        for p in module.parameters()
        if p.requires_grad and p.dim() == 2 and min(p.shape) > 1 and id(p) not in tables
    ]
