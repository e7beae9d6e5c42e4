"""Decoding without Python's collector of cycles.

A decoder makes thousands of lists and tuples and not one cycle among them, yet the collector visits
them, and all that the process has imported, again and again: three quarters of the time of decoding
MPtrj was that.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Collect no cycles in the block."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()
