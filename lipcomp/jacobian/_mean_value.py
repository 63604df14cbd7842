"""The mean value check (4.4): a pair can never exceed the largest spectral norm on its segment.

    ‖mu(x') - mu(x)‖ / ‖x' - x‖  <=  mean over t of ‖J(x_t) v‖  <=  max over t of sigma_max(J(x_t))

with x_t = x + t (x' - x) and v the unit direction. It holds for every differentiable (or piecewise differentiable)
map, so that a violation means that one of the two sides is computed wrongly: it tests both. The maximum is sampled at
a few points; where the sample falls short, the segment is sampled four times as densely before it is called a
violation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipcomp.jacobian._precision import full_precision
from lipcomp.jacobian._products import Map
from lipcomp.jacobian._spectral_norm import spectral_norm

REFINEMENTS = 3


@dataclass(frozen=True)
class MeanValueCheck:
    """Both sides of (4.4) for every pair, where the largest sigma lies on its segment, and whether they agree."""

    ratio: Float[Tensor, " pairs"]
    largest_sigma: Float[Tensor, " pairs"]
    position: Float[Tensor, " pairs"]
    holds: Bool[Tensor, " pairs"]


def mean_value_check(
    fn: Map,
    first: Float[Tensor, "pairs ..."],
    second: Float[Tensor, "pairs ..."],
    *,
    points: int = 8,
    rtol: float = 1e-3,
    batch_size: int | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0),
) -> MeanValueCheck:
    """Compare delta/Delta of every pair with sigma_max at ``points`` midpoints of its segment.

    A pair of equal images is compared as 0; it holds.

    Raises
    ------
    ValueError
        If the sides differ in shape, or as :func:`~lipcomp.jacobian.spectral_norm`.
    """
    if first.shape != second.shape:
        raise ValueError(f"first and second differ in shape: {tuple(first.shape)}, {tuple(second.shape)}")
    with torch.no_grad(), full_precision():
        chord = (fn(second).double() - fn(first).double()).flatten(1).norm(dim=1)
    distance = (second.double() - first.double()).flatten(1).norm(dim=1)
    ratio = torch.where(distance > 0, chord / distance, 0.0)
    largest, position = torch.zeros_like(ratio), torch.full_like(ratio, torch.nan)
    open_pairs = torch.arange(len(first))
    for _ in range(REFINEMENTS):
        if not len(open_pairs):
            break
        t = (torch.arange(points, dtype=first.dtype, device=first.device) + 0.5) / points
        t = t.view(1, points, *[1] * (first.dim() - 1))
        a, b = first[open_pairs].unsqueeze(1), second[open_pairs].unsqueeze(1)
        segment = (a + t * (b - a)).flatten(0, 1)
        found = spectral_norm(fn, segment, batch_size=batch_size, domain=domain, vectors=False)
        sigma, place = found.sigma.nan_to_num(0).reshape(-1, points).double().max(1)
        better = (sigma > largest[open_pairs]).cpu()
        position[open_pairs[better]] = t.flatten()[place[better]].to(position)
        largest[open_pairs] = torch.maximum(largest[open_pairs], sigma)
        open_pairs = (ratio > largest * (1 + rtol)).nonzero().squeeze(1).cpu()
        points *= 4
    return MeanValueCheck(ratio, largest, position, ratio <= largest * (1 + rtol))
