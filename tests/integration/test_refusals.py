"""Every mistake on the command line: one line that says what to do, an exit code, no leftovers."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from ase.build import bulk
from conftest import build

from mlip.cli.main import COMMANDS, main
from mlip.potential_file import save_potential

FRAME = '1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 pbc="F F F"\nC 0 0 0 0 0 0\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path.parent / "cache"))
    save_potential("p.safetensors", build("facet"))
    bulk("C", "diamond", a=3.57).write("c.cif")
    bulk("NaCl", "rocksalt", a=5.6).write("nacl.cif")
    Path("c.extxyz").write_text(FRAME * 3)
    Path("mixed.extxyz").write_text(FRAME * 2 + FRAME.replace("C 0", "Si 0"))
    Path("cut.extxyz").write_text(FRAME * 2 + FRAME[:-12])
    lattice = 'Lattice="3 0 0 0 3 0 0 0 3" pbc="T T T" sigma="0 0 0 0 0 0"'
    Path("crystal.extxyz").write_text(FRAME.replace('pbc="F F F"', lattice) * 8)
    Path("one-place.extxyz").write_text(FRAME + FRAME.replace("1\n", "2\n", 1) + "C 0 0 0 0 0 0\n")
    Path("file").touch()
    return tmp_path


def refused(capsys, command: str) -> tuple[int, str]:
    """Run it: the exit code and the one line on stderr; nothing may be left behind."""
    before = sorted(Path.cwd().rglob("*"))
    try:
        code = main(command.split())
    except SystemExit as end:
        code = int(end.code or 0)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    assert sorted(Path.cwd().rglob("*")) == before
    assert not logging.getLogger("mlip").handlers
    return code, message


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("evaluate p.safetensors c.extxyz mixed.extxyz", 1, ["mixed.extxyz: frame 2", "Si"]),
        ("evaluate p.safetensors c.cif", 1, ["c.cif", "no energies"]),
        ("evaluate p.safetensors c.extxyz --by kind", 1, ["no structure has 'kind'"]),
        ("evaluate p.safetensors one-place.extxyz", 1, ["one-place.extxyz: frame 1", "same point"]),
        ("evaluate p.safetensors cut.extxyz", 1, ["cut.extxyz: frame 2"]),
        ("evaluate p.safetensors absent.extxyz", 1, ["absent.extxyz", "no such file"]),
        ("evaluate p.safetensors absent*.extxyz", 1, ["no file matches"]),
        ("evaluate p.safetensors c.extxyz --device warp", 2, ["device='warp'"]),
        ("evaluate p.safetensors c.extxyz data.stress_sin=vasp", 2, ["did you mean 'stress_sign'"]),
        ("evaluate p.safetensors c.extxyz data.keys.energy=dft", 1, ["dft"]),
        ("evaluate p.safetensors data.keys.energy=dft", 2, ["no file"]),
        ("evaluate p.safetensors c.extxyz --format extxzy", 2, ["did you mean 'extxyz'"]),
        ("evaluate p.safetensors c.extxyz --energi corrected", 2, ["did you mean --energy?"]),
        ("predict p.safetensors mixed.extxyz out.extxyz", 1, ["mixed.extxyz: frame 2", "Si"]),
        ("predict p.safetensors c.extxyz c.extxyz", 2, ["is the input"]),
        ("predict p.safetensors c.extxyz mixed.extxyz", 2, ["exists", "--force"]),
        ("predict p.safetensors c.extxyz out.json", 2, [".extxyz"]),
        ("predict p.safetensors c.extxyz file/out.extxyz", 1, ["file/out.extxyz", "written"]),
        ("relax p.safetensors nacl.cif", 1, ["nacl.cif: frame 0", "Na, Cl"]),
        ("relax p.safetensors mixed.extxyz out.xyz --frame -1", 1, ["mixed.extxyz: frame 2"]),
        ("relax p.safetensors c.cif out.doc", 2, ["write one of"]),
        ("relax p.safetensors c.cif c.cif", 2, ["exists"]),
        ("md p.safetensors c.cif --steps 1 a=b", 2, ["unrecognized arguments: a=b", "mlip md"]),
        ("md p.safetensors nacl.cif", 1, ["nacl.cif: frame 0", "Na, Cl"]),
        ("md p.safetensors c.cif --ensemble nvtt", 2, ["did you mean nvt?", "mlip md --help"]),
        ("md p.safetensors c.cif --temprature 300", 2, ["did you mean --temperature?"]),
        ("md p.safetensors c.cif --output md.xyz", 2, [".traj"]),
        ("info c.cif", 1, ["c.cif", "not a potential file"]),
        ("trian data.train=c.extxyz", 2, ["'trian'", "did you mean train?"]),
        ("train data.train=c.extxyz optimizer.lrr=1", 2, ["did you mean optimizer.lr?"]),
        ("train data.train=c.extxyz data.format=xyzz", 2, ["did you mean 'xyz'"]),
        ("train data.train=c.extxyz trainer.devices=0", 2, ["trainer.devices=0", "1 or more"]),
        ("train data.train=c.extxyz trainer.accelerator=tpu", 2, ["accelerator"]),
        ("train data.train=c.extxyz model.channels=wide", 2, ["facet cannot be built"]),
        ("train data.train=c.extxyz out_dir=file", 2, ["file is a file"]),
        ("train data.train=c.extxyz out_dir=file/run", 2, ["file is a file"]),
        ("train data.train=c.extxyz out_dir=/proc/run", 2, ["/proc cannot be written"]),
        ("train c.extxyz", 2, ["to train on it: data.train=c.extxyz"]),
        ("train data.train=cut.extxyz", 1, ["cut.extxyz: frame 2"]),
        ("train data.train=crystal.extxyz", 1, ["no stress", "sigma", "loss.stress_weight=0"]),
        ("train data.train=crystal.extxyz data.keys.virial=sigm", 1, ["sigm"]),
    ],
)
def test_a_mistake_is_one_line(capsys, command, code, words):
    found, message = refused(capsys, command)
    assert found == code, message
    for word in words:
        assert word in message


def test_a_folder_without_permission(capsys, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert refused(capsys, "train data.train=c.extxyz out_dir=closed/run")[0] == 2


def test_a_full_disk_is_noticed_before_training(capsys, monkeypatch):
    monkeypatch.setattr("mlip.training.run_folder.free_bytes", lambda path: 10_000_000)
    code, message = refused(capsys, "train data.train=c.extxyz out_dir=run")
    assert code == 2
    assert "10 MB are free" in message


def test_a_missing_tensorboard(capsys, monkeypatch):
    monkeypatch.setattr("mlip.training.run.find_spec", lambda name: None)
    code, message = refused(capsys, "train data.train=c.extxyz logger=tensorboard")
    assert code == 2
    assert "mlip-trainer[tensorboard]" in message


def test_the_program_alone_shows_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "exit codes:" in capsys.readouterr().err


@pytest.mark.parametrize("name", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_every_command_shows_an_example(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"mlip {name} " in text[text.index("example") :]


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_every_ensemble_runs(folder, ensemble):
    command = f"md p.safetensors c.cif --ensemble {ensemble} --steps 4 --interval 2 --timestep 0.1"
    assert main([*command.split(), "--output", f"{ensemble}.traj"]) == 0
    assert (folder / f"{ensemble}.csv").read_text().count("\n") == 4


def test_several_files_a_glob_and_a_directory(folder, capsys):
    (folder / "set").mkdir()
    for name in ("a", "b"):
        (folder / "set" / f"{name}.extxyz").write_text(FRAME * 2)
    for data, count in (("c.extxyz set/a.extxyz", 5), ("set/*.extxyz", 4), ("set", 4)):
        assert main(["evaluate", "p.safetensors", *data.split(), "--output", "e.json"]) == 0
        assert f"{count} structures" in capsys.readouterr().out


def test_evaluation_reads_what_training_reads(capsys):
    """The same words for keys and units; errors of the same labels in other units are the same."""
    kcal = -1.0 / 0.0433641153  # CODATA: eV in a kcal/mol
    Path("kcal.extxyz").write_text(FRAME.replace("energy=-1.0", f"dft={kcal}") * 3)
    rows = []
    for words in (
        "c.extxyz",
        "kcal.extxyz data.keys.energy=dft data.energy_unit=kcal/mol",
        "kcal.extxyz data.keys.energy=dft --device cpu data.energy_unit=kcal/mol",
        "--device cpu kcal.extxyz --dtype float32 data.keys.energy=dft data.energy_unit=kcal/mol",
    ):
        assert main(["evaluate", "p.safetensors", *words.split()]) == 0
        rows.append([r for r in capsys.readouterr().out.splitlines() if r.startswith("energy")])
    assert rows[0]
    assert rows[0] == rows[1] == rows[2] == rows[3]


@pytest.mark.parametrize("words", ["", "--turned", "--max-atoms 1"])
def test_errors_by_what_structures_say_of_themselves(capsys, words):
    """Of each part what evaluating its structures alone gives, and nothing of one is lost."""
    kinds = ["a b", "c", None, "c", "a b", "c"]
    frames = [
        FRAME.replace("energy=-1.0", f"energy={-k}" + (f' config_type="{kind}"' if kind else ""))
        for k, kind in enumerate(kinds)
    ]
    frames[3] = frames[3].replace("energy=-3 ", "")
    Path("parts.extxyz").write_text("".join(frames))
    command = ["evaluate", "p.safetensors", "parts.extxyz", "--output", "by.json", *words.split()]
    assert main([*command, "--by", "config_type"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("MAE of energy")))
    assert [line.split("  ")[0] for line in lines[start + 2 :]] == ["(none)", "a b", "c"]
    found = json.loads(Path("by.json").read_text())["by"]["config_type"]
    assert {name: part["counts"]["energy"] for name, part in found.items()} == {
        "(none)": 1,
        "a b": 2,
        "c": 2,
    }
    for name, part in found.items():
        own = [
            frame for kind, frame in zip(kinds, frames, strict=True) if (kind or "(none)") == name
        ]
        Path("own.extxyz").write_text("".join(own))
        assert main(["evaluate", "p.safetensors", "own.extxyz", "--output", "own.json"]) == 0
        alone = json.loads(Path("own.json").read_text())
        assert part["counts"] == alone["counts"]
        assert part["metrics"]["energy_mae"] == pytest.approx(alone["metrics"]["energy_mae"])
