"""What a potential file says about its training: on what, with what, how far the labels reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.data.prepare import PreparedData
from mlip.data.store import Store
from mlip.training.config import Config

RECIPE = ("seed", "objective", "loss", "optimizer", "scheduler", "ema")
READING = ("format", "energy", "keys", "energy_unit", "force_unit", "stress_unit", "stress_sign")


def training_card(config: Config, data: PreparedData) -> dict[str, Any]:
    """Return plain values for the `training` section of a potential file.

    `parts` names the sources of each part and the hash of what was read from them (of the content
    and not of the files: the same data in another format is the same data).
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
            }
            for part, (store, indices) in data.parts.items()
            if len(indices)
        },
        "reading": {key: config["data"].get(key) for key in READING},
        "recipe": {key: config[key] for key in RECIPE},
    }


def _ranges(store: Store, indices: np.ndarray) -> dict[str, list[float]]:
    """Smallest and largest energy per atom (eV), force and stress component (eV/Å, eV/Å³)."""
    limits: dict[str, list[float]] = {}

    def widen(name: str, values: np.ndarray) -> None:
        known = values[np.isfinite(values)]
        if known.size:
            low, high = limits.get(name, [np.inf, -np.inf])
            limits[name] = [min(low, float(known.min())), max(high, float(known.max()))]

    widen("energy_per_atom", store.column("energy")[indices] / store.num_atoms[indices])
    widen("stress", store.column("stress")[indices])
    for i in indices:
        widen("forces", store.column("forces")[store.atoms_of(int(i))])
    return limits
