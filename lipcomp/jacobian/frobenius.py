"""‖J‖_F², the sum of all squared singular values, at every image, by Hutchinson's estimator with its standard error.

    E ‖Jᵀ u‖² = tr(J Jᵀ) = ‖J‖_F²       for u with independent entries of +1 or -1

One product Jᵀ u a probe. As many probes as outputs, and the rows of J are taken instead: exact, without error.
(Hutchinson 1989.) The Fisher information of e(z|x) in x has the trace kappa A ‖J‖_F²: :mod:`lipcomp.bound.fisher`.

>>> import torch
>>> from lipcomp.jacobian import frobenius_norm
>>> matrix = torch.diag(torch.tensor([3.0, 4.0]))
>>> frobenius_norm(lambda x: x @ matrix, torch.rand(1, 2)).squared
tensor([25.])
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp.jacobian.batching import fitting_batch_size
from lipcomp.jacobian.checks import EXCLUSIONS, check_images, check_map, usable_outputs
from lipcomp.jacobian.precision import power_of_two
from lipcomp.jacobian.products import Linearisation, Map


@dataclass(frozen=True)
class FrobeniusNorm:
    """‖J‖_F² of every image, the standard error of that estimate, and how it was made.

    An image that was left out has NaN; ``excluded`` counts them by reason. ``standard_error`` is 0 where all rows
    were taken.
    """

    squared: Float[Tensor, " n"]
    standard_error: Float[Tensor, " n"]
    probes: int
    exact: bool
    excluded: dict[str, int]


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
        Products an image, at least 2; as many as outputs, or more, gives the exact value.
    generator
        Randomness of the probes (CPU); by default seeded with 0.

    Raises
    ------
    ValueError
        As :func:`~lipcomp.jacobian.spectral_norm`, or if there are fewer than 2 probes.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, for a standard error; got {probes}")
    check_images(images, domain)
    dim = check_map(fn, images)
    exact = probes >= dim
    count = dim if exact else probes
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    signs = torch.randint(0, 2, (count, len(images), dim), generator=generator) * 2 - 1
    squares = torch.full((count, len(images)), math.nan, dtype=torch.float64)
    excluded = dict.fromkeys(EXCLUSIONS, 0)
    for index in torch.arange(len(images)).split(batch_size or fitting_batch_size(fn, images)):
        at = Linearisation(fn, images[index], "forward")  # without a second graph
        usable, left_out = usable_outputs(at.output)
        excluded = {reason: excluded[reason] + number for reason, number in left_out.items()}
        for probe in range(count):
            u = torch.zeros_like(at.output)
            if exact:
                u[:, probe] = 1
            else:
                u = signs[probe, index].to(u)
            product = at.transposed(u).flatten(1)
            scale = power_of_two(product.abs().amax(1))  # no square under- or overflows
            norm = (product / scale[:, None]).norm(dim=1).cpu().double() * scale.cpu().double()
            squares[probe, index] = norm.square().masked_fill(~usable, math.nan)
        if advance is not None:
            advance(len(index))
    total, spread = (
        (squares.sum(0), 0 * squares[0]) if exact else (squares.mean(0), squares.std(0) / math.sqrt(count))
    )
    return FrobeniusNorm(total.to(images), spread.to(images), count, exact, excluded)
