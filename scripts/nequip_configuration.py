"""A configuration of `nequip-train`. Needs neither mlip nor another package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def nequip_configuration(
    folder: Path,
    symbols: Sequence[str],
    model: Mapping[str, Any],
    *,
    batch_size: int,
    epochs: int,
    ema_decay: float,
    rate_decay: float,
    stress: bool = False,
) -> dict[str, Any]:
    """Train a preset on `train.extxyz` and `val.extxyz` of a folder; `best.ckpt` is what did best.

    Args:
        folder: also for what is written.
        symbols: elements, in the order of the model's types.
        model: options of the preset, with its `r_max`.
        batch_size: of training and validation.
        epochs: how many.
        ema_decay: of the moving average of weights.
        rate_decay: factor of the learning rate after each epoch.
        stress: whether it is trained on, too.
    """
    labels = ["total_energy", "forces", *(["stress"] if stress else [])]
    kind = "EnergyForceStress" if stress else "EnergyForce"
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": batch_size}
    metrics = {
        "_target_": f"nequip.train.{kind}Metrics",
        "coeffs": {f"{label}_mae": 1.0 for label in labels},
    }
    transforms = "nequip.data.transforms"
    return {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 0,
            "train_file_path": str(folder / "train.extxyz"),
            "val_file_path": str(folder / "val.extxyz"),
            "transforms": [
                {
                    "_target_": f"{transforms}.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": list(symbols),
                },
                {"_target_": f"{transforms}.NeighborListTransform", "r_max": model["r_max"]},
            ],
            "train_dataloader": {**loader, "shuffle": True},
            "val_dataloader": loader,
            "stats_manager": {
                "_target_": "nequip.data.CommonDataStatisticsManager",
                "dataloader_kwargs": {"batch_size": 10},
                "type_names": list(symbols),
            },
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": epochs,
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "monitor": "val0_epoch/weighted_sum",
                    "dirpath": str(folder),
                    "filename": "best",
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": ema_decay,
            "loss": {
                "_target_": f"nequip.train.{kind}Loss",
                "per_atom_energy": True,
                "coeffs": dict.fromkeys(labels, 1.0),
            },
            **dict.fromkeys(("val_metrics", "train_metrics", "test_metrics"), metrics),
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
            "lr_scheduler": {
                "scheduler": {
                    "_target_": "torch.optim.lr_scheduler.ExponentialLR",
                    "gamma": rate_decay,
                },
                "interval": "epoch",
            },
            "model": {
                "_target_": "nequip.model.PresetNequIPGNNModel",
                "type_names": list(symbols),
                "seed": 0,
                "model_dtype": "float32",
                **model,
            },
        },
        "global_options": {"allow_tf32": False},
    }
