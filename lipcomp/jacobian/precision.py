"""Numbers that keep their digits: no TF32 or bfloat16 inside float32 products, no square that under- or overflows.

CUDA convolutions use TF32 unless told otherwise, three digits, and users allow it (or bfloat16, on the CPU) for matrix
products by :func:`torch.set_float32_matmul_precision`. A spectral norm to 1e-4 needs the other digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_SETTINGS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32; the settings are as they were afterwards."""
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in _settings()]
    try:
        for holder, name, exact in _settings():
            setattr(holder, name, exact)
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """Every setting: who holds it, its name, the value for full precision."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
        return [
            (torch.backends.cuda.matmul, "allow_tf32", False),
            (torch.backends.cudnn, "allow_tf32", False),
        ]
    holders = []
    for path in _SETTINGS:
        holder: Any = torch.backends
        for part in path.split("."):
            holder = getattr(holder, part)
        holders.append((holder, "fp32_precision", "ieee"))
    return holders


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two below each number, so that a division by it is exact; one where it is not positive or finite."""
    return torch.exp2(largest.log2().floor()).where(
        largest.isfinite() & (largest > 0), torch.ones_like(largest)
    )
