"""Training checkpoints: written atomically, read without pickle.

Lightning's own writer goes through a temporary file on another file system and copies it over the
old checkpoint, which a kill can destroy; ours renames within the directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from mlip.atomic import atomic_write, free_bytes
from mlip.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Same-directory temporary, fsync, rename; `weights_only=True` on the way back."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint`, refusing weights that are not finite."""
        for part, name, value in _tensors(checkpoint):
            if not name.endswith("e0") and not torch.isfinite(value).all():
                raise CheckpointError(
                    f"{path}: {name} of {part} is not finite; this checkpoint is not written and "
                    "the last one is kept; lower optimizer.lr and continue with resume=auto"
                )
        try:
            with atomic_write(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise CheckpointError(
                f"{path} cannot be written ({error}; {free_bytes(path)} bytes are free there); the "
                "last checkpoint is kept; make room and continue with resume=auto"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote."""
        return read_checkpoint(path)


def _tensors(checkpoint: dict[str, Any]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the weights that are used, those that are trained, and the optimiser's moments."""
    for part in ("state_dict", "current_model_state"):
        for name, value in checkpoint.get(part, {}).items():
            yield part, name, value
    for optimizer in checkpoint.get("optimizer_states", []):
        for index, moments in optimizer["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor):
                    yield f"optimizer_states, parameter {index}", name, value


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running anything from it.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint") from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
