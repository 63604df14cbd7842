"""Batch size that fits in memory: what one image keeps for its derivatives, against the free memory."""

import os

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lipcomp.jacobian._frozen import frozen
from lipcomp.jacobian._products import FIRST, Map, named_error

SHARE = 0.25  # of the free memory
LARGEST = 64
FEW = 8  # images that fit anyhow


def fitting_batch_size(fn: Map, images: Float[Tensor, "n ..."], largest: int = LARGEST) -> int:
    """The batch size whose recorded graphs fit into a quarter of the free memory, at most ``largest``."""
    return min(largest, len(images), _fitting(fn, images))


def chosen_batch_size(given: int | None, fn: Map, images: Float[Tensor, "n ..."]) -> int:
    """The batch size that was given, checked, or one that fits."""
    if given is None:
        return fitting_batch_size(fn, images)
    if given < 1:
        raise ValueError(f"batch_size must be at least 1, got {given}")
    return int(given)


def _fitting(fn: Map, images: Tensor) -> int:
    one = _kept(fn, images[:1])
    # What a second image adds; without it weights, which all images share, count as if each image kept them.
    twice = images[:1].repeat(2, *[1] * (images.dim() - 1))
    each = max(1, _kept(fn, twice) - one) if len(images) > FEW else one
    shared = max(0, one - each)
    vectors = 64 * images[0].numel() * images.element_size()  # the Krylov space
    needed = 3 * each + vectors  # two graphs, temporaries
    return max(1, int((SHARE * free_bytes(images.device) - 3 * shared) / max(needed, 1)))


def _kept(fn: Map, images: Tensor) -> int:
    """Bytes that a recorded graph of these images keeps."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    probe = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), frozen(), saved_tensors_hooks(pack, lambda tensor: tensor):
            fn(probe * 1)  # a copy: fn may write into what it gets
    except RuntimeError as error:
        if "saved tensor hooks" in str(error):
            # fn takes derivatives itself, by torch.func: one image at a time.
            return free_bytes(images.device)
        raise named_error(error, FIRST) from error
    return kept


def forward_batch_size(fn: Map, images: Float[Tensor, "n ..."], largest: int = 256) -> int:
    """The batch size for passes that keep no graph: four times that with graphs."""
    return min(largest, 4 * _fitting(fn, images))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, for the CPU what the system could still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 2 << 30
