"""Noise: every pixel on its own.

Shot noise draws Poisson(c x) / c. Its mean depends on the pixel, which has 256 levels, so one table a level inverts
the distribution for all pixels at once: Walker's alias method, one comparison for each number.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import Images, Real


def gaussian_noise(images: Images, draws: Draws, scale: Real) -> Images:
    """Normal noise: x + scale N(0, 1)."""
    return torch.add(images, draws.normal(*images.shape[1:]), alpha=scale)


def speckle_noise(images: Images, draws: Draws, scale: Real) -> Images:
    """Multiplied noise: x + x scale N(0, 1)."""
    return torch.addcmul(images, images, draws.normal(*images.shape[1:]), value=scale)


def impulse_noise(images: Images, draws: Draws, amount: Real) -> Images:
    """A pixel (each channel by itself) becomes 0 or 1 with probability ``amount``, either with the same chance."""
    draw = draws.uniform(*images.shape[1:])
    return torch.where(draw < amount / 2, 1.0, torch.where(draw < amount, 0.0, images))


def shot_noise(images: Images, draws: Draws, photons: Real) -> Images:
    """Poisson(photons x) / photons, with x rounded to its 256 levels."""
    probability, alias = (table.to(images.device) for table in _poisson_tables(photons))
    columns = probability.shape[1]
    draw = draws.uniform(*images.shape[1:]) * columns
    column = draw.long().clamp_(max=columns - 1)
    cell = (images * 255).round_().long().mul_(columns).add_(column)
    kept = draw.sub_(column) < probability.view(-1)[cell]
    return torch.where(kept, column, alias.view(-1)[cell]) / photons


@lru_cache(maxsize=16)
def _poisson_tables(photons: Real) -> tuple[Tensor, Tensor]:
    """Walker's tables for the 256 means photons k / 255: the chance to keep a column, and the count it gives up to."""
    from scipy.stats import poisson  # a second to import, here alone

    columns = int(poisson.isf(1e-9, photons)) + 1
    rates = photons * np.arange(256) / 255
    scaled = np.asarray(poisson.pmf(np.arange(columns), rates[:, None]))
    scaled *= columns / scaled.sum(1, keepdims=True)
    probability, alias = np.ones((256, columns)), np.tile(np.arange(columns), (256, 1))
    for row, weights in enumerate(scaled):
        small = [k for k in range(columns) if weights[k] < 1]
        large = [k for k in range(columns) if weights[k] >= 1]
        while small and large:
            low, high = small.pop(), large[-1]
            probability[row, low], alias[row, low] = weights[low], high
            weights[high] -= 1 - weights[low]
            if weights[high] < 1:
                small.append(large.pop())
    return torch.from_numpy(probability).float(), torch.from_numpy(alias)
