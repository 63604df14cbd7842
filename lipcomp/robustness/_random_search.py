"""Balls in pixels, and an attack that needs no gradient: random search over square patches.

The search keeps a perturbation on the ball's border and proposes a new one in a square patch: another sign for each
channel in L-inf, mass moved into the patch in L2. It is kept where the margin falls (after the Square attack of
Andriushchenko et al. 2020; their schedule of patch sizes, but for its last two steps). It finds less than a gradient
does where there is one.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Share of the pixels in a patch, from which share of the queries on.
_SHARES = (
    (0.0, 0.8),
    (0.001, 0.4),
    (0.005, 0.2),
    (0.02, 0.1),
    (0.05, 0.05),
    (0.1, 0.025),
    (0.2, 0.0125),
    (0.4, 0.00625),
)


def length(delta: Float[Tensor, "n channels height width"], norm: str) -> Float[Tensor, " n"]:
    """Of every perturbation, in the norm."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of length one in the norm."""
    if norm == "linf":
        return gradient.sign()
    # so that squares of tiny gradients do not vanish
    size = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    scaled = gradient / torch.where(size > 0, size, 1.0)
    return scaled / length(scaled, norm).clamp_min(1e-20).view(-1, 1, 1, 1)


def into_ball(x: Tensor, origin: Tensor, norm: str, radius: float | int) -> Tensor:
    """Project on the ball, then on [0, 1]: the second step brings no pixel further from the origin."""
    delta = x - origin
    if norm == "linf":
        delta = delta.clamp(-radius, radius)
    else:
        delta = delta * (radius / length(delta, norm).clamp_min(1e-20)).clamp(max=1).view(-1, 1, 1, 1)
    return (origin + delta).clamp(0, 1)


def random_start(x: Tensor, norm: str, radius: float | int, generator: torch.Generator) -> Tensor:
    """Uniform in the cube, or a random direction with the radius of a uniform draw in the ball."""
    drawn: Any = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if norm == "linf":
        noise = torch.rand(x.shape, **drawn).to(x)
        return into_ball(x + (2 * noise - 1) * radius, x, norm, radius)
    noise = torch.randn(x.shape, **drawn).to(x)
    share = torch.rand(len(x), **drawn).pow(1 / x[0].numel()).to(x).view(-1, 1, 1, 1)
    return into_ball(x + steepest(noise, norm) * radius * share, x, norm, radius)


def random_search(
    margins: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n channels height width"],
    norm: str,
    radius: float | int,
    queries: int,
    generator: torch.Generator,
    *,
    enough: float = 0.0,
) -> tuple[Float[Tensor, "n channels height width"], Float[Tensor, " n"]]:
    """The image of the least margin found for each, and that margin; ends once all margins are below ``enough``."""
    n, channels, height, width = images.shape

    def signs(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator, device=generator.device) * 2 - 1).to(images)

    stripes = signs(n, channels, 1, width).expand(-1, -1, height, -1)
    best = into_ball(images + radius * steepest(stripes, norm), images, norm, radius)
    margin = margins(best)
    for query in range(queries):
        if (margin < enough).all():
            break
        share = next(p for begin, p in reversed(_SHARES) if query >= begin * queries)
        side = max(1, min(round((share * height * width) ** 0.5), height, width))
        top = int(torch.randint(0, height - side + 1, (1,), generator=generator, device=generator.device))
        left = int(torch.randint(0, width - side + 1, (1,), generator=generator, device=generator.device))
        delta = best - images
        patch = delta[:, :, top : top + side, left : left + side]
        if norm == "linf":
            patch[:] = radius * signs(n, channels, 1, 1)
        else:
            patch += signs(n, channels, 1, 1) * radius / (channels * side * side) ** 0.5
            delta = delta * (radius / length(delta, norm).clamp_min(1e-20)).view(-1, 1, 1, 1)
        proposed = into_ball(images + delta, images, norm, radius)
        found = margins(proposed)
        better = found < margin
        best = torch.where(better.view(-1, 1, 1, 1), proposed, best)
        margin = torch.where(better, found, margin)
    return best, margin
