"""Batch and instance norm whose gradients by autograd are right in every memory layout."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PlainNorms(TorchDispatchMode):
    """Runs batch norm's backward on tensors in the plain layout.

    In others PyTorch's, on the CPU, is wrong without a word: for one image whose features go on as tokens, and for
    instance norm, which is batch norm of one image, in channels-last layout.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.native_batch_norm_backward.default:
            args = (args[0].contiguous(), args[1].contiguous(), *args[2:])
        return func(*args, **(kwargs or {}))
