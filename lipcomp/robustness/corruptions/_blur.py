"""Blurs: Gaussian, defocus, glass, motion, zoom."""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import (
    Images,
    Real,
    correlate,
    filter_matrix,
    gather_pixels,
    gaussian,
    gaussian_matrix,
    separable,
    zoom_matrix,
)

LARGEST_SEPARABLE = 64  # side of the image up to which a matrix product beats a convolution


def gaussian_blur(images: Images, draws: Draws, sigma: Real) -> Images:
    """A Gaussian of ``sigma`` pixels."""
    return gaussian(images, sigma)


def defocus_blur(images: Images, draws: Draws, radius: Real, softness: Real) -> Images:
    """A disk of ``radius`` pixels, its rim softened by a Gaussian of ``softness`` pixels.

    On small images the disk is a sum of as many separable filters as it has different rows: three times faster.
    """
    height, width = images.shape[-2:]
    if max(height, width) > LARGEST_SEPARABLE:
        return correlate(images, _disk(radius, softness))
    rows, columns = (m.to(images.device) for m in _disk_factors(radius, softness, height, width))
    across = images @ columns  # (width, rank * width)
    parts = across.unflatten(-1, (-1, width)).transpose(-3, -2).flatten(-3, -2)  # (rank * height, width)
    return rows @ parts


