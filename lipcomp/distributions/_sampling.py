"""Exact draws from vMF(mu, kappa), batched, differentiable in mu.

By symmetry z = w mu + sqrt(1 - w^2) v, where w = mu.z has the marginal density proportional to

    exp(kappa w) (1 - w^2)^((d-3)/2),       -1 <= w <= 1,

and v is uniform on the unit vectors orthogonal to mu.

*The marginal.* t = 1 - w is what is drawn, since near the mode w has no digits to spare: 1 - w^2 = t (2 - t). Its
density is proportional to exp(-kappa t) t^a (2 - t)^a with a = (d - 3)/2, and two rejections share the work, so that
0.9 of the proposals and more are accepted (0.66 on the circle, 0.68 at d = 3):

* kappa >= d/2, d >= 4: (2 - t)^a lies below its exponential tangent at t0 = 1 - w0, so t ~ Gamma(a + 1,
  kappa + a / (2 - t0)) is accepted with probability exp(a (log(1 - x) + x)), x = (t - t0) / (2 - t0);
* otherwise Wood's [1]_: eps ~ Beta((d-1)/2, (d-1)/2), t = 2 b eps / (1 - (1 - b) eps). Beta variates come from one
  normal and one gamma variate each, for (1 + x)/2 is such when x is a coordinate of a uniform point on S^(d-1).

The whole batch is proposed at once, then what was refused, until nothing is.

*The tangent.* A normal vector g is projected: v = (g - (g.mu) mu) / |...|. No reflection and no pole, so mu may be
any unit vector, minus the first axis among them; |z| = 1 to rounding.

*Gradients.* z is a function of mu (g and w held: the pathwise gradient), and of kappa by implicit reparameterisation
[2]_: at a fixed quantile, with z = cos(theta) mu + sin(theta) v and phi(theta) = exp(kappa cos theta) sin^(d-2)(theta),

    d theta / d kappa = -int_0^theta (cos s - A) phi(s) / phi(theta) ds = int_theta^pi (the same) ds,

by Gauss-Legendre quadrature on the side that leads away from the mode, where the integrand only decays. It is
computed only where kappa asks for a gradient (a concentration head).

References
----------
.. [1] A. T. A. Wood, Simulation of the von Mises Fisher distribution, Commun. Stat. Simul. 23 (1994).
.. [2] M. Figurnov, S. Mohamed, A. Mnih, Implicit Reparameterization Gradients, NeurIPS 2018.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Size, Tensor

from lipcomp.distributions import _bessel as bessel

_NODES, _WEIGHTS = (tuple(map(float, x)) for x in np.polynomial.legendre.leggauss(48))


def sample_sphere(shape: Size, like: Tensor, generator: Generator | None = None) -> Tensor:
    """Uniform unit vectors, of the dtype and device of ``like``."""
    g = _normals(shape, like, generator)
    return g / torch.linalg.vector_norm(g, dim=-1, keepdim=True)


def sample_mode_distance(
    dim: int, kappa: Float[Tensor, "*batch"], generator: Generator | None = None
) -> Float[Tensor, "*batch"]:
    """Draw t = 1 - mu.z in float64, where z ~ vMF(mu, kappa) on S^(d-1)."""
    bessel.check_dim(dim)
    device = kappa.device if generator is None else generator.device
    k = kappa.detach().to(device, torch.float64).reshape(-1)
    tight = (k >= 0.5 * dim) & (dim >= 4)
    drawn = torch.empty_like(k)
    for propose, mine in ((_propose_gamma, tight), (_propose_wood, ~tight)):
        waiting = mine.nonzero().squeeze(1)
        while waiting.numel():
            t, level = propose(dim, k[waiting], generator)
            uniform = torch.rand(t.shape, generator=generator, dtype=torch.float64, device=device)
            accepted = ~(level < torch.log1p(-uniform))  # nan is let through, to come out as nan
            drawn[waiting[accepted]] = t[accepted]
            waiting = waiting[~accepted]
    return drawn.reshape(kappa.shape).to(kappa.device)


def _propose_gamma(dim: int, k: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Proposals of t and the log probability of accepting each, where kappa is large."""
    a, m = 0.5 * (dim - 3), dim - 1
    mode = 1 - 2 * k / (m + torch.sqrt(m * m + 4 * k * k))
    c = 1 / (2 - mode)
    gamma = torch._standard_gamma(torch.full_like(k, a + 1), generator=generator)
    t = gamma / (k + a * c)
    x = (t - mode) * c
    return t, torch.where(x >= 1, -torch.inf, a * (torch.log1p(-x) + x))


