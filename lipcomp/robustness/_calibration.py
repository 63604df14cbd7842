"""Calibration: whether confidences are the shares of right answers.

With w_b the share of images in confidence bin b and g_b their mean of (right - confidence), the expected calibration
error of Guo et al. (2017) is ECE = sum_b w_b |E g_b|. Its plug-in T = sum_b w_b |g_b| is pushed up by noise: a
calibrated model on 200 images has T near 0.05. So

* the *value* takes each bin's sign from other images than its gap (ten folds): sum_b w_b sign(g_b') g_b has
  expectation 0 for a calibrated model and ECE for one that is plainly not; between, it is the lower. It is then cut
  to the interval, so that a calibrated model's is a little above 0 on average;
* the *interval* is [T - q, T + r], cut at 0 and 1. T is at most ECE + sum_b w_b |noise_b|: q is the 97.5% quantile of
  this noise if confidences were true (labels drawn from them; Broecker and Smith 2007), or if the shares of right
  answers were those seen, drawn to 1/2 by two of each kind (Agresti and Coull 1998), whichever is larger: a model that
  is sure and sometimes wrong has more noise than its confidences tell. T is at least sum_b w_b g_b sign(E g_b): r is
  1.96 of its standard deviations or, near shares of 0 and 1, the reach of their exact intervals, whose squares are
  added (Zou and Donner 2008).

Brier score and negative log-likelihood are proper scores, means over images, with no bins and no such bias.

>>> import torch
>>> from lipcomp.robustness._calibration import brier_score
>>> brier_score(torch.tensor([[4.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0])).value < 1e-3
True
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp.robustness._estimates import RESAMPLES, Estimate, bounded_mean, proportion

BINS = 15
FOLDS = 10
ALIKE = 0.01  # scores that are all sure differ by less, as they differ in rounding
NORMAL_QUANTILE = 1.959964


def calibration_error(
    logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Expected calibration error of the largest softmax value, in bins of equal width.

    Scores that are not numbers give NaN, without an interval.

    Raises
    ------
    ValueError
        If there is no image.
    """
    n = len(labels)
    if n == 0:
        raise ValueError("calibration needs at least one image, got none")
    highest, predicted = torch.softmax(logits.cpu().double(), 1).max(1)
    confidence, right = highest.numpy(), (predicted == labels.cpu()).numpy()
    if not np.isfinite(confidence).all():
        return Estimate(float("nan"), None, n)
    rng = np.random.default_rng(0)
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)

    def by_bin(values: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.bincount(which[chosen], values[chosen], minlength=BINS) / n

    gap = right - confidence
    signed = by_bin(gap)
    plug_in = np.abs(signed).sum()
    fold = rng.permutation(n) % FOLDS
    parts = [by_bin(gap, fold == k) for k in range(FOLDS)]
    value = sum(float(np.sign(signed - part) @ part) for part in parts)
    variance = np.maximum(by_bin(gap**2), by_bin(confidence * (1 - confidence))) / n
    true = np.array(
        [np.abs(by_bin((rng.random(n) < confidence) - confidence)).sum() for _ in range(resamples)]
    )
    counts, hits = np.bincount(which, minlength=BINS), np.bincount(which, right, minlength=BINS)
    shares = (hits + 2) / (counts + 4)
    seen = np.abs(rng.binomial(counts, shares, (resamples, BINS)) - counts * shares).sum(1) / n
    low = max(0.0, plug_in - max(float(np.quantile(noise, 0.975)) for noise in (true, seen)))
    exact = float(
        np.linalg.norm(
            [k / n * _reach(h, k) for h, k in zip(hits.tolist(), counts.tolist(), strict=True) if k]
        )
    )
    reach = max(NORMAL_QUANTILE * float(np.sqrt(variance.sum())), exact)
    high = min(1.0, plug_in + reach)
    return Estimate(float(np.clip(value, low, high)), (low, high), n)


def _reach(hits: float, count: int) -> float:
    """How far the exact interval of a share goes from it, at most."""
    found = proportion(np.arange(count) < hits)
    low, high = found.interval or (0.0, 1.0)
    return max(found.value - low, high - found.value)


def brier_score(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Estimate:
    """Mean of sum_k (p_k - [k = label])^2, from 0 to 2 (Brier 1950)."""
    p = torch.softmax(logits.cpu().double(), 1)
    p[torch.arange(len(p)), labels.cpu()] -= 1
    return bounded_mean(p.square().sum(1).numpy(), (0.0, 2.0))


def negative_log_likelihood(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Estimate:
    """Mean of -log p of the label, in nats.

    It has no upper limit: the largest value seen stands for one, and images that are all alike give no interval.
    """
    log_p = torch.log_softmax(logits.cpu().double(), 1)
    values = -log_p.gather(1, labels.cpu()[:, None])[:, 0].numpy()
    found = bounded_mean(values, (0.0, float(values.max(initial=0.0))))
    return replace(found, interval=None) if np.ptp(values) <= ALIKE else found
