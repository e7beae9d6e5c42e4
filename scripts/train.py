"""The same training as `mlip train`, under `@hydra.main`: for multirun, sweepers and launchers.

Example: python scripts/train.py -m data.train=my.extxyz seed=1,2,3
"""

from __future__ import annotations

import logging

import hydra
from omegaconf import DictConfig, OmegaConf

from mlip.training.config import conf_dir, validate_config
from mlip.training.run import train


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Train one configuration."""
    logging.getLogger("mlip").setLevel(logging.INFO)
    plain = OmegaConf.to_container(config, resolve=True)
    if not isinstance(plain, dict):
        raise TypeError("the configuration is not a table")
    train(validate_config({str(k): v for k, v in plain.items()}))


if __name__ == "__main__":
    main()
