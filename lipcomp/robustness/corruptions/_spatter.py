"""Spatter: drops of water or mud.

Where smoothed noise exceeds a threshold there is liquid. Mud covers it, softened, with brown. Water brightens it by a
relief: the distance to the liquid's edges, equalised and embossed. The published code calls OpenCV on 8-bit images
for the relief; the same integer steps are done here on a batch:

edges -> chamfer distance (1, 1.4, 2.1969 for a step, a diagonal, a knight's move), at most 20 -> mean of 3 x 3 ->
histogram equalisation -> emboss -> mean of 3 x 3.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import LUMA, Images, Real, correlate, gaussian, hysteresis

MUD = (63 / 255, 42 / 255, 20 / 255)
WATER = (175 / 255, 238 / 255, 238 / 255)
FARTHEST = 20


def spatter(
    images: Images,
    draws: Draws,
    mean: Real,
    spread: Real,
    size: Real,
    threshold: Real,
    strength: Real,
    mud: bool,
) -> Images:
    """Mud (``strength`` is the sigma that softens its edges) or water (``strength`` is its brightness)."""
    _, channels, height, width = images.shape
    liquid = gaussian((draws.normal(height, width) * spread + mean)[:, None], size)
    liquid = torch.where(liquid < threshold, 0.0, liquid)
    colour = torch.tensor(MUD if mud else WATER, device=images.device).view(-1, 1, 1)
    if channels == 1:
        colour = (
            colour[:1]
            if mud
            else (colour * torch.tensor(LUMA, device=images.device).view(-1, 1, 1)).sum(0, True)
        )
    if mud:
        drops = gaussian((liquid > threshold).to(images.dtype), strength)
        drops = torch.where(drops < 0.8, 0.0, drops)
        return images * (1 - drops) + colour * drops
    liquid = (liquid * 255 + 1e-3).floor_().remainder_(256)  # the published cast to 8 bits wraps above 1
    relief = liquid * _relief(liquid)
    highest = relief.amax((1, 2, 3), keepdim=True)
    return images + relief / highest.clamp_min(1e-12) * strength * colour


def _relief(liquid: Images) -> Images:
    distance = _chamfer(_edges(liquid))
    distance = correlate(distance, torch.full((3, 3), 1 / 9)).add_(1e-4).floor_()
    distance = _equalise(distance)
    emboss = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    distance = correlate(distance, emboss).round_().clamp_(0, 255)
    return correlate(distance, torch.full((3, 3), 1 / 9)).round_()


def _edges(grey: Images, low: Real = 50, high: Real = 150) -> Tensor:
    """Canny's edges as OpenCV has them: 3 x 3 Sobel, |dx| + |dy|, four sectors, no interpolation."""
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    right = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down_rows = padded[..., 2:, :] - padded[..., :-2, :]
    down = down_rows[..., :-2] + 2 * down_rows[..., 1:-1] + down_rows[..., 2:]
    magnitude = right.abs() + down.abs()
    around = functional.pad(magnitude, (1, 1, 1, 1))
    height, width = magnitude.shape[-2:]

    def at(dy: int, dx: int) -> Tensor:
        return around[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    x, y = right.abs() * 13573, down.abs() * 32768  # tan(22.5 degrees) in 15 bits
    horizontal = (y < x) & (magnitude > at(0, -1)) & (magnitude >= at(0, 1))
    steep = y > x + right.abs() * 65536
    vertical = steep & (magnitude > at(-1, 0)) & (magnitude >= at(1, 0))
    falling = (magnitude > at(-1, -1)) & (magnitude > at(1, 1))
    rising = (magnitude > at(-1, 1)) & (magnitude > at(1, -1))
    opposite = (right < 0) != (down < 0)
    diagonal = (y >= x) & ~steep & torch.where(opposite, rising, falling)
    thin = (horizontal | vertical | diagonal) & (magnitude > low)
    return hysteresis(thin, thin & (magnitude > high))


def _chamfer(edges: Tensor) -> Images:
    """Chamfer distance to the nearest edge, at most 20: the least over rows of the cost to that row's nearest edge."""
    height, table = edges.shape[-2], _costs().to(edges.device)
    left = torch.where(edges, 0, table.shape[1] - 1).int()
    right = left.clone()
    for step in (1, 2, 4, 8, 16):
        torch.minimum(left[..., step:], left[..., :-step] + step, out=left[..., step:])
        torch.minimum(right[..., :-step], right[..., step:] + step, out=right[..., :-step])
    aside = torch.minimum(left, right).clamp_(max=table.shape[1] - 1)  # columns to the row's nearest edge
    distance = torch.full(edges.shape, float(FARTHEST), device=edges.device)
    for rows, costs in enumerate(table[:height]):
        if rows >= float(distance.max()):
            break
        there = costs.index_select(0, aside.flatten()).view_as(distance)
        above, below = distance[..., : height - rows, :], distance[..., rows:, :]
        torch.minimum(above, there[..., rows:, :], out=above)
        torch.minimum(below, there[..., : height - rows, :], out=below)
    return distance


@lru_cache(maxsize=1)
def _costs() -> Float[Tensor, "rows columns"]:
    """What the least path of steps, diagonals and knight's moves costs, by how many rows and columns it goes."""
    straight, diagonal, knight = 1.0, 1.4, 2.1969
    rows, columns = torch.meshgrid(
        *(torch.arange(FARTHEST + size).double() for size in (0, 1)), indexing="ij"
    )
    long, short = torch.maximum(rows, columns), torch.minimum(rows, columns)
    flat = (long - 2 * short) * straight + short * knight
    steep = (2 * short - long) * diagonal + (long - short) * knight
    return torch.where(long >= 2 * short, flat, steep).float().clamp_(max=FARTHEST)


def _equalise(levels: Images) -> Images:
    """Histogram equalisation of whole numbers 0..255, each image by itself; the lowest level present becomes 0."""
    n = len(levels)
    flat = levels.reshape(n, -1).long()
    counts = torch.zeros(n, 256, device=levels.device).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    total = flat.shape[1]
    first = (counts > 0).float().argmax(1, keepdim=True)
    lowest = counts.gather(1, first)
    table = ((counts.cumsum(1) - lowest) * (255 / (total - lowest).clamp_min(1))).round().clamp_(0, 255)
    table = torch.where(lowest == total, first.float(), table)  # one level only stays as it is
    return table.gather(1, flat).reshape(levels.shape)
