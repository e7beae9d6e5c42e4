"""Train machine-learned interatomic potentials and use them from ASE and pymatgen.

>>> from mlip import MLIPCalculator
>>> atoms.calc = MLIPCalculator("potential.safetensors")  # doctest: +SKIP

Importing `mlip` costs nothing: names are resolved on first use, and none of them needs Lightning,
Hydra or wandb except `train`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip.allocator import keep_freed_memory
    from mlip.calculator import MLIPCalculator
    from mlip.cell_filter import CellFilter
    from mlip.errors import MLIPError
    from mlip.graph import AtomGraph
    from mlip.models.potential import Potential, Prediction
    from mlip.potential_file import load_potential
    from mlip.relax import Relaxer
    from mlip.training.run import train

__version__ = "0.1.0"
__all__ = [
    "AtomGraph",
    "CellFilter",
    "MLIPCalculator",
    "MLIPError",
    "Potential",
    "Prediction",
    "Relaxer",
    "keep_freed_memory",
    "load_potential",
    "train",
]
_HOME = {
    "AtomGraph": "mlip.graph",
    "CellFilter": "mlip.cell_filter",
    "MLIPCalculator": "mlip.calculator",
    "MLIPError": "mlip.errors",
    "Potential": "mlip.models.potential",
    "Prediction": "mlip.models.potential",
    "Relaxer": "mlip.relax",
    "keep_freed_memory": "mlip.allocator",
    "load_potential": "mlip.potential_file",
    "train": "mlip.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlip' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
