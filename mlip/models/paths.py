"""Which products of features and harmonics a convolution makes, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

Path = tuple[int, int, int]  # degrees of the neighbour's features, the harmonics, the message


@dataclass(frozen=True)
class Paths:
    """Products of the inputs with harmonics, each with a radial weight for every channel.

    The messages of one output lie beside one another in the order they are listed, and so do their
    radial weights among all weights.
    """

    inputs: tuple[tuple[int, int], ...]  # (channels, degree) of the features
    outputs: tuple[int, ...]  # degrees of the outputs
    products: tuple[tuple[int, Path, int], ...]  # (input, degrees, output), in order of the weights

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of radial weights of each product."""
        return tuple(self.inputs[i][0] for i, _, _ in self.products)

    @cached_property
    def gathered(self) -> tuple[int, ...]:
        """Number of channels of each output."""
        pairs = list(zip(self.products, self.widths, strict=True))
        return tuple(
            sum(width for (_, _, o), width in pairs if o == output)
            for output in range(len(self.outputs))
        )

    def unpack(self, features: Tensor) -> list[Tensor]:
        """Split (N, Σ(2l+1)C) into the inputs, (N, 2l+1, C) each."""
        shapes = [(2 * degree + 1, channels) for channels, degree in self.inputs]
        parts = features.split([d * c for d, c in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
