"""What the README says was measured is what `data/results` holds, by the commands it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def summary(script: str) -> str:
    command = [sys.executable, f"scripts/{script}", "--summary"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def readme() -> str:
    return " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("what", ["lattice constants", "bulk moduli"])
def test_the_demo_meets_its_targets_as_often_as_the_readme_says(what):
    found = re.search(rf"{what} within (\S+) %: (\d+) of (\d+)", summary("repeat_demo.py"))
    assert found
    limit, met, number = found.groups()
    assert f"{met} of {number} {what}" in readme()
    assert f"within {limit} %" in readme()


def test_the_objectives_are_worth_what_the_readme_says():
    table = summary("compare_objectives.py")
    errors = [
        re.search(rf"{where}: transip-tiny 800 .*{objective} +3 +(\d+) \(", table)
        for where in ("small_mols_neighbours", "small_mols")
        for objective in ("standard", "augmented", "latent_equivariance")
    ]
    a, b, c, d, e, f = (m.group(1) if m else "absent" for m in errors)
    assert (
        f"{a} meV/Å without rotations, {b} with random ones, {c} with the latent term" in readme()
    )
    assert f"with global attention {d}, {e}, {f}." in readme()
