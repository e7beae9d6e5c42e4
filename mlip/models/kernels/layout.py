"""Where the numbers of a layer lie: what the generated kernels have in common.

Features of an atom and the weights of an edge lie beside one another; each output (N, 2l+1, ΣC)
begins where the one before it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mlip.models.paths import Path, Paths

Coupling = Callable[[Path, torch.dtype, torch.device], Tensor]  # (2l2+1, (2l3+1)(2l1+1))


@dataclass(frozen=True)
class Product:
    """One product of a layer: features of degree l1 with harmonics of l2 to messages of l3."""

    input: int
    path: Path
    channels: int
    at_feature: int  # in the features of an atom
    at_harmonic: int
    at_weight: int  # in the radial weights of an edge
    at_output: int  # numbers of an atom in the outputs before this one
    column: int  # in the channels of its output
    stride: int  # channels of its output

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Components of features, harmonics and messages."""
        l1, l2, l3 = self.path
        return 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1


def products(paths: Paths) -> list[Product]:
    """Say where each product reads and writes."""
    at_feature = offsets([(2 * degree + 1) * c for c, degree in paths.inputs])
    at_output = offsets(output_sizes(paths))
    at_weight = offsets(paths.widths)
    column = [0] * len(paths.outputs)
    out = []
    for k, (i, path, o) in enumerate(paths.products):
        out.append(
            Product(
                input=i,
                path=path,
                channels=paths.widths[k],
                at_feature=at_feature[i],
                at_harmonic=path[1] ** 2,
                at_weight=at_weight[k],
                at_output=at_output[o],
                column=column[o],
                stride=paths.gathered[o],
            )
        )
        column[o] += paths.widths[k]
    return out


def feature_size(paths: Paths) -> int:
    """Numbers of the features of an atom."""
    return sum((2 * degree + 1) * channels for channels, degree in paths.inputs)


def output_sizes(paths: Paths) -> list[int]:
    """Numbers of each output of an atom."""
    return [(2 * d + 1) * g for d, g in zip(paths.outputs, paths.gathered, strict=True)]


def split_outputs(paths: Paths, out: Tensor, n: int) -> list[Tensor]:
    """View the outputs of N atoms, written behind one another, as (N, 2l+1, ΣC) each."""
    shapes = [(n, 2 * d + 1, g) for d, g in zip(paths.outputs, paths.gathered, strict=True)]
    parts = out.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where ranges of these sizes begin, and where the last one ends."""
    return [0, *accumulate(sizes)]
