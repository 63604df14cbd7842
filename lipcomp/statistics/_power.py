"""What the n at hand could have found: the smallest effect that the test detects with the stated power.

A null result is read against it: "no effect" from three seeds means "no effect above what three seeds can
show", and three seeds can show nothing at all by a permutation test, since its p-value cannot fall below
0.25.

- paired, sign-flip test: for n up to 10 by simulation of normal differences with common random numbers,
  beyond by the noncentral t distribution, which the sign-flip test attains; in standard deviations of the
  differences (d_z).
- correlation: Fisher's z, |r| = tanh((z_{1-alpha/2} + z_power) sqrt(v / (n - 3))), with the variance v of the
  coefficient (1 for Pearson, 1 + r^2/2 for Spearman, 0.437 with n - 4 for Kendall).
- auroc: Hanley and McNeil's (1982) variance for n1 positive and n0 negative rows.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
import scipy.stats

from lipcomp._arguments import checked
from lipcomp._results import ResultMixin
from lipcomp.statistics._correlation import fisher_variance

SIMULATE_UP_TO = 10
SIMULATIONS = 4000

Test = Literal["paired", "spearman", "kendall", "pearson", "auroc"]
UNITS = {"paired": "standard deviations of the differences (d_z)", "auroc": "area above 1/2 (AUROC - 0.5)"}


@dataclass(frozen=True)
class Detectable(ResultMixin):
    """The smallest detectable effect.

    Parameters
    ----------
    value
        In ``unit``; None where no effect, however large, would be found.
    scaled
        ``value`` times the standard deviation given, in the unit of the measurements.
    unit
        Of ``value``.
    n, alpha, power
        What was asked.
    method
        In words.
    note
        Why there is none; else empty.
    """

    value: float | None
    scaled: float | None
    unit: str
    n: int
    alpha: float
    power: float
    method: str
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"not detectable: {self.note}"
        scaled = "" if self.scaled is None else f" (that is {self.scaled:.3g} as measured)"
        asked = f"n = {self.n}, power {self.power:.0%}, alpha {self.alpha:g}"
        return f"{self.value:.3g} {self.unit}{scaled} at {asked}"


@checked
def smallest_detectable_effect(
    n: int,
    *,
    test: Test = "paired",
    alpha: float = 0.05,
    power: float = 0.8,
    sd: float | None = None,
    positives: int | None = None,
    rng: np.random.Generator | int = 0,
) -> Detectable:
    """The smallest effect that a two-sided test at ``alpha`` finds with probability ``power``.

    Parameters
    ----------
    n
        Pairs, models or rows.
    test
        "paired" (sign-flip), "spearman", "kendall", "pearson" or "auroc".
    alpha, power
        Level and power; for a family of m tests give alpha / m.
    sd
        Standard deviation of the paired differences, to give the effect in their unit too.
    positives
        For "auroc": number of the n rows with label 1; by default half of them.
    rng
        Generator or seed of the simulation for few pairs.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> print(smallest_detectable_effect(3))
    not detectable: a sign-flip test of 3 pairs cannot give a p-value below 0.25
    >>> round(smallest_detectable_effect(30).value, 2)
    0.53
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 < alpha < 1 or not alpha < power < 1:
        raise ValueError(f"alpha and power must satisfy 0 < alpha < power < 1, got {alpha} and {power}")
    if sd is not None and not 0 < sd < math.inf:
        raise ValueError(f"sd must be positive and finite, got {sd}")
    if test == "paired":
        value, method, note = _paired(n, alpha, power, np.random.default_rng(rng))
    elif test in ("spearman", "kendall", "pearson"):
        value, method, note = _correlation(n, test, alpha, power)
    elif test == "auroc":
        value, method, note = _auroc(n, n // 2 if positives is None else positives, alpha, power)
    else:
        raise ValueError(f'test must be "paired", "spearman", "kendall", "pearson" or "auroc", got {test!r}')
    scaled = None if value is None or sd is None else value * sd
    return Detectable(value, scaled, UNITS.get(test, "correlation"), n, alpha, power, method, note)


def _paired(n: int, alpha: float, power: float, rng: np.random.Generator) -> tuple[float | None, str, str]:
    smallest = 2.0 ** (1 - n)
    if smallest > alpha:
        note = f"a sign-flip test of {n} pairs cannot give a p-value below {smallest:.2g}"
        return None, "sign-flip test", note
    if n > SIMULATE_UP_TO:
        critical = scipy.stats.t.ppf(1 - alpha / 2, n - 1)

        def lack(d: float) -> float:
            shift = d * math.sqrt(n)
            found = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift)
            return float(found) - power

        high = 2 / math.sqrt(n)  # far beyond, the noncentral t is not computed to any digit
        while lack(high) < 0:
            high *= 1.2
        return float(scipy.optimize.brentq(lack, 0.0, high)), "sign-flip test, power by the noncentral t", ""
    noise = rng.standard_normal((SIMULATIONS, n))
    half = np.ones((1, 1))
    for _ in range(n - 1):
        half = np.block([[half, np.ones((half.shape[0], 1))], [half, -np.ones((half.shape[0], 1))]])

    def power_at(d: float) -> float:
        sums = np.abs((noise + d) @ half.T)
        return float(np.mean(np.mean(sums >= sums[:, :1] * (1 - 1e-12), axis=1) <= alpha))

    high = 1.0
    while power_at(high) < power:
        high *= 2
    low = 0.0
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power_at(middle) < power else (low, middle)
    return high, f"sign-flip test, power from {SIMULATIONS} simulated sets of normal differences", ""


def _correlation(n: int, test: str, alpha: float, power: float) -> tuple[float | None, str, str]:
    method = f"permutation test of {test}, power by Fisher's z"
    smallest = 2 / math.factorial(min(n, 20))
    if smallest > alpha:
        return (
            None,
            method,
            f"a permutation test of {n} observations cannot give a p-value below {min(1, smallest):.2g}",
        )
    spare = n - (4 if test == "kendall" else 3)
    if spare < 1:
        return None, method, f"Fisher's z needs more than {n} observations"
    reach = scipy.stats.norm.ppf(1 - alpha / 2) + scipy.stats.norm.ppf(power)

    def lack(r: float) -> float:
        return math.atanh(r) - reach * math.sqrt(fisher_variance(r, test) / spare)

    return float(scipy.optimize.brentq(lack, 0.0, 1 - 1e-12)), method, ""


def _auroc(n: int, positives: int, alpha: float, power: float) -> tuple[float | None, str, str]:
    method = "AUROC, variance of Hanley and McNeil"
    negatives = n - positives
    if not 0 <= positives <= n:
        raise ValueError(f"positives must be between 0 and n = {n}, got {positives}")
    if min(positives, negatives) < 2:
        return None, method, f"{positives} positive and {negatives} negative rows are too few"

    def spread(area: float) -> float:
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        total = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
        return math.sqrt(total / (positives * negatives))

    z_alpha, z_power = scipy.stats.norm.ppf(1 - alpha / 2), scipy.stats.norm.ppf(power)

    def lack(area: float) -> float:
        return area - 0.5 - z_alpha * spread(0.5) - z_power * spread(area)

    top = 1 - 1e-9
    if lack(top) < 0:
        return None, method, f"{positives} positive and {negatives} negative rows are too few"
    return float(scipy.optimize.brentq(lack, 0.5, top)) - 0.5, method, ""
