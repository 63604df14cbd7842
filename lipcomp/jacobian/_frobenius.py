"""‖J‖_F², the sum of all squared singular values, at every image, by Hutchinson's estimator, with an interval.

    E ‖Jᵀ u‖² = tr(J Jᵀ) = ‖J‖_F²       for u with independent normal entries

One product Jᵀ u per probe. As many probes as outputs, and the rows of J are taken instead: exact, without error.

With normal probes ‖Jᵀ u‖² / ‖J‖_F² is a mixture of chi-squares whose tails are widest where J has rank one (Szekely
and Bakirov 2003). The interval, theory (4.8), takes that case: m times the mean of m probes is chi-square with m
degrees, so that

    m mean / q_97.5%(chi²_m)  <=  ‖J‖_F²  <=  m mean / q_2.5%(chi²_m)       in at least 95% of draws, whatever J is.

It is wide (a factor of 1.8 and 2.3 at 16 probes, for the norm the root of it) and exact at rank one only. The standard
error belongs to means over many images; two of them on either side of one image's estimate are no interval.
(Hutchinson 1989.) The Fisher information of e(z|x) in x has the trace kappa A ‖J‖_F²:
:func:`lipcomp.bound._lower.fisher_trace`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from scipy.special import gammaincinv
from torch import Generator, Tensor

from lipcomp._arguments import estimator
from lipcomp._results import ResultMixin
from lipcomp.jacobian._batching import chosen_batch_size
from lipcomp.jacobian._checks import EXCLUSIONS, check_images, check_map, usable_outputs
from lipcomp.jacobian._precision import power_of_two
from lipcomp.jacobian._products import Linearisation, Map
from lipcomp.jacobian._spectral_norm import draw_seeds, normal


@dataclass(frozen=True)
class FrobeniusNorm(ResultMixin):
    """‖J‖_F of every image, and how it was estimated; in float64, where squares of float32 numbers have room.

    Attributes
    ----------
    norm
        The root of the estimated square; NaN for an image that was left out.
    relative_error
        Standard error of ``squared`` relative to it; 0 where all rows were taken.
    probes, exact
        Products per image, and whether they were all rows.
    excluded
        How many images were left out, by reason.
    """

    picture: ClassVar[str] = "local_constants"
    constants: ClassVar[dict[str, str]] = {"norm": "Frobenius norm"}

    norm: Float[Tensor, " n"]
    relative_error: Float[Tensor, " n"]
    probes: int
    exact: bool
    excluded: dict[str, int]

    @property
    def squared(self) -> Float[Tensor, " n"]:
        """‖J‖_F²."""
        return self.norm.square()

    @property
    def standard_error(self) -> Float[Tensor, " n"]:
        """Of ``squared``."""
        return self.relative_error * self.squared

    def interval(self, level: float = 0.95) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Lower and upper end for ``squared``, which hold it with at least this probability whatever J is."""
        if self.exact:
            return self.squared, self.squared
        ranks, half = ((1 + side * level) / 2 for side in (-1, 1)), self.probes / 2
        low, high = (float(gammaincinv(half, rank)) / half for rank in ranks)  # chi-squared, per probe
        return self.squared / high, self.squared / low


@estimator
def frobenius_norm(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    probes: int = 16,
    batch_size: int | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0),
    generator: Generator | None = None,
    advance: Callable[[int], object] | None = None,
) -> FrobeniusNorm:
    """Estimate ‖J‖_F² at every image.

    Parameters
    ----------
    fn, images, batch_size, domain, advance
        As for :func:`~lipcomp.jacobian.spectral_norm`.
    probes
        Products per image, at least 2; as many as outputs, or more, gives the exact value.
    generator
        Randomness of the probes (CPU); by default seeded with 0.

    Raises
    ------
    ValueError
        As :func:`~lipcomp.jacobian.spectral_norm`, or if there are fewer than 2 probes.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.jacobian import frobenius_norm
    >>> matrix = torch.diag(torch.tensor([3.0, 4.0]))
    >>> frobenius_norm(lambda x: x @ matrix, torch.rand(1, 2)).squared
    tensor([25.], dtype=torch.float64)
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, for a standard error; got {probes}")
    check_images(images, domain)
    dim, directions, halves = check_map(fn, images)
    fn = halves or fn
    exact = probes >= dim
    count = dim if exact else probes
    drawn = None if exact else normal((count, dim), draw_seeds(len(images), generator))
    norms = torch.full((count, len(images)), math.nan, dtype=torch.float64)
    excluded = dict.fromkeys(EXCLUSIONS, 0)
    for index in torch.arange(len(images)).split(chosen_batch_size(batch_size, fn, images)):
        at = Linearisation(fn, images[index], method="forward")  # without a second graph
        usable, left_out = usable_outputs(at.output, directions)
        excluded = {reason: excluded[reason] + number for reason, number in left_out.items()}
        for probe in range(count):
            u = torch.zeros_like(at.output)
            if drawn is None:
                u[:, probe] = 1
            else:
                u = drawn[index, probe].to(u)
            product = at.transposed(u).flatten(1)
            scale = power_of_two(product.abs().amax(1))  # no square under- or overflows
            norm = (product / scale[:, None]).norm(dim=1).cpu().double() * scale.cpu().double()
            norms[probe, index] = norm.masked_fill(~usable, math.nan)
        if advance is not None:
            advance(len(index))
    largest = norms.amax(0)
    excluded["non-finite derivative"] = int((~largest.isfinite()).sum()) - sum(excluded.values())
    scale = largest.where(largest > 0, torch.ones_like(largest))
    squares = (norms / scale).square().masked_fill(~largest.isfinite(), math.nan)
    mean = squares.sum(0) if exact else squares.mean(0)
    error = (
        0 * mean
        if exact
        else squares.std(0) / math.sqrt(count) / mean.where(mean != 0, torch.ones_like(mean))
    )
    return FrobeniusNorm(mean.sqrt() * scale, error, count, exact, excluded)
