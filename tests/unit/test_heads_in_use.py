"""A potential with two levels of theory in a file, a calculator, and on the command line."""

from __future__ import annotations

import copy
import json

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from conftest import CUTOFF, E0, OTHER_E0, SMALL

from mlip.calculator import MLIPCalculator
from mlip.cli.main import main
from mlip.errors import ConfigError, DataError
from mlip.graph import AtomGraph
from mlip.models.registry import PotentialSpec, build_potential
from mlip.potential_file import load_potential, save_potential
from mlip.relax import Relaxer

HEADS = ("pbe", "wb97m")
TABLES = ({**OTHER_E0, 12: -1.5}, E0)  # magnesium is the first head's alone


@pytest.fixture
def path(tmp_path):
    spec = PotentialSpec(
        "facet", {"cutoff": CUTOFF, **SMALL["facet"]}, (1, 6, 8, 12), TABLES, 9.0, head_names=HEADS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        potential = build_potential(spec).double()
    for parameter in potential.parameters():
        if parameter.numel() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_potential(tmp_path / "two.safetensors", potential)
    return tmp_path / "two.safetensors"


def energies(path, atoms):
    potential = load_potential(path)
    graph = AtomGraph.from_atoms(atoms, potential.cutoff)
    with torch.no_grad():
        return [potential(graph.with_head(k)).energy.item() for k in (0, 1)]


def test_a_calculator_speaks_for_its_head(path, molecule_atoms):
    wanted = energies(path, molecule_atoms)
    assert abs(wanted[0] - wanted[1]) > 1.0
    for name, energy in zip(HEADS, wanted, strict=True):
        calc = MLIPCalculator(path, head=name)
        assert calc.get_potential_energy(molecule_atoms) == pytest.approx(energy, rel=1e-13)
        assert (calc.head, calc.parameters["head"]) == (name, name)
        assert copy.deepcopy(calc).get_potential_energy(molecule_atoms) == pytest.approx(energy)
        committee = MLIPCalculator([path, path], head=name)
        assert committee.get_potential_energy(molecule_atoms) == pytest.approx(energy, rel=1e-13)
        atom = ase.Atoms("C", positions=[[0, 0, 0]])
        alone = TABLES[HEADS.index(name)][6]
        assert calc.get_potential_energy(atom) == pytest.approx(alone, rel=1e-12)
        relaxed = Relaxer(path, head=name, steps=0).relax(molecule_atoms)
        assert relaxed.energy == pytest.approx(energy, rel=1e-13)


def test_a_head_must_be_chosen_where_there_are_several(path, molecule_atoms, tmp_path, capsys):
    write(tmp_path / "in.extxyz", molecule_atoms, format="extxyz")
    for head in (None, "scan"):
        with pytest.raises(ConfigError, match="pbe, wb97m"):
            MLIPCalculator(path, head=head)
    for command in ("predict", "relax", "md", "evaluate"):
        out = {"predict": ["o.extxyz"], "relax": ["o.xyz"]}.get(command, [])
        words = [command, str(path), str(tmp_path / "in.extxyz"), *[str(tmp_path / o) for o in out]]
        assert main(words) == 2
        assert "head" in (message := capsys.readouterr().err)
        assert "pbe, wb97m" in message


def test_an_element_of_the_other_head_is_unknown(path):
    oxide = ase.Atoms("MgO", [[0, 0, 0], [0, 0, 1.9]])
    assert np.isfinite(MLIPCalculator(path, head="pbe").get_potential_energy(oxide))
    with pytest.raises(DataError, match=r"has Mg, .*knows H, C, O"):
        MLIPCalculator(path, head="wb97m").get_potential_energy(oxide)


def test_commands_take_the_head(path, molecule_atoms, tmp_path, capsys):
    """A file that says `head=` itself, as other programs write, changes nothing."""
    molecule_atoms.positions = molecule_atoms.positions.round(8)  # what the file has room for
    wanted = energies(path, molecule_atoms)
    molecule_atoms.calc = SinglePointCalculator(molecule_atoms, energy=wanted[1])
    molecule_atoms.info["head"] = "Default"
    write(tmp_path / "in.extxyz", molecule_atoms, format="extxyz")
    for name, energy in zip(HEADS, wanted, strict=True):
        out = tmp_path / f"{name}.extxyz"
        words = ["--head", name, str(path), str(tmp_path / "in.extxyz")]
        assert main(["predict", *words, str(out)]) == 0
        assert read(out).info["mlip_energy"] == pytest.approx(energy, rel=1e-13)
        report = tmp_path / f"{name}.json"
        assert main(["evaluate", *words, "--output", str(report)]) == 0
        error = json.loads(report.read_text())["metrics"]["energy_mae"]
        assert error == pytest.approx(abs(energy - wanted[1]), abs=1e-7)
    capsys.readouterr()
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "pbe, wb97m" in text
    assert text.count("-1030.1") == 1


def test_a_file_whose_heads_do_not_match_its_tables_is_refused(path, molecule_atoms):
    from mlip.errors import PotentialFileError
    from mlip.potential_file import add_metadata

    add_metadata(path, {"head_names": ["pbe"]})
    with pytest.raises(PotentialFileError, match="tables of reference energies"):
        load_potential(path)
