"""scripts/train.py: mistakes end it as they end `mlip train`."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlip.training.config import load_config

SCRIPT = Path(__file__).parents[3] / "scripts" / "train.py"


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [("data.train=nowhere.extxyz", 1, "nowhere.extxyz: no such file"), ("seed=1", 2, "data.train")],
)
def test_mistakes_are_one_line_and_an_exit_code(
    setting, code, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.delenv("MLIP_DEBUG", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")  # the allocator of the tests is left alone
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create(load_config([setting, f"out_dir={tmp_path / 'run'}"]))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT))["main"](config)
    printed = capsys.readouterr().err
    assert end.value.code == code
    assert "error: " in printed
    assert words in printed
    assert "Traceback" not in printed
