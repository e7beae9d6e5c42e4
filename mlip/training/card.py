"""What a potential file says about its training: on what, with what, at what cost."""

from __future__ import annotations

import csv
import hashlib
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from mlip.data.prepare import PreparedData
from mlip.data.sources import READER_OPTIONS, AnyStore
from mlip.training.config import Config

RECIPE = ("seed", "objective", "loss", "optimizer", "scheduler", "ema")
READING = ("format", "keys", *READER_OPTIONS)


def training_card(config: Config, data: PreparedData) -> dict[str, Any]:
    """Return plain values for the `training` section of a potential file.

    `parts` names the sources of each part, the hash of what was read from them (of the content
    and not of the files: the same data in another format is the same data), and a hash of which of
    its structures are in the part.
    """
    stats = data.stats
    return {
        "sources": data.parts["train"][0].sources,
        "elements": [chemical_symbols[z] for z in stats.species],
        "structures": stats.num_structures,
        "atoms": stats.num_atoms,
        "label_coverage": data.coverage.counts,
        "label_ranges": _ranges(*data.parts["train"]),
        "charge_range": stats.charge_range,
        "spin_range": stats.spin_range,
        "force_scale": stats.force_scale,
        "parts": {
            part: {
                "structures": len(indices),
                "sources": store.sources,
                "hash": store.manifest["blake2b"],
                "rows": hashlib.blake2b(
                    np.sort(indices).astype("<i8").tobytes(), digest_size=16
                ).hexdigest(),
            }
            for part, (store, indices) in data.parts.items()
            if len(indices)
        },
        "reading": {key: config["data"].get(key) for key in READING},
        **_several(data),
        "recipe": {key: config[key] for key in RECIPE},
    }


def _several(data: PreparedData) -> dict[str, Any]:
    """Say what each head was trained on, and what was left out; nothing for one whole source."""
    out: dict[str, Any] = {}
    if len(data.sources) > 1:
        out["by_source"] = {
            source.name: {
                "head": source.head,
                "sampling": source.sampling,
                "weight": source.weight,
                "format": source.format,
                "reading": dict(source.reading),
                "structures": {
                    part: sum(len(rows) for pool, rows in pieces if pool.number == number)
                    for part, pieces in data.chosen.items()
                },
            }
            for number, source in enumerate(data.sources)
        }
    if data.stats.dropped:
        out["dropped"] = data.stats.dropped
    return out


def training_cost(metrics: Path, seconds: float) -> dict[str, Any]:
    """Return plain values for the `training_cost` section; call it when training has ended.

    `atoms_per_s` is the median over epochs, validation included. `peak_memory_bytes` is what torch
    allocated at most on an accelerator, else the most that the whole process ever held, libraries
    included (half a gigabyte before anything is trained); None where the system does not tell.

    Args:
        metrics: metrics.csv of the run.
        seconds: wall time of this session.
    """
    cuda = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    rates: list[float] = []
    if metrics.exists():
        with metrics.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        rates = [float(r["data/atoms_per_s"]) for r in rows if r.get("data/atoms_per_s")]
    return {
        "seconds": seconds,
        "atoms_per_s": statistics.median(rates) if rates else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else _peak_resident(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
    }


def _peak_resident() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kB elsewhere


def _ranges(store: AnyStore, indices: np.ndarray) -> dict[str, list[float]]:
    """Smallest and largest energy per atom (eV), force and stress component (eV/Å, eV/Å³)."""
    limits: dict[str, list[float]] = {}

    def widen(name: str, values: np.ndarray) -> None:
        known = values[np.isfinite(values)]
        if known.size:
            low, high = limits.get(name, [np.inf, -np.inf])
            limits[name] = [min(low, float(known.min())), max(high, float(known.max()))]

    widen("energy_per_atom", store.column("energy")[indices] / store.num_atoms[indices])
    widen("stress", store.column("stress")[indices])
    for extreme in ("force_min", "force_max"):
        widen("forces", store.summary(extreme, indices))
    return limits
