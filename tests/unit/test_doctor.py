"""The doctor of the environment: silent on a sound one, and each thing that breaks is named."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from pathlib import Path

import pytest

from mlip import doctor
from mlip.cli.main import main
from mlip.models.kernels import compiler, fused_sum


def notes() -> dict[str, doctor.Note]:
    return {note.name: note for note in doctor.examine_environment()}


def test_this_environment_is_sound(tmp_path, monkeypatch):
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "new" / "cache"))
    found = notes()
    assert [note for note in found.values() if note.broken] == []
    assert found["MLIP_CACHE"].value == str(tmp_path / "new" / "cache")
    assert found["lmdb"].value == metadata.version("lmdb")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("lightning", "2.6.2", "malicious"),
        ("lightning", "2.6.3", "malicious"),
        ("pytorch-lightning", "2.6.3", "malicious"),
        ("lightning", "2.5.0", ">=2.6.6"),
        ("lmdb", "2.0.0", "workers that were forked"),
        ("torch", "2.9.1", ">=2.10"),
        ("vesin", None, "pip install 'vesin"),
    ],
)
def test_versions(name, version, words, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: version if n == name else real(n))
    note = notes()[name]
    assert note.broken
    assert words in note.advice


def test_optional_packages_are_not_asked_for():
    names = set(notes())
    assert "numpy" in names
    assert not names & {"pyscf", "pytest", "matcalc"}


def test_another_distribution_of_our_name(monkeypatch):
    both = {"mlip": ["mlip", doctor.DISTRIBUTION]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: both)
    note = notes()["import mlip"]
    assert note.broken
    assert "pip uninstall mlip" in note.advice


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN  cache" in out
    assert "set MLIP_CACHE" in out
    assert "1 broken" in out


def test_little_space_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 10**6)
    note = notes()["cache"]
    assert not note.broken
    assert "make room" in note.advice


def test_threads_beyond_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert "slow" in notes()["threads"].advice


@pytest.mark.parametrize(
    ("wanted", "obstacle", "broken", "value", "advice"),
    [
        ("auto", None, False, "compiled by ", ""),
        ("auto", "there is none", False, "in PyTorch", "slower.*there is none"),
        ("compiled", None, False, "compiled by ", ""),
        ("compiled", "there is none", True, "MLIP_KERNELS=compiled, but there is none", "unset"),
        ("fast", None, True, "MLIP_KERNELS='fast'", "unset"),
    ],
)
def test_kernels(wanted, obstacle, broken, value, advice, monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", wanted)
    monkeypatch.setattr(compiler, "obstacle", lambda: obstacle)
    note = notes()["kernels"]
    assert note.broken == broken
    assert note.value.startswith(value)
    assert re.search(advice, note.advice or "")


@pytest.mark.parametrize(("installed", "value"), [(True, "in Triton"), (False, "MLIP_KERNELS=tri")])
def test_kernels_for_a_gpu(installed, value, monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", "triton")
    monkeypatch.setattr(compiler, "obstacle", lambda: None)
    monkeypatch.setattr(fused_sum, "find_spec", lambda name: installed or None)
    found = notes()
    assert found["kernels on a GPU"].broken == (not installed)
    assert found["kernels on a GPU"].value.startswith(value)
    assert found["kernels"].value.startswith("compiled by "), "those of the CPU"


def test_kernels_that_are_not_wanted_are_not_tried(monkeypatch):
    monkeypatch.setenv("MLIP_KERNELS", "torch")
    monkeypatch.setattr(compiler, "obstacle", lambda: pytest.fail("it compiled something"))
    assert notes()["kernels"].value == "in PyTorch (MLIP_KERNELS=torch)"


def test_a_user_without_a_home(monkeypatch):
    def none(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MLIP_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", none)
    note = notes()["cache"]
    assert note.broken
    assert "set MLIP_CACHE" in note.advice
