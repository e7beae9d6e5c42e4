"""What a run sets for the process, and sets back."""

from __future__ import annotations

from pathlib import Path

import ase
import pytest
import torch
from safetensors.torch import load_file

from mlip import train
from mlip.errors import ConfigError
from mlip.graph import AtomGraph, collate
from mlip.models import compiled
from mlip.training import run as run_module
from mlip.training.checkpoint import read_checkpoint

DATA = Path(__file__).resolve().parents[3] / "data" / "emt-mini" / "emt-mini.extxyz"


def test_matrix_products_are_as_asked_for_while_training_only(tmp_path, monkeypatch):
    before, calls = torch.get_float32_matmul_precision(), []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    train(
        [
            "model=facet-xs",
            f"data.train={DATA}",
            "data.num_workers=0",
            "trainer.max_epochs=null",
            "trainer.max_steps=1",
            "trainer.accelerator=cpu",
            "trainer.matmul_precision=high",
            f"out_dir={tmp_path / 'run'}",
        ]
    )
    # and in between for the products of the optimiser, which are always those of float32
    assert calls == ["high", "highest", before, before]


@pytest.mark.parametrize(
    ("structures", "atoms", "seen"), [(3, 99, 2), (4, 99, 2), (99, 5, 2), (99, 4, 1), (99, 99, 3)]
)
def test_symmetry_is_measured_on_batches_until_there_are_enough(
    monkeypatch, structures, atoms, seen
):
    monkeypatch.setattr(run_module, "ENOUGH_STRUCTURES", structures)
    monkeypatch.setattr(run_module, "ENOUGH_ATOMS", atoms)
    pair = AtomGraph.from_atoms(ase.Atoms("CuAg", [[0, 0, 0], [0, 0, 3]]), 4.0)
    two = collate([pair, pair])
    assert len(two.atomic_numbers) == 4
    assert len(list(run_module._some([two] * 3, torch.device("cpu")))) == seen


def a_run(folder: Path, *more: str) -> tuple[dict, list[str]]:
    """Train four steps in double precision: the weights of the file, and what a checkpoint has."""
    result = train(
        [
            *("model=facet-xs", "model.channels=[6,4]", "model.num_layers=2", "data.num_workers=0"),
            *(f"data.train={DATA}", "trainer.max_epochs=null", "trainer.max_steps=4"),
            *("trainer.accelerator=cpu", "trainer.precision=64-true", f"out_dir={folder}", *more),
        ]
    )
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return load_file(result.potential), sorted(state)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Averages of weights, validation and files included; compiled once for all of it."""
    monkeypatch.setenv("MLIP_KERNELS", "compiled")
    compiling, compiled_function = [], compiled._compile
    monkeypatch.setattr(
        compiled, "_compile", lambda *args: compiling.append(1) or compiled_function(*args)
    )
    plain, keys = a_run(tmp_path / "plain")
    assert not compiling
    ours, our_keys = a_run(tmp_path / "compiled", "trainer.compile=true")
    assert len(compiling) == 1
    assert our_keys == keys
    assert ours.keys() == plain.keys()
    for name, weights in plain.items():
        torch.testing.assert_close(ours[name], weights, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_compiled_is_refused_before_data_are_read(tmp_path):
    options = ["model=transip-tiny", "data.train=absent.extxyz", f"out_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"compile=true cannot be had.*pieces"):
        train([*options, "trainer.compile=true"])
    assert not (tmp_path / "run").exists()
