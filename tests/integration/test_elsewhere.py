"""On another device all tensors are where they have to be, and the numbers are those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import ase
import lightning
import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import VARIANTS, build
from elsewhere import ELSEWHERE, ElsewhereAccelerator, There, elsewhere
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.numpy import load_file

from mlip import MLIPCalculator
from mlip.evaluate import evaluate_batches
from mlip.graph import AtomGraph, collate
from mlip.symmetry import symmetry_errors
from mlip.training import run

DATA = Path(__file__).parents[2] / "data" / "mptrj-mini" / "mptrj-mini.json.gz"
MOLECULES = [ase.Atoms("CO", [(0, 0, 0), (0.1, 1.1, 0.2)]), ase.Atoms("H", [(0, 0, 0)])]
CRYSTAL = bulk("C", "diamond", a=3.6) * (2, 1, 1)
CRYSTAL.rattle(0.05, seed=1)


def both(do: Callable[[torch.device], list]) -> list[list[np.ndarray]]:
    """What is found on the CPU and elsewhere."""
    found = []
    for device in (torch.device("cpu"), ELSEWHERE):
        with elsewhere() if device == ELSEWHERE else nullcontext():
            found.append([np.asarray(x.detach().cpu()) for x in do(device)])
    return found


def test_devices_cannot_be_mixed():
    with elsewhere() as waits:
        there = torch.arange(3.0).to(ELSEWHERE)
        assert isinstance(there, There)
        with pytest.raises(AssertionError, match="on one device"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).cpu().tolist() == [1.0, 2.0, 3.0]
        assert not waits["_local_scalar_dense"]
        assert float(there.sum()) == 3.0
        assert waits["_local_scalar_dense"] == 1


@pytest.mark.parametrize("name", [n for n in VARIANTS if not n.endswith("compiled")])
def test_predictions_and_gradients_of_weights(name):
    def learn(device: torch.device) -> list[torch.Tensor]:
        potential = copy.deepcopy(build(name)).to(device).train().requires_grad_(True)
        structures = MOLECULES if not potential.accepts_periodic else [CRYSTAL, *MOLECULES]
        graph = collate([AtomGraph.from_atoms(a, potential.cutoff) for a in structures])
        out = potential(graph.to(device))
        loss = (out.energy - out.energy.detach() + 1).square().sum() + out.forces.square().sum()
        loss.backward()
        gradients = [p.grad for p in potential.parameters() if p.grad is not None]
        return [out.energy, out.forces, out.stress, *gradients]

    for here, there in zip(*both(learn), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["facet", "nequip", "transip"])
def test_a_calculator_finds_its_neighbours_there(name):
    """Energies, forces and stress; and errors of a batch."""

    def use(device: torch.device) -> list[torch.Tensor]:
        calculator = MLIPCalculator(copy.deepcopy(build(name)), device=device.type)
        atoms = CRYSTAL.copy()
        atoms.calc = calculator
        numbers = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()]
        potential = copy.deepcopy(build(name)).to(device).freeze()
        graph = AtomGraph.from_atoms(CRYSTAL, potential.cutoff)
        graph.energy[:], graph.forces[:] = 0.0, 0.1
        errors = evaluate_batches(potential, [graph], collect=True)
        turned = symmetry_errors(potential, [graph.to(device)])["rotation"]
        numbers += [errors.metrics["forces_mae"], turned["forces_rmse"], errors.pairs["forces"][1]]
        return [torch.as_tensor(x) for x in numbers]

    for here, there in zip(*both(use), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "model", [
        ["model=facet-xs", "model.channels=[8,4]"],
        ["model=nequip-s", "model.channels=[8,4]", "objective=augmented"],
        ["model=transip-tiny", "model.dim=24", "model.num_heads=2", "model.num_layers=2"],
    ],
)  # fmt: skip
def test_a_whole_run_there_writes_the_potential_of_one_here(model, tmp_path, monkeypatch):
    """Steps, averages, validation and checkpoints, with little that has to wait in each step."""
    options = [
        f"data.train={DATA}", "data.group=task_id", "data.num_workers=0", "data.batch_size=32",
        "trainer.precision=64-true", "trainer.max_epochs=1", *model,
    ]  # fmt: skip
    monkeypatch.setattr(run, "_accelerator", lambda setting: "cpu")
    here = run.train([*options, f"out_dir={tmp_path}/here"])
    waited: list[dict[str, int]] = []

    class Trainer(lightning.Trainer):
        def __init__(self, **options):
            strategy = SingleDeviceStrategy(ELSEWHERE, accelerator=ElsewhereAccelerator())
            super().__init__(**{**options, "accelerator": "auto", "strategy": strategy})

    class Watched(run.PotentialModule):
        def training_step(self, *arguments):
            waited.append(dict(waits))
            return super().training_step(*arguments)

    monkeypatch.setattr(run.L, "Trainer", Trainer)
    monkeypatch.setattr(run, "PotentialModule", Watched)
    with elsewhere() as waits:
        there = run.train([*options, f"out_dir={tmp_path}/there"])

    one, other = load_file(here.potential), load_file(there.potential)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-9, err_msg=name)
    steps = len(waited) - 1
    assert steps >= 8
    most = {  # a sum over edges in blocks, elements that occur; is all finite?
        "repeat_interleave": 2, "_unique2": 2, "tolist": 1,
    }  # fmt: skip
    each = {k: (waited[-1][k] - waited[0].get(k, 0)) / steps for k in waited[-1]}
    assert {k: n for k, n in each.items() if n > most.get(k, 0)} == {}
