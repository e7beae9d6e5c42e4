"""The same training as `mlip train`, under `@hydra.main`: for multirun, sweepers and launchers.

Example: python scripts/train.py -m data.train=my.extxyz seed=1,2,3
"""

from __future__ import annotations

import logging
import os
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from mlip.allocator import keep_freed_memory
from mlip.training.config import conf_dir, validate_config
from mlip.training.run import train


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Train one configuration; errors are one line and an exit code, as of `mlip train`."""
    logging.getLogger("mlip").setLevel(logging.INFO)
    keep_freed_memory()
    plain = OmegaConf.to_container(config, resolve=True)
    if not isinstance(plain, dict):
        raise TypeError("the configuration is not a table")
    try:
        train(validate_config({str(k): v for k, v in plain.items()}))
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except Exception as error:  # here, because Hydra would show a traceback and exit with 1
        code = getattr(error, "exit_code", 1 if isinstance(error, OSError) else None)
        if not isinstance(code, int) or os.environ.get("MLIP_DEBUG"):
            raise
        _stop(str(error), code)


def _stop(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
