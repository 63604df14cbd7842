"""Extreme values of sigma_max in a ball: a diagnostic, never a bound (theory (4.6), the idea of CLEVER).

The maxima of sigma_max over disjoint blocks of random points in a ball follow, if the largest possible value is
approached in the regular way, a reverse Weibull distribution

    P(max <= m) = exp(-((location - m) / scale)^shape),        m <= location,

whose ``location`` estimates the largest value in the ball. It is a *guess at what random points did not find*:
measured, it said 1.66 where ascent found 2.87. So it comes with the Kolmogorov-Smirnov p-value of its fit and a
bootstrap interval, or not at all.

The fit profiles the likelihood over the location. As the location approaches the largest maximum, shape below 1 makes
the likelihood grow without bound: that edge is no optimum, and a fit whose likelihood only rises towards an edge of the
range is reported as none. Resampled maxima (duplicates) run into it, so the bootstrap draws from the fitted
distribution; the p-value comes from the same draws, since parameters were fitted to the data.
(Weng et al. 2018; Wood and Zhang 1996.)
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp.jacobian.checks import check_images
from lipcomp.jacobian.products import Map
from lipcomp.jacobian.spectral_norm import spectral_norm

GRID = 48
REACH = (1e-4, 1e3)  # of the spread of the maxima
NEWTON_STEPS = 8
LEAST = 8


@dataclass(frozen=True)
class ReverseWeibull:
    """A fit to maxima; ``location`` is None if there is none, ``reason`` says why.

    ``interval`` is a nominal 95% bootstrap interval of the location. On simulated maxima it covered the true endpoint
    in 64% to 83% of the cases: read it as the spread of the fit, not as a confidence interval.
    """

    location: float | None
    shape: float | None
    scale: float | None
    p_value: float | None
    interval: tuple[float, float] | None
    maximum: float
    blocks: int
    reason: str = ""


@dataclass(frozen=True)
class ExtremeValues:
    """The diagnostic of every image, with the block maxima it rests on and the largest sigma seen."""

    fits: list[ReverseWeibull]
    maxima: Float[Tensor, "n blocks"] = field(repr=False)
    radius: float
    norm: str

    @property
    def largest(self) -> Float[Tensor, " n"]:
        """The largest sigma among the sampled points: a lower bound of the constant over the ball."""
        return self.maxima.amax(1)


def extreme_values(
    fn: Map,
    images: Float[Tensor, "n ..."],
    radius: float,
    *,
    norm: str = "l2",
    blocks: int = 30,
    block_size: int = 16,
    bootstrap: int = 200,
    batch_size: int | None = None,
    generator: Generator | None = None,
) -> ExtremeValues:
    """Fit the reverse Weibull to maxima of sigma_max over disjoint blocks of random points of a ball.

    Parameters
    ----------
    fn, images, batch_size
        As for :func:`~lipcomp.jacobian.spectral_norm`.
    radius, norm
        The ball around every image, "l2" or "linf", intersected with [0, 1].
    blocks, block_size
        How many maxima, each over how many fresh points.
    bootstrap
        Draws for the interval and the p-value.
    generator
        Randomness (CPU); by default seeded with 0.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if blocks < LEAST or block_size < 1:
        raise ValueError(f"need at least {LEAST} blocks of at least 1 point, got {blocks} of {block_size}")
    check_images(images)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    maxima = torch.empty((len(images), blocks), dtype=torch.float64)
    for i, image in enumerate(images):
        points = random_points(image, radius, norm, blocks * block_size, generator)
        sigma = spectral_norm(fn, points, batch_size=batch_size, vectors=False, generator=generator).sigma
        maxima[i] = sigma.double().cpu().reshape(blocks, block_size).nan_to_num(-math.inf).amax(1)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    fits = [
        fit_reverse_weibull(row.numpy(), bootstrap=bootstrap, generator=np.random.default_rng(seed + i))
        for i, row in enumerate(maxima)
    ]
    return ExtremeValues(fits, maxima, radius, norm)


def random_points(
    image: Float[Tensor, "..."], radius: float, norm: str, count: int, generator: Generator
) -> Float[Tensor, "count ..."]:
    """Uniform points of a ball around an image, clipped to [0, 1]."""
    if norm not in ("l2", "linf") or not radius > 0:
        raise ValueError(f'need norm "l2" or "linf" and a positive radius, got {norm!r} and {radius}')
    shape = (count, *image.shape)
    if norm == "linf":
        step = (torch.rand(shape, generator=generator) * 2 - 1) * radius
    else:
        step = torch.randn(shape, generator=generator).flatten(1)
        length = radius * torch.rand((count, 1), generator=generator) ** (1 / image.numel())
        step = (step / step.norm(dim=1, keepdim=True) * length).reshape(shape)
    return (image + step.to(image)).clamp(0, 1)


