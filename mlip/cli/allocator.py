"""Keep freed memory: on Linux, large temporaries otherwise cost a page fault per 4 kB every step.

glibc gives blocks above a threshold back to the kernel at once, and the next step asks for them
again. A command owns its process and may tell the allocator to keep them; a library may not, so
this is not done on import. The peak of memory is the same.
"""

from __future__ import annotations

import ctypes
import os
import sys

# <malloc.h>: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, in bytes
SETTINGS = ((-1, 2**31 - 1), (-2, 2**28), (-3, 2**30))


def keep_freed_memory() -> bool:
    """Set the thresholds; return whether they were taken.

    Does nothing where the C library is not glibc, or where the user has set `MALLOC_*` variables.
    """
    if not sys.platform.startswith("linux") or any(k.startswith("MALLOC_") for k in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in SETTINGS)
