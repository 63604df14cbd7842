"""Lanczos bidiagonalisation (Golub and Kahan 1965) of a batch of Jacobians at once, each image stopping on its own.

Products with Jᵀ and J alternate from a random unit vector q_1 of the small output space R^d and build orthonormal
bases Q and P (kept orthogonal to all before) with

    Jᵀ Q_k = P_k B_kᵀ,     J P_k = Q_k B_k + c_k q_{k+1} e_kᵀ,     B lower bidiagonal, diagonal b, below it c

so that sigma_max(B_k) <= sigma_max(J) always: every value is a lower bound. With B_k = U S Vᵀ the residual of the pair
u = Q_k U, v = P_k V is ‖J v - s u‖ = c_k |V_k|, known after the product with J; one product earlier that of the
singular vectors of B_k without its last column is ‖Jᵀ u - s v‖ = b_k |U_k|. Both come from norms of vectors: the
Cholesky pivots of the tridiagonal B Bᵀ, which say the same on paper, cancel where J has a null direction, as every map
to mean directions has.

An image stops when

1. the residual r <= 2 rtol s: then *a* singular value lies within rtol of s (relative), and
2. it is not likely that a larger one hides. A singular value lambda whose left vector e has the weight
   w = (q_1.e)² in the start leaves the trace w sum_j p_j(lambda²)² <= 1 in the basis, p_j the orthonormal polynomials
   of B Bᵀ; for a random start w is a Beta(1/2, (d-1)/2) variable. So a start that hides a value more than rtol above s
   has at most the chance sqrt(2 d / (pi sum_j p_j((1 + rtol)² s²)²)), which must be <= MISS. Up to d = WHOLE all d
   steps are taken.

So a converged value is within rtol of sigma_max, near-equal top values included, in all but MISS of the random starts:
a mixture of two values that lie 3e-4 apart passes rule 1 and fails rule 2. The chance is one for a spectrum that has
such a value; on most there is none. What holds was counted (``tests/jacobian/test_planted_spectra.py``; 200 random
starts a spectrum, d = 128, rtol = 1e-4): where no other value lies within 1% of the largest the error was below 1e-6 in
every start; of two values 3e-4, 1e-3, 3e-3 or 1e-2 apart, or eight within 1%, it was above 1e-4 in 1% of the starts.
No method promises more without about 1 / sqrt(rtol) products (Simchowitz et al. 2018). ``rtol = 1e-2`` takes a fifth
fewer steps and is as exact where values are not near-equal.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lipcomp.jacobian._checks import usable_outputs
from lipcomp.jacobian._precision import power_of_two
from lipcomp.jacobian._products import Linearisation, Map

COMPACT_BELOW = 0.4  # of the graph's images still going on
FAR = 20  # times the threshold: a residual above it is not below it one product later
MISS = 1e-2  # the chance of rule 2
WHOLE = 24  # outputs: up to here the whole space is taken, and nothing can hide


def unit(vectors: Tensor) -> Tensor:
    """Vectors of norm one; zeros stay."""
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / norm.clamp(min=torch.finfo(vectors.dtype).tiny)


@dataclass
class Part:
    """What is known of the images of one batch: NaN for an image that was left out; ``scale`` is the map's own."""

    scale: Float[Tensor, " n"]
    values: Float[Tensor, "n k"]
    residual: Float[Tensor, " n"]
    steps: Int64[Tensor, " n"]
    converged: Bool[Tensor, " n"]
    left: Float[Tensor, "n k dim"]
    right: Float[Tensor, "n k ..."] | None
    excluded: dict[str, int]

    @classmethod
    def empty(cls, at: Linearisation, images: Tensor, k: int, excluded: dict[str, int]) -> "Part":
        """Nothing known yet."""
        n, dim = at.output.shape
        return cls(
            at.scale(),
            images.new_full((n, k), math.nan),
            images.new_full((n,), math.nan),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, dtype=torch.bool),
            images.new_full((n, k, dim), math.nan),
            images.new_full((n, k, *images.shape[1:]), math.nan),
            excluded,
        )


