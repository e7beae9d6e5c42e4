"""Layers of every kind with random inputs, and the sum over neighbours as it is defined."""

from __future__ import annotations

import torch

from mlip.models.facet import _coupling
from mlip.models.geometry import Geometry
from mlip.models.harmonics import even_paths
from mlip.models.paths import Paths

DEGREES = (0, 1, 2, 3)


def paths(channels=(3, 2, 2, 1), outputs=DEGREES) -> Paths:
    inputs = tuple((c, degree) for degree, c in enumerate(channels))
    products = even_paths(tuple(range(len(channels))), 3, outputs)
    return Paths(inputs, outputs, tuple((p[0], p, outputs.index(p[2])) for p in products))


def problem(layer: Paths, num_radial=4, n=5, edges=23, dtype=torch.float64, seed=0):
    """Random tensors; the second atom has no neighbours, another more than a tile of them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    centre = torch.randint(0, n, (edges,), generator=generator).sort().values
    centre[centre == 1] = 2
    counts = torch.bincount(centre, minlength=n)
    assert counts[1] == 0
    assert counts.max() > 4
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    source = torch.randint(0, n, (edges,), generator=generator)
    features = [draw(n, 2 * degree + 1, c) for c, degree in layer.inputs]
    weights = draw(num_radial, sum(layer.widths))
    tensors = [*features, draw(edges, 16), draw(edges, num_radial), weights]
    return first, source, centre, [x.requires_grad_() for x in tensors]


def written_out(layer, first, source, *tensors):
    """The definition: one message for every edge, added to its centre."""
    *features, harmonics, radial, weights = tensors
    n = len(first) - 1
    centre = torch.repeat_interleave(torch.arange(n), first.diff())
    out = [[] for _ in layer.outputs]
    split = (radial @ weights).split(layer.widths, dim=1)
    for (i, (l1, l2, l3), o), w in zip(layer.products, split, strict=True):
        c = _coupling((l1, l2, l3), w.dtype, w.device).view(2 * l2 + 1, 2 * l3 + 1, 2 * l1 + 1)
        y = harmonics[:, l2**2 : (l2 + 1) ** 2]
        message = torch.einsum("bca,eb,ead,ed->ecd", c, y, features[i][source], w)
        out[o].append(message.new_zeros(n, *message.shape[1:]).index_add(0, centre, message))
    return [torch.cat(parts, dim=2) for parts in out]


LAYERS = {
    "first": paths((5,)),
    "middle": paths(),
    "last": paths(outputs=(0,)),
    "one-radial": paths((2, 1)),
    "wide": paths((17, 8, 9, 16)),  # whole vectors of 8 double or 16 single numbers, and rests
}


def geometry(edges, n=3):
    return Geometry(
        atomic_numbers=torch.ones(n, dtype=torch.int64),
        edge_index=torch.tensor(edges),
        edge_vectors=torch.randn(3, 3, dtype=torch.float64),
        edge_lengths=torch.ones(3, dtype=torch.float64),
        batch=torch.zeros(n, dtype=torch.int64),
        num_graphs=1,
        charge=torch.zeros(1, dtype=torch.int64),
        spin=torch.zeros(1, dtype=torch.int64),
        head=torch.zeros(1, dtype=torch.int64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
    )
