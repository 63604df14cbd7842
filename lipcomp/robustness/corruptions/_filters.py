"""Linear filters and warps of a batch, with the border rules of the libraries that the published corruptions use.

A separable filter with its border rule is one matrix for each axis, ``A X B^T``: exact at the border, and on small
images faster than a convolution.

==========  ==============================  ========================
border      extension of a b c d            in scipy / OpenCV
==========  ==============================  ========================
nearest     a a a | a b c d | d d d         nearest / REPLICATE
reflect     c b a | a b c d | d c b         reflect / REFLECT
mirror      d c b | a b c d | c b a         mirror / REFLECT_101
constant    0 0 0 | a b c d | 0 0 0         constant / CONSTANT
==========  ==============================  ========================
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "batch channels height width"]
Bytes = UInt8[Tensor, "batch channels height width"]
CACHED = 1 << 17  # numbers that stay in a processor's cache
LARGEST = 96  # side of the images up to which a batch at once is faster than Pillow, one by one
LARGE_KERNEL = 50  # numbers, from which on the Fourier transform is faster
LUMA = (0.299, 0.587, 0.114)
Real = float | int  # a setting of the tables
Border = Literal["nearest", "reflect", "mirror", "constant"]


def extend(positions: np.ndarray, size: int, border: Border) -> tuple[np.ndarray, np.ndarray]:
    """Where positions outside 0 .. size - 1 read, and with which weight (0 outside a constant border)."""
    weight = np.ones(positions.shape)
    if border == "nearest":
        return positions.clip(0, size - 1), weight
    if border == "constant":
        inside = (positions >= 0) & (positions < size)
        return positions.clip(0, size - 1), inside.astype(float)
    if border == "reflect":
        folded = positions % (2 * size)
        return np.where(folded < size, folded, 2 * size - 1 - folded), weight
    period = max(2 * size - 2, 1)
    folded = positions % period
    return np.where(folded < size, folded, period - folded), weight


def filter_matrix(weights: np.ndarray, size: int, border: Border) -> Float[Tensor, "size size"]:
    """The matrix that correlates a row of ``size`` pixels with odd ``weights``."""
    radius = len(weights) // 2
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        columns, inside = extend(rows + offset, size, border)
        np.add.at(matrix, (rows, columns), weight * inside)
    return torch.from_numpy(matrix).float()


@lru_cache(maxsize=256)
def gaussian_matrix(size: int, sigma: Real, border: Border, truncate: Real) -> Float[Tensor, "size size"]:
    """One axis of a Gaussian filter: weights exp(-x^2 / 2 sigma^2) up to ``truncate`` sigmas, normalised."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    return filter_matrix(weights / weights.sum(), size, border)


def gaussian(images: Tensor, sigma: Real, border: Border = "nearest", truncate: Real = 4.0) -> Tensor:
    """Gaussian filter over the last two axes, as ``skimage.filters.gaussian`` (whose default border is nearest)."""
    height, width = images.shape[-2:]
    rows = gaussian_matrix(height, sigma, border, truncate).to(images.device)
    columns = gaussian_matrix(width, sigma, border, truncate).to(images.device)
    return separable(images, rows, columns)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ X @ columns^T`` for every image and channel."""
    return rows @ (images @ columns.T)


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: Real, out: int) -> Float[Tensor, "out size"]:
    """Crop the middle 1/factor of an axis, enlarge it linearly corner to corner, crop to at most ``out``.

    What ``scipy.ndimage.zoom(order=1)`` does to the crop: its first and last pixels stay the first and last.
    """
    crop = math.ceil(size / factor)
    top = (size - crop) // 2
    enlarged = round(crop * factor)
    trim = max((enlarged - out) // 2, 0)
    position = np.arange(enlarged)[trim : trim + out] * ((crop - 1) / max(enlarged - 1, 1))
    low = np.minimum(np.floor(position).astype(int), crop - 1)
    fraction = position - low
    matrix = np.zeros((len(position), size))
    rows = np.arange(len(position))
    np.add.at(matrix, (rows, top + low), 1 - fraction)
    np.add.at(matrix, (rows, top + np.minimum(low + 1, crop - 1)), fraction)
    return torch.from_numpy(matrix).float()


def correlate(images: Images, kernel: Float[Tensor, "rows columns"], border: Border = "mirror") -> Images:
    """Correlation of every channel with one small kernel of odd sides: by shifts, or by the Fourier transform."""
    height, width = images.shape[2:]
    vertical, horizontal = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows, _ = extend(np.arange(-vertical, height + vertical), height, border)
    columns, _ = extend(np.arange(-horizontal, width + horizontal), width, border)
    padded = images.index_select(2, torch.from_numpy(rows).to(images.device))
    padded = padded.index_select(3, torch.from_numpy(columns).to(images.device))
    filtered = torch.zeros_like(images)
    if kernel.numel() < LARGE_KERNEL:
        for y, x in kernel.nonzero().tolist():
            filtered.add_(padded[..., y : y + height, x : x + width], alpha=float(kernel[y, x]))
        return filtered
    sides = [next_fast_len(side, real=True) for side in padded.shape[2:]]
    response = torch.fft.rfft2(kernel.to(images.device, images.dtype), s=sides).conj()
    for one, out in zip(padded, filtered, strict=True):  # what stays in the processor's cache is faster
        out.copy_(torch.fft.irfft2(torch.fft.rfft2(one, s=sides) * response, s=sides)[..., :height, :width])
    return filtered


def affine(images: Images, matrices: Float[Tensor, "batch 2 3"]) -> Images:
    """Read each output pixel (x, y) at ``matrix @ (x, y, 1)`` of the input, bilinearly, zero outside.

    Coordinates are pixel indices, x to the right and y down: the inverse map of ``skimage.transform.warp``.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, dtype=images.dtype, device=images.device)[:, None]
    x = torch.arange(width, dtype=images.dtype, device=images.device)
    a, b, c = matrices.to(images)[..., None, None].unbind(2)
    where = a * x + b * y + c  # no product of matrices, which rounds in another way in another batch
    return sample(images, where[:, 1], where[:, 0])


