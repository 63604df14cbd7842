"""Changes of values and of sampling: brightness, contrast, saturation, pixelation, elastic warp.

Value and saturation are HSV's. A colour with chroma is V - (V - rgb), so a new value scales it and a new saturation
scales V - rgb: neither needs the hue.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import (
    CACHED,
    LARGEST,
    Bytes,
    Images,
    Real,
    by_pillow,
    gaussian,
    sample,
)


def brightness(images: Images, draws: Draws, amount: Real) -> Images:
    """Add ``amount`` to HSV's value (to the pixel, if grey)."""
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised)


def saturate(images: Images, draws: Draws, factor: Real, amount: Real) -> Images:
    """Multiply HSV's saturation by ``factor`` and add ``amount``; grey pixels count as red of no saturation.

    Images with one channel have no saturation and stay as they are.
    """
    if images.shape[1] == 1:
        return images
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    saturation = chroma / value.clamp_min(1e-12)
    wanted = (saturation * factor + amount).clamp(0, 1)
    ratio = wanted / saturation.clamp_min(1e-12)
    reddened = torch.cat([value, (value * (1 - wanted)).expand(-1, 2, -1, -1)], 1)
    return torch.where(chroma > 0, value - (value - images) * ratio, reddened)


def contrast(images: Images, draws: Draws, factor: Real) -> Images:
    """Draw every channel towards its mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def pixelate(images: Images | Bytes, draws: Draws, factor: Real) -> Images | Bytes:
    """Reduce to ``factor`` of the size by box means, and enlarge again (PIL's box filter, 8 bits after each pass)."""
    height, width = images.shape[-2:]
    small = int(height * factor), int(width * factor)
    if max(height, width) > LARGEST:
        return by_pillow(images, lambda picture: _resized(picture, small))
    rows, columns = (_nearest(a, b).to(images.device) for a, b in zip(small, (height, width), strict=True))
    enlarged = torch.empty_like(images)
    few = max(1, CACHED // images[0].numel())  # what stays in the processor's cache is several times as fast
    for part, out in zip(images.split(few), enlarged.split(few), strict=True):
        reduced = _means(_means(part.mT, small[1]).mT, small[0])
        wide = reduced.mT.contiguous().index_select(2, columns).mT.contiguous()
        out.copy_(wide.index_select(2, rows))
    return enlarged


def _resized(picture: Image.Image, small: tuple[int, int]) -> Image.Image:
    reduced = picture.resize(small[::-1], Image.Resampling.BOX)
    return reduced.resize(picture.size, Image.Resampling.NEAREST)


def _means(images: Tensor, out: int) -> Tensor:
    """Box means along the rows, each of which is read whole, rounded to bytes."""
    places, weights = (table.to(images.device) for table in _boxes(images.shape[2], out))
    images = images.contiguous()
    total = images.index_select(2, places[0]).mul_(weights[0][:, None])
    for place, weight in zip(places[1:], weights[1:], strict=True):
        total.addcmul_(images.index_select(2, place), weight[:, None])
    return total.mul_(255).add_(0.5).floor_().div_(255)


@lru_cache(maxsize=64)
def _nearest(size: int, out: int) -> Int64[Tensor, " out"]:
    """The pixel that holds each new pixel's centre; steps are added up as in PIL: a centre may be a border."""
    step = size / out
    return torch.from_numpy(np.cumsum([step / 2, *(out - 1) * [step]])).long()


@lru_cache(maxsize=64)
def _boxes(size: int, out: int) -> tuple[Int64[Tensor, "taps out"], Float[Tensor, "taps out"]]:
    """The pixels whose centres lie within half a (larger) pixel of each new pixel's centre, and their weights."""
    scale = size / out
    reach = max(scale, 1.0)
    inside = []
    for middle in (np.arange(out) + 0.5) * scale:
        pixels = np.arange(max(int(middle - reach / 2 + 0.5), 0), min(int(middle + reach / 2 + 0.5), size))
        distance = (pixels + 0.5 - middle) / reach
        inside.append(pixels[(distance > -0.5) & (distance <= 0.5)])
    places = np.zeros((max(map(len, inside)), out), dtype=np.int64)
    weights = np.zeros(places.shape, dtype=np.float32)
    for column, pixels in enumerate(inside):
        places[: len(pixels), column], weights[: len(pixels), column] = pixels, 1 / max(len(pixels), 1)
    return torch.from_numpy(places), torch.from_numpy(weights)


def elastic_transform(images: Images, draws: Draws, strength: Real, sigma: Real, shift: Real) -> Images:
    """A random affine map, then random displacements smoothed by ``sigma``; all lengths in parts of the height.

    Three points of the image move by up to ``shift`` each way; the displacements are uniform noise, smoothed, times
    ``strength``. As in OpenCV the affine map's coordinates are whole numbers of 1/32 pixel.
    """
    height, width = images.shape[-2:]
    side = float(height)
    moved = draws.uniform(3, 2, low=-shift * side, high=shift * side)
    matrix = _affine_of_points(height, width, moved.double().cpu().numpy())
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    where = torch.from_numpy(_fixed_point(matrix, height, width)).to(images.device)
    warped = sample(images, where[:, 1], where[:, 0], "mirror")
    if strength == 0:
        return warped
    # along x, along y
    noise = torch.stack([draws.uniform(height, width, low=-1, high=1) for _ in range(2)], 1)
    field = gaussian(noise, sigma * side, "reflect", 3.0) * (strength * side)
    return sample(warped, y.to(field) + field[:, 1], x.to(field) + field[:, 0], "reflect")


def _fixed_point(matrix: np.ndarray, height: int, width: int) -> Float[np.ndarray, "batch 2 height width"]:
    """Where ``cv2.warpAffine`` reads for each output pixel: steps of 1/1024 added up, then cut to 1/32 pixel."""
    across, down, shift = (matrix[:, :, k, None, None] for k in range(3))
    steps = np.rint(across * np.arange(width) * 1024)
    start = np.rint((down * np.arange(height)[:, None] + shift) * 1024) + 16
    return (np.floor((start + steps) / 32) / 32).astype(np.float32)


def _affine_of_points(height: int, width: int, moved: np.ndarray) -> Float[np.ndarray, "batch 2 3"]:
    """Output pixel -> input pixel, for the map that takes three points of a square to where they are moved."""
    centre = np.array([height // 2, width // 2], dtype=float)
    reach = min(height, width) // 3
    before = np.array([centre + reach, [centre[0] + reach, centre[1] - reach], centre - reach])
    after = before + moved
    ones = np.ones((*after.shape[:2], 1))
    # rows: M (x', y', 1) = (x, y) for the three points
    return np.linalg.solve(np.concatenate([after, ones], 2), np.broadcast_to(before, after.shape)).transpose(
        0, 2, 1
    )
