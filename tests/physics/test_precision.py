"""Single precision, repetition, modes: the same physics however it is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase
import pytest
import torch
from conftest import STRUCTURES, build, predict

from mlip.graph import AtomGraph


def test_float32_agrees_with_float64(potential, atoms):
    exact = predict(potential, atoms)
    single = predict(potential.float(), atoms)
    assert potential.dtype == torch.float32
    rms = exact.forces.square().mean().sqrt().item()
    assert (single.forces - exact.forces).abs().max().item() < 1e-3 * rms
    # never equal to the last digit, or nothing was computed in single precision
    assert not torch.equal(single.forces, exact.forces)
    if potential.conservative:
        virial = exact.virial.abs().max().item()
        assert (single.virial - exact.virial).abs().max().item() < 1e-3 * virial
    # sums of ~100 terms of up to ten eV, each good to 6e-8
    assert (single.energy - exact.energy).abs().item() < 1e-5 * len(atoms) * max(1.0, rms)


def test_energies_stay_double_whatever_the_model(potential, small_atoms):
    for cast in (torch.float32, torch.bfloat16, torch.float64):
        potential = potential.to(cast)
        assert potential.e0.dtype == torch.float64
        assert potential.e0[-1, 6].item() == -1030.1
    out = predict(potential.float(), small_atoms)
    assert out.energy.dtype == out.forces.dtype == out.virial.dtype == torch.float64
    lone = predict(potential.freeze(), ase.Atoms("C"))
    # single precision rounds -1030.1 eV by 2.4e-5 eV; the network's own few eV by 1e-6 at most,
    # which stay because a row of a matrix product rounds differently in a batch
    assert lone.energy.item() == pytest.approx(-1030.1, abs=5e-6)


def test_same_input_same_bits(potential, atoms):
    a, b = predict(potential, atoms), predict(potential, atoms)
    for name in ("energy", "forces", "virial"):  # NaN where there is none
        assert torch.equal(getattr(a, name).nan_to_num(), getattr(b, name).nan_to_num())


def test_gradient_mode_changes_nothing(potential, small_atoms):
    """Training, no_grad and inference_mode give the same numbers; only one carries a graph."""
    graph = AtomGraph.from_atoms(small_atoms, potential.cutoff)
    training = potential(graph)
    assert training.forces.requires_grad
    quiet = predict(potential, small_atoms)
    assert not any(t.requires_grad for t in (quiet.energy, quiet.forces, quiet.virial))
    assert quiet.features is None or not quiet.features.requires_grad
    assert not any(t.requires_grad for t in quiet.extras.values())
    torch.testing.assert_close(training.forces.detach(), quiet.forces, rtol=0, atol=1e-12)
    assert not graph.positions.requires_grad, "the caller's tensors were changed"
    assert graph.positions.grad is None


def test_the_graph_is_not_changed(potential, atoms):
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    before = graph.to_pyg().clone()
    potential(graph)
    after = graph.to_pyg()
    for name in before.keys():  # noqa: SIM118  a torch-geometric Data is no mapping
        value = before[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from conftest import STRUCTURES, VARIANTS, build, predict
for name in {names!r}:
    out = predict(build(name), STRUCTURES["bulk"]())
    print(name, out.energy.item().hex(), *(x.hex() for x in out.forces.flatten().tolist()))
"""


@pytest.mark.slow
def test_same_bits_in_another_process():
    names = ["lennard_jones", "facet"]
    script = SCRIPT.format(tests=str(Path(__file__).resolve().parents[1]), names=names)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    for name in names:
        out = predict(build(name), STRUCTURES["bulk"]())
        here = [out.energy.item().hex(), *(x.hex() for x in out.forces.flatten().tolist())]
        assert lines[name] == here
