"""What the values of a configuration must be, checked before anything is read or written.

A wrong value that is noticed only when it is used costs whatever ran before it, and names a line of
code instead of an option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlip.errors import ConfigError

Config = dict[str, Any]
WORDS = {  # of `trainer`
    "accelerator": ("auto", "cpu", "gpu", "cuda"),
    "precision": ("32-true", "64-true"),
    "matmul_precision": ("highest", "high", "medium"),
}


@dataclass(frozen=True)
class Number:
    """A number from `low` to below `high`."""

    what: str
    low: float = 0.0
    high: float = math.inf
    above: bool = False  # `low` itself is no value
    whole: bool = False
    other: Any = ()  # words, or None, that may stand instead

    def accepts(self, value: Any) -> bool:
        """Whether `value` is such a number or one of the words."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return any(value == word and type(value) is type(word) for word in self.other)
        if self.whole and not isinstance(value, int):
            return False
        return self.low <= value < self.high and not (self.above and value == self.low)


_POSITIVE = Number("a positive number", above=True)
_NOT_NEGATIVE = Number("a positive number or 0")
_FRACTION = Number("a fraction from 0 to below 1", high=1.0)
_COUNT = Number("a positive whole number or null", low=1, whole=True, other=(None,))
_SOME = Number("a whole number, 1 or more", low=1, whole=True)
NUMBERS = {
    "seed": Number("a whole number from 0 to below 2^63", high=2**63, whole=True),
    "ema.decay": _FRACTION,
    "data.val_fraction": _FRACTION,
    "data.test_fraction": _FRACTION,
    "data.batch_size": _COUNT,
    "data.max_atoms": _COUNT,
    "data.max_edges": _COUNT,
    "data.num_workers": Number("auto or a whole number from 0", whole=True, other=("auto",)),
    "loss.energy_weight": _NOT_NEGATIVE,
    "loss.forces_weight": _NOT_NEGATIVE,
    "loss.stress_weight": _NOT_NEGATIVE,
    "loss.delta": _POSITIVE,
    "model.cutoff": _POSITIVE,
    "objective.weight": Number("a positive number, 0 or null", other=(None,)),
    "objective.warmup": _FRACTION,
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "scheduler.warmup": _FRACTION,
    "scheduler.final": Number("a fraction from 0 to 1", high=math.nextafter(1.0, 2.0)),
    "trainer.devices": _SOME,
    "trainer.num_nodes": _SOME,
    "trainer.max_epochs": _COUNT,
    "trainer.max_steps": _COUNT,
    "trainer.num_threads": _COUNT,
    "trainer.val_rotations": _SOME,
    "trainer.gradient_clip": Number("a positive number, 0 or null", other=(None,)),
}


def check_config(config: Config) -> None:
    """Check types and ranges, and turn durations into seconds.

    Raises:
        ConfigError: an import path, or a value of the wrong kind or out of range.
    """
    _refuse_targets(config)
    for key, number in NUMBERS.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT and not number.accepts(value):
            raise ConfigError(f"{key}={value!r} must be {number.what}")
    data, loss, trainer = config["data"], config["loss"], config["trainer"]
    if not any(loss[f"{label}_weight"] for label in ("energy", "forces", "stress")):
        raise ConfigError("all loss weights are zero: nothing to learn")
    if data["val_fraction"] + data["test_fraction"] >= 1:
        raise ConfigError(
            f"data.val_fraction={data['val_fraction']} and data.test_fraction="
            f"{data['test_fraction']} leave nothing to train on; their sum must be below 1"
        )
    trainer["max_time"] = parse_duration(trainer["max_time"])
    if trainer["max_epochs"] is None and trainer["max_steps"] is None and not trainer["max_time"]:
        raise ConfigError("give one of trainer.max_epochs, max_steps, max_time")
    if not isinstance(trainer["compile"], bool):
        raise ConfigError(f"trainer.compile={trainer['compile']!r} must be true or false")
    for key, words in WORDS.items():
        if trainer[key] not in words:
            raise ConfigError(f"trainer.{key}={trainer[key]!r} must be one of {', '.join(words)}")


def parse_duration(value: Any) -> float | None:
    """Return seconds from DD:HH:MM:SS, HH:MM:SS, `40m`, `6h`, `2d`, `90s` or a number.

    Raises:
        ConfigError: anything else.
    """
    if value is None:
        return None
    text = str(value).strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text):
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if re.fullmatch(r"(\d+:)?\d+:\d{1,2}:\d{1,2}", text):
        parts = [int(p) for p in text.split(":")]
        weights = [86400, 3600, 60, 1][-len(parts) :]
        return float(sum(w * p for w, p in zip(weights, parts, strict=True)))
    raise ConfigError(
        f"trainer.max_time={value!r}: write DD:HH:MM:SS, HH:MM:SS, 40m, 6h or seconds"
    )


_ABSENT = object()


def _refuse_targets(value: Any, path: str = "") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if str(key).startswith("_") and str(key).endswith("_"):
                raise ConfigError(f"{path}{key}: configurations hold names and numbers, not code")
            _refuse_targets(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for inner in value:
            _refuse_targets(inner, path)
