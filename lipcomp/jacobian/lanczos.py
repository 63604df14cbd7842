"""Lanczos on J Jᵀ for a batch of Jacobians at once, each image stopping on its own.

Products with J and Jᵀ alternate from a random unit vector q_1 of the small output space R^d and build an orthonormal
basis Q of a Krylov space with

    T = Qᵀ J Jᵀ Q = B Bᵀ  (tridiagonal),       theta_1(T) <= sigma_max²   always: every value is a lower bound.

Everything is read off after *each* product, not each pair of them: once Jᵀ q_k is known, so is T_k, and so is the
residual of the Krylov space of Jᵀ J that ended one product earlier (B without its last column).

An image stops when two errors are small, both of which T alone tells:

1. The Ritz value has settled: ½ min(r, r²/gap) / theta <= rtol, with r = ‖J Jᵀ u - theta u‖ and gap the distance to
   the next Ritz value: the error of sigma if theta belongs to the largest singular value.
2. It does belong to the largest. A start almost orthogonal to the largest vector settles at the second first, with a
   residual as small as one likes (0.1% to 1% of all images, off by up to a third). An eigenvalue lambda whose vector
   has the weight w = (q_1.e)² in the start leaves the trace w sum_j p_j(lambda)² <= 1 in the basis, p_j the
   orthonormal polynomials of T; for a random start w is a Beta(1/2, (d-1)/2) variable, so that a start that hides a
   sigma more than 1% larger has a probability of at most

       sqrt(2 d / (pi sum_j p_j(1.02 theta)²)),        which must be <= ``miss``.

   (Van Dorsselaer, Hochstenbach and van der Vorst 2000 bound eigenvalues so; here it is a stopping rule.)

Simulated on the spectra of a ResNet-18, trained and untrained, and of an untrained ViT at uniform noise, 6,400 random
starts each, with rtol = 1e-4 and miss = 3e-3: 2, 1 and 8 starts ended with an error above 1e-4 after 3.3, 13.3 and 13.5
steps; with miss = 1e-2 2, 1 and 30 after 3.1, 12.1 and 12.7. "Residual below 1e-3 and at least 8 steps" erred on 0, 2
and 33 after 8, 11.9 and 12.6; rule 1 alone on 9, 36 and 383.

Images that have stopped leave the batch. The recorded graphs hold the whole batch, so the others are linearised
again as soon as that costs less than carrying the finished images along.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lipcomp.jacobian.checks import usable_outputs
from lipcomp.jacobian.precision import power_of_two
from lipcomp.jacobian.products import Linearisation, Map

COMPACT_BELOW = 0.4  # of the graph's images still going on
HIDDEN = 0.01  # a relative excess of sigma that must not be missed


def unit(vectors: Tensor) -> Tensor:
    """Vectors of norm one; zeros stay."""
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / norm.clamp(min=torch.finfo(vectors.dtype).tiny)


@dataclass
class Part:
    """What is known of the images of one batch: NaN for an image that was left out."""

    values: Float[Tensor, "n k"]
    residual: Float[Tensor, " n"]
    miss: Float[Tensor, " n"]
    steps: Int64[Tensor, " n"]
    converged: Bool[Tensor, " n"]
    left: Float[Tensor, "n k dim"] | None
    right: Float[Tensor, "n k ..."] | None
    excluded: dict[str, int]

    @classmethod
    def empty(cls, images: Tensor, dim: int, k: int, vectors: bool, excluded: dict[str, int]) -> "Part":
        """Nothing known yet."""
        n = len(images)
        return cls(
            images.new_full((n, k), math.nan),
            images.new_full((n,), math.nan),
            images.new_full((n,), math.nan),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, dtype=torch.bool),
            images.new_full((n, k, dim), math.nan) if vectors else None,
            images.new_full((n, k, *images.shape[1:]), math.nan) if vectors else None,
            excluded,
        )


class Lanczos:
    """One batch on its way: bases and coefficients of the images that still go on, results of the others.

    Parameters
    ----------
    fn, images
        The map and the batch.
    start
        A random vector an image; random is what rule 2 rests on.
    doubt
        A factor of rule 2's bound, for starts that are not random alone (:mod:`lipcomp.jacobian.sharing`).
    k
        How many of the largest values.
    rtol, miss
        The two thresholds of the module's text.
    vectors
        Whether singular vectors are wanted.
    """

    def __init__(
        self,
        fn: Map,
        images: Float[Tensor, "n ..."],
        start: Float[Tensor, "n dim"],
        *,
        k: int,
        rtol: float,
        miss: float,
        vectors: bool,
        doubt: float = 1.0,
    ) -> None:
        self.doubt = doubt
        self.fn, self.images, self.k, self.rtol, self.miss = fn, images, k, rtol, miss
        self.at = Linearisation(fn, images)
        usable, excluded = usable_outputs(self.at.output)
        self.dim = self.at.output.shape[1]
        self.found = Part.empty(images, self.dim, k, vectors, excluded)
        self.active = usable.nonzero().squeeze(1)  # of the batch
        self.rows = self.active.clone()  # of the linearisation
        self.graph_size = len(images)
        self.basis = unit(start[self.active]).unsqueeze(1)  # (m, steps, dim)
        self.pulled: list[Tensor] = []  # Jᵀ q_j, each (m, pixels)
        self.scale: Tensor | None = None  # of J, an image: divided by it no square under- or overflows
        self.alpha = torch.zeros((len(self.active), 0), dtype=torch.float64)
        self.beta = torch.zeros((len(self.active), 0), dtype=torch.float64)

    def run(self, limit: int) -> Part:
        """Up to ``limit`` steps, each of one product in either direction."""
        for step in range(1, limit + 1):
            if len(self.active):
                self._compact()
                self._pull()
            if len(self.active):
                self._finish(half=True, last=step == limit)
            if len(self.active):
                self._extend()
                self._finish(half=False, last=False)
        return self.found

    def _pull(self) -> None:
        """Jᵀ q for the last q; images whose derivatives are not finite leave here."""
        pulled = self._transposed(self.basis[:, -1])
        if self.scale is None:
            self.scale = power_of_two(pulled.abs().amax(1, keepdim=True))
        pulled = pulled / self.scale
        self.pulled.append(pulled)
        self.alpha = torch.cat([self.alpha, pulled.square().sum(1, keepdim=True).double().cpu()], 1)
        finite = self.alpha[:, -1].isfinite()
        if not bool(finite.all()):
            self.found.excluded["non-finite derivative"] += int((~finite).sum())
            self._keep(finite)

    def _keep(self, which: Tensor) -> None:
        keep = which.nonzero().squeeze(1)
        self.active, self.rows = self.active[keep], self.rows[keep]
        self.basis, self.alpha, self.beta = self.basis[keep], self.alpha[keep], self.beta[keep]
        self.pulled = [part[keep] for part in self.pulled]
        self.scale = None if self.scale is None else self.scale[keep]

    def _compact(self) -> None:
        if len(self.active) <= COMPACT_BELOW * self.graph_size:
            del self.at  # its graphs first: they hold most of the memory
            self.at = Linearisation(self.fn, self.images[self.active])
            self.rows, self.graph_size = torch.arange(len(self.active)), len(self.active)

    def _transposed(self, u: Tensor) -> Tensor:
        return self.at.transposed(self._spread(u))[self.rows].flatten(1)

    def _forward(self, v: Tensor) -> Tensor:
        return self.at.forward(self._spread(v.reshape(-1, *self.images.shape[1:])))[self.rows]

    def _spread(self, vectors: Tensor) -> Tensor:
        if len(vectors) == self.graph_size:
            return vectors
        whole = vectors.new_zeros((self.graph_size, *vectors.shape[1:]))
        whole[self.rows] = vectors
        return whole

    def _extend(self) -> None:
        """The next basis vector: J Jᵀ q_k made orthogonal to all before it."""
        assert self.scale is not None
        new = self._orthogonal(self._forward(self.pulled[-1]) / self.scale)
        beta = new.norm(dim=1, keepdim=True)
        scale = self.alpha.max(1, keepdim=True).values.to(new)
        spent = beta <= 10 * torch.finfo(new.dtype).eps * scale  # the Krylov space is invariant
        self.beta = torch.cat([self.beta, beta.masked_fill(spent, 0).cpu().double()], 1)
        if bool(spent.any()):  # go on with a random direction outside
            generator = torch.Generator().manual_seed(self.basis.shape[1])
            random = torch.randn(new.shape, generator=generator).to(new)
            new = torch.where(spent, self._orthogonal(random), new)
        self.basis = torch.cat([self.basis, unit(new).unsqueeze(1)], 1)

    def _orthogonal(self, new: Tensor) -> Tensor:
        for _ in range(2):  # twice is enough
            new = new - torch.einsum("nkd,nk->nd", self.basis, torch.einsum("nkd,nd->nk", self.basis, new))
        return new

    def _finish(self, *, half: bool, last: bool) -> None:
        """Write the results of the images that stop here, and let them go."""
        size = self.alpha.shape[1]
        if size < self.k:
            return
        values, residual, vectors = ritz_pairs(self.alpha, self.beta, half=half)
        values = values.clamp(min=0)
        error = relative_error(values, residual)[:, : self.k].amax(1)
        settled = error <= self.rtol
        if not (last or size >= self.dim or bool(settled.any())):
            return
        wanted = values[:, self.k - 1]
        missed = miss_probability(self.alpha, self.beta, wanted, self.dim, self.rtol, several=self.k > 1)
        missed = missed * self.doubt
        done = settled & (missed <= self.miss)
        if size >= self.dim:  # the whole space
            done, missed = torch.ones_like(done), torch.zeros_like(missed)
        stop = torch.ones_like(done) if last else done
        which = stop.nonzero().squeeze(1)
        if not len(which):
            return
        at, found, top = self.active[which], self.found, values[which, : self.k]
        assert self.scale is not None
        found.values[at] = (top.sqrt() * self.scale[which].cpu().double()).to(found.values)
        relative = residual[which, : self.k] / top.clamp(min=torch.finfo(top.dtype).tiny)
        found.residual[at] = relative.amax(1).clamp(max=1).to(found.residual)
        found.miss[at] = missed[which].to(found.miss)
        found.steps[at], found.converged[at] = size, done[which]
        if found.left is not None and found.right is not None:
            weights = vectors[which, :, : self.k].to(self.basis)
            found.left[at] = unit(torch.einsum("nkd,nkj->njd", self.basis[which, :size], weights))
            pulled = torch.stack([part[which] for part in self.pulled], 1)
            right = unit(torch.einsum("nkd,nkj->njd", pulled, weights))
            found.right[at] = right.reshape(found.right[at].shape)
        self._keep(~stop)


def ritz_pairs(
    alpha: Float[Tensor, "n size"], beta: Float[Tensor, "n more"], *, half: bool
) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"], Float[Tensor, "n size size"]]:
    """Ritz values in falling order, their residuals, and the vectors in the basis (columns).

    ``half``: the last product was Jᵀ q, so that the residual is that of the space of Jᵀ J one product before:
    with T = B Bᵀ and B' = B without its last column, J v = s u and Jᵀ u - s v = b_k u_k p for its singular vectors.
    """
    size = alpha.shape[1]
    off = beta[:, : size - 1]
    tridiagonal = torch.diag_embed(alpha) + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    if not half:
        residual = beta[:, -1:] * vectors[:, -1, :].abs()
        return values.flip(1), residual.flip(1), vectors.flip(2)
    unknown = torch.full_like(alpha[:, :1], math.inf)
    if size > 1:
        diagonal, below = _bidiagonal(alpha, off)
        factor = torch.diag_embed(diagonal)[:, :, :-1] + torch.diag_embed(below, offset=-1)[:, :, :-1]
        left, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        unknown = torch.cat([diagonal[:, -1:] * left[:, -1, :].abs() * singular, unknown], 1)
    return values.flip(1), unknown, vectors.flip(2)


def _bidiagonal(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal and subdiagonal of the Cholesky factor of a tridiagonal matrix."""
    tiny = torch.finfo(alpha.dtype).tiny
    diagonal, below = [alpha[:, 0].sqrt()], []
    for j in range(1, alpha.shape[1]):
        below.append(beta[:, j - 1] / diagonal[-1].clamp(min=math.sqrt(tiny)))
        diagonal.append((alpha[:, j] - below[-1].square()).clamp(min=0).sqrt())
    return torch.stack(diagonal, 1), torch.stack(below, 1)


