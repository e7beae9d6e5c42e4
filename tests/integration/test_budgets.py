"""Batches by a budget of atoms: every structure is trained on and validated in every epoch."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

from mlip.data.batching import GraphLoader
from mlip.training.module import PotentialModule
from mlip.training.run import train

DATA = Path(__file__).resolve().parents[2] / "data" / "emt-mini" / "emt-mini.extxyz"


@pytest.mark.parametrize("seed", [0, 1])
def test_every_structure_in_every_epoch(tmp_path, monkeypatch, seed):
    seen: dict[tuple[str, int], list[int]] = defaultdict(list)
    lengths = []
    monkeypatch.setenv("MLIP_CACHE", str(tmp_path / "cache"))

    def counting(part: str):
        step = getattr(PotentialModule, f"{part}_step")

        def count(self, batch, index):
            seen[part, self.current_epoch].extend(batch.sample_id.tolist())
            return step(self, batch, index)

        return count

    def measuring(self, epoch):
        start(self, epoch)
        lengths.append(len(self))

    start = GraphLoader.start_epoch
    monkeypatch.setattr(PotentialModule, "training_step", counting("training"))
    monkeypatch.setattr(PotentialModule, "validation_step", counting("validation"))
    monkeypatch.setattr(GraphLoader, "start_epoch", measuring)
    train(
        [
            f"data.train={mixed(tmp_path)}", "data.val_fraction=0.3", "data.batch_size=null",
            "data.max_atoms=17", "model=lennard_jones", "model.cutoff=3", "model.sigma=2.2",
            "trainer.max_epochs=6", f"out_dir={tmp_path / 'run'}", f"seed={seed}",
        ]
    )  # fmt: skip
    assert len(set(lengths)) > 1, "every epoch has as many batches: this tests nothing"
    for part in ("training", "validation"):
        assert [e for p, e in seen if p == part] == list(range(6))
        first = sorted(seen[part, 0])
        assert len(first) == len(set(first)) > 10
        for epoch in range(6):
            assert sorted(seen[part, epoch]) == first


def mixed(folder: Path) -> Path:
    """Cells of 4, 8 and 12 atoms, whose packing depends on their order."""
    path = folder / "mixed.extxyz"
    frames = []
    for k, atoms in enumerate(read(DATA, ":60")):
        size = 1 + k % 3
        big = atoms * (size, 1, 1)
        big.info = {"energy": size * atoms.get_potential_energy()}
        big.arrays["forces"] = np.full((len(big), 3), 0.1)
        big.info["stress"] = atoms.get_stress(voigt=False)
        frames.append(big)
    write(path, frames)
    return path