def sample(
    images: Images,
    y: Float[Tensor, "batch height width"],
    x: Float[Tensor, "batch height width"],
    border: Literal["constant", "reflect", "mirror"] = "constant",
) -> Images:
    """Bilinear values at pixel coordinates."""
    height, width = images.shape[-2:]
    if border == "mirror":
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    padding = "zeros" if border == "constant" else "reflection"
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=border == "mirror")


def gather_pixels(images: Images, positions: Int64[Tensor, "batch pixels"]) -> Images:
    """The image whose pixel p (row-major) is the input's pixel ``positions[p]``, for every channel."""
    n, channels, height, width = images.shape
    index = positions[:, None].expand(n, channels, height * width)
    return images.reshape(n, channels, -1).gather(2, index).reshape(images.shape)


@lru_cache(maxsize=64)
def sobel_matrices(height: int, width: int, axis: int) -> tuple[Tensor, Tensor]:
    """Row and column matrices of ``scipy.ndimage.sobel`` along an axis (0 down, 1 right), float64."""
    derivative, mean = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    rows = filter_matrix(derivative if axis == 0 else mean, height, "reflect").double()
    columns = filter_matrix(mean if axis == 0 else derivative, width, "reflect").double()
    return rows, columns


def hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """Weak pixels that an 8-connected way of weak pixels joins to a strong one."""
    grown = strong
    while True:
        spread = grown.clone()
        for ahead, behind in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            spread[..., ahead] |= grown[..., behind]
        across = spread.clone()
        spread[..., 1:, :] |= across[..., :-1, :]
        spread[..., :-1, :] |= across[..., 1:, :]
        spread &= weak
        if torch.equal(spread, grown):
            return grown
        grown = spread


def by_pillow(images: Images | Bytes, change: Callable[[Image.Image], Image.Image]) -> Images | Bytes:
    """Let ``change`` work on pictures of the images' bytes: those that values in [0, 1] round to."""
    pixels = images.cpu()
    if images.dtype != torch.uint8:
        rounded = pixels.float().numpy() * np.float32(255) + np.float32(0.5)  # in half of torch's time
        pixels = torch.from_numpy(rounded.astype(np.uint8))
    changed = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    for planes, out in zip(pixels.numpy(), changed.flatten(2).numpy(), strict=True):
        bands = [Image.fromarray(plane) for plane in planes]  # channels stay apart: faster than moving them
        picture = change(bands[0] if len(bands) == 1 else Image.merge("RGB", bands))
        for plane, band in zip(out, picture.getbands(), strict=True):
            plane[:] = np.frombuffer(picture.tobytes("raw", band), np.uint8)
    changed = changed.to(images.device)
    return changed if images.dtype == torch.uint8 else changed.to(images.dtype).div_(255)
