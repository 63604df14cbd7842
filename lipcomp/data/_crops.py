"""Random resized crops of a batch, with a separate box per image; bicubic without antialias, as in TensorFlow.

A crop that is resized is a linear map of the rows and one of the columns, so a whole batch is two batched products,

    out_n = R_n image_n C_n^T,      R_n (height, rows of the image),  C_n (width, columns of the image),

with at most four entries in a row of R_n or C_n: Keys' cubic kernel with a = -1/2 at the half-pixel centre of every
output pixel. Taps outside the *box* weigh nothing and the others are scaled to sum to 1, as
``tf.image.resize(..., BICUBIC)`` does. (PyTorch's bicubic has a = -3/4 and repeats the edge.)

The products suit a GPU and batches. A single picture on a CPU is cut instead: the four taps of every column are
gathered and summed, then those of every row (:func:`crop_picture`): the same numbers, to rounding.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

Boxes = Int64[Tensor, "batch 4"]  # top, left, height, width


def random_boxes(
    numbers: Float[Tensor, "batch 4"],
    height: int | Int64[Tensor, " batch"],
    width: int | Int64[Tensor, " batch"],
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Boxes of a random area and aspect ratio from four uniform numbers per image.

    The official code's sampling: the area is uniform, the ratio width / height log-uniform and absolute, both sides are
    rounded and cut to the image (no second try), and the place is uniform over whole pixels.
    """
    high, wide = (
        torch.as_tensor(side, dtype=torch.float64, device=numbers.device) for side in (height, width)
    )
    u = numbers.double().unbind(1)
    size = (area[0] + (area[1] - area[0]) * u[0]) * high * wide
    ratio = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * u[1])
    box_height = torch.minimum((size / ratio).sqrt().round().clamp_min(1), high)
    box_width = torch.minimum((size * ratio).sqrt().round().clamp_min(1), wide)
    top = torch.minimum((u[2] * (high - box_height + 1)).floor(), high - box_height)
    left = torch.minimum((u[3] * (wide - box_width + 1)).floor(), wide - box_width)
    return torch.stack([top, left, box_height, box_width], 1).long()


def crop_and_resize(
    images: Float[Tensor, "batch channels rows columns"],
    boxes: Boxes,
    size: tuple[int, int],
    mirrored: Tensor | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Cut a box out of every image and bring it to ``size``; mirror the ``mirrored``. Clipped to [0, 1]."""
    top, left, height, width = boxes.unbind(1)
    rows = _resampling(top, height, images.shape[2], size[0], images.dtype)
    columns = _resampling(left, width, images.shape[3], size[1], images.dtype)
    if mirrored is not None:
        columns = torch.where(mirrored.view(-1, 1, 1), columns.flip(1), columns)
    narrow = images @ columns.transpose(1, 2).unsqueeze(1)
    return (rows.unsqueeze(1) @ narrow).clamp(0, 1)


def crop_picture(
    pixels: np.ndarray,
    box: Sequence[int],
    size: Sequence[int],
    mirrored: bool = False,
    scale: float = 1.0,
) -> Float[Tensor, "height width channels"]:
    """:func:`crop_and_resize` of one decoded picture, on the CPU.

    Parameters
    ----------
    pixels
        Bytes or float32, (rows, columns, channels) with 1 or 4 channels: a pixel is moved as one item of 1, 4 or 16
        bytes, which is why colours come with a fourth (Pillow's RGBX).
    box
        Top, left, height, width.
    size
        Height and width of the result.
    mirrored
        Whether it is flipped left to right.
    scale
        Factor on the pixels: 1/255 for bytes.
    """
    (top, left, height, width), (high, wide) = box, size
    channels = pixels.shape[2]
    index, weight = _taps(width, wide)
    if mirrored:
        index, weight = index.flip(0), weight.flip(0)
    columns = torch.from_numpy(_turned(pixels[top : top + height, left : left + width])).float()
    narrow = F.embedding_bag(index, columns.view(width, -1), mode="sum", per_sample_weights=weight * scale)
    rows = torch.from_numpy(_turned(narrow.view(wide, height, channels).numpy()))
    index, weight = _taps(height, high)
    out = F.embedding_bag(index, rows.view(height, -1), mode="sum", per_sample_weights=weight)
    return out.view(high, wide, channels).clamp_(0, 1)


_ITEMS = {1: np.uint8, 4: np.uint32, 16: np.complex128}


def _turned(pixels: np.ndarray) -> np.ndarray:
    """(rows, columns, channels) -> (columns, rows, channels), contiguous; whole pixels are moved."""
    rows, columns, channels = pixels.shape
    whole: np.ndarray = pixels.view(_ITEMS[pixels.itemsize * channels])[..., 0]
    return np.array(whole.T, order="C").view(pixels.dtype).reshape(columns, rows, channels)


@functools.lru_cache(maxsize=1024)
def _taps(count: int, size: int) -> tuple[Int64[Tensor, "size 4"], Float[Tensor, "size 4"]]:
    """Which of ``count`` samples each of ``size`` outputs reads, and their weights."""
    centre = (torch.arange(size, dtype=torch.float32) + 0.5) * (count / size) - 0.5
    base = centre.floor()
    taps = torch.arange(-1, 3, dtype=torch.float32)
    position = base.unsqueeze(1) + taps
    weight = _keys((centre - base).unsqueeze(1) - taps) * ((position >= 0) & (position < count))
    return position.long().clamp_(0, count - 1), weight / weight.sum(1, keepdim=True)


def _resampling(
    start: Int64[Tensor, " batch"],
    length: Int64[Tensor, " batch"],
    extent: int,
    size: int,
    dtype: torch.dtype,
) -> Float[Tensor, "batch size extent"]:
    """The matrices that read ``size`` samples from [start, start + length) of a line of ``extent`` pixels."""
    count = length.to(dtype).unsqueeze(1)
    centre = (torch.arange(size, dtype=dtype, device=start.device) + 0.5) * (count / size) - 0.5
    base = centre.floor()
    taps = torch.arange(-1, 3, dtype=dtype, device=start.device)
    position = base.unsqueeze(2) + taps  # (batch, size, 4)
    weight = _keys((centre - base).unsqueeze(2) - taps)
    weight = weight * ((position >= 0) & (position < count.unsqueeze(2)))
    weight = weight / weight.sum(2, keepdim=True)
    index = (position.long().clamp_min(0) + start.view(-1, 1, 1)).clamp_max(extent - 1)
    return torch.zeros(len(start), size, extent, dtype=dtype, device=start.device).scatter_add_(
        2, index, weight
    )


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -1/2."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
