"""Processes that read for a command end with it, and not without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import signal, sys, time
from mlip.data.processes import workers

if __name__ == "__main__":
    when, seconds, handler = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    # Whoever started the tests may ignore it, as shells do in the background.
    signal.signal(signal.SIGINT, getattr(signal, handler))
    with workers(2, "somebody was killed") as pool:
        if when == "starting":
            pool.submit(time.sleep, seconds)
            print("working", flush=True)
        for _ in pool.in_turn(time.sleep, [(1,), (1,), *[(seconds,)] * 9], ahead=4):
            print("working", flush=True)
"""


def interrupted(tmp_path, send, when, seconds, handler) -> tuple[int, str, float]:
    """Return code, errors and seconds that it took of a busy process, interrupted at a moment."""
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    with subprocess.Popen(
        [sys.executable, str(script), when, str(seconds), handler],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(1 if when == "at work" else 0.2)  # at their second item, or importing
        begun = time.monotonic()
        send(process.pid, signal.SIGINT)
        try:
            _, error = process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("they go on")
    return process.returncode, error, time.monotonic() - begun


@pytest.mark.parametrize("when", ["starting", "at work"])
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["terminal", "parent alone"])
def test_an_interrupt_ends_them_at_once(tmp_path, send, when):
    """However many items wait, and though each takes a minute."""
    _, error, seconds = interrupted(tmp_path, send, when, 60, "default_int_handler")
    assert seconds < 20
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert "somebody was killed" not in error
    assert error.count("Traceback") == 1, "workers have nothing to say"


@pytest.mark.parametrize("when", ["starting", "at work"])
def test_a_command_in_the_background_goes_on(tmp_path, when):
    """An interrupt that it ignores is for another command of the same shell script."""
    code, error, _ = interrupted(tmp_path, os.killpg, when, 0.5, "SIG_IGN")
    assert (code, error) == (0, "")
