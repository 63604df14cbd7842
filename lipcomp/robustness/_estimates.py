"""A metric with its 95% interval over images.

A share of right images has Clopper and Pearson's exact binomial interval: it holds its level at every n and near 0 and
1, where resampling gives an interval of no width.

Other metrics are functions of several means over images: mCE is a ratio of means over many conditions. Resampling n
images with replacement weights image i by a multinomial count, so a bootstrap sample of all means at once is one
product of counts with the table of per-image values; the same images are drawn in every condition, which keeps their
correlation.

>>> import torch
>>> from lipcomp.robustness._estimates import accuracy
>>> accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 0]))
Estimate(value=1, interval=(0.3976, 1), n=4)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Shaped
from scipy import stats
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


Statistic = Callable[[np.ndarray], np.ndarray]


def proportion(right: Shaped[np.ndarray, " n"], *, level: float = LEVEL) -> Estimate:
    """The share of true values, with Clopper and Pearson's exact interval (at least ``level`` whatever the truth).

    Raises
    ------
    ValueError
        If there is no image.
    """
    n, count = len(right), int(np.count_nonzero(right))
    if n == 0:
        raise ValueError("right must hold at least one image, got none")
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, count, n - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0
    return Estimate(count / n, (float(low), float(high)), n)


def bootstrap(
    values: Shaped[np.ndarray, "..."],
    statistic: Statistic | None = None,
    *,
    limits: tuple[float, float] | None = None,
    alike: float = 1e-9,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """A function of the means over images, with its percentile interval.

    Zeros and ones may be right answers or, by chance, values of any other kind, so shares are given to
    :func:`proportion`. One image shows no spread and has no interval without limits.

    Parameters
    ----------
    values
        One row per condition, one column per image; the same column is the same image in every row.
    statistic
        Takes means of shape (samples, conditions) and gives (samples,). The mean over conditions if not given.
    limits, alike
        The least and the largest value of a linear statistic of one image. Where all images are alike (their values
        within the share ``alike`` of this range), resampling shows no spread; the interval is then that of images of
        which a share that was not seen is at these limits.
    resamples, level, seed
        Of the bootstrap; the seed decides which images are drawn.

    Raises
    ------
    ValueError
        If there is no image.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    n = values.shape[1]
    if n == 0:
        raise ValueError("values must hold at least one image, got none")
    statistic = statistic or (lambda means: means.mean(1))
    value = float(statistic(values.mean(1)[None])[0])
    if not math.isfinite(value) or (n == 1 and limits is None):
        return Estimate(value, None, n)
    if limits is not None and np.ptp(values, axis=1).max() <= alike * (limits[1] - limits[0]):
        unseen = 1 - ((1 - level) / 2) ** (1 / n)  # the exact bound of a share of which n images show none
        return Estimate(
            value, (value - unseen * (value - limits[0]), value + unseen * (limits[1] - value)), n
        )
    samples = statistic(resampled_means(values, resamples, seed))
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, (float(low), float(high)), n)


def resampled_means(
    values: Shaped[np.ndarray, "..."], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resamples conditions"]:
    """Means of every condition over ``resamples`` bootstrap samples of the images."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, len(values)))
    step = max(1, 4_000_000 // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        out[start : start + rows] = counts @ values.T / n
    return out


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
