"""What labels a data set has, and the refusal to train on ones it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mlip.data.readers import describe_keys
from mlip.data.sources import AnyStore
from mlip.errors import DataError

LABELS = ("energy", "forces", "stress", "magmoms")


@dataclass(frozen=True)
class Coverage:
    """How many structures of each part carry each label."""

    counts: dict[str, dict[str, int]]  # part -> label -> structures
    sizes: dict[str, int]  # part -> structures

    def lines(self) -> list[str]:
        """Return the table, one line per label."""
        parts = [p for p, n in self.sizes.items() if n]
        out = ["label     " + "".join(f"{p}({self.sizes[p]})".ljust(18) for p in parts)]
        for label in LABELS:
            cells = [
                f"{self.counts[p][label]} ({self.counts[p][label] / self.sizes[p]:.0%})".ljust(18)
                for p in parts
            ]
            out.append(label.ljust(10) + "".join(cells))
        return out


def coverage(parts: Mapping[str, tuple[AnyStore, np.ndarray]]) -> Coverage:
    """Count labels in each part."""
    counts = {}
    for part, (store, indices) in parts.items():
        counts[part] = {
            "energy": int(np.isfinite(store.column("energy")[indices]).sum()),
            "stress": int(np.isfinite(store.column("stress")[indices, 0, 0]).sum()),
            "forces": int(store.summary("has_forces", indices).sum()),
            "magmoms": int(store.summary("has_magmoms", indices).sum()),
        }
    return Coverage(counts, {part: len(i) for part, (_, i) in parts.items()})


def require_labels(
    found: Coverage,
    labels: Iterable[str],
    parts: Mapping[str, tuple[AnyStore, np.ndarray]],
    format: str = "auto",
) -> None:
    """Refuse to train on a label that no structure has.

    Args:
        found: what the parts have.
        labels: what they need.
        parts: the stores, for the names of their files.
        format: of the files.

    Raises:
        DataError: names the label, the file and the keys that the file does have.
    """
    for part in ("train", "val"):
        if not found.sizes.get(part):
            continue
        for label in labels:
            if found.counts[part][label] == 0:
                source = parts[part][0].sources[0]
                raise DataError(
                    f"no {label} found in the {found.sizes[part]} {part} structures ({source}); "
                    f"its frames have {describe_keys(source, format)}; set data.keys.{label}=NAME, "
                    f"or loss.{label}_weight=0 to train without"
                )
