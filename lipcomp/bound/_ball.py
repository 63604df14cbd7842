"""The intersection of a ball around an image with the pixels' range [0, 1]: where searches may go."""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 50


def project(
    points: Float[Tensor, "n ..."], centres: Float[Tensor, "n ..."], radius: float, norm: str
) -> Float[Tensor, "n ..."]:
    """The nearest points of {x in [0, 1]: ‖x - centre‖ <= radius}, for centres in [0, 1].

    For L-infinity a clamp. For L2 the nearest point is clamp(centre + s (point - centre)) for some s in [0, 1]: the
    step scaled and clamped, s found by bisection.
    """
    if norm == "linf":
        low, high = centres - radius, centres + radius
        low = torch.where(centres.double() - low.double() > radius, low.nextafter(centres), low)
        high = torch.where(high.double() - centres.double() > radius, high.nextafter(centres), high)
        return torch.minimum(torch.maximum(points, low), high).clamp(0, 1)
    shape = (-1, *[1] * (points.dim() - 1))
    step = points - centres
    clamped = points.clamp(0, 1)
    outside = (clamped - centres).flatten(1).norm(dim=1) > radius
    if not bool(outside.any()):
        return clamped
    low, high = torch.zeros(len(points), device=points.device), torch.ones(len(points), device=points.device)
    low, high = low.to(points), high.to(points)
    for _ in range(ROUNDS if points.dtype == torch.float64 else 24):
        middle = (low + high) / 2
        length = ((centres + middle.view(shape) * step).clamp(0, 1) - centres).flatten(1).norm(dim=1)
        low = torch.where(length <= radius, middle, low)
        high = torch.where(length <= radius, high, middle)
    inside = (centres + low.view(shape) * step).clamp(0, 1)
    return torch.where(outside.view(shape), inside, clamped)
