"""sigma_max(J), the local Lipschitz constant of a map at every image of a batch, by Lanczos on J Jᵀ.

The local constant of mu at x is the largest singular value of J = dmu/dx (theory (4.1), (4.4)). With products J v
and Jᵀ u at one forward pass each (:mod:`lipcomp.jacobian.products`), k of either build an orthonormal basis Q of a
Krylov space in the small output space R^d and

    T = Qᵀ J Jᵀ Q = B Bᵀ  (tridiagonal),       theta_1(T) <= sigma_max²   always: every value is a lower bound.

Everything is read off after *each* product, not each pair of them: after Jᵀ q_k the matrix T_k is known, and so is
the residual of the Krylov space of Jᵀ J that ends one product earlier (the lower bidiagonal factor B without its
last column), which bounds the error. That saves about one pass in ten.

Stopping. For a Ritz value theta with residual r = ‖J Jᵀ u - theta u‖ the error of sigma is about
½ r² / (theta gap), gap its distance to the next Ritz value; this must fall below ``rtol``, for the wanted values, and
at least ``MIN_ITERATIONS`` steps must have been taken, since a start almost orthogonal to the largest vector first
settles at the second (:data:`MIN_ITERATIONS` says what was measured). A stop that comes too early gives a smaller
number: still a lower bound.

Images that have converged leave the batch. The recorded graphs hold the whole batch, so the rest is linearised again
as soon as that costs less than carrying the finished images along.

>>> import torch
>>> from lipcomp.jacobian import spectral_norm
>>> matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
>>> spectral_norm(lambda x: x @ matrix, torch.rand(4, 3)).sigma
tensor([5.0000, 5.0000, 5.0000, 5.0000])
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from lipcomp.jacobian.batching import fitting_batch_size
from lipcomp.jacobian.checks import check_images, check_map, usable_outputs
from lipcomp.jacobian.products import Linearisation, Map

MIN_ITERATIONS = 6
COMPACT_BELOW = 0.6


@dataclass(frozen=True)
class SpectralNorm:
    """The largest singular values of the Jacobian at every image.

    Attributes
    ----------
    sigma
        sigma_max(J) at every image, per pixel L2; NaN for an image that was left out.
    residual
        ‖J Jᵀ u - sigma² u‖ / sigma² that was reached (the worst of the k, if several were asked for).
    iterations
        Lanczos steps that an image took, each of one product in either direction; rows for the row loop.
    converged
        Whether the tolerance was met. An unconverged sigma is still a lower bound.
    left, right
        Unit singular vectors of sigma: J right = sigma left. Right has the image's shape. None if not asked for.
    values
        The k largest, in falling order.
    left_vectors, right_vectors
        All k of the vectors, (n, k, ...); None if not asked for.
    excluded
        How many images were left out, by reason.
    rtol
        The relative tolerance asked for.
    method
        "lanczos" or "rows".
    """

    sigma: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    iterations: Int64[Tensor, " n"]
    converged: Bool[Tensor, " n"]
    values: Float[Tensor, "n k"] = field(repr=False)
    left_vectors: Float[Tensor, "n k dim"] | None = field(repr=False)
    right_vectors: Float[Tensor, "n k ..."] | None = field(repr=False)
    excluded: dict[str, int]
    rtol: float
    method: str

    @property
    def left(self) -> Float[Tensor, "n dim"] | None:
        """Left singular vector of the largest value."""
        return None if self.left_vectors is None else self.left_vectors[:, 0]

    @property
    def right(self) -> Float[Tensor, "n ..."] | None:
        """Right singular vector of the largest value: the image direction that moves the output most."""
        return None if self.right_vectors is None else self.right_vectors[:, 0]

    @property
    def witness(self) -> int:
        """Index of the image with the largest sigma.

        Raises
        ------
        ValueError
            If every image was left out.
        """
        if bool(self.sigma.isnan().all()):
            raise ValueError(f"no image was measured; left out: {self.excluded}")
        return int(self.sigma.nan_to_num(-math.inf).argmax())


def spectral_norm(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    k: int = 1,
    rtol: float = 1e-4,
    max_iterations: int | None = None,
    batch_size: int | None = None,
    method: str = "auto",
    vectors: bool = True,
    domain: tuple[float, float] | None = (0.0, 1.0),
    generator: Generator | None = None,
    advance: Callable[[int], object] | None = None,
) -> SpectralNorm:
    """The largest singular values of the Jacobian of ``fn`` at every image, matrix-free.

    Parameters
    ----------
    fn
        A differentiable map of a batch of images to one vector an image, in evaluation mode.
    images
        Pixels in [0, 1], all on the device of ``fn``.
    k
        How many singular values.
    rtol
        Relative tolerance of every value.
    max_iterations
        Lanczos steps at most; by default the dimension, at most 200. Images that need more come back unconverged.
    batch_size
        Images at a time; by default what fits into a quarter of the free memory, at most 64.
    method
        "lanczos", "rows" (the exact row loop, :func:`~lipcomp.jacobian.dense.row_spectral_norm`), or "auto": rows
        for outputs of at most 8 dimensions.
    vectors
        Whether to return singular vectors.
    domain
        Where pixels must lie, None for inputs that are no pixels.
    generator
        Randomness of the starting vectors (CPU); by default seeded with 0.
    advance
        Called with the count of images done, for a progress display.

    Raises
    ------
    ValueError
        If an argument does not fit, the images leave the domain, the map is in training mode, mixes images or is not
        deterministic, or an operator lacks a derivative; the message names it.
    """
    if method not in ("auto", "lanczos", "rows"):
        raise ValueError(f'method must be "auto", "lanczos" or "rows", got {method!r}')
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
    check_images(images, domain)
    dim = check_map(fn, images)
    if not 1 <= k <= dim:
        raise ValueError(f"k must lie between 1 and the output's dimension {dim}, got {k}")
    if method == "rows" or (method == "auto" and dim <= 8):
        from lipcomp.jacobian.dense import row_spectral_norm

        return row_spectral_norm(
            fn, images, k=k, batch_size=batch_size, vectors=vectors, domain=domain, advance=advance
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn((len(images), dim), generator=generator, dtype=torch.float64)
    limit = min(dim, 200) if max_iterations is None else min(dim, max_iterations)
    limit = max(limit, k)
    size = fitting_batch_size(fn, images) if batch_size is None else batch_size
    parts, excluded = [], {"non-finite output": 0, "zero-norm embedding": 0}
    for index in torch.arange(len(images)).split(size):
        lanczos = _Lanczos(fn, images[index], start[index].to(images), k, rtol, vectors)
        for reason, count in lanczos.excluded.items():
            excluded[reason] += count
        parts.append(lanczos.run(limit))
        if advance is not None:
            advance(len(index))
    values, residual, steps, converged, left, right = zip(*parts, strict=True)
    return SpectralNorm(
        torch.cat(values)[:, 0],
        torch.cat(residual),
        torch.cat(steps),
        torch.cat(converged),
        torch.cat(values),
        torch.cat(left) if vectors else None,
        torch.cat(right) if vectors else None,
        excluded,
        rtol,
        "lanczos",
    )


class _Lanczos:
    """One batch on its way: bases and coefficients of the images that still go on, results of the others."""

    def __init__(self, fn: Map, images: Tensor, start: Tensor, k: int, rtol: float, vectors: bool) -> None:
        self.fn, self.images, self.k, self.rtol, self.vectors = fn, images, k, rtol, vectors
        at = Linearisation(fn, images)
        usable, self.excluded = usable_outputs(at.output)
        n, dim = at.output.shape
        like = images.new_full
        self.sigma = like((n, k), math.nan)
        self.residual = like((n,), math.nan)
        self.steps = torch.zeros(n, dtype=torch.int64)
        self.converged = torch.zeros(n, dtype=torch.bool)
        self.left = like((n, k, dim), math.nan) if vectors else None
        self.right = like((n, k, *images.shape[1:]), math.nan) if vectors else None
        self.active = usable.nonzero().squeeze(1)  # of the batch
        self.rows = self.active.clone()  # of the linearisation
        self.at = at
        self.graph_size = n
        start = start[self.active]
        self.basis = (start / start.norm(dim=1, keepdim=True)).unsqueeze(1)  # (m, k, dim)
        self.pulled: list[Tensor] = []  # Jᵀ q_j, each (m, *shape)
        self.alpha = torch.zeros((len(self.active), 0), dtype=torch.float64)
        self.beta = torch.zeros((len(self.active), 0), dtype=torch.float64)

    def run(self, limit: int) -> tuple[Any, ...]:
        """Up to ``limit`` steps; the results, one row an image of the batch."""
        for step in range(1, limit + 1):
            if not len(self.active):
                break
            self._compact()
            pulled = self._transposed(self.basis[:, -1])
            self.pulled.append(pulled)
            self.alpha = torch.cat([self.alpha, _square(pulled)], 1)
            self._finish(*self._half_step(), last=step == limit)
            if not len(self.active):
                break
            self._extend()
            self._finish(*self._full_step(), last=False)
        return self.sigma, self.residual, self.steps, self.converged, self.left, self.right

    def _compact(self) -> None:
        if len(self.active) <= COMPACT_BELOW * self.graph_size:
            self.at = Linearisation(self.fn, self.images[self.active])
            self.rows, self.graph_size = torch.arange(len(self.active)), len(self.active)

    def _transposed(self, u: Tensor) -> Tensor:
        whole = u.new_zeros((self.graph_size, u.shape[1]))
        whole[self.rows] = u
        return self.at.transposed(whole)[self.rows]

    def _forward(self, v: Tensor) -> Tensor:
        whole = v.new_zeros((self.graph_size, *v.shape[1:]))
        whole[self.rows] = v
        return self.at.forward(whole)[self.rows]

    def _extend(self) -> None:
        """The next basis vector: J Jᵀ q_k, orthogonal to all before it."""
        new = self._forward(self.pulled[-1])
        scale = self.alpha.max(1, keepdim=True).values.to(new)
        for _ in range(2):  # twice is enough
            new = new - torch.einsum("nkd,nk->nd", self.basis, torch.einsum("nkd,nd->nk", self.basis, new))
        beta = new.norm(dim=1, keepdim=True)
        spent = beta <= 10 * torch.finfo(new.dtype).eps * scale  # the Krylov space is invariant
        self.beta = torch.cat([self.beta, beta.masked_fill(spent, 0).double().cpu()], 1)
        if bool(spent.any()):  # go on with a direction that was not reached
            other = torch.eye(new.shape[1], dtype=new.dtype, device=new.device)
            reached = self.basis.square().sum(1)  # (m, dim): how much of every axis the basis holds
            new = torch.where(spent, other[reached.argmin(1)], new)
            for _ in range(2):
                new = new - torch.einsum(
                    "nkd,nk->nd", self.basis, torch.einsum("nkd,nd->nk", self.basis, new)
                )
        self.basis = torch.cat([self.basis, _unit(new).unsqueeze(1)], 1)

    def _full_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values and vectors of T_k, and the residuals beta_k |s_k|."""
        values, vectors = torch.linalg.eigh(self._tridiagonal())
        residual = self.beta[:, -1:] * vectors[:, -1, :].abs()
        return values.flip(1), residual.flip(1), vectors.flip(2)

    def _half_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values and vectors of T_k, with residuals of the space of Jᵀ J one product before."""
        tridiagonal = self._tridiagonal()
        values, vectors = torch.linalg.eigh(tridiagonal)
        size = tridiagonal.shape[1]
        if size == 1:
            return values, torch.full_like(values, math.inf), vectors
        # T_k = B Bᵀ. Without its last column B gives the Ritz pairs of Jᵀ J: J v = s u, Jᵀ u = s v + b_k u_k p.
        diagonal, below = _bidiagonal(self.alpha, self.beta)
        factor = torch.diag_embed(diagonal)[:, :, :-1] + torch.diag_embed(below, offset=-1)[:, :, :-1]
        left, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        residual = diagonal[:, -1:] * left[:, -1, :].abs() * singular
        residual = torch.cat([residual, torch.full_like(residual[:, :1], math.inf)], 1)
        return values.flip(1), residual, vectors.flip(2)

    def _tridiagonal(self) -> Tensor:
        size = self.alpha.shape[1]
        off = self.beta[:, : size - 1]
        return (
            torch.diag_embed(self.alpha) + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
        )

    def _finish(self, values: Tensor, residual: Tensor, vectors: Tensor, *, last: bool) -> None:
        """Write the results of the images that have converged, and let them go."""
        size = values.shape[1]
        if size < self.k:
            return
        error = _relative_error(values, residual)[:, : self.k].amax(1)
        exact = size >= self.basis.shape[2]
        spent = (self.beta[:, size - 1 : size] == 0).any(1) if self.beta.shape[1] >= size else exact
        done = (error <= self.rtol) & (size >= min(MIN_ITERATIONS + self.k - 1, self.basis.shape[2]))
        done = done | exact | ((spent if isinstance(spent, Tensor) else False) & (self.k == 1))
        stop = torch.ones_like(done) if last else done
        if not bool(stop.any()):
            return
        which = stop.nonzero().squeeze(1)
        at = self.active[which]
        top = values[which, : self.k].clamp(min=0)
        self.sigma[at] = top.sqrt().to(self.sigma)
        relative = residual[which, : self.k] / top.clamp(min=torch.finfo(torch.float64).tiny)
        self.residual[at] = relative.nan_to_num(0).amax(1).to(self.residual)
        self.steps[at], self.converged[at] = size, done[which]
        if self.left is not None and self.right is not None:
            weights = vectors[which][:, :, : self.k].to(self.basis)
            self.left[at] = torch.einsum("nkd,nkj->njd", self.basis[which, :size], weights)
            pulled = torch.stack([part[which].flatten(1) for part in self.pulled], 1)
            right = torch.einsum("nkd,nkj->njd", pulled, weights)
            self.right[at] = _unit(right).reshape(self.right[at].shape)
        keep = (~stop).nonzero().squeeze(1)
        self.active, self.rows = self.active[keep], self.rows[keep]
        self.basis, self.alpha, self.beta = self.basis[keep], self.alpha[keep], self.beta[keep]
        self.pulled = [part[keep] for part in self.pulled]


def _square(vectors: Tensor) -> Tensor:
    return vectors.flatten(1).double().square().sum(1, keepdim=True).cpu()


def _unit(vectors: Tensor) -> Tensor:
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / norm.clamp(min=torch.finfo(vectors.dtype).tiny)


def _bidiagonal(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal and subdiagonal of the Cholesky factor of a tridiagonal matrix."""
    diagonal, below = [alpha[:, 0].sqrt()], []
    for j in range(1, alpha.shape[1]):
        below.append(beta[:, j - 1] / diagonal[-1].clamp(min=torch.finfo(alpha.dtype).tiny))
        diagonal.append((alpha[:, j] - below[-1].square()).clamp(min=0).sqrt())
    return torch.stack(diagonal, 1), torch.stack(below, 1)


def _relative_error(values: Tensor, residual: Tensor) -> Tensor:
    """Estimated relative error of sqrt(values): ½ min(r, r²/gap) / theta, gap to the nearest other Ritz value."""
    gap = torch.full_like(values, math.inf)
    if values.shape[1] > 1:
        apart = (values[:, :-1] - values[:, 1:]).abs()
        gap[:, :-1] = apart
        gap[:, 1:] = torch.minimum(gap[:, 1:], apart)
    tiny = torch.finfo(values.dtype).tiny
    error = torch.minimum(residual, residual.square() / gap.clamp(min=tiny))
    relative = 0.5 * error / values.clamp(min=tiny)
    return torch.where(residual == 0, torch.zeros_like(relative), relative)
