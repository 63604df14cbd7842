"""Paired effects: what changes when one field of the recipe changes and the seed stays.

With d_i = a_i - b_i over matched pairs (same seed, same data order), the effect is the mean of d. Reported
with it:

- **sign-flip p-value**: under no effect d_i and -d_i are equally likely, so all 2^n sign patterns of the
  observed differences are; the two-sided p-value is exact for any symmetric distribution. It cannot fall
  below 2^(1-n): ``smallest_p``. Three seeds can show no p below 0.25, whatever the effect.
- **Wilcoxon signed rank** p-value, less sensitive to one outlying seed.
- **effect sizes**: d_z, the mean difference over the standard deviation of the differences, with Hedges'
  correction; and the matched-pairs rank-biserial correlation, in [-1, 1].

The interval is a studentized bootstrap from 10 pairs on: mean +- q s/sqrt(n), with q the quantile of
|mean* - mean| sqrt(n) / s* over the draws. A percentile or BCa bootstrap of a mean covers less than it says
at these sizes (three pairs: 73% where it claims 95%; ``python -m benchmarks.coverage`` prints the table), and
below 10 pairs no bootstrap holds its level: there Student's t interval is given. ``interval`` chooses by
hand.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.stats
from jaxtyping import Float

from lipcomp._arguments import checked
from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    in_unit,
    own_unit,
    rounding,
    vector,
)
from lipcomp.statistics._resampling import bootstrap_interval

BOOTSTRAP_FROM = 10  # pairs; from the coverage table
EXACT_UP_TO = 16  # pairs whose sign patterns are all counted

Interval = Literal["auto", "studentized", "bca", "t"]


@dataclass(frozen=True)
class PairedEffect(Estimate):
    """A mean difference over matched pairs, a minus b.

    Parameters
    ----------
    wilcoxon_p
        Wilcoxon signed-rank p-value, two-sided; None where every difference is zero.
    standardized
        d_z with Hedges' small-sample correction; None below three pairs or
        where the differences do not vary.
    rank_biserial
        Share of favourable minus share of unfavourable rank sums, in [-1, 1].
    wins
        Pairs with a above b.
    differences
        The differences, in the order given.
    """

    wilcoxon_p: float | None = None
    standardized: float | None = None
    rank_biserial: float | None = None
    wins: int = 0
    differences: tuple[float, ...] = ()


@checked
def paired_effect(
    a: Values,
    b: Values,
    *,
    level: float = 0.95,
    interval: Interval = "auto",
    resamples: int = 9999,
    rng: np.random.Generator | int = 0,
) -> PairedEffect:
    """The mean of a - b over matched pairs, with interval, exact p-value and effect sizes.

    Parameters
    ----------
    a, b
        The two measurements of each pair, in the same order.
    level
        Nominal coverage of the interval.
    interval
        "auto" (Student's t below 10 pairs, "studentized" from there), "studentized", "bca" or "t".
    resamples
        Number of bootstrap draws, and of sign patterns if there are more than 2^16.
    rng
        Random generator, or its seed.

    Raises
    ------
    ValueError
        If the arguments differ in length or hold values that are not finite.

    Examples
    --------
    >>> from lipcomp.statistics import paired_effect
    >>> effect = paired_effect([0.91, 0.93, 0.90, 0.94, 0.92, 0.95], [0.90, 0.90, 0.88, 0.93, 0.90, 0.91])
    >>> round(effect.value, 4), effect.p_value, effect.smallest_p
    (0.0217, 0.03125, 0.03125)
    """
    check_level(level)
    if interval not in get_args(Interval):
        raise ValueError(f"interval must be one of {', '.join(get_args(Interval))}, got {interval!r}")
    check_order(a=a, b=b)
    first = vector("a", a)
    second = vector("b", b, first.size)
    unit = own_unit(first, second)
    first, second = np.ldexp(first, -unit), np.ldexp(second, -unit)
    difference = first - second
    # a - b of equal pairs leaves rounding; it must not become ranks and signs
    tiny = rounding(a, b) * max(np.abs(first).max(), np.abs(second).max())
    difference = np.where(np.abs(difference) <= tiny, 0.0, difference)
    n, generator = difference.size, np.random.default_rng(rng)
    mean = float(difference.mean())
    p_value: float | None = None
    smallest: float | None = None
    ends: tuple[float, float] | None = None
    standardized: float | None = None
    notes, label, how = [], "no", "one pattern"
    if n < 2:
        notes.append("one pair shows no spread: neither interval nor p-value is estimable")
    else:
        p_value, smallest, how = _sign_flip(difference, resamples, generator)
        if smallest > 1 - level:
            notes.append(f"{n} pairs cannot give a p-value below {smallest:.2g}")
    if n > 1 and np.ptp(difference) <= 2 * tiny:  # as of four values that are rounded
        notes.append("the differences do not vary: neither interval nor d_z is estimable")
    elif n > 1:
        spread = float(difference.std(ddof=1))
        standardized = mean / spread * _hedges(n) if n > 2 else None
        kind = interval if interval != "auto" else ("t" if n < BOOTSTRAP_FROM else "studentized")
        label = {"t": "Student's t", "bca": "BCa", "studentized": "studentized bootstrap"}[kind]
        label += "" if kind == "t" else f" ({resamples} draws)"
        if kind == "bca":
            ends, why = bootstrap_interval(
                lambda w: (w @ difference) / w.sum(1),
                np.arange(n), n, level=level, resamples=resamples, rng=generator,
            )  # fmt: skip
            if ends is None:
                notes.append(f"no interval: {why}")
        else:
            quantile = scipy.stats.t.ppf((1 + level) / 2, n - 1)
            if kind == "studentized":
                quantile = _studentized_quantile(difference, level, resamples, generator)
            half = float(quantile) * spread / math.sqrt(n)
            ends = (mean - half, mean + half)
            if not half > 0:
                ends = None
                notes.append(f'no interval: a bootstrap of {n} pairs has no width; use interval="t"')
    return PairedEffect(
        name="mean difference",
        value=in_unit(mean, unit),
        interval=None if ends is None else (in_unit(ends[0], unit), in_unit(ends[1], unit)),
        p_value=p_value,
        n=n,
        method=f"mean of {n} paired differences; {label} interval; sign-flip test ({how}); Wilcoxon",
        level=level,
        smallest_p=smallest,
        note="; ".join(notes),
        wilcoxon_p=_wilcoxon(difference),
        standardized=standardized,
        rank_biserial=_rank_biserial(difference),
        wins=int((difference > 0).sum()),
        differences=tuple(in_unit(d, unit) for d in difference),
    )


def _studentized_quantile(
    difference: Float[np.ndarray, " n"], level: float, resamples: int, rng: np.random.Generator
) -> float:
    """Quantile of |mean* - mean| / (s* / sqrt(n)) over bootstrap draws; draws without spread are left out."""
    n = difference.size
    centred = difference - difference.mean()
    ratios, step = [], max(1, 2_000_000 // n)
    for start in range(0, resamples, step):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        means = counts @ centred / n
        variances = np.maximum(0.0, (counts @ centred**2 / n - means**2) * n / (n - 1))
        spread = variances > 1e-12 * centred.var()
        ratios.append(np.abs(means[spread]) / np.sqrt(variances[spread] / n))
    return float(np.quantile(np.concatenate(ratios), level))


def _sign_flip(
    difference: Float[np.ndarray, " n"], resamples: int, rng: np.random.Generator
) -> tuple[float, float, str]:
    """P-value of the mean under random signs, the smallest attainable one, and the words for it."""
    n, observed = difference.size, abs(difference.sum())
    slack = 1e-12 * np.abs(difference).sum()
    if n <= EXACT_UP_TO:
        half = np.zeros(1)  # every sum with the first sign fixed; the other half mirrors it
        half = half + difference[0]
        for value in difference[1:]:
            half = np.concatenate([half + value, half - value])
        return float(np.mean(np.abs(half) >= observed - slack)), 2.0 ** (1 - n), f"all {2**n} sign patterns"
    count, step = 0, max(1, 2_000_000 // n)
    for start in range(0, resamples, step):
        signs = rng.integers(0, 2, (min(step, resamples - start), n)) * 2 - 1
        count += int(np.sum(np.abs(signs @ difference) >= observed - slack))
    return (1 + count) / (1 + resamples), 1 / (1 + resamples), f"{resamples} random sign patterns"


def _wilcoxon(difference: Float[np.ndarray, " n"]) -> float | None:
    if not difference.any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties: scipy then takes the normal approximation, and says so
        return float(scipy.stats.wilcoxon(difference).pvalue)


def _rank_biserial(difference: Float[np.ndarray, " n"]) -> float | None:
    nonzero = difference[difference != 0]
    if nonzero.size == 0:
        return None
    ranks = scipy.stats.rankdata(np.abs(nonzero))
    return float((np.sign(nonzero) * ranks).sum() / ranks.sum())


def _hedges(n: int) -> float:
    """Hedges' factor J(n - 1), which takes the small-sample bias from d_z."""
    half = (n - 1) / 2
    return math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)
