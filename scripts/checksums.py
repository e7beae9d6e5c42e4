"""`SHA256SUMS` of a folder of data, which `sha256sum --check` reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write the sums of all files of `folder` beside them."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != NAME)
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / NAME).write_text("".join(lines))
