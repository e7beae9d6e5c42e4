"""Training checkpoints: written atomically, read without pickle.

Lightning's own writer goes through a temporary file on another file system and copies it over the
old checkpoint, which a kill can destroy; ours renames within the directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mlip.atomic import atomic_write
from mlip.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Same-directory temporary, fsync, rename; `weights_only=True` on the way back."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint`, refusing weights that are not finite."""
        for name, value in checkpoint.get("state_dict", {}).items():
            if not name.endswith("e0") and not torch.isfinite(value).all():
                raise CheckpointError(
                    f"{path}: {name} is not finite; the checkpoint is not written"
                )
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote."""
        return read_checkpoint(path)


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
