"""The optimiser of a run: who moves how, and that a saved state continues exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CUTOFF, E0, SPECIES
from torch import nn

from mlip.errors import ConfigError
from mlip.models.registry import PotentialSpec, build_potential
from mlip.training.optimizers import Paired, make_optimizer

OPTIONS = {"name": "muon", "lr": 1e-2, "weight_decay": 0.0}


def facet() -> nn.Module:
    torch.manual_seed(0)
    spec = PotentialSpec(
        "facet", {"cutoff": CUTOFF, "channels": (8, 4), "num_layers": 2}, SPECIES, (E0,), 10.0
    )
    return build_potential(spec)


def with_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_every_parameter_is_moved_once():
    module = facet()
    optimizer = make_optimizer(module, OPTIONS)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in module.parameters())
    before = values(module)
    with_gradients(module, 1)
    optimizer.step()
    assert all((a != b).any() for a, b in zip(before, values(module), strict=True))


def test_embeddings_and_readout_are_not_orthogonalised():
    module = facet()
    optimizer = make_optimizer(module, OPTIONS)
    matrices = {id(p) for p in optimizer.param_groups[0]["params"]}
    model = module.model
    assert id(model.embed.species.weight) not in matrices
    assert id(model.readout.weight) not in matrices
    assert id(model.layers[0].convolution.radial) in matrices


def test_a_matrix_update_has_equal_singular_values():
    """Newton-Schulz brings the singular values of any gradient near one another."""
    layer = nn.Linear(8, 8, bias=False)
    optimizer = make_optimizer(layer, OPTIONS)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.diag(torch.logspace(0, -2, 8))
    optimizer.step()
    update = torch.linalg.svdvals(before - layer.weight.detach())
    gradient = torch.linalg.svdvals(layer.weight.grad)
    assert gradient.max() / gradient.min() > 50, "this gradient has nothing to even out"
    assert update.max() / update.min() < 4


def test_a_saved_state_continues_to_the_same_bits():
    straight, cut = facet(), facet()
    one, first = make_optimizer(straight, OPTIONS), make_optimizer(cut, OPTIONS)
    for seed in range(2):
        for module, optimizer in ((straight, one), (cut, first)):
            with_gradients(module, seed)
            optimizer.step()
    second = make_optimizer(cut, {**OPTIONS, "lr": 5e-2})
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for module, optimizer in ((straight, one), (cut, second)):
        with_gradients(module, 9)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(values(straight), values(cut), strict=True))


def test_the_schedule_reaches_both():
    module = facet()
    optimizer = make_optimizer(module, OPTIONS)
    assert isinstance(optimizer, Paired)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = values(module)
    with_gradients(module, 1)
    optimizer.step()
    schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(before, values(module), strict=True))


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer.name='sgd'"):
        make_optimizer(facet(), {**OPTIONS, "name": "sgd"})
