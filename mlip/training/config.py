"""The configuration of a run: Hydra groups from `conf/`, a user's file, and key=value overrides.

Hydra composes the groups; values are set by us, so that any path can be a value without quoting and
an unknown key is an error with a suggestion instead of a new key. A configuration is plain values:
an import path anywhere in it (`_target_`) is refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import mlip
from mlip.errors import ConfigError

Config = dict[str, Any]
TEXT = ("name", "out_dir", "data.train", "data.val", "data.test", "data.cache_dir", "data.group")
OPEN = (
    "data.e0",
    "data.train",
    "data.val",
    "data.test",
    "model.channels",
)  # may hold lists, tables


def conf_dir() -> Path:
    """Return the folder of configuration groups: a checkout's `conf/`, else the installed one."""
    package = Path(mlip.__file__).resolve().parent
    for folder in (package.parent / "conf", package / "_conf"):
        if (folder / "train.yaml").exists():
            return folder
    raise ConfigError(f"no configuration found beside {package}; reinstall mlip-trainer")


def load_config(overrides: Sequence[str], file: Path | str | None = None) -> Config:
    """Compose the configuration.

    Args:
        overrides: `group=choice` and `key=value`, split at the first `=`; values are YAML-like
            (numbers, true, null, [lists], {tables}), anything else is text.
        file: a YAML file of the same structure: `model: facet-xs`, `data: {train: my.extxyz}` or
            `data.train: my.extxyz`.

    Raises:
        ConfigError: an unknown key or choice (with the nearest known one), or an import path.
    """
    settings: list[tuple[str, Any]] = list(_from_file(Path(file))) if file else []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form key=value")
        if key.startswith(("+", "~")):
            raise ConfigError(f"{text!r}: keys cannot be added or removed; drop the {key[0]!r}")
        key = key.strip()
        plain = key in TEXT and value.strip()[:1] not in ("[", "{") and value != "null"
        settings.append((key, value if plain else _parse(value)))
    choices = _choices()
    groups = {}
    for key, value in settings:
        if key in choices and not isinstance(value, Mapping):
            word = "none" if value is None else str(value)
            if word not in choices[key] and key != "experiment":
                raise ConfigError(_unknown(word, choices[key], f"{key}="))
            if key == "experiment" and word not in choices[key]:
                raise ConfigError(_unknown(word, choices[key], "experiment="))
            groups[key] = word
    config = _compose(groups)
    for key, value in settings:
        if key not in choices or isinstance(value, Mapping):
            _set(config, key, value)
    return validate_config(config)


def validate_config(config: Config) -> Config:
    """Check a complete configuration and return it with durations in seconds.

    Raises:
        ConfigError: an import path, or a value of the wrong kind or out of range.
    """
    config.pop("experiment", None)
    _refuse_targets(config)
    _validate(config)
    return config


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


def to_yaml(config: Config) -> str:
    """Return the configuration as text."""
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _compose(groups: Mapping[str, str]) -> Config:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", [f"{group}={choice}" for group, choice in groups.items()])
    out = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(out, dict):
        raise ConfigError("conf/train.yaml is not a table")
    config: Config = {str(k): v for k, v in out.items()}
    return config


def _choices() -> dict[str, list[str]]:
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in conf_dir().iterdir()
        if folder.is_dir()
    }


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected `key: value` lines")

    model = content.get("model")
    if isinstance(model, Mapping) and "name" in model:  # a resolved config: start from its group
        yield "model", model["name"]

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and prefix not in OPEN:
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value if prefix in TEXT else _number(value)

    yield from walk("", content)


def _leaves(config: Config, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in OPEN:
            yield from _leaves(dict(value), f"{path}.")
        else:
            yield path


def _set(config: Config, key: str, value: Any) -> None:
    leaves = list(_leaves(config))
    if key not in leaves:
        raise ConfigError(_unknown(key, [*leaves, *_choices()], ""))
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value


def _unknown(word: str, known: Sequence[str], prefix: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near and "." in word:  # the group may be right and the key misplaced
        last = word.rsplit(".", 1)[1]
        near = [k for k in known if k.rsplit(".", 1)[-1] == last][:1]
    hint = f"; did you mean {prefix}{near[0]}?" if near else f" (known: {', '.join(known)})"
    return f"unknown option {prefix}{word}{hint}"


def _parse(text: str) -> Any:
    text = text.strip()
    words = {"true": True, "false": False, "null": None, "none": None, "": None}
    if text.lower() in words and text.lower() != "none":
        return words[text.lower()]
    if text[:1] in "[{" and not Path(text).exists():
        try:
            return _number(yaml.safe_load(text))
        except yaml.YAMLError:
            return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return _number(text)


def _number(value: Any) -> Any:
    """Turn text such as 1e-3 into numbers (YAML 1.1 leaves it text), also inside lists."""
    if isinstance(value, list):
        return [_number(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _number(v) for k, v in value.items()}
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _refuse_targets(value: Any, path: str = "") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if str(key).startswith("_") and str(key).endswith("_"):
                raise ConfigError(f"{path}{key}: configurations hold names and numbers, not code")
            _refuse_targets(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for inner in value:
            _refuse_targets(inner, path)


def _validate(config: Config) -> None:
    """Check types and ranges before anything is read or written."""
    positive = ["optimizer.lr", "loss.delta", "model.cutoff"]
    not_negative = ["loss.energy_weight", "loss.forces_weight", "loss.stress_weight", "ema.decay"]
    for key in positive + not_negative:
        section, _, name = key.partition(".")
        value = config[section][name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf or (key in positive and value == 0):
            raise ConfigError(f"{key}={value!r} must be a positive number")
    if config["ema"]["decay"] >= 1:
        raise ConfigError(f"ema.decay={config['ema']['decay']} must be below 1")
    weights = [config["loss"][f"{k}_weight"] for k in ("energy", "forces", "stress")]
    if not any(weights):
        raise ConfigError("all loss weights are zero: nothing to learn")
    for key in ("batch_size", "max_atoms", "max_edges"):
        value = config["data"][key]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"data.{key}={value!r} must be a positive whole number or null")
    trainer = config["trainer"]
    trainer["max_time"] = parse_duration(trainer["max_time"])
    for key in ("max_epochs", "max_steps", "num_threads"):
        value = trainer[key]
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigError(f"trainer.{key}={value!r} must be a positive whole number or null")
    if trainer["devices"] != 1:
        raise ConfigError(
            f"trainer.devices={trainer['devices']!r}: this version trains on one device; leave it 1"
        )
    if trainer["max_epochs"] is None and trainer["max_steps"] is None and not trainer["max_time"]:
        raise ConfigError("give one of trainer.max_epochs, max_steps, max_time")
    if trainer["precision"] not in ("32-true", "64-true"):
        raise ConfigError(f"trainer.precision={trainer['precision']!r} must be 32-true or 64-true")