@lru_cache(maxsize=32)
def _disk(radius: Real, softness: Real) -> Float[Tensor, "side side"]:
    half = 8 if radius <= 8 else math.ceil(radius)
    offsets = np.arange(-half, half + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(float)
    disk /= disk.sum()
    reach = 1 if radius <= 8 else 2
    rim = np.exp(-0.5 * (np.arange(-reach, reach + 1) / softness) ** 2)
    rim /= rim.sum()
    padded = np.pad(disk, reach, mode="reflect")
    softened = sum(
        rim[i] * rim[j] * padded[i : i + len(disk), j : j + len(disk)]
        for i in range(len(rim))
        for j in range(len(rim))
    )
    kernel = np.asarray(softened)
    # the grid is larger than the disk: cut the zeros
    used = int(np.abs(offsets[(kernel > 1e-12).any(1)]).max())
    kernel = kernel[half - used : half + used + 1, half - used : half + used + 1]
    return torch.from_numpy(kernel).float()


@lru_cache(maxsize=32)
def _disk_factors(
    radius: Real, softness: Real, height: int, width: int
) -> tuple[Float[Tensor, "height rank_height"], Float[Tensor, "width rank_width"]]:
    """The disk's singular vectors as row filters side by side, and as column filters side by side."""
    left, values, right = np.linalg.svd(_disk(radius, softness).double().numpy())
    rank = int((values > 1e-7 * values[0]).sum())
    rows = [filter_matrix(left[:, r] * values[r], height, "mirror") for r in range(rank)]
    columns = [filter_matrix(right[r], width, "mirror").T for r in range(rank)]
    return torch.cat(rows, 1), torch.cat(columns, 1)


def motion_blur(images: Images, draws: Draws, radius: int, sigma: Real) -> Images:
    """Half a Gaussian along a direction of each image's own, within 45 degrees of the horizontal."""
    return blur_along(images, draws.uniform(low=-45, high=45), radius, sigma)


def blur_along(images: Images, degrees: Float[Tensor, " batch"], radius: int, sigma: Real) -> Images:
    """sum_i k_i x(p + i u): 2 radius + 1 steps along u, weights of a Gaussian from its middle outwards.

    ImageMagick's motion blur: steps rounded to whole pixels, pixels repeated beyond the border.
    """
    height, width = images.shape[-2:]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angles = np.deg2rad(degrees.double().cpu().numpy())[:, None]
    down = np.ceil(steps * np.sin(angles) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(angles) - 0.5).astype(int)
    reach = int(min(2 * radius, max(np.abs(down).max(), np.abs(right).max())))
    rows = torch.arange(-reach, height + reach, device=images.device).clamp(0, height - 1)
    columns = torch.arange(-reach, width + reach, device=images.device).clamp(0, width - 1)
    padded = images[..., rows, :][..., columns]
    blurred = torch.zeros_like(images)
    for image, out, dys, dxs in zip(padded, blurred, down + reach, right + reach, strict=True):
        for weight, dy, dx in zip(weights.tolist(), dys.tolist(), dxs.tolist(), strict=True):
            out.add_(image[:, dy : dy + height, dx : dx + width], alpha=weight)
    return blurred


def zoom_blur(images: Images, draws: Draws, stop: Real, step: Real) -> Images:
    """Mean of the image and its enlargements by 1, 1 + step, ... below ``stop``."""
    height, width = images.shape[-2:]
    factors = np.arange(1, stop, step).tolist()
    total = images.clone()
    for factor in factors:
        rows = zoom_matrix(height, factor, height).to(images.device)
        columns = zoom_matrix(width, factor, width).to(images.device)
        total[..., : len(rows), : len(columns)] += separable(images, rows, columns)
    return total / (len(factors) + 1)


def glass_blur(images: Images, draws: Draws, sigma: Real, distance: int, rounds: int) -> Images:
    """Blur, let every pixel take the value of a near one in turn, blur again.

    The published loop runs from the last pixel to the first and means to swap; on RGB arrays its assignment copies
    (the right side holds views), so a pixel's value spreads. We do the same, without a loop: who copies from a pixel
    that was copied to before follows its pointer, and pointers double their length in each step.
    """
    height, width = images.shape[-2:]
    blurred = _bytes(gaussian(images, sigma))
    for _ in range(rounds):
        blurred = gather_pixels(blurred, _copied_from(draws, len(images), height, width, distance))
    return gaussian(blurred, sigma)


def _bytes(images: Images) -> Images:
    return (images * 255 + 1e-3).floor_().clamp_(0, 255).div_(255)


def _visited(height: int, width: int, distance: int) -> tuple[Tensor, Tensor]:
    """Rows and columns that the published loop visits: distance + 1 .. side - distance (within the image)."""
    return (
        torch.arange(distance + 1, min(height - distance, height - 1) + 1),
        torch.arange(distance + 1, min(width - distance, width - 1) + 1),
    )


def _copied_from(
    draws: Draws, n: int, height: int, width: int, distance: int
) -> Int64[Tensor, "batch pixels"]:
    """For every pixel the one whose value it holds after one round of copies."""
    rows, columns = _visited(height, width, distance)
    offsets = draws.integers(-distance, distance, len(rows), len(columns), 2).flip(1, 2)  # last pixel first
    device = offsets.device
    rows, columns = rows.to(device), columns.to(device)
    here = rows[:, None] * width + columns
    source = here + offsets[..., 1] * width + offsets[..., 0]
    everywhere = torch.arange(height * width, device=device).expand(n, -1)
    target = everywhere.scatter(1, here.reshape(1, -1).expand(n, -1), source.reshape(n, -1))
    seen = torch.zeros(height * width, dtype=torch.bool, device=device)
    seen[here.reshape(-1)] = True
    follows = seen[target] & (target > everywhere)  # the source was itself overwritten earlier in the round
    pointer = torch.where(follows, target, everywhere)
    while True:
        further = pointer.gather(1, pointer)
        if torch.equal(further, pointer):
            return target.gather(1, pointer)
        pointer = further


def glass_swaps(images: Images, draws: Draws, sigma: Real, distance: int, rounds: int) -> Images:
    """MNIST-C's glass blur: on grey arrays the same loop truly swaps, each swap with probability one half.

    Both blurs run down the columns alone: the published call says that the last axis holds channels, and in a grey
    array that is the width.
    """
    n, _, height, width = images.shape
    down = gaussian_matrix(height, sigma, "nearest", 4.0).to(images.device)
    blurred = _bytes(down @ images)
    rows, columns = _visited(height, width, distance)
    chosen = np.arange(n)
    order = np.tile(np.arange(height * width)[:, None], (1, n))
    for _ in range(rounds):
        shape = (len(rows), len(columns))
        swap = (draws.uniform(*shape) < 0.5).flip(1, 2).cpu().numpy()
        offsets = draws.integers(-distance, distance, *shape, 2).flip(1, 2).cpu().numpy()
        step = np.where(swap, offsets[..., 1] * width + offsets[..., 0], 0).transpose(1, 2, 0)
        for i in reversed(range(shape[0])):
            for j in reversed(range(shape[1])):
                here = int(rows[i]) * width + int(columns[j])
                there = here + step[i, j]
                mine = order[here].copy()
                order[here] = order[there, chosen]
                order[there, chosen] = mine
    return down @ gather_pixels(blurred, torch.from_numpy(order.T.copy()).to(images.device))