def relative_error(
    values: Float[Tensor, "n size"], residual: Float[Tensor, "n size"]
) -> Float[Tensor, "n size"]:
    """Rule 1: ½ min(r, r²/gap) / theta, gap to the nearest other Ritz value."""
    tiny = torch.finfo(values.dtype).tiny
    gap = torch.full_like(values, tiny)
    if values.shape[1] > 1:
        apart = (values[:, :-1] - values[:, 1:]).clamp(min=tiny)
        gap[:, :-1] = apart
        gap[:, 1:] = torch.minimum(
            apart, torch.cat([apart[:, 1:], torch.full_like(apart[:, :1], math.inf)], 1)
        )
    error = torch.minimum(residual, residual.square() / gap)
    return torch.where(residual == 0, torch.zeros_like(error), 0.5 * error / values.clamp(min=tiny))


def miss_probability(
    alpha: Float[Tensor, "n size"],
    beta: Float[Tensor, "n more"],
    theta: Float[Tensor, " n"],
    dim: int,
    rtol: float,
    *,
    several: bool,
) -> Float[Tensor, " n"]:
    """Rule 2: the chance over the random start that a sigma more than 1% (or rtol) above sqrt(theta) was missed.

    With several wanted values the place just above the last of them may hold another Ritz value, where the
    polynomials are small; the largest of a few places is then taken. Where the Krylov space is exhausted (beta = 0)
    nothing larger can hide; but copies of a multiple value can, so with several wanted the count begins anew with the
    next, random direction.
    """
    excess = max(HIDDEN, rtol)
    places = (1.0, 1.5, 2.0, 3.0) if several else (1.0,)
    theta = theta.unsqueeze(1) * torch.tensor(
        [(1 + excess * place) ** 2 for place in places], dtype=alpha.dtype
    )
    before, now = torch.zeros_like(theta), torch.ones_like(theta)
    total = now.clone()
    for j in range(beta.shape[1]):
        step = (theta - alpha[:, j : j + 1]) * now
        if j:
            step = step - beta[:, j - 1 : j] * before  # 0 after a new beginning
        spent = beta[:, j : j + 1] == 0
        before, now = now, (step / beta[:, j : j + 1]).masked_fill(spent, 1.0)
        total = torch.where(spent, torch.full_like(total, 1.0 if several else math.inf), total + now.square())
        total = total.nan_to_num(math.inf, math.inf)
    return (2 * dim / (math.pi * total.amax(1))).sqrt().clamp(max=1)
