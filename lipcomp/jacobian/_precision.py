"""Numbers that keep their digits: no TF32 or bfloat16 inside float32 products, no square that under- or overflows.

CUDA convolutions use TF32 unless told otherwise, three digits, and users allow it (or bfloat16, on the CPU) for matrix
products by :func:`torch.set_float32_matmul_precision`. A spectral norm to 1e-4 needs the other digits.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_SETTINGS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")


class ProcessWide:
    """A context of settings that the process shares: the first thread in makes them, the last one out undoes them.

    Without the count, a thread that enters second takes the first one's settings for the user's and restores those.
    """

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context, self._lock, self._inside, self._stack = context, threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Enter, and leave."""
        with self._lock:
            if not self._inside:
                self._stack.enter_context(self._context())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._stack.close()


@contextmanager
def _exact() -> Iterator[None]:
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in _settings()]
    try:
        for holder, name, exact in _settings():
            setattr(holder, name, exact)
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


full_precision = ProcessWide(_exact)
"""Float32 products in float32; the settings are as they were afterwards."""


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
