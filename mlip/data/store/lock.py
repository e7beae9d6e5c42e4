"""One process at a time, also over hosts, and who it is."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from mlip.errors import DataError

log = logging.getLogger("mlip")
PATIENCE: Final = 10.0  # seconds between two looks at who holds the lock


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the duration of the block.

    The operating system frees it when its holder ends, however that happens. Where a file system
    does not (some network ones), the holder that is gone is named.

    Args:
        path: of the lock file.
        what: it protects, for messages.

    Raises:
        DataError: the lock is held by a process of this host that no longer exists, or cannot be
            made.
    """
    lock = FileLock(path)
    owner = path.with_name(f"{path.name}.owner")
    waited = False
    while True:
        try:
            lock.acquire(timeout=PATIENCE if waited else 0.0)
            break
        except Timeout:
            _report(path, owner, what, first=not waited)
            waited = True
        except OSError as error:
            raise DataError(f"{path}: cannot be locked ({error}); choose another folder") from error
    try:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        owner.write_text(json.dumps(about))
        yield
    finally:
        with suppress(FileNotFoundError):
            owner.unlink()
        lock.release()


def _report(path: Path, owner: Path, what: str, *, first: bool) -> None:
    """Say who is being waited for; complain if that process is gone."""
    try:
        about = json.loads(owner.read_text())
    except (OSError, ValueError):  # it is just beginning or ending
        return
    who = f"process {about['pid']} on {about['host']}"
    if about["host"] == socket.gethostname() and not Path(f"/proc/{about['pid']}").exists():
        if Path("/proc").exists():
            raise DataError(
                f"{what} is locked by {who}, which no longer exists; remove {path} and try again"
            )
        return
    if first:
        minutes = (time.time() - about["since"]) / 60
        log.info("waiting for %s, which has been building %s for %.0f min", who, what, minutes)
