"""Where randomness comes from: a generator for every (seed, stream, step), and the order of the data.

A run has four streams: weights, order, views, noise. None depends on what another took, so two runs of one seed share
what they share whatever else they draw, and a run goes on at any step without a generator's state.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from train.recipe import Recipe


def stream(seed: int, name: str, step: int = 0, device: torch.device | str = "cpu") -> Generator:
    """The generator of one step of one stream of random numbers (weights, order, views, noise)."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def order(images: int, recipe: Recipe, seed: int, first: int = 0) -> Iterator[Tensor]:
    """The indices of every step from ``first`` on: permutations, one an epoch, end to end, cut into batches."""
    epoch, within = divmod(first * recipe.batch_size, images)
    waiting = torch.randperm(images, generator=stream(seed, "order", epoch))[within:]
    while True:
        while len(waiting) < recipe.batch_size:
            epoch += 1
            waiting = torch.cat([waiting, torch.randperm(images, generator=stream(seed, "order", epoch))])
        yield waiting[: recipe.batch_size]
        waiting = waiting[recipe.batch_size :]
