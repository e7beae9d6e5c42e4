"""What the machine is that something was measured on: ratios, too, depend on its processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def machine() -> dict[str, str | int | None]:
    """Return the name of the processor, the number of cores and the system."""
    return {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
