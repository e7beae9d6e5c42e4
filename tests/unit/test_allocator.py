"""The allocator's settings: taken on glibc, and freed memory is really kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from mlip.allocator import VARIABLES

TEMPORARY = """
import os, sys
from mlip import keep_freed_memory
import numpy as np

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
block = np.ones(8_000_000)
assert resident() - before > 60e6
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_memory_of_large_temporaries_stays_for_the_next():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}

    def left(how: str, **more: str) -> int:
        command, env = [sys.executable, "-c", TEMPORARY, how], environment | more
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert left("leave") < 8e6, "nothing is given back here: nothing to test"
    assert left("keep") > 56e6
    assert left("leave", **VARIABLES) > 56e6


def test_settings_of_the_user_win(monkeypatch):
    from mlip.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1048576")
    assert not keep_freed_memory()
