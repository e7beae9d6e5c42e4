"""The precision that float32 matrices are multiplied in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Multiply float32 matrices in a precision, and as before afterwards: it is the process's.

    Args:
        precision: highest; high (TF32 where there is); medium (bfloat16 where there is).
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
