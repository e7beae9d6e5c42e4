"""What a run sets for the process, and sets back."""

from __future__ import annotations

from pathlib import Path

import torch

from mlip import train

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
    assert calls == ["high", before]
