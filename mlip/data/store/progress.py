"""A bar on the terminal for a conversion: bytes done, frames and their rate; nothing elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich import progress
from rich.console import Console


class Progress:
    """Counts the frames and bytes of a conversion."""

    def __init__(self, name: str, size: int) -> None:
        """Name what is made, and of how many bytes."""
        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=size, note="")
        self._count, self._start = 0, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def frames(self, n: int) -> None:
        """Count `n` frames more."""
        self._count += n
        rate = self._count / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, note=f"{self._count:,} frames, {rate:,.0f}/s")

    def bytes(self, n: int) -> None:
        """Count `n` bytes more."""
        self._bar.advance(self._task, n)
