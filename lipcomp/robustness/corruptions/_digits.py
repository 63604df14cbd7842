"""MNIST-C's own corruptions of grey digits: small rigid motions, strokes, stripes, edges (Mu & Gilmer 2019).

Motions read the output pixel p at M (p - c) + c of the input, c the image's middle, as ``skimage.transform.warp``
did when the set was made (shear by an angle s was (x, y) -> (x - sin(s) y, cos(s) y) then).
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import (
    Images,
    Real,
    affine,
    gaussian,
    hysteresis,
    separable,
    sobel_matrices,
)


def _signs(draws: Draws, count: int) -> Float[Tensor, "batch count"]:
    return draws.integers(0, 2, count).float() * 2 - 1


def _about_the_middle(images: Images, linear: Float[Tensor, "batch 2 2"]) -> Images:
    height, width = images.shape[-2:]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=images.device)
    shift = middle - (linear * middle).sum(2)
    return affine(images, torch.cat([linear, shift[..., None]], 2))


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Float[Tensor, "batch 2 2"]:
    return torch.stack([torch.stack([a, b], 1), torch.stack([c, d], 1)], 1)


def shear(images: Images, draws: Draws, angle: Real) -> Images:
    """Shear to the left or the right."""
    s = angle * _signs(draws, 1)[:, 0]
    return _about_the_middle(images, _matrix(torch.ones_like(s), -s.sin(), torch.zeros_like(s), s.cos()))


def rotate(images: Images, draws: Draws, angle: Real) -> Images:
    """Rotate by ``angle`` radians either way."""
    s = angle * _signs(draws, 1)[:, 0]
    return _about_the_middle(images, _matrix(s.cos(), -s.sin(), s.sin(), s.cos()))


def scale(images: Images, draws: Draws, factor: Real) -> Images:
    """Reduce to ``factor`` of the size."""
    linear = torch.eye(2, device=images.device) / factor
    return _about_the_middle(images, linear.expand(len(images), 2, 2))


def translate(images: Images, draws: Draws, pixels: int) -> Images:
    """Shift along both axes by ``pixels``, each way chosen by itself."""
    height, width = images.shape[-2:]
    shift = pixels * _signs(draws, 2).long()
    out = torch.zeros_like(images)
    for target, image, (dx, dy) in zip(out, images, shift.tolist(), strict=True):
        rows, columns = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        to_rows, to_columns = (
            slice(max(0, -dy), height + min(0, -dy)),
            slice(max(0, -dx), width + min(0, -dx)),
        )
        target[:, to_rows, to_columns] = image[:, rows, columns]
    return out


def stripe(images: Images, draws: Draws, columns: int) -> Images:
    """Invert the outer ``columns`` on either side."""
    width = images.shape[-1]
    outer = torch.ones(width, dtype=torch.bool, device=images.device)
    outer[columns : width - columns] = False
    return torch.where(outer, 1 - images, images)


def _strokes(
    segments: Float[Tensor, "batch segments 4"], height: int, width: int, reach: Real
) -> Float[Tensor, "batch 1 height width"]:
    """Sum of strokes from (c0, r0) to (c1, r1): log(1 - d / reach) + 1 at vertical distance d, zero outside c0..c1."""
    c0, r0, c1, r1 = (value[..., None, None] for value in segments.unbind(2))
    row = torch.arange(height, dtype=segments.dtype, device=segments.device)[:, None]
    column = torch.arange(width, dtype=segments.dtype, device=segments.device)
    slope = torch.where(c1 == c0, 0.0, (r1 - r0) / torch.where(c1 == c0, 1.0, c1 - c0))
    distance = (row - (slope * (column - c0) + r0)).abs().clamp(max=reach * (1 - 1e-6))
    ink = (torch.log1p(-distance / reach) + 1).clamp(0, 1)
    inside = (column >= c0.floor()) & (column < c1.ceil()) & (c1 != c0)
    return (ink * inside).sum(1).unsqueeze(1)


def dotted_line(images: Images, draws: Draws, reach: Real) -> Images:
    """A dotted line from border to border."""
    height, width = images.shape[-2:]
    ends = draws.integers(0, height - 1, 2).float()
    zero = torch.zeros(len(images), device=images.device)
    segment = torch.stack([zero, ends[:, 0], zero + width - 1, ends[:, 1]], 1)[:, None]
    drawn = (torch.arange(width, device=images.device) // 2) % 2 == 1
    return images + _strokes(segment, height, width, reach) * drawn


def zigzag(images: Images, draws: Draws, reach: Real) -> Images:
    """A zigzag across the image, added to its pixels."""
    height, width = images.shape[-2:]
    start = draws.integers(0, height - 1, 1)[:, 0]
    stop = start + draws.integers(-5, 5, 1)[:, 0]
    paths = [_zigzag_path(a, b, width) for a, b in zip(start.tolist(), stop.tolist(), strict=True)]
    segments = np.zeros((len(paths), max(len(path) for path in paths) - 1, 4))
    for row, path in zip(segments, paths, strict=True):
        row[: len(path) - 1] = np.concatenate([path[:-1], path[1:]], 1)
    strokes = _strokes(torch.from_numpy(segments).float().to(images.device), height, width, reach)
    return images + strokes


def _zigzag_path(start: int, stop: int, width: int, length: Real = 2.0, swing: Real = 2.0) -> np.ndarray:
    """Corners (column, row) of a zigzag about the line from (2, start) to (width - 3, stop)."""
    angle = math.atan((stop - start) / (width - 5))
    distance = (width - 5) / math.cos(angle)
    corners = [(0.0, 0.0)]
    for i in range(int((distance - length) // (2 * length)) + 1):
        corners.append(((2 * i + 1) * length, (-1) ** i * swing))
    last = 2 * length * (distance // (2 * length))
    if distance != last:
        corners.append((distance, corners[-1][1] / (2 * (distance - last))))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.array(corners) @ turn + np.array([2.0, start])


def canny_edges(images: Images, draws: Draws, sigma: Real) -> Images:
    """Canny's edges, 0 or 1 (as ``skimage.feature.canny``: thresholds 0.1 and 0.2 on the Sobel magnitude)."""
    height, width = images.shape[-2:]
    covered = gaussian(torch.ones_like(images[:1]), sigma, "constant")
    smooth = gaussian(images, sigma, "constant") / covered
    smooth = smooth if images.device.type == "mps" else smooth.double()  # no float64 there
    down, right = (
        separable(smooth, *(m.to(smooth) for m in sobel_matrices(height, width, axis))) for axis in (0, 1)
    )
    magnitude = (down.square() + right.square()).sqrt()
    thin = _thin(down, right, magnitude) & (magnitude >= 0.1)
    thin[..., 0, :] = thin[..., -1, :] = False
    thin[..., :, 0] = thin[..., :, -1] = False
    return hysteresis(thin, thin & (magnitude >= 0.2)).to(images.dtype)


def _thin(down: Tensor, right: Tensor, magnitude: Tensor) -> Tensor:
    """Local maxima along the gradient; neighbours between two pixels are interpolated linearly."""
    height, width = magnitude.shape[-2:]
    padded = torch.nn.functional.pad(magnitude, (1, 1, 1, 1))

    def at(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep = down.abs() >= right.abs()
    same = (down >= 0) & (right >= 0) | (down <= 0) & (right <= 0)
    larger = torch.where(steep, down.abs(), right.abs())
    w = torch.where(steep, right.abs(), down.abs()) / larger.clamp_min(torch.finfo(larger.dtype).tiny)
    keep = torch.ones_like(steep)
    for sign in (1, -1):
        straight = torch.where(steep, at(sign, 0), at(0, sign))
        falling, rising = at(sign, sign), torch.where(steep, at(sign, -sign), at(-sign, sign))
        diagonal = torch.where(same, falling, rising)
        keep &= diagonal * w + straight * (1 - w) <= magnitude
    return keep & (larger > 0)
