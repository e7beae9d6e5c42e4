"""The published parameter count, derived by arithmetic, and ours from it by named differences."""

from __future__ import annotations

from itertools import product

import pytest

from mlip.errors import ConfigError
from mlip.models.facet import Facet
from mlip.models.harmonics import even_paths

CHANNELS = (128, 32, 16, 8)
DEGREES = range(4)


def triangles(degrees_in, degrees_out):
    return [
        (a, b, c)
        for a, b, c in product(degrees_in, DEGREES, degrees_out)
        if abs(a - b) <= c <= a + b
    ]


def convolution(paths, outputs, num_basis=8):
    """Linear radial weights, and the mix of what each degree gathers."""
    width = sum(CHANNELS[a] for a, _, _ in paths)
    mix = sum(CHANNELS[a] * CHANNELS[c] for a, _, c in paths if c < outputs)
    return num_basis * width + mix


def layers(paths):
    """Convolutions, residuals and norms of scalars -> all -> all -> scalars."""
    shapes = [([0], 4), (DEGREES, 4), (DEGREES, 1)]
    total = 0
    for degrees_in, outputs in shapes:
        total += convolution(paths(degrees_in, range(outputs)), outputs)
        total += sum(CHANNELS[d] ** 2 for d in degrees_in if d < outputs)  # residual
        total += sum(CHANNELS[:outputs])  # scale of the norm
    return total


def up(width=32):
    return sum(c * width for c in CHANNELS)


def down(width=32):
    return (width + CHANNELS[0]) * CHANNELS[0] + sum(width * c for c in CHANNELS[1:])


def test_published_facet_small_has_270_383_parameters():
    """Facet-Small, arXiv:2509.08418 and its `enb183` configuration."""
    species, readout = 90 * CHANNELS[0], CHANNELS[0]
    basis = 8 + 1  # trainable frequencies and cutoff
    grid = up() + 2 * 16 * 16 + down()  # MLP 16 -> 16 -> 16 of two heads that share it
    scalar_mlp = 3 * CHANNELS[0] ** 2
    rescale = 2 * 90 + 2  # scale and shift per species, and of all
    total = species + basis + layers(triangles) + 2 * grid + scalar_mlp + readout + rescale
    assert total == 270_383


def test_ours_differs_by_what_we_say():
    model = Facet(cutoff=5.0, species=range(1, 90), avg_num_neighbors=35.0, channels=CHANNELS)

    def even(degrees_in, degrees_out):
        return even_paths(tuple(degrees_in), 3, tuple(degrees_out))

    scalars, width = CHANNELS[0], 32
    species, readout = 89 * scalars, scalars  # no padding row; no basis or rescale parameters
    gates = (scalars + 1) * (scalars + width)  # product grid: SiLU of scalars, and their gate
    grid = 2 * up() + gates + down()
    scalar_mlp = 3 * (scalars + 1) * scalars  # with biases
    total = species + layers(even) + 2 * grid + scalar_mlp + readout
    assert sum(p.numel() for p in model.parameters()) == total
    assert layers(even) < layers(triangles), "parity leaves fewer paths"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radial": "spline"}, r"model\.radial='spline' must be one of bessel, bspline"),
        ({"grid_act": "relu"}, r"model\.grid_act='relu' must be one of product, silu"),
        ({"channels": (8,)}, r"model\.channels=\[8\] must list 2 to 5 numbers"),
        ({"channels": (8, 0)}, r"model\.channels=\[8, 0\] must be at least 1"),
        ({"num_layers": 0}, r"model\.num_layers=0 must be at least 1"),
        ({"num_basis": 0}, r"model\.num_basis=0 must be at least 1"),
        ({"num_basis": 1, "radial": "bspline"}, r"model\.num_basis=1 must be at least 2"),
        ({"grid_channels": 0}, r"model\.grid_channels=0 must be at least 1"),
        ({"grid_channels": 5, "grid_act": "silu"}, r"grid_channels=5 must be a multiple of 2"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Facet(cutoff=4.0, species=(1, 6), avg_num_neighbors=20.0, **options)
