"""Processes that read for a command end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import sys, time
from mlip.data.processes import workers

if __name__ == "__main__":
    with workers(2, "somebody was killed") as pool:
        if sys.argv[1] == "starting":
            pool.submit(time.sleep, 60)
            print("working", flush=True)
        for _ in pool.in_turn(time.sleep, [(1,), (1,), *[(60,)] * 9], ahead=4):
            print("working", flush=True)
"""


@pytest.mark.parametrize("when", ["starting", "at work"])
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["terminal", "parent alone"])
def test_an_interrupt_ends_them_at_once(tmp_path, send, when):
    """However many items wait, and though each takes a minute."""
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    process = subprocess.Popen(
        [sys.executable, str(script), when],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    time.sleep(1 if when == "at work" else 0.2)  # both are at their second item, or importing
    begun = time.monotonic()
    send(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=40)
    assert time.monotonic() - begun < 20
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert "somebody was killed" not in error
    assert error.count("Traceback") == 1, "workers have nothing to say"
