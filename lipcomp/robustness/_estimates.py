"""A metric with its 95% interval over images.

A share of right images has Clopper and Pearson's exact binomial interval: it holds its level at every n and near 0 and
1, where resampling gives an interval of no width.

A mean of values between limits, of which few images hold the most (a Brier score with three wrong answers, a gap of
accuracies), has the interval of Learned-Miller and Thomas (2019), which is Clopper and Pearson's where values are 0 and
1. Metrics of many conditions (mCE) are such means too: each image has its share in them, which keeps the correlation of
conditions. Other means are resampled.

>>> import torch
>>> from lipcomp.robustness._estimates import accuracy
>>> accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 0]))
Estimate(value=1, interval=(0.3976, 1), n=4)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped
from scipy import special
from torch import Tensor

from lipcomp._results import ResultMixin

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate(ResultMixin):
    """A value, its 95% interval, and over how many images."""

    value: float
    interval: tuple[float, float] | None
    n: int


def proportion(right: Shaped[np.ndarray, " n"]) -> Estimate:
    """The share of true values, with Clopper and Pearson's exact interval (at least 95% whatever the truth).

    Raises
    ------
    ValueError
        If there is no image.
    """
    n, count = len(right), int(np.count_nonzero(right))
    if n == 0:
        raise ValueError("right must hold at least one image, got none")
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(count, n - count + 1, tail) if count else 0.0
    high = special.betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return Estimate(count / n, (float(low), float(high)), n)


def bounded_mean(values: Shaped[np.ndarray, " n"], limits: tuple[float, float]) -> Estimate:
    """The mean of values that lie between limits, with the interval of Learned-Miller and Thomas (2019).

    The ends are quantiles of means with random weights, uniform spacings, over the images and one more at the limit. A
    mean that is not finite has no interval.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not np.isfinite(values).all():
        return Estimate(float(np.mean(values)), None, len(values))
    low, high = (weighted_means(values, limit) for limit in limits)
    value = float(np.mean(values))
    tail = (1 - LEVEL) / 2
    ends = min(float(np.quantile(low, tail)), value), max(float(np.quantile(high, 1 - tail)), value)
    return Estimate(value, ends, len(values))


def weighted_means(
    values: Shaped[np.ndarray, " n"], limit: float, *, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Means of the values and one more, ``limit``, with weights that are uniform spacings; equal ones drawn at once."""
    if not len(values):
        raise ValueError("values must hold at least one image, got none")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = max(RESAMPLES, min(50 * RESAMPLES, 1_000_000 // len(distinct)))
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(distinct))
    found = []
    for start in range(0, draws, step):
        weights = rng.standard_gamma(np.append(counts, 1.0), (min(step, draws - start), len(distinct) + 1))
        found.append(weights @ np.append(distinct, limit) / weights.sum(1))
    return np.concatenate(found)


def bootstrap(
    values: Shaped[np.ndarray, " n"],
    *,
    limits: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean over images, with its percentile interval: for values of which many make up the mean.

    Parameters
    ----------
    values
        One value per image; one image shows no spread, and has no interval without limits.
    limits
        The least and the largest value that an image can have. Where all are alike (within 1e-9 of this range),
        resampling shows no spread; the interval is then that of :func:`bounded_mean`.
    resamples
        Of the bootstrap.

    Raises
    ------
    ValueError
        If there is no image.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("values must hold at least one image, got none")
    value = float(values.mean())
    if not math.isfinite(value) or (n == 1 and limits is None):
        return Estimate(value, None, n)
    if limits is not None and np.ptp(values) <= 1e-9 * (limits[1] - limits[0]):
        return bounded_mean(values, limits)
    rng = np.random.default_rng(0)
    samples = np.empty(resamples)
    step = max(1, 4_000_000 // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        samples[start : start + rows] = counts @ values / n
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, (float(low), float(high)), n)


def accuracy(predictions: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]) -> Estimate:
    """Top-1 accuracy in [0, 1], with its exact interval."""
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions must hold one class per image: {tuple(labels.shape)}, got {tuple(predictions.shape)}"
        )
    return proportion((predictions == labels).cpu().numpy())


def top_k_correct(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], k: int
) -> Float[np.ndarray, " n"]:
    """Whether the label is among the k largest logits, per image, as 0 or 1.

    The first is that of ``argmax``. Beyond it, a label that ties for the last of the places has none: a vote of few
    neighbours gives most classes nothing, and which of them comes next is chance.
    """
    if k > logits.shape[1]:
        raise ValueError(f"k must be at most the {logits.shape[1]} classes, got {k}")
    labels = labels.to(logits.device)
    right = logits.argmax(1) == labels
    if k > 1:
        right |= (logits >= logits.gather(1, labels[:, None])).sum(1) <= k
    return right.double().cpu().numpy()


def per_class_accuracy(
    right: Shaped[np.ndarray, " n"], labels: Int64[Tensor, " n"], classes: Sequence[str]
) -> dict[str, Estimate]:
    """Accuracy of each class (or subpopulation) that has images; the least is the worst group's."""
    groups = labels.cpu().numpy()
    return {
        name: proportion(np.asarray(right)[groups == k])
        for k, name in enumerate(classes)
        if (groups == k).any()
    }
