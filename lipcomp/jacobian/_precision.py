"""Numbers that keep their digits: no TF32 or bfloat16 inside float32 products, no square that under- or overflows.

CUDA convolutions use TF32 unless told otherwise, three digits, and users allow it (or bfloat16, on the CPU) for matrix
products by :func:`torch.set_float32_matmul_precision`. A spectral norm to 1e-4 needs the other digits.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


in_float32 = ProcessWide(_float32)
"""Tensors in float32 where nothing else is said, whatever torch.set_default_dtype says: draws depend on it."""


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


_CASTS = {torch.float32: Tensor.float, torch.float16: Tensor.half, torch.bfloat16: Tensor.bfloat16}


class _Float64(TorchFunctionMode):
    """Makes every floating-point tensor that a function takes or gives float64, casts to ``narrow`` types too."""

    def __init__(self, narrow: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.narrow, self.casts = narrow, {_CASTS[dtype]: Tensor.double for dtype in narrow}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        widened: list[Tensor] = []
        args, kwargs = _double((args, kwargs or {}), widened, self.narrow)
        result = _double(self.casts.get(func, func)(*args, **kwargs), [], self.narrow)
        if any(tensor._version for tensor in widened):
            raise RuntimeError("fn writes into a tensor that was made in float32 out of sight")
        return result


def _double(value: Any, widened: list[Tensor], narrow: tuple[torch.dtype, ...]) -> Any:
    """The same in float64; the tensors that had to be made for it are added to ``widened``.

    Pytree is left to what is rare: every operation, and every attribute of a tensor, passes here.
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return kind(_double(each, widened, narrow) for each in value)
    if kind is dict:
        return {name: _double(each, widened, narrow) for name, each in value.items()}
    if isinstance(value, tuple | list | dict):  # with names, of an order
        return tree_map(lambda leaf: _double_one(leaf, widened, narrow), value)
    return _double_one(value, widened, narrow)


def _double_one(value: Any, widened: list[Tensor], narrow: tuple[torch.dtype, ...]) -> Any:
    if not isinstance(value, Tensor):
        return torch.float64 if value in narrow else value
    value = value.detach() if type(value) is not Tensor and isinstance(value, nn.Parameter) else value
    if value.dtype == torch.float64 or not value.is_floating_point():
        return value
    widened.append(value.to(torch.float64))
    return widened[-1]


def doubled(
    fn: Callable[[Tensor], Tensor], images: Tensor, narrow: tuple[torch.dtype, ...] = (torch.float32,)
) -> tuple[Callable[[Tensor], Tensor] | None, Tensor | None]:
    """The same map in float64 and its outputs at some images; None twice if it has no such version.

    Casts to the types in ``narrow`` become casts to float64. A weight that is rounded to another type stays so.
    """

    def wide(batch: Tensor) -> Tensor:
        with _Float64(narrow):
            return fn(batch.double())

    def copied(batch: Tensor) -> Tensor:  # what is scripted or traced is not seen into
        return twin(batch.double())

    with torch.no_grad():
        for found in (wide, copied):
            try:
                if found is copied:
                    if not isinstance(fn, nn.Module):
                        break
                    twin = copy.deepcopy(fn).double()
                outputs = found(images.clone())
            except (RuntimeError, TypeError, ValueError):
                continue
            if outputs.dtype == torch.float64:
                return found, outputs
    return None, None
