"""Muon: updates of weight matrices whose directions all have one size.

`torch.optim.Muon` takes one matrix at a time, in bfloat16. A potential has dozens, most of them
small: here small ones of one shape, or one side, are multiplied together in the precision they are
trained in, and wide ones as their squares. `scripts/benchmark_optimizer.py` times both.

Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024),
kellerjordan.github.io/posts/muon; learning rates as in Liu et al., "Muon is scalable for LLM
training", arXiv:2502.16982.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mlip.training.products import float32_products

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, five times
STEPS = 5
EPS = 1e-7
RMS = 0.2  # of an update at a learning rate of one, as AdamW's are (Liu et al., section 2.2)
LARGE = 256  # shorter side beyond which bfloat16 is worth its conversions


class Muon(Optimizer):
    """Nesterov's momentum, orthogonalised; weight decay apart from the gradient.

    Its state is that of `torch.optim.Muon`.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step for every matrix that has a gradient; `Paired` is what takes closures."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                self._step(trained, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients: list[Tensor] = [p.grad for p in matrices]  # type: ignore[misc]
        means = [self.state[p]["momentum_buffer"] for p in matrices]
        torch._foreach_lerp_(means, gradients, 1.0 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)
        torch._foreach_mul_(matrices, 1.0 - lr * group["weight_decay"])
        for matrix, update in zip(matrices, orthogonalised(ahead), strict=True):
            matrix.add_(update, alpha=-lr * RMS * math.sqrt(max(matrix.shape)))


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return U Vᵀ, roughly, of every matrix U S Vᵀ.

    Five steps of Newton and Schulz with coefficients that raise small singular values fast and
    leave all that are not tiny between about 0.7 and 1.2. Large matrices of float32 are multiplied
    in bfloat16, one way on any device; others in their own precision whatever training multiplies
    in, as rounding to fewer digits grows where squares are taken.
    """
    with float32_products("highest"):
        return _orthogonalised(matrices)


def _orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    wide = [x.T if x.shape[0] > x.shape[1] else x for x in matrices]
    wide = [x / torch.linalg.matrix_norm(x).clamp(min=EPS) for x in wide]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, x in enumerate(wide):
        rows, columns = x.shape
        if rows > LARGE and x.dtype == torch.float32:
            wide[k] = _by_matrices(x.bfloat16()).to(x.dtype)
        else:
            alike[rows, columns if columns < 2 * rows else 0].append(k)
    for (_, columns), places in alike.items():
        some = [wide[k] for k in places]
        done = _by_matrices(torch.stack(some)) if columns else _by_squares(some)
        for k, x in zip(places, done, strict=True):
            wide[k] = x
    return [
        x.T if given.shape[0] > given.shape[1] else x
        for given, x in zip(matrices, wide, strict=True)
    ]


def _by_matrices(x: Tensor) -> Tensor:
    """Replace x by p(x xᵀ) x five times."""
    for _ in range(STEPS):
        x = _polynomial(x @ x.mT) @ x
    return x


def _by_squares(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The same in terms of g = x xᵀ, which commutes with p(g): much less to do where x is wide.

    Matrices need only have the same number of rows.
    """
    g = torch.stack([x @ x.mT for x in matrices])
    product = p = _polynomial(g)
    for _ in range(STEPS - 1):
        g = p @ g @ p
        p = _polynomial(g)
        product = p @ product
    return [a @ x for a, x in zip(product, matrices, strict=True)]


def _polynomial(g: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    out = (g @ g).mul_(c).add_(g, alpha=b)
    out.diagonal(dim1=-2, dim2=-1).add_(a)
    return out
