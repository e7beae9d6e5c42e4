"""Checks of hyper-parameters that architectures have in common, with one wording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlip.errors import ConfigError

MAX_DEGREE = 4  # of features; harmonics and couplings are tested up to it


def check_word(option: str, value: object, words: Iterable[object]) -> None:
    """Require one of some words.

    Raises:
        ConfigError: `value` is none of them.
    """
    known = tuple(words)
    if value not in known:
        shown = ", ".join(str(word).lower() for word in known)  # as YAML writes true and false
        raise ConfigError(f"model.{option}={value!r} must be one of {shown}")


def check_at_least(minimum: int, **options: int | Sequence[int]) -> None:
    """Require a smallest value of numbers, and of every number of lists.

    Raises:
        ConfigError: one is smaller.
    """
    for option, value in options.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if any(number < minimum for number in numbers):
            shown = list(value) if isinstance(value, Sequence) else value
            raise ConfigError(f"model.{option}={shown} must be at least {minimum}")


def check_degrees(channels: Sequence[int]) -> None:
    """Require numbers of channels, one or more each, of degrees 0, 1, ..., L ≤ `MAX_DEGREE`.

    Raises:
        ConfigError: there are too few or too many degrees, or one has no channel.
    """
    if not 2 <= len(channels) <= MAX_DEGREE + 1:
        raise ConfigError(
            f"model.channels={list(channels)} must list 2 to {MAX_DEGREE + 1} numbers: channels of "
            "degree 0, 1, ..."
        )
    check_at_least(1, channels=channels)
