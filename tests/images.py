"""What neighbour lists are checked against: a loop over images that nobody can get wrong."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

ALL = np.ones(3, bool)
OPEN = np.zeros(3, bool)
MASKS = list(itertools.product([True, False], repeat=3))


def brute_force(positions, cell, pbc, cutoff):
    """Every (j, i, image) closer than the cutoff, by trying every image that could be.

    Returns the multiset of edges and the smallest | |r| − cutoff |, which tells ties.
    """
    periodic = np.flatnonzero(pbc)
    reach = np.zeros(3, int)
    if len(periodic):
        # |n_k + Δf_k| ≤ r_c |dual vector k|, f being coordinates in units of lattice vectors
        dual = np.linalg.pinv(cell[periodic])
        spread = np.ptp(positions @ dual, axis=0) + cutoff * np.linalg.norm(dual, axis=0)
        reach[periodic] = np.floor(spread).astype(int) + 1
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))))
    shifts = images[:, periodic] @ cell[periodic]
    found, margin = Counter(), np.inf
    for i, j in itertools.product(range(len(positions)), repeat=2):
        d = np.linalg.norm(positions[j] + shifts - positions[i], axis=1)
        margin = min(margin, np.abs(d - cutoff).min())
        for k in np.flatnonzero(d < cutoff):
            if i != j or images[k].any():
                found[(j, i, *images[k].tolist())] += 1
    return found, margin


def multiset(edges, shift):
    return Counter((int(j), int(i), *map(int, n)) for j, i, n in zip(*edges, shift, strict=True))


def random_cell(rng) -> np.ndarray:
    """Angles from 15° to 165°, lengths from 1.5 to 6 Å, either hand."""
    while True:
        cos = np.cos(np.radians(rng.uniform(15, 165, 3)))
        gram = np.array([[1, cos[2], cos[1]], [cos[2], 1, cos[0]], [cos[1], cos[0], 1]])
        if np.linalg.eigvalsh(gram).min() > 0.03:
            break
    cell = np.linalg.cholesky(gram) * rng.uniform(1.5, 6.0, 3)[:, None]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.choice([-1, 1])
    return cell @ turn  # half of them are left-handed
