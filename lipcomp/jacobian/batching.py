"""How many images fit at a time: what one image keeps for its derivatives, against the memory that is free."""

import os

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lipcomp.jacobian.frozen import frozen
from lipcomp.jacobian.products import Map

SHARE = 0.25  # of the free memory
LARGEST = 64


def fitting_batch_size(fn: Map, images: Float[Tensor, "n ..."], largest: int = LARGEST) -> int:
    """Images at a time whose recorded graphs fit into a quarter of the free memory, at most ``largest``."""
    return min(largest, len(images), _fitting(fn, images))


def _fitting(fn: Map, images: Tensor) -> int:
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    one = images[:1].detach().clone().requires_grad_()
    with torch.enable_grad(), frozen(), saved_tensors_hooks(pack, lambda tensor: tensor):
        fn(one)
    needed = 3 * kept + 64 * one.numel() * one.element_size()  # two graphs, temporaries; the Krylov vectors
    return max(1, int(SHARE * free_bytes(images.device) / max(needed, 1)))


def forward_batch_size(fn: Map, images: Float[Tensor, "n ..."], largest: int = 256) -> int:
    """Images at a time for passes that keep no graph: four times what fits with graphs."""
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
