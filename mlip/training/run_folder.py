"""The folder of a run: which it is, that it can be written, and what is recorded at the start."""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mlip.atomic import free_bytes
from mlip.data.prepare import PreparedData
from mlip.data.sources import parse_sources
from mlip.errors import CheckpointError, ConfigError
from mlip.potential_file import package_versions
from mlip.training.checkpoint import read_checkpoint
from mlip.training.config import Config, to_yaml
from mlip.training.processes import number_of, shared_folder
from mlip.training.split_file import read_splits, write_splits

log = logging.getLogger("mlip")
SPARE = 32 * 1024**2  # bytes for logs and the report
BYTES_PER_PARAMETER = 80  # two checkpoints, one being written; weights, average, two moments each


def choose_folder(config: Config, rank: int = 0) -> tuple[Path, Path | None]:
    """Return the run folder and the checkpoint to continue from, without leaving anything behind.

    Only the first of several processes (`rank` 0) looks whether the folder may be used.

    Raises:
        ConfigError: the folder is in use, or cannot be written.
        CheckpointError: the checkpoint to continue from is missing, or from other settings.
    """
    name = config["name"] or config["model"]["name"]
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    given = shared_folder(config["out_dir"], rank, config["trainer"])
    out_dir = Path(given or Path("outputs") / str(name) / stamp)
    if rank == 0:
        _try_writing(out_dir)
    resume = config["resume"]
    if resume is False or resume is None:
        if rank == 0 and out_dir.exists() and any(out_dir.iterdir()):
            raise ConfigError(
                f"{out_dir} is not empty; choose another out_dir, or continue it with resume=auto"
            )
        return out_dir, None
    if resume in (True, "auto"):
        last = out_dir / "checkpoints" / "last.ckpt"
        if not last.exists():
            log.info("resume=auto: no checkpoint in %s, starting from scratch", out_dir)
            return out_dir, None
        checkpoint = last
    else:
        checkpoint = Path(str(resume))
        if not checkpoint.exists():
            raise CheckpointError(f"{checkpoint}: there is no such checkpoint")
    content = read_checkpoint(checkpoint)
    had_ema = "averaging_state" in content
    if had_ema != (config["ema"]["decay"] > 0):
        raise CheckpointError(
            f"{checkpoint} was trained {'with' if had_ema else 'without'} weight averaging; set "
            f"ema.decay={'as before' if had_ema else 0} to continue it"
        )
    log.info("Resume   %s, epoch %s", checkpoint, content["epoch"] + 1)
    return out_dir, checkpoint


def require_space(out_dir: Path, parameters: int) -> None:
    """Refuse to start where not even the checkpoints have room.

    Raises:
        ConfigError: with what is free and what is needed.
    """
    free, needed = free_bytes(out_dir), SPARE + BYTES_PER_PARAMETER * parameters
    if free < needed:
        raise ConfigError(
            f"{out_dir}: {free / 1e6:.0f} MB are free there and a run needs {needed / 1e6:.0f} MB; "
            "make room or choose another out_dir"
        )


def claim_folder(config: Config, out_dir: Path, checkpoint: Path | None) -> Path:
    """Make the run folder and return it; of two runs that start at once only one gets it.

    A name that was made from the time gets a number when another run has it.

    Raises:
        ConfigError: a run that does not continue finds another one's files.
    """
    if checkpoint is not None or config["resume"]:
        out_dir.mkdir(parents=True, exist_ok=True)
        return out_dir
    for attempt in range(1, 1000):
        folder = out_dir if attempt == 1 else out_dir.with_name(f"{out_dir.name}-{attempt}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "train.log").touch(exist_ok=False)
        except FileExistsError:
            if config["out_dir"] is None:
                continue
            break
        return folder
    raise ConfigError(f"{out_dir}: another run has just begun there; choose another out_dir")


def require_same_run(config: Config, data: PreparedData, checkpoint: Path) -> None:
    """Refuse to continue a run with another model, or with other data or another split.

    With another split, structures that were trained on would be validated on.

    Raises:
        CheckpointError: names what differs.
    """
    old = checkpoint.parent.parent
    if (old / "config.yaml").exists():
        before = yaml.safe_load((old / "config.yaml").read_text())
        pairs = [(f"model.{k}", k, before["model"], config["model"]) for k in config["model"]]
        pairs.append(("optimizer", "name", before["optimizer"], config["optimizer"]))
        then, now = _heads(before), _heads(config)
        pairs.append(("the heads of data.sources", "heads", then, now))
        pairs.append(("trainer.precision", "precision", before["trainer"], config["trainer"]))
        for key, name, then, now in pairs:
            if then.get(name) != now[name]:
                raise CheckpointError(
                    f"{checkpoint} was trained with {key}={then.get(name)}, and now it is "
                    f"{now[name]}; give the same to continue, or begin a new run"
                )
    if (old / "splits.json").exists():
        then, now = read_splits(old), data.split_record()
        for part in ("train", "val"):
            # Rows only: the same file may be called by another path.
            rows_then, rows_now = list(then[part].values()), list(now[part].values())
            same = len(rows_then) == len(rows_now) and all(
                np.array_equal(a, b) for a, b in zip(rows_then, rows_now, strict=True)
            )
            if not same:
                raise CheckpointError(
                    f"{checkpoint} was trained on another {part} part ("
                    f"{sum(map(len, rows_then))} structures, now {sum(map(len, rows_now))}); give "
                    "the same data.* and seed to continue, or begin a new run"
                )


def _heads(config: Config) -> dict[str, list[str]]:
    """Return the level of theory of each source, in order."""
    return {"heads": [source.head for source in parse_sources(config["data"])]}


def record_start(config: Config, data: PreparedData, out_dir: Path) -> None:
    """Write configuration, split, statistics and environment."""
    (out_dir / "config.yaml").write_text(to_yaml(config))
    write_splits(out_dir, data.split_record())
    (out_dir / "stats.json").write_text(json.dumps(data.stats.to_dict(), indent=1))
    environment: dict[str, Any] = {
        "versions": package_versions(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": number_of(config["trainer"]),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    (out_dir / "environment.json").write_text(json.dumps(environment, indent=1))


def log_to(path: Path) -> logging.Handler:
    """Also write the log to a file; the caller removes the handler."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    return handler


def _try_writing(out_dir: Path) -> None:
    """Make a folder where the run folder will be, and remove it: permissions say too little."""
    existing = out_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"out_dir={out_dir}: {existing} is a file; choose another out_dir")
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".mlip-"):
            pass
    except OSError as error:
        raise ConfigError(
            f"out_dir={out_dir}: {existing} cannot be written ({error.strerror}); choose another "
            "out_dir"
        ) from error
