"""Our data as a torch-geometric `Dataset`, for its loaders, transforms and samplers.

The trainer does not use it: it collates straight from the store.
"""

from __future__ import annotations

import numpy as np
from torch_geometric.data import Data, Dataset

from mlip.data.batching import collate_indices
from mlip.data.store import Store


class GraphDataset(Dataset):
    """Structures of a store as `Data` objects with the fields of `mlip.graph.SCHEMA`."""

    def __init__(self, store: Store, cutoff: float, indices: np.ndarray | None = None) -> None:
        super().__init__()
        self.store, self.cutoff = store, cutoff
        self.rows = np.arange(len(store)) if indices is None else indices

    def len(self) -> int:
        """Number of structures."""
        return len(self.rows)

    def get(self, idx: int) -> Data:
        """Build one graph."""
        data = collate_indices(self.store, self.rows[idx : idx + 1], self.cutoff).to_pyg()
        for name in ("batch", "ptr"):  # torch-geometric makes its own when it collates
            del data[name]
        return data