def fit_reverse_weibull(
    maxima: np.ndarray, *, bootstrap: int = 200, generator: np.random.Generator | None = None
) -> ReverseWeibull:
    """Fit by the profile likelihood over the location; p-value and interval by the parametric bootstrap.

    Raises
    ------
    ValueError
        If there are fewer than 8 maxima, or some are not finite.
    """
    maxima = np.asarray(maxima, dtype=np.float64)
    if maxima.ndim != 1 or len(maxima) < LEAST or not np.isfinite(maxima).all():
        raise ValueError(f"need a vector of at least {LEAST} finite maxima, got shape {maxima.shape}")
    generator = np.random.default_rng(0) if generator is None else generator
    top, n = float(maxima.max()), len(maxima)
    if np.ptp(maxima) <= 1e-9 * abs(top):
        return ReverseWeibull(None, None, None, None, None, top, n, "the maxima do not differ")
    location, shape, scale, inside = (part[0] for part in _profile(maxima[None]))
    if not inside:
        reason = "the likelihood rises to the edge: the maxima do not show an end point"
        return ReverseWeibull(None, None, None, None, None, top, n, reason)
    draws = location - scale * generator.weibull(shape, (bootstrap, n))
    again = _profile(draws)
    observed = _distance(maxima[None], location, shape, scale)[0]
    simulated = _distance(draws, *(part[:, None] for part in again[:3]))
    p_value = float((1 + (simulated >= observed).sum()) / (1 + bootstrap))
    # The basic bootstrap interval, cut at what was seen.
    low, high = 2 * location - np.quantile(again[0], [0.975, 0.025])
    interval = (max(float(low), top), max(float(high), top))
    return ReverseWeibull(float(location), float(shape), float(scale), p_value, interval, top, n)


def _profile(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Location, shape and scale at the best inner maximum of the profile likelihood of every row; and if it is one."""
    top, spread = samples.max(1, keepdims=True), np.ptp(samples, axis=1)[:, None]
    beyond = spread * np.geomspace(*REACH, GRID)  # (rows, grid): how far the location lies above the largest
    likelihood, _, _ = _profile_likelihood(samples, top + beyond)
    middle = likelihood[:, 1:-1]
    inner = np.zeros_like(likelihood, dtype=bool)
    inner[:, 1:-1] = (middle >= likelihood[:, :-2]) & (middle > likelihood[:, 2:])
    found = inner.any(1) & np.isfinite(likelihood).any(1)
    place = np.where(inner.any(1), np.where(inner, likelihood, -np.inf).argmax(1), likelihood.argmax(1))
    rows = np.arange(len(samples))
    step = (REACH[1] / REACH[0]) ** (1 / (GRID - 1))
    finer = beyond[rows, place][:, None] * np.geomspace(1 / step, step, 17)
    likelihood, shapes, scales = _profile_likelihood(samples, top + finer)
    best = likelihood.argmax(1)
    return (top + finer)[rows, best], shapes[rows, best], scales[rows, best], found


def _profile_likelihood(
    samples: np.ndarray, locations: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean log likelihood, shape and scale of the Weibull fit to location - maxima, for every location of every row.

    The shape c solves 1/c = (mean of log gap weighted by gap^c) - (mean of log gap): Newton's method, whose iterates
    rise to the root. A shape below 1 (the unbounded edge) has likelihood -inf.
    """
    logs = np.log(locations[:, :, None] - samples[:, None, :])
    largest, mean = logs.max(2, keepdims=True), logs.mean(2)
    shapes = 1 / np.maximum(logs.std(2), 1e-12)
    for _ in range(NEWTON_STEPS):
        weights = np.exp(shapes[:, :, None] * (logs - largest))
        total = weights.sum(2)
        first = (weights * logs).sum(2) / total
        second = (weights * (logs - first[:, :, None]) ** 2).sum(2) / total
        slope = 1 / shapes**2 + second
        shapes = np.clip(shapes + (1 / shapes - first + mean) / slope, shapes / 3, shapes * 3)
    weights = np.exp(shapes[:, :, None] * (logs - largest))
    log_scale = largest[:, :, 0] + np.log(weights.mean(2)) / shapes
    likelihood = np.log(shapes) - shapes * log_scale + (shapes - 1) * mean - 1
    return np.where(shapes >= 1, likelihood, -np.inf), shapes, np.exp(log_scale)


def _distance(samples: np.ndarray, location: object, shape: object, scale: object) -> np.ndarray:
    """Kolmogorov-Smirnov distance of every row to its distribution."""
    ordered = np.sort(samples, axis=1)
    n = ordered.shape[1]
    gap = np.maximum((np.asarray(location) - ordered) / np.asarray(scale), 0)
    model = np.exp(-(gap ** np.asarray(shape)))
    steps = np.arange(n + 1) / n
    return np.maximum(np.abs(model - steps[1:]), np.abs(model - steps[:-1])).max(1)
