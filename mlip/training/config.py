"""The configuration of a run: Hydra groups from `conf/`, a user's file, and key=value overrides.

Hydra composes the groups; values are set by us, so that any path can be a value without quoting and
an unknown key is an error with a suggestion instead of a new key. A configuration is plain values:
an import path anywhere in it (`_target_`) is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import mlip
from mlip.errors import ConfigError
from mlip.training.config_checks import Config, check_config

TEXT = ("name", "out_dir", "data.train", "data.val", "data.test", "data.cache_dir", "data.group")
OPEN = (
    "data.e0",
    "data.weights",
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


def data_dir() -> Path:
    """Return the folder of the data that ship: beside `conf/`, in a checkout and in a wheel."""
    conf = conf_dir()
    return conf.with_name(conf.name.replace("conf", "data"))


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
            if word not in choices[key]:
                raise ConfigError(_unknown(word, choices[key], f"{key}="))
            groups[key] = word
    config = _compose(groups)
    if config["objective"]["name"] == "auto":
        from mlip.training.objectives import resolve_objective

        frames = dict(settings).get("model.frames", config["model"].get("frames"))
        exact = frames not in (None, "none")  # made so by averaging: nothing to be taught
        name = "standard" if exact else resolve_objective("auto", config["model"]["name"])
        groups["objective"] = name
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
    check_config(config)
    return config


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
    for part in ("train", "val", "test"):
        config["data"][part] = _shipped(config["data"][part])
    for source in config["data"]["sources"] or []:
        source["path"] = _shipped(source["path"])
    config["model"].setdefault("frames", "none")  # an option of every architecture
    return config


def _shipped(value: Any) -> Any:
    """Find a file that conf/ names, wherever the program runs; overrides never come here."""
    if not isinstance(value, str) or Path(value).exists() or Path(value).parts[:1] != ("data",):
        return value
    there = data_dir().joinpath(*Path(value).parts[1:])
    return str(there) if there.exists() else value


def _choices() -> dict[str, list[str]]:
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in conf_dir().iterdir()
        if folder.is_dir()
    }


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file, or settings as key=value"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML ({reason}){_data_hint(path)}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected `key: value` lines{_data_hint(path)}")

    for group, choices in _choices().items():  # a resolved config: start from its groups
        table = content.get(group)
        if isinstance(table, Mapping) and table.get("name") in choices:
            yield group, table["name"]

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and prefix not in OPEN:
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value if prefix in TEXT else _number(value)

    yield from walk("", content)


def _data_hint(path: Path) -> str:
    return "" if path.suffix in (".yaml", ".yml") else f"; to train on it: data.train={path}"


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
    words = {"true": True, "false": False, "null": None, "": None}
    if text.lower() in words:
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