class Lanczos:
    """One batch on its way: bases and coefficients of the images that still go on, results of the others.

    Images that have stopped leave the batch. The recorded graphs hold the whole batch, so the others are linearised
    again as soon as that costs less than carrying the finished images along.

    Parameters
    ----------
    fn, images
        The map and the batch.
    start
        A random vector per image; random is what rule 2 rests on.
    directions
        Whether the map gives mean directions.
    doubt
        A factor of rule 2's bound, for starts that are not random alone (:mod:`lipcomp.jacobian._sharing`).
    k
        How many of the largest values.
    rtol
        The threshold of rule 1.
    """

    def __init__(
        self,
        fn: Map,
        images: Float[Tensor, "n ..."],
        start: Float[Tensor, "n dim"],
        *,
        k: int,
        rtol: float,
        directions: bool = False,
        doubt: float = 1.0,
    ) -> None:
        self.fn, self.images, self.k, self.rtol, self.doubt = fn, images, k, rtol, doubt
        self.at = Linearisation(fn, images, verify=False)
        self.at.verify_hidden()
        usable, excluded = usable_outputs(self.at.output, directions)
        self.dim = self.at.output.shape[1]
        self.found = Part.empty(self.at, images, k, excluded)
        self.active = usable.nonzero().squeeze(1)  # of the batch
        self.rows = self.active.clone()  # of the linearisation
        self.graph_size = len(images)
        self.left = unit(start[self.active]).unsqueeze(1)  # Q, (m, steps, dim)
        self.right = images.new_zeros((len(self.active), 0, images[0].numel()))  # P, (m, steps, pixels)
        self.scale: Tensor | None = None  # of J, per image: divided by it no square under- or overflows
        self.diagonal = torch.zeros((len(self.active), 0), dtype=torch.float64)  # b
        self.below = torch.zeros((len(self.active), 0), dtype=torch.float64)  # c
        self.far = False

    def run(self, limit: int) -> Part:
        """Up to ``limit`` steps, each of one product in either direction."""
        for step in range(1, limit + 1):
            if len(self.active):
                self._compact()
                self._pull()
            if len(self.active):
                self._finish(half=True, last=step == limit)
            if len(self.active):
                self._push()
                self._finish(half=False, last=False)
        return self.found

    def _pull(self) -> None:
        """The next p and b, from Jᵀ q; images whose derivatives are not finite leave here."""
        new = self.at.transposed(self._spread(self.left[:, -1]))[self.rows].flatten(1)
        if self.scale is None:
            self.scale = power_of_two(new.abs().amax(1, keepdim=True))
        new, length = self._next(new / self.scale, self.right, self.below[:, -1:])
        self.diagonal = torch.cat([self.diagonal, length], 1)
        self.right = torch.cat([self.right, unit(new).unsqueeze(1)], 1)
        finite = length.isfinite().squeeze(1)
        if not bool(finite.all()):
            self.found.excluded["non-finite derivative"] += int((~finite).sum())
            self._keep(finite)

    def _push(self) -> None:
        """The next q and c, from J p; where the Krylov space is invariant, a random direction outside it."""
        assert self.scale is not None
        vectors = self.right[:, -1].reshape(-1, *self.images.shape[1:])
        new = self.at.forward(self._spread(vectors))[self.rows] / self.scale
        new, length = self._next(new, self.left, self.diagonal[:, -1:])
        self.below = torch.cat([self.below, length], 1)
        spent = (length == 0).to(new.device)
        if bool(spent.any()):
            generator = torch.Generator().manual_seed(self.left.shape[1])
            random = torch.randn(self.dim, generator=generator).to(new).expand_as(new)
            new = torch.where(spent, _orthogonal(_orthogonal(random, self.left), self.left), new)
        self.left = torch.cat([self.left, unit(new).unsqueeze(1)], 1)

    def _next(self, new: Tensor, basis: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """A product made orthogonal to a basis, and its length; both 0 where only rounding is left.

        ``along`` is the product's part along the last of the basis, known from the step before.
        """
        largest = new.norm(dim=1, keepdim=True)
        if self.diagonal.shape[1]:
            largest = torch.maximum(largest, self.diagonal.amax(1, keepdim=True).to(new))
        if basis.shape[1]:
            new = torch.addcmul(new, along.to(new), basis[:, -1], value=-1)
            # Twice: what a cancellation leaves is not orthogonal yet.
            new = _orthogonal(_orthogonal(new, basis), basis)
        length = new.norm(dim=1, keepdim=True)
        spent = length <= 10 * torch.finfo(new.dtype).eps * largest
        return new.masked_fill(spent, 0), length.masked_fill(spent, 0).cpu().double()

    def _keep(self, which: Tensor) -> None:
        keep = which.nonzero().squeeze(1)
        self.active, self.rows = self.active[keep], self.rows[keep]
        self.left, self.right = self.left[keep], self.right[keep]
        self.diagonal, self.below = self.diagonal[keep], self.below[keep]
        self.scale = None if self.scale is None else self.scale[keep]

    def _compact(self) -> None:
        if len(self.active) <= COMPACT_BELOW * self.graph_size:
            del self.at  # its graphs first: they hold most of the memory
            self.at = Linearisation(self.fn, self.images[self.active], verify=False)
            self.rows, self.graph_size = torch.arange(len(self.active)), len(self.active)

    def _spread(self, vectors: Tensor) -> Tensor:
        if len(vectors) == self.graph_size:
            return vectors
        whole = vectors.new_zeros((self.graph_size, *vectors.shape[1:]))
        whole[self.rows] = vectors
        return whole

    def _finish(self, *, half: bool, last: bool) -> None:
        """Write the results of the images that stop here, and let them go."""
        size = self.diagonal.shape[1]
        if size < self.k or (self.far and not last and size < self.dim):
            self.far = False
            return
        left, values, right = ritz_triplets(self.diagonal, self.below)
        if half:  # a value that has just appeared is none of those whose residual is known
            older, known = half_residuals(self.diagonal, self.below)
            known = known + (values[:, : older.shape[1]] - older).abs()
            residual = torch.cat([known, torch.full_like(values[:, :1], math.inf)], 1)
        else:
            residual = self.below[:, -1:] * right[:, -1, :].abs()
        top = values[:, : self.k]
        relative = (residual[:, : self.k] / top.clamp(min=torch.finfo(top.dtype).tiny)).amax(1)
        done = relative <= 2 * self.rtol
        self.far = bool((relative > FAR * 2 * self.rtol).all())
        if not (last or size >= self.dim or bool(done.any())):
            return
        missed = miss_bound(self.diagonal, self.below, top[:, -1], self.dim, self.rtol, several=self.k > 1)
        done &= (missed * self.doubt <= MISS) & (self.dim > WHOLE)
        if size >= self.dim:  # the whole space
            done, relative = torch.ones_like(done), torch.zeros_like(relative)
        stop = torch.ones_like(done) if last else done
        which = stop.nonzero().squeeze(1)
        if not len(which):
            return
        at, found = self.active[which], self.found
        assert self.scale is not None
        found.values[at] = (top[which] * self.scale[which].cpu().double()).to(found.values)
        found.residual[at] = relative[which].clamp(max=1).to(found.residual)
        found.steps[at], found.converged[at] = size, done[which]
        assert found.right is not None
        for into, basis, weights in (
            (found.left, self.left[:, :size], left),
            (found.right, self.right, right),
        ):
            mixed = torch.einsum("nkd,nkj->njd", basis[which], weights[which, :, : self.k].to(basis))
            into[at] = unit(mixed).reshape(into[at].shape)
        self._keep(~stop)


def _orthogonal(new: Tensor, basis: Tensor) -> Tensor:
    parts = torch.bmm(basis, new.unsqueeze(2))
    return torch.baddbmm(new.unsqueeze(1), parts.mT, basis, alpha=-1).squeeze(1)


def _bidiagonal(diagonal: Tensor, below: Tensor) -> Tensor:
    """B from its diagonal and what is below it, as far as the diagonal is known."""
    return torch.diag_embed(diagonal) + torch.diag_embed(below[:, : diagonal.shape[1] - 1], offset=-1)


def ritz_triplets(
    diagonal: Float[Tensor, "n size"], below: Float[Tensor, "n more"]
) -> tuple[Float[Tensor, "n size size"], Float[Tensor, "n size"], Float[Tensor, "n size size"]]:
    """Left vectors (columns), singular values in falling order and right vectors (columns) of B."""
    left, values, right = torch.linalg.svd(_bidiagonal(diagonal, below))
    return left, values, right.mT


def half_residuals(
    diagonal: Float[Tensor, "n size"], below: Float[Tensor, "n more"]
) -> tuple[Float[Tensor, "n less"], Float[Tensor, "n less"]]:
    """Values s and ‖Jᵀ u - s v‖ of the triplets of B without its last column, known from the latest Jᵀ q."""
    left, values, _ = torch.linalg.svd(_bidiagonal(diagonal, below)[:, :, :-1], full_matrices=False)
    return values, diagonal[:, -1:] * left[:, -1, : values.shape[1]].abs()


def miss_bound(
    diagonal: Float[Tensor, "n size"],
    below: Float[Tensor, "n more"],
    sigma: Float[Tensor, " n"],
    dim: int,
    excess: float,
    *,
    several: bool,
) -> Float[Tensor, " n"]:
    """Rule 2: the largest chance that a random start hides a value more than ``excess`` (relative) above sigma.

    With several wanted values the place just above the last of them may hold another Ritz value, where the
    polynomials are small; the largest of a few places is then taken. Where the Krylov space is exhausted (c = 0)
    nothing larger can hide; but copies of a multiple value can, so with several wanted the count begins anew with the
    next, random direction.
    """
    places = (1.0, 1.5, 2.0, 3.0) if several else (1.0,)
    above = torch.tensor([(1 + excess * place) ** 2 for place in places], dtype=diagonal.dtype)
    theta = sigma.square().unsqueeze(1) * above
    before, now = torch.zeros_like(theta), torch.ones_like(theta)
    total = now.clone()
    for j in range(below.shape[1]):
        alpha = diagonal[:, j].square() + (below[:, j - 1].square() if j else 0)
        step = (theta - alpha.unsqueeze(1)) * now
        if j:
            # 0 after a new beginning
            step = step - (diagonal[:, j - 1] * below[:, j - 1]).unsqueeze(1) * before
        beta = (diagonal[:, j] * below[:, j]).unsqueeze(1)
        before, now = now, (step / beta).masked_fill(beta == 0, 1.0)
        anew = torch.full_like(total, 1.0 if several else math.inf)
        total = torch.where(beta == 0, anew, total + now.square()).nan_to_num(math.inf, math.inf)
    return (2 * dim / (math.pi * total.amax(1))).sqrt().clamp(max=1)
