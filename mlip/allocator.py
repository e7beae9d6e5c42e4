"""Keep freed memory: on Linux, large temporaries otherwise cost a page fault per 4 kB every step.

glibc gives blocks above a threshold back to the kernel at once, and the next step asks for them
again. Whoever owns a process may tell the allocator to keep them: commands do, and a script may
call this. A library may not, so it is not done on import. The peak of memory is the same.
"""

from __future__ import annotations

import ctypes
import os
import sys

SETTINGS = (  # the variable that says the same to a process that begins, <malloc.h>, bytes
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),
    ("MALLOC_TOP_PAD_", -2, 2**28),
    ("MALLOC_MMAP_THRESHOLD_", -3, 2**30),
)
VARIABLES = {variable: str(size) for variable, _, size in SETTINGS}


def keep_freed_memory() -> bool:
    """Tell the allocator of this process to keep freed memory for the next step.

    Does nothing where the C library is not glibc, or where the user has set `MALLOC_*` variables.
    What calls on thousands of atoms gain by it: `data/results/peers.json`, `peers-memory.json`.

    Returns:
        Whether the settings were taken.
    """
    if not sys.platform.startswith("linux") or any(k.startswith("MALLOC_") for k in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(number, size) == 1 for _, number, size in SETTINGS)