def _propose_wood(dim: int, k: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """The same where it is small, or d is."""
    m = dim - 1
    b = m / (2 * k + torch.sqrt(4 * k * k + m * m))
    x = torch.randn(k.shape, generator=generator, dtype=torch.float64, device=k.device)
    gamma = torch._standard_gamma(torch.full_like(k, 0.5 * m), generator=generator)
    eps = 0.5 * (1 + x / torch.sqrt(x * x + 2 * gamma))
    t = 2 * b * eps / (1 - (1 - b) * eps)
    # kappa w + (d-1) log(1 - x0 w) less its highest value, at w = x0; y = 1 - x0 w, y0 = 1 - x0
    y0 = 2 * b / (1 + b)
    y = y0 + (1 - y0) * t
    return t, k * (y0 - t) + m * torch.log(y / (y0 * (2 - y0)))


def sample_von_mises_fisher(
    mu: Float[Tensor, "*batch dim"], kappa: Float[Tensor, "*batch"], generator: Generator | None = None
) -> Float[Tensor, "*batch dim"]:
    """One draw for each mean direction, differentiable in it."""
    dim = mu.shape[-1]
    t = sample_mode_distance(dim, kappa, generator)
    if kappa.requires_grad and torch.is_grad_enabled():
        t = _Implicit.apply(t, kappa, dim)
    w, radius = (1 - t).to(mu.dtype).unsqueeze(-1), torch.sqrt(t * (2 - t)).to(mu.dtype).unsqueeze(-1)
    if dim == 2:
        sign = torch.where(_normals(mu.shape[:-1], mu, generator) < 0, -1.0, 1.0).to(mu.dtype).unsqueeze(-1)
        return w * mu + sign * radius * torch.stack([-mu[..., 1], mu[..., 0]], -1)
    g = _normals(mu.shape, mu, generator)
    if dim < 16:  # a vector may lie almost along mu: project twice
        for _ in range(2):
            g = g - (g * mu).sum(-1, keepdim=True) * mu
            g = g / torch.linalg.vector_norm(g, dim=-1, keepdim=True)
        return w * mu + radius * g
    # (g - c mu) / sqrt(|g|^2 - c^2) with c = g.mu, joined with w mu into one pass
    c = (g * mu).sum(-1, keepdim=True)
    scale = radius / torch.sqrt(torch.linalg.vector_norm(g, dim=-1, keepdim=True).square() - c * c)
    along = w - scale * c
    if torch.is_grad_enabled() and (scale.requires_grad or mu.requires_grad):
        return torch.addcmul(scale * g, along, mu)
    return g.mul_(scale).addcmul_(along, mu)


def quantile_slope(
    dim: int, t: Float[Tensor, "*batch"], kappa: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The derivative dt/dkappa of t = 1 - mu.z at a fixed quantile of its distribution, <= 0."""
    t, k = t.double(), kappa.double()
    deficit = bessel.mean_resultant_deficit(dim, k)
    theta = 2 * torch.asin(torch.sqrt(0.5 * t).clamp(max=1))
    # the angle of the highest phi, where kappa sin^2 = (d - 2) cos, and how fast log phi falls there
    m = dim - 2
    cosine = 2 * k / (m + torch.sqrt(m * m + 4 * k * k)).clamp_min(1e-300)
    width = 12 / torch.sqrt(k * cosine + m / (1 - cosine.square()).clamp_min(1e-30)).clamp_min(1e-30)
    below = torch.cos(theta) > cosine  # nearer the pole mu than the mode is: integrate towards 0
    reach = torch.minimum(width, torch.where(below, theta, torch.pi - theta))
    sign = torch.where(below, -1.0, 1.0)
    share = theta.new_tensor([0.5 * (1 + x) for x in _NODES])
    weight = theta.new_tensor([0.5 * w for w in _WEIGHTS])
    step = (sign * reach).unsqueeze(-1) * share
    s, base = theta.unsqueeze(-1) + step, theta.unsqueeze(-1)
    # cos s - cos theta = -2 sin((s + theta)/2) sin((s - theta)/2), and 1 - cos s = 2 sin^2(s/2)
    tilt = -2 * torch.sin(base + 0.5 * step) * torch.sin(0.5 * step) * k.unsqueeze(-1)
    sines = torch.sin(s).clamp_min(0) / torch.sin(base).clamp_min(1e-300)
    level = tilt + torch.special.xlogy(torch.full_like(sines, m), sines)
    centred = deficit.unsqueeze(-1) - 2 * torch.sin(0.5 * s).square()
    return torch.sin(theta) * sign * reach * (centred * torch.exp(level) * weight).sum(-1)


class _Implicit(torch.autograd.Function):
    """t as drawn, differentiable in kappa once."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(t, kappa)
        ctx.dim = dim
        return t.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        t, kappa = ctx.saved_tensors
        return None, (grad * quantile_slope(ctx.dim, t, kappa)).to(kappa.dtype), None


def _normals(shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
