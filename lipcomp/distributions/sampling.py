"""Exact draws from vMF(mu, kappa), batched, differentiable in mu.

By symmetry z = w mu + sqrt(1 - w^2) v, where w = mu.z has the marginal density proportional to

    exp(kappa w) (1 - w^2)^((d-3)/2),       -1 <= w <= 1,

and v is uniform on the unit vectors orthogonal to mu.

*The marginal.* Wood's rejection [1]_ with t = 1 - w: for eps ~ Beta((d-1)/2, (d-1)/2), t = 2 b eps / (1 - (1 - b) eps)
is proposed and accepted with a probability of 0.66 or more for every d and kappa. t is what is drawn, since near the
mode w has no digits to spare: 1 - w^2 = t (2 - t). The whole batch is proposed at once, then what was refused, until
nothing is. Beta variates come from one normal and one gamma variate each: (1 + x)/2 is Beta((d-1)/2, (d-1)/2) when x
is a coordinate of a uniform point on S^(d-1).

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

from lipcomp.distributions import bessel

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
    m = dim - 1
    root = torch.sqrt(4 * k * k + m * m)
    b = m / (2 * k + root)
    # x0 = (1 - b)/(1 + b) of Wood's envelope, as its distance from 1; log(1 - x0^2) from the same
    y0 = 2 * b / (1 + b)
    constant = -k * y0 + m * torch.log(y0 * (2 - y0))

    drawn = torch.empty_like(k)
    waiting = torch.arange(k.numel(), device=device)
    while waiting.numel():
        kw, bw = k[waiting], b[waiting]
        shape = kw.shape
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        gamma = torch._standard_gamma(torch.full_like(kw, 0.5 * m), generator=generator)
        eps = 0.5 * (1 + x / torch.sqrt(x * x + 2 * gamma))
        t = 2 * bw * eps / (1 - (1 - bw) * eps)
        # kappa w + (d-1) log(1 - x0 w) - constant, with w = 1 - t and 1 - x0 w = y0 + (1 - y0) t
        y = y0[waiting]
        level = -kw * t + m * torch.log(y + (1 - y) * t) - constant[waiting]
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        accepted = level >= torch.log1p(-uniform)
        drawn[waiting[accepted]] = t[accepted]
        waiting = waiting[~accepted]
    return drawn.reshape(kappa.shape).to(kappa.device)


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
    c = torch.linalg.vecdot(g, mu).unsqueeze(-1)
    scale = radius / torch.sqrt(torch.linalg.vecdot(g, g).unsqueeze(-1) - c * c)
    return (w - scale * c) * mu + scale * g


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
