"""A metric with its bootstrap interval over images.

Every metric here is a function of means over images: accuracy is the mean of "this image is right", mCE a ratio of such
means over many conditions. Resampling n images with replacement weights image i by a multinomial count, so a
bootstrap sample of all means at once is one product of counts with the table of per-image values; the same images are
drawn in every condition, which keeps their correlation.

>>> import torch
>>> from lipcomp.robustness.estimates import accuracy
>>> accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
Estimate(value=0.75, interval=(0.25, 1.0), n=4)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value, its percentile bootstrap interval (95%), and over how many images."""

    value: float
    interval: tuple[float, float] | None
    n: int


Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap(
    values: Shaped[np.ndarray, "..."],
    statistic: Statistic | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    centred: bool = False,
) -> Estimate:
    """A function of the means over images, with its percentile interval.

    Parameters
    ----------
    values
        One row a condition, one column an image; the same column is the same image in every row.
    statistic
        Takes means of shape (samples, conditions) and gives (samples,). The mean over conditions if not given.
    resamples, level, seed
        Of the bootstrap; the seed decides which images are drawn.
    centred
        Whether to take out the samples' bias (their mean minus the value), for a statistic that noise pushes up.

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
    samples = statistic(resampled_means(values, resamples, seed))
    if centred:
        samples = samples - (np.nanmean(samples) - value)
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


def accuracy(
    predictions: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Top-1 accuracy in [0, 1], with its interval over images."""
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions must hold one class an image: {tuple(labels.shape)}, got {tuple(predictions.shape)}"
        )
    return bootstrap((predictions == labels).double().cpu().numpy()[None], resamples=resamples, seed=seed)


def top_k_correct(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], k: int
) -> Float[np.ndarray, " n"]:
    """Whether the label is among the k largest logits, image by image, as 0 or 1."""
    if k > logits.shape[1]:
        raise ValueError(f"k must be at most the {logits.shape[1]} classes, got {k}")
    top = logits.topk(k, dim=1).indices
    return (top == labels.to(top.device)[:, None]).any(1).double().cpu().numpy()


def calibration_error(
    logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    *,
    bins: int = 15,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Expected calibration error: sum over confidence bins of n_b / n |accuracy_b - confidence_b| (Guo et al. 2017).

    A sum of absolute values grows with noise, so few images in a bin push it up, and resampling pushes it further:
    the interval is that of the bootstrap samples with this bias taken out, cut at zero.
    """
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    right = (predicted == labels.to(predicted.device)).double().cpu().numpy()
    gap = right - confidence.cpu().numpy()
    which = np.clip(np.ceil(confidence.cpu().numpy() * bins).astype(int) - 1, 0, bins - 1)
    by_bin = np.where(
        which == np.arange(bins)[:, None], gap, 0.0
    )  # its mean is n_b / n (accuracy_b - confidence_b)
    found = bootstrap(by_bin, lambda m: np.abs(m).sum(1), resamples=resamples, seed=seed, centred=True)
    assert found.interval is not None
    return Estimate(found.value, (max(0.0, found.interval[0]), found.interval[1]), found.n)
