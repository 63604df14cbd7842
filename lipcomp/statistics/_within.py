"""Simpson's check: the relation inside matched pairs and the one between them, shown apart.

Over all models x and y may go together only because the pairs differ (another seed, another family: better in
everything), while inside a pair the one that is smoother is less robust; or the other way round. So

- **within**: the correlation of x_ij - mean_i(x) with y_ij - mean_i(y) (repeated-measures correlation, Bland
  and Altman 1995), with N - pairs - 1 degrees of freedom. Its p-value permutes y inside each pair, so
  everything that distinguishes pairs stays as it was; two models per pair allow 2^pairs arrangements.
- **between**: the correlation of the pair means, with n the number of pairs.
- **pooled**: all observations taken together, as a scatter plot shows them.

``reversal`` says that within and between point in opposite directions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from lipcomp._arguments import checked
from lipcomp._results import ResultMixin
from lipcomp.statistics._correlation import BCA_FROM, NAMES, correlation, fisher_interval
from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    group_codes,
    is_constant,
    scaled,
    vector,
)
from lipcomp.statistics._resampling import bootstrap_interval, inside


@dataclass(frozen=True)
class WithinBetween(ResultMixin):
    """One relation seen three ways.

    Parameters
    ----------
    within, between, pooled
        Inside pairs, across pair means, and over everything.
    concordance
        Of the comparisons inside pairs that differ in both, the share in which x and y go the same way; None
        if there are none.
    comparisons
        How many comparisons that is a share of.
    reversal
        Whether within and between have opposite signs.
    """

    within: Estimate
    between: Estimate
    pooled: Estimate
    concordance: float | None
    comparisons: int
    reversal: bool

    def __repr__(self) -> str:
        return f"WithinBetween(within={self.within}, between={self.between}, pooled={self.pooled})"

    def summary(self) -> str:
        """A line for each of the three, and how many comparisons go the same way."""
        agree = "none" if self.concordance is None else f"{self.concordance:.0%}"
        last = f"concordance {agree} of {self.comparisons} comparisons; reversal: {'yes' if self.reversal else 'no'}"
        return "\n".join([*map(str, (self.within, self.between, self.pooled)), last])

    def columns(self) -> dict[str, np.ndarray]:
        """A row for each of the three."""
        three = (self.within, self.between, self.pooled)
        told = {"value": [e.value for e in three], "p_value": [e.p_value for e in three]}
        ends = dict(
            zip(("low", "high"), zip(*(e.interval or (None, None) for e in three), strict=True), strict=True)
        )
        floats = {name: np.array(column, dtype=float) for name, column in (told | ends).items()}
        return {
            "name": np.array(["within", "between", "pooled"]),
            **floats,
            "n": np.array([e.n for e in three]),
        }


@checked
def within_pairs(
    x: Values,
    y: Values,
    pair: Values,
    *,
    method: Literal["spearman", "pearson"] = "pearson",
    level: float = 0.95,
    resamples: int = 9999,
    rng: np.random.Generator | int = 0,
) -> WithinBetween:
    """The correlation of x and y inside matched pairs, and between them.

    Parameters
    ----------
    x, y
        One value of each per model.
    pair
        The pair (seed, or seed and family) that each model belongs to; pairs may have more than two members,
        and a model alone in its pair counts only for ``between`` and ``pooled``.
    method
        "pearson", or "spearman": the same on ranks over all models.
    level, resamples, rng
        As in :func:`lipcomp.statistics.correlation`.

    Raises
    ------
    ValueError
        If the arguments differ in length or hold values that are not finite.

    Examples
    --------
    >>> from lipcomp.statistics import within_pairs
    >>> found = within_pairs([0.9, 0.5, 0.8, 0.4], [0.61, 0.66, 0.63, 0.65], [0, 0, 1, 1], resamples=99)
    >>> found.concordance
    0.0
    """
    check_level(level)
    if method not in ("pearson", "spearman"):
        raise ValueError(f'method must be "pearson" or "spearman", got {method!r}')
    check_order(x=x, y=y, pair=pair)
    first = scaled(vector("x", x))
    second = scaled(vector("y", y, first.size))
    codes, _ = group_codes("pair", pair, first.size)
    generator = np.random.default_rng(rng)
    options = {"level": level, "resamples": resamples, "rng": generator}
    pooled = correlation(first, second, method=method, groups=codes, **options)  # type: ignore[arg-type]
    sizes = np.bincount(codes)
    means = [np.bincount(codes, column) / sizes for column in (first, second)]
    between = correlation(means[0], means[1], method=method, **options)  # type: ignore[arg-type]
    within = _within(first, second, codes, method, level, resamples, generator)
    concordance, comparisons = _concordance(first, second, codes)
    both = within.value is not None and between.value is not None
    reversal = both and within.value * between.value < -1e-12  # type: ignore[operator]  # zero comes out as 1e-17
    return WithinBetween(within, between, pooled, concordance, comparisons, reversal)


def _within(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
    method: str,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> Estimate:
    if method == "spearman":
        x, y = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    keep = np.bincount(codes)[codes] > 1
    x, y = x[keep], y[keep]
    labels, codes = np.unique(codes[keep], return_inverse=True)
    n, pairs = x.size, labels.size
    name = f"within-pair {NAMES[method]}"
    x, y = (_centred(column, codes) if n else column for column in (x, y))
    freedom = n - pairs - 1
    reason = ""
    if freedom < 1:
        reason = (
            f"{pairs} pairs with at least two members leave {max(0, freedom)} degrees of freedom, 1 is needed"
        )
    for label, column in (("x", x), ("y", y)):
        if not reason and is_constant(column):
            reason = f"{label} does not vary inside any pair"
    if reason:
        return Estimate(name, None, None, None, n, name, level, note=reason)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    value = float(np.clip(x @ y, -1, 1))
    moves = inside(codes, resamples)
    p_value, smallest = moves.p_value(lambda order: y[order] @ x, rng)
    notes = [f"{pairs} pairs cannot give p below {smallest:.2g}"] if smallest > 1 - level else []
    if pairs >= BCA_FROM:
        label = f"BCa over {pairs} pairs"
        ends, why = bootstrap_interval(
            lambda w: _ratio((w * x) @ y, (w * x) @ x, (w * y) @ y),
            codes, pairs, level=level, resamples=resamples, rng=rng,
        )  # fmt: skip
    else:
        label, why = f"Fisher's z at {freedom} degrees of freedom", "needs 2 degrees of freedom and |r| < 1"
        ends = fisher_interval(value, freedom + 2, "pearson", level)
    if ends is None:
        notes.append(f"no interval: {why}")
    text = f"{name}; interval {label}; permutation inside pairs over {moves.describe()} arrangements"
    return Estimate(name, value, ends, p_value, n, text, level, smallest, "; ".join(notes))


def _centred(column: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    out = column - (np.bincount(codes, column) / np.bincount(codes))[codes]
    return np.where(np.abs(out) <= 1e-14 * np.abs(column).max(), 0.0, out)


def _ratio(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    size = np.sqrt(xx * yy)
    return np.where(size > 0, xy / np.where(size > 0, size, 1.0), np.nan)


def _concordance(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], codes: Int[np.ndarray, " n"]
) -> tuple[float | None, int]:
    agree = total = 0
    for code in np.unique(codes):
        member = np.flatnonzero(codes == code)
        product = np.sign(x[member, None] - x[member]) * np.sign(y[member, None] - y[member])
        agree += int((product > 0).sum()) // 2
        total += int((product != 0).sum()) // 2
    return (agree / total if total else None), total
