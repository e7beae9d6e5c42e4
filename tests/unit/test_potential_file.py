"""The file: exact round trip, and a clear refusal of everything else."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import E0, SPECIES, predict
from safetensors import safe_open
from safetensors.torch import save_file

from mlip.errors import ConfigError, PotentialFileError
from mlip.models.registry import PotentialSpec, build_potential
from mlip.potential_file import add_metadata, load_potential, read_metadata, save_potential


def spec(**options) -> PotentialSpec:
    model = {"cutoff": 4.0, "channels": [8, 4], "num_layers": 2, **options}
    return PotentialSpec("facet", model, SPECIES, (E0,), 12.0, 0.7, priors=("zbl",))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    potential = build_potential(spec())
    with torch.no_grad():
        for p in potential.parameters():
            p.normal_()
    path = tmp_path / "potential.safetensors"
    save_potential(path, potential, {"metrics": {"val/loss": 0.1}})
    return path, potential


def test_loaded_predicts_the_same_bits(saved, bulk_atoms):
    path, potential = saved
    add_metadata(path, {"metrics": {"test/forces_mae": 0.02}})
    loaded = load_potential(path, "cpu")
    a, b = predict(potential.freeze(), bulk_atoms), predict(loaded, bulk_atoms)
    assert a.forces.abs().max() > 1e-2
    assert torch.equal(a.energy, b.energy)
    assert torch.equal(a.forces, b.forces)
    assert loaded.metadata["metrics"] == {"test/forces_mae": 0.02}
    assert load_potential(path, "cpu", "float64").dtype == torch.float64
    assert not list(path.parent.glob("*.tmp"))


def rewrite(path, edit=None, tensors=None):
    document = read_metadata(path)
    with safe_open(path, framework="pt") as f:
        content = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    if edit:
        edit(document)
    if tensors:
        tensors(content)
    save_file(content, path, metadata={"mlip": json.dumps(document)})


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda d: d.update(format_version=99), "newer|up to"),
        (lambda d: d["architecture"].update(version=99), "newer than this mlip; update"),
        (lambda d: d["architecture"].update(version=1), "older than the version 2 .* train it"),
        (lambda d: d["architecture"].update(name="os.system"), "unknown architecture"),
        (lambda d: d["architecture"]["hyperparameters"].update(channels=[16000, 16000]), "param"),
        (lambda d: d["architecture"]["hyperparameters"].update(evil=1), "no option 'evil'"),
        (lambda d: d.pop("e0"), "lacks"),
        (lambda d: d.update(sha256="0"), "hash"),
        (lambda d: d["architecture"]["hyperparameters"].update(channels=[8, 8]), "expected"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved, edit, word):
    rewrite(saved[0], edit)
    with pytest.raises(PotentialFileError, match=word):
        load_potential(saved[0])


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        (lambda t: t.pop("model.readout.weight"), "missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected"),
        (lambda t: t["model.readout.weight"].fill_(torch.nan), "not finite"),
        (lambda t: t["model.readout.weight"].add_(1.0), "hash"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, tensors, word):
    rewrite(saved[0], tensors=tensors)
    with pytest.raises(PotentialFileError, match=word):
        load_potential(saved[0])


def test_files_that_are_something_else(tmp_path, saved):
    pickled = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(PotentialFileError, match="pickle"):
        load_potential(pickled)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved[0].read_bytes()[:-50])
    with pytest.raises(PotentialFileError, match="not a readable"):
        load_potential(cut)
    with pytest.raises(PotentialFileError, match="no such file"):
        load_potential(tmp_path / "absent.safetensors")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean model\.cutoff"):
        build_potential(spec(cutof=3.0))
    with pytest.raises(ConfigError, match="did you mean 'facet'"):
        build_potential(PotentialSpec("facett", {"cutoff": 4.0}, SPECIES, (E0,), 1.0))


def test_an_error_that_is_not_finite_is_null(saved):
    """A run that ends with a NaN metric must still end with its file."""
    path, _ = saved
    add_metadata(path, {"metrics": {"val/loss": float("nan"), "val/deep": [float("inf"), 1.0]}})
    assert read_metadata(path)["metrics"] == {"val/loss": None, "val/deep": [None, 1.0]}


def test_frames_are_a_plain_value_of_the_file(tmp_path, bulk_atoms):
    """A frame-averaged potential is rebuilt from its description, as invariant as before."""
    torch.manual_seed(0)
    potential = build_potential(spec(frames="o3", grid_act="silu"))
    assert potential.symmetry == "O(3)"
    path = tmp_path / "potential.safetensors"
    save_potential(path, potential)
    document = read_metadata(path)
    assert document["architecture"]["hyperparameters"]["frames"] == "o3"
    assert (document["symmetry"], document["extensive"]) == ("O(3)", False)
    loaded = load_potential(path, "cpu")
    a, b = predict(potential.freeze(), bulk_atoms), predict(loaded, bulk_atoms)
    assert torch.equal(a.forces, b.forces)
    assert build_potential(spec(frames="none")).symmetry == build_potential(spec()).symmetry
    with pytest.raises(ConfigError, match=r"by itself; use model\.frames=none"):
        build_potential(spec(frames="o3"))
    with pytest.raises(ConfigError, match=r"model\.frames='o4' must be one of none, so3, o3"):
        build_potential(spec(frames="o4"))
    with pytest.raises(ConfigError, match=r"did you mean model\.frames"):
        build_potential(spec(frame="o3"))
