"""What a run sets for the process, and sets back."""

from __future__ import annotations

import csv
from pathlib import Path

import ase
import pytest
import torch
from safetensors.torch import load_file

from mlip import load_potential, train
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


SMALL = (
    *("model=transip-tiny", "model.dim=16", "model.num_layers=1", "model.num_heads=2"),
    *("objective=standard", f"data.train={DATA}", "data.num_workers=0", "data.test_fraction=0.1"),
    *("trainer.max_epochs=null", "trainer.accelerator=cpu"),
)


@pytest.mark.parametrize("frames", ["so3", "o3"])
def test_frame_averaging_in_training_and_in_the_file(frames, tmp_path):
    """The loss falls, validation turns nothing, and the file gives the same symmetry."""
    result = train(
        [*SMALL, f"model.frames={frames}", "trainer.max_steps=40", f"out_dir={tmp_path / 'run'}"]
    )
    potential = load_potential(result.potential)
    assert potential.symmetry == {"so3": "SO(3)", "o3": "O(3)"}[frames]
    assert "test_frame/forces_mae" not in result.metrics
    error = potential.metadata["symmetry_errors"]["rotation"]
    assert error["energy_per_atom_rmse"] < 1e-4
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) > 1
    assert losses[-1] < losses[0]


def test_several_rotations_are_counted_once(tmp_path):
    """The last errors are over all rotations of each structure, of as many structures as before."""
    found = []
    for number in (1, 3):
        folder = tmp_path / str(number)
        result = train(
            [*SMALL, f"trainer.val_rotations={number}", "trainer.max_steps=2", f"out_dir={folder}"]
        )
        found.append((result.metrics, load_potential(result.potential).metadata["metric_counts"]))
    (one, counts), (three, same) = found
    assert counts == same
    assert one["test_frame/forces_mae"] == pytest.approx(three["test_frame/forces_mae"], rel=1e-6)
    assert one["test/forces_mae"] != three["test/forces_mae"]


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
