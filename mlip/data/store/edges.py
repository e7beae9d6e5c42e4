"""How many edges each structure has at a cutoff: counted once, kept beside the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from mlip.atomic import atomic_write
from mlip.data.progress import counted
from mlip.neighbors import neighbor_list

if TYPE_CHECKING:
    from mlip.data.store.reader import Store

log = logging.getLogger("mlip")


def edge_counts(store: Store, cutoff: float) -> np.ndarray:
    """Return the edges of every structure, (structures,) int32.

    The first call for a cutoff (Å) finds all neighbours and keeps the counts in the store's folder,
    if that can be written; the store itself knows of no cutoff.
    """
    path = store.folder / f"edges-{cutoff:g}-{store.manifest['blake2b'][:12]}.bin"
    if path.exists() and path.stat().st_size == 4 * len(store):
        return np.fromfile(path, "<i4")
    out = np.empty(len(store), dtype="<i4")
    for k in counted(range(len(store)), f"edges within {cutoff:g} A", "structures"):
        s = store.arrays(k)
        out[k] = neighbor_list(s["positions"], s["cell"][0], s["pbc"][0], cutoff)[0].shape[1]
    try:
        with atomic_write(path) as temporary:
            out.tofile(temporary)
    except OSError as error:
        log.warning("%s cannot be written (%s): edges are counted again next time", path, error)
    return out
