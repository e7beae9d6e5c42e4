"""What both benchmarks on a GPU time, and how. Needs neither mlip nor another package."""

from __future__ import annotations

import time
from collections.abc import Callable

import ase
import torch
from ase.build import bulk


def silicon(atoms: int) -> ase.Atoms:
    """A rattled cube."""
    cells = round((atoms / 8) ** (1 / 3))
    if 8 * cells**3 != atoms:
        raise SystemExit(f"{atoms} atoms are no cube of cells of 8: give 8, 64, 216, 512, ...")
    cube = bulk("Si", "diamond", a=5.43, cubic=True) * cells
    cube.rattle(0.05, seed=0)
    return cube


def wait(device: str) -> None:
    """Wait for what was launched."""
    if device != "cpu":
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Return the wall time of a call."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return 1e3 * (time.perf_counter() - start)
