"""Colour changes with a strength for each image: grey, saturation, hue. Pixels in [0, 1], RGB.

Hue goes through HSV in closed form: with V = max, C = max - min and H the hexagon's hue, a colour with the same V and
C and any other hue is, by channel n = 5, 3, 1 for R, G, B,

    f(n) = V - C max(0, min(k, 4 - k, 1)),   k = (n + 6 H) mod 6.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Colour = Float[Tensor, "batch 3 height width"]
Strength = Float[Tensor, "batch 1 1 1"]

_LUMA = (0.2989, 0.5870, 0.1140)


def to_grey(images: Colour) -> Colour:
    """ITU-R 601 luma, repeated on three channels."""
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def hue_and_chroma(
    images: Colour,
) -> tuple[
    Float[Tensor, "batch height width"],
    Float[Tensor, "batch height width"],
    Float[Tensor, "batch height width"],
]:
    """Hue in [0, 1), chroma and value of every pixel."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = chroma.clamp_min(torch.finfo(images.dtype).tiny)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return (hue / 6) % 1.0, chroma, value


def from_hue_and_chroma(hue: Tensor, chroma: Tensor, value: Tensor) -> Colour:
    """The inverse of :func:`hue_and_chroma`."""
    channels = []
    for n in (5, 3, 1):
        k = (n + hue * 6) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def shift_hue(images: Colour, amount: Strength) -> Colour:
    """Turn the hue by ``amount`` of a full circle."""
    hue, chroma, value = hue_and_chroma(images)
    return from_hue_and_chroma((hue + amount.view(-1, 1, 1)) % 1.0, chroma, value)


def adjust_saturation(images: Colour, factor: Strength) -> Colour:
    """Multiply HSV's saturation by ``factor``, at most 1 (TensorFlow's ``adjust_saturation``)."""
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    saturation = chroma / value.clamp_min(torch.finfo(images.dtype).tiny)
    limited = (saturation * factor).clamp(max=1.0)
    ratio = torch.where(saturation > 0, limited / saturation.clamp_min(torch.finfo(images.dtype).tiny), 1.0)
    return value - (value - images) * ratio
