"""Every error `mlip` raises on purpose; catch `MLIPError` to catch them all.

    MLIPError (a ValueError)
    ├── DataError            a structure, a label or a data file cannot be used as it is
    │   └── CorruptDataError a file is truncated or damaged
    ├── ConfigError          an option is misspelt, missing or contradicts another one
    ├── PotentialFileError   a potential file cannot be read by this version
    ├── CheckpointError      a training checkpoint cannot be resumed
    └── TrainingError        training cannot go on (non-finite steps, full disk)

A message says what is wrong with the values, where, what was expected and what to do. The command
line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class MLIPError(ValueError):
    """The input is wrong, and the message says what to change."""

    exit_code = 1


class DataError(MLIPError):
    """A structure or a label cannot be used as it is."""


class CorruptDataError(DataError):
    """A data file is truncated or damaged."""


class ConfigError(MLIPError):
    """An option is misspelt, missing, or contradicts another one."""

    exit_code = 2


class PotentialFileError(MLIPError):
    """A potential file cannot be read by this version."""


class CheckpointError(MLIPError):
    """A training checkpoint cannot be resumed."""


class TrainingError(MLIPError):
    """Training cannot go on."""
