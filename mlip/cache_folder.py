"""Where what can be made again waits: packed stores and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

from mlip.errors import ConfigError

DEFAULT = "~/.cache/mlip-trainer"


def cache_folder() -> Path:
    """The environment variable MLIP_CACHE, else `~/.cache/mlip-trainer`; it need not exist.

    Raises:
        ConfigError: the user has no home folder to put it in.
    """
    given = os.environ.get("MLIP_CACHE") or DEFAULT
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"there is no home folder for the cache {given}; set MLIP_CACHE to a folder"
        ) from None
