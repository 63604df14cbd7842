"""Divergences between vMF densities, in nats, with their digits kept where the two are nearly equal.

    KL(vMF(mu, k1) || vMF(mu', k2)) = floor(k1, k2) + A_d(k1) k2 |mu - mu'|^2 / 2             (1.4)
    floor(k1, k2) = log C_d(k1) - log C_d(k2) + A_d(k1) (k1 - k2)                             (2.4)

The first line is (1.4) with 1 - mu.mu' = |mu - mu'|^2 / 2 put in, so that two directions one ulp apart have a
divergence, and (1.5) is its case of equal concentrations. The floor is a difference of large numbers in every way it
can be written; which one is used depends on where the concentrations lie:

* within a factor 3/2 of each other, the integral floor = int_{k1}^{k2} (k2 - s) A'(s) ds, positive everywhere, by
  Gauss-Legendre with 8 nodes (A' is analytic in a strip wide enough for full precision);
* else while A(k1) < 1/2, growth from the uniform density, F(k2) - F(k1) - A(k1) (k2 - k1);
* else the densities at the mode, with log C = S - kappa: S(k1) - S(k2) + (1 - A(k1)) (k2 - k1).
"""

import functools

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lipcomp.distributions import _bessel as bessel

_NODES, _WEIGHTS = (tuple(map(float, x)) for x in np.polynomial.legendre.leggauss(8))


def half_chord_squared(
    mu: Float[Tensor, "*batch dim"], other: Float[Tensor, "*batch_2 dim"]
) -> Float[Tensor, "..."]:
    """1 - mu.mu' of two unit vectors, as |mu - mu'|^2 / 2: relative precision however close they are."""
    return 0.5 * (mu - other).square().sum(-1)


def divergence_floor(
    dim: int, kappa_1: Shaped[Tensor, "*batch"], kappa_2: Shaped[Tensor, "*batch_2"]
) -> Float[Tensor, "..."]:
    """The divergence of two vMF densities that share their mean direction (2.4), >= 0.

    Raises
    ------
    ValueError
        If d < 2 or a concentration is negative or not finite.
    """
    bessel.check_dim(dim)
    bessel.check_concentration(kappa_1, "kappa_1")
    bessel.check_concentration(kappa_2, "kappa_2")
    dtype = torch.promote_types(kappa_1.dtype, kappa_2.dtype)
    shape = torch.broadcast_shapes(kappa_1.shape, kappa_2.shape)
    k1, k2 = torch.broadcast_tensors(bessel.collapse(kappa_1).double(), bessel.collapse(kappa_2).double())
    a, step = bessel.mean_resultant_length(dim, k1), k2 - k1

    both = torch.stack([k1, k2])
    growth, at_mode = bessel.growth(dim, both), bessel.scaled_log_normalizer(dim, both)
    small = growth[1] - growth[0] - a * step
    large = at_mode[0] - at_mode[1] + bessel.mean_resultant_deficit(dim, k1) * step
    share = step.new_tensor([0.5 * (1 + x) for x in _NODES])
    weight = step.new_tensor([0.5 * w * 0.5 * (1 - x) for x, w in zip(_NODES, _WEIGHTS, strict=True)])
    slopes = bessel.mean_resultant_slope(dim, k1.unsqueeze(-1) + step.unsqueeze(-1) * share)
    near = step.square() * (slopes * weight).sum(-1)

    close = step.abs() <= 0.5 * torch.minimum(k1, k2)
    return torch.where(close, near, torch.where(a < 0.5, small, large)).to(dtype).expand(shape)


def vmf_divergence(
    mu_1: Float[Tensor, "*batch dim"],
    kappa_1: Shaped[Tensor, "*kappa_batch"],
    mu_2: Float[Tensor, "*batch_2 dim"],
    kappa_2: Shaped[Tensor, "*kappa_batch_2"],
) -> Float[Tensor, "..."]:
    """KL(vMF(mu_1, kappa_1) || vMF(mu_2, kappa_2)) in nats (1.4); all shapes broadcast."""
    dim = mu_1.shape[-1]
    apart = bessel.mean_resultant_length(dim, kappa_1) * kappa_2 * half_chord_squared(mu_1, mu_2)
    return divergence_floor(dim, kappa_1, kappa_2) + apart


def divergence_from_uniform(dim: int, kappa: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """KL(vMF(mu, kappa) || uniform) = log C_d(kappa) - log C_d(0) + kappa A_d(kappa), whatever mu."""
    bessel.check_dim(dim)
    bessel.check_concentration(kappa)
    k = bessel.collapse(kappa).double()
    a = bessel.mean_resultant_length(dim, k)
    small = k * a - bessel.growth(dim, k)
    at_mode = bessel.scaled_log_normalizer(dim, k) + bessel.log_sphere_area(dim)
    large = at_mode - k * bessel.mean_resultant_deficit(dim, k)
    return torch.where(a < 0.5, small, large).to(kappa.dtype).expand(kappa.shape)


@functools.lru_cache(maxsize=4096)
def constant_floor(dim: int, kappa_1: float | int, kappa_2: float | int) -> float:
    """:func:`divergence_floor` of two numbers."""
    pair = torch.tensor([kappa_1, kappa_2], dtype=torch.float64)
    return divergence_floor(dim, pair[0], pair[1]).item()
