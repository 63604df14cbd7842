"""The residual information E[log e(z|x) - log b(z|y)], sampled or in closed form, and its weights by pixel distance.

*Sampled* (2.2): one draw z ~ e(z|x) per example, as the official code does. By symmetry log e(z|x) at the drawn z does
not depend on mu(x), so the gradient comes from -log b(z|y) alone and carries z's noise.

*Closed form* (1.4): the expectation itself,

    floor(kappa_e, kappa_b) + A_d(kappa_e) kappa_b |mu(x) - mu(y)|^2 / 2,

the same in the mean over z and without its noise. The floor (2.4) is what two concentrations cost at mu(x) = mu(y),
so what is above it, the excess, is what training can lower; it is in every log.

*Weights by distance.* A pair's residual bounds how far the encoder moved relative to how far the images did only
once it is divided by their squared distance: (3.1) is sqrt(KL)/Delta. With ``pair_normalised`` each pair's residual
is weighted by 1/Delta^2, scaled to mean one over the batch of all replicas. A pair closer than a tenth of the batch's
median distance counts as that far, so that two equal views cannot take the whole batch's weight.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.distributions._bessel import mean_resultant_length, scaled_log_normalizer
from lipcomp.distributions._divergence import constant_floor, divergence_floor, half_chord_squared
from lipcomp.objectives._objective import Concentration, Gather, Objective, check_rows


def log_density(
    z: Float[Tensor, "batch dim"], mu: Float[Tensor, "batch dim"], kappa: Concentration
) -> Float[Tensor, " batch"]:
    """Log vMF(z; mu, kappa) (1.1), as its value at the mode less kappa |z - mu|^2 / 2."""
    dim = z.shape[1]
    top = scaled_log_normalizer(dim, kappa) if isinstance(kappa, Tensor) else _constant_top(dim, kappa)
    return top - kappa * half_chord_squared(z, mu)


def sampled_residual(
    z: Float[Tensor, "batch dim"],
    mu_e: Float[Tensor, "batch dim"],
    kappa_e: Concentration,
    mu_b: Float[Tensor, "batch dim"],
    kappa_b: float | int,
) -> Float[Tensor, " batch"]:
    """Log e(z|x) - log b(z|y) of each example (2.2)."""
    return log_density(z, mu_e, kappa_e) - log_density(z, mu_b, kappa_b)


def closed_residual(
    mu_e: Float[Tensor, "batch dim"],
    kappa_e: Concentration,
    mu_b: Float[Tensor, "batch dim"],
    kappa_b: float | int,
) -> Float[Tensor, " batch"]:
    """KL(e(z|x) || b(z|y)) of each example (1.4), the expectation of :func:`sampled_residual` over z."""
    return residual_floor(mu_e.shape[1], kappa_e, kappa_b) + closed_excess(mu_e, kappa_e, mu_b, kappa_b)


def closed_excess(
    mu_e: Float[Tensor, "batch dim"],
    kappa_e: Concentration,
    mu_b: Float[Tensor, "batch dim"],
    kappa_b: float | int,
) -> Float[Tensor, " batch"]:
    """What of :func:`closed_residual` lies above the floor, A_d(kappa_e) kappa_b |mu(x) - mu(y)|^2 / 2."""
    dim = mu_e.shape[1]
    if isinstance(kappa_e, Tensor):
        length: Concentration = mean_resultant_length(dim, kappa_e)
    else:
        length = _constant_length(dim, kappa_e)
    return length * kappa_b * half_chord_squared(mu_e, mu_b)


def residual_floor(dim: int, kappa_e: Concentration, kappa_b: float | int) -> Concentration:
    """The least residual information that the concentrations allow (2.4), nats."""
    if isinstance(kappa_e, Tensor):
        return divergence_floor(dim, kappa_e, torch.full_like(kappa_e, kappa_b))
    return constant_floor(dim, kappa_e, kappa_b)


def pair_weights(distances: Float[Tensor, " batch"], gather: Gather | None = None) -> Float[Tensor, " batch"]:
    """1/Delta^2 of each pair, scaled to mean one over the batch of all replicas; no gradient."""
    own = distances.detach()
    every = own if gather is None else gather(own)
    least = (0.1 * every.median()).clamp_min(torch.finfo(own.dtype).tiny ** 0.25)
    scale = (1 / every.clamp_min(least).square()).mean()
    return 1 / (own.clamp_min(least).square() * scale)


@functools.lru_cache(maxsize=4096)
def _constant_top(dim: int, kappa: float) -> float:
    return scaled_log_normalizer(dim, torch.tensor(kappa, dtype=torch.float64)).item()


@functools.lru_cache(maxsize=4096)
def _constant_length(dim: int, kappa: float) -> float:
    return mean_resultant_length(dim, torch.tensor(kappa, dtype=torch.float64)).item()


def pair_weights_of(
    objective: Objective, distances: Tensor | None, rows: int, gather: Gather | None
) -> Float[Tensor, " batch"] | None:
    """The weights that ``pair_normalised`` asks for; None without it."""
    if not objective.needs_distances:
        return None
    if distances is None:
        raise ValueError(
            "distances must be given with pair_normalised=True: the pixel L2 distance of the two views of each image, "
            "shape (batch,)"
        )
    check_rows(distances, rows, "distances")
    return pair_weights(distances, gather)


def compress(
    objective: Any, pairs: list[tuple[Tensor, Tensor, Concentration, Tensor]], weights: Tensor | None
) -> tuple[Float[Tensor, " directions"], dict[str, Tensor]]:
    """The (weighted) residual information of each direction, and its log without the weights.

    ``pairs`` holds (z, mu_e, kappa_e, mu_b) of each direction.
    """
    residuals, excess, kappa_b = [], [], objective.kappa_b
    for z, mu_e, kappa_e, mu_b in pairs:
        floor = residual_floor(mu_e.shape[1], kappa_e, kappa_b)
        if objective.closed_form:
            above = closed_excess(mu_e, kappa_e, mu_b, kappa_b)
            residuals.append(floor + above)
        else:
            residuals.append(sampled_residual(z, mu_e, kappa_e, mu_b, kappa_b))
            above = residuals[-1].detach() - floor
        excess.append(above.detach().mean())
    metrics = {
        "residual_information": torch.stack([residual.detach().mean() for residual in residuals]).mean(),
        "excess_residual": torch.stack(excess).mean().detach(),
    }
    if weights is not None:
        residuals = [weights * residual for residual in residuals]
    return torch.stack([residual.mean() for residual in residuals]), metrics
