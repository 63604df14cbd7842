"""Weather: fog, spatter."""

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.robustness.corruptions.draws import Draws
from lipcomp.robustness.corruptions.filters import Images, gaussian

MUD = (63 / 255, 42 / 255, 20 / 255)


def fog(images: Images, draws: Draws, density: float, decay: float, map_size: int | None = None) -> Images:
    """A fractal cloud of weight ``density`` over the image, dimmed so that the brightest pixel keeps its place."""
    height, width = images.shape[-2:]
    side = map_size or 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(draws, len(images), side, decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * cloud) * brightest / (brightest + density)


def plasma(draws: Draws, n: int, side: int, decay: float) -> Float[Tensor, "n side side"]:
    """Diamond-square heights on a torus, each map scaled to [0, 1]; ``side`` is a power of two."""
    heights = torch.zeros(n, side, side, device=draws.device)
    step, wibble = side, 100.0

    def wobble(total: Tensor) -> Tensor:
        noise = draws.uniform(*total.shape[1:], low=-wibble, high=wibble)
        return torch.add(total / 4, noise, alpha=wibble)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        square = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = centres = wobble(square + square.roll(-1, 2))
        heights[:, ::step, half::step] = wobble(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        heights[:, half::step, ::step] = wobble(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = half, wibble / decay
    low = heights.amin((1, 2), keepdim=True)
    return (heights - low) / (heights.amax((1, 2), keepdim=True) - low)


def spatter(
    images: Images, draws: Draws, mean: float, spread: float, size: float, threshold: float, blur: float
) -> Images:
    """Drops of mud where smoothed noise exceeds a threshold."""
    _, channels, height, width = images.shape
    noise = draws.normal(height, width) * spread + mean
    drops = (gaussian(noise[:, None], size) > threshold).to(images.dtype)
    drops = gaussian(drops, blur)
    drops = torch.where(drops < 0.8, 0.0, drops)
    colour = torch.tensor(MUD if channels == 3 else MUD[:1], device=images.device).view(-1, 1, 1)
    return images * (1 - drops) + colour * drops
