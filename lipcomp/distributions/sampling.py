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

The draws are functions of mu (the pathwise gradient). In kappa they are constant: use the closed forms where kappa
is learned.

References
----------
.. [1] A. T. A. Wood, Simulation of the von Mises Fisher distribution, Commun. Stat. Simul. 23 (1994).
"""

import torch
from jaxtyping import Float
from torch import Generator, Size, Tensor

from lipcomp.distributions import bessel


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


def _normals(shape: Size, like: Tensor, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
