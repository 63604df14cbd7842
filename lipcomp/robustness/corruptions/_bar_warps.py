"""Warps of ImageNet-C-bar and CIFAR-10-C-bar: refraction, twirls, ripples, rotation, colour fringes.

See :mod:`lipcomp.robustness.corruptions._bar_patterns` for what each takes.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lipcomp.robustness.corruptions._bar_patterns import Pixels, grid, number
from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import Images

OneImage = Callable[[Pixels, Draws, float], Pixels]


def one_by_one(corruption: OneImage) -> Callable[[Images, Draws, float | int], Images]:
    """A corruption of one image in 0..255 as one of a batch in [0, 1]."""

    def apply(images: Images, draws: Draws, level: float | int) -> Images:
        results: list[Tensor] = []
        for image, own in zip(images, draws.split(1), strict=True):
            pixels = (image.permute(1, 2, 0) * 255).round().double().cpu().numpy()
            result = np.clip(corruption(pixels, own, float(level)), 0, 255)
            results.append(torch.from_numpy(result / 255).permute(2, 0, 1))
        return torch.stack(results).to(images)

    return apply


def _read(image: Pixels, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values; zero outside the image."""
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    y = np.clip(rows, -1, image.shape[0]) + 1
    x = np.clip(columns, -1, image.shape[1]) + 1
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[..., None], (x - left)[..., None]
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def caustic_refraction(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Seen through a wavy lens with the light's net on it."""
    y, x, side = grid(image)
    time, size = number(draws, 0.5, 2), number(draws, 0.75, 1.25) * side
    p, q = ((t / size % 1) * 6.28318530718 - 250 for t in (y, x))
    a, b, bright = p, q, np.ones_like(p)
    for k in range(5):
        t = time * (1 - 3.5 / (k + 1))
        a, b = p + np.cos(t - a) + np.sin(t + b), q + np.sin(t - b) + np.cos(t + a)
        bright = bright + 200 / np.hypot(p / np.sin(a + t), q / np.cos(b + t))
    bright = np.clip(np.abs(1.17 - (bright / 5) ** 1.4) ** 8, 0, 1)
    bright = np.pad(ndimage.gaussian_filter(bright, 1), 1)
    down = bright[2:, 1:-1] - bright[:-2, 1:-1]
    right = bright[1:-1, 2:] - bright[1:-1, :-2]
    # Snell's law with an index of 4: the ray (0, 0, 1) on the normal (down, right, 1) / length.
    sine = np.hypot(down, right)
    cosine = 1 / np.hypot(1, sine)
    sine = sine * cosine
    bent = np.arcsin(np.clip(np.sin(np.arccos(cosine)) / 4, -1, 1))
    reach = (np.cos(bent) - np.sin(bent) * cosine / np.maximum(sine, 1e-12)) * cosine
    reach = np.where(cosine >= 1 - 1e-3, 0.0, reach * 0.05 * level * side)
    moved = _read(image / 255, y + np.round(reach * down, 3), x + np.round(reach * right, 3))
    return 255 * np.clip(moved + ((down - right) * 0.2 * level)[..., None], 0, 1)


def pinch_and_twirl(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Circles on a grid are drawn together and turned, each either way."""
    everywhere_y, everywhere_x, side = grid(image)
    count = 5 if side == 224 else 3
    turns = (1 - 2 * draws.integers(0, 2, count, count)[0].numpy()) * level * np.pi / 20
    amount = 0.04 * level + 0.1
    tile = int(side) // count
    radius, image = tile / 2, image.copy()
    for i in range(count):
        for j in range(count):
            rows, columns = slice(j * tile, (j + 1) * tile), slice(i * tile, (i + 1) * tile)
            y, x = everywhere_y[rows, columns], everywhere_x[rows, columns]
            down, right = y - (j * tile + radius), x - (i * tile + radius)
            distance = np.hypot(down, right)
            still = (distance > radius) | (np.round(distance, 3) == 0)
            part = np.where(still, 1.0, distance / radius)
            pull = np.sin(np.pi / 2 * part) ** -amount
            turn = turns[i, j] * (1 - part) ** 2
            towards = pull * (down * np.cos(turn) - right * np.sin(turn))
            aside = pull * (down * np.sin(turn) + right * np.cos(turn))
            rows_read = np.where(still, y, j * tile + radius + towards)
            columns_read = np.where(still, x, i * tile + radius + aside)
            image[rows, columns] = _read(image, rows_read, columns_read)
    return image


def ripple(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Rows and columns sway in sines."""
    y, x, side = grid(image)
    lengths = draws.uniform(2, low=0.1, high=0.3)[0].double().numpy() * side
    phases = draws.uniform(2, low=0, high=2 * np.pi)[0].double().numpy()
    sway = [
        t + 0.0025 * level * side * np.sin(2 * np.pi * t / length + phase)
        for t, length, phase in zip((y, x), lengths, phases, strict=True)
    ]
    return _read(image, *sway)


def circular_motion_blur(image: Pixels, draws: Draws, level: float) -> Pixels:
    """A weighted mean over 21 small rotations about the middle (cubic splines)."""
    places = np.linspace(-1, 1, 21)
    weights = np.exp(-2 * places**2)
    turned = [
        ndimage.rotate((image / 255).astype(np.float32), 1.5 * level * p, reshape=False) for p in places
    ]
    total = sum(weight * rotated for weight, rotated in zip(weights, turned, strict=True))
    return np.asarray(255 * total / weights.sum(), dtype=float)


def transverse_chromatic_abberation(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Channels enlarged by different factors (the published name is spelled so)."""
    factors = np.array([1, 1 + 0.025 * level, 1 + 0.05 * level])[draws.permutation(3)]
    height, width = image.shape[:2]
    out = np.empty_like(image)
    for channel, factor in enumerate(factors):
        large = ndimage.zoom(image[..., channel].astype(np.uint8), factor, prefilter=False)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        out[..., channel] = large[top : top + height, left : left + width]
    return out
