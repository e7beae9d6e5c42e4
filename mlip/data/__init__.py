"""Data: files to structures, structures to a store, a store to batches.

`read_structures` is imported on first use, so that `import mlip.data` stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip.data.readers import read_structures

__all__ = ["read_structures"]


def __getattr__(name: str) -> Any:
    if name == "read_structures":
        from mlip.data.readers import read_structures

        return read_structures
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
