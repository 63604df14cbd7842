"""Adding seeds to a study that cannot tell: how often a rule that looks several times is wrong.

A study looks at ``sizes[0]`` seeds; where it cannot tell, seeds are added and it looks again. Each look is one more
chance of a false *yes*: with 95% intervals four looks make 5% about 11%. Intervals at a higher level at every look
(Pocock 1977) keep the promise over all looks. :func:`sequential_errors` simulates the rule as it is used: the pooled
spread, the zone, stopping at the first verdict that is not *cannot tell*.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from lipcomp.statistics._verdict import Zone


@dataclass(frozen=True)
class SequentialErrors:
    """How a rule ends, as shares of the simulated studies.

    Parameters
    ----------
    yes, wrong_sign
        Ends in yes; and of all studies those whose yes has the wrong sign (any sign, where there is no effect).
    no_larger, wrong_no_larger
        Ends in no larger than; and those of them where the effect does not lie inside the zone.
    cannot_tell
        Still so at the last look.
    seeds
        Mean number of seeds used.
    """

    yes: float
    wrong_sign: float
    no_larger: float
    wrong_no_larger: float
    cannot_tell: float
    seeds: float


def sequential_errors(
    sizes: Sequence[int],
    effect: float,
    spread: float,
    zone: Zone,
    *,
    level: float,
    conditions: int = 3,
    draws: int = 20000,
    rng: np.random.Generator | int = 0,
) -> SequentialErrors:
    """Simulate the rule with normal noise.

    Parameters
    ----------
    sizes
        Seeds at each look, rising.
    effect, spread
        The true effect, and the standard deviation of one seed's difference.
    zone
        The zone of the verdicts.
    level
        Level of the interval at every look.
    conditions
        Methods whose noise is pooled (2: the differences alone).

    Raises
    ------
    ValueError
        If sizes do not rise or begin below 2, or there are fewer than two conditions.
    """
    if not sizes or sizes[0] < 2 or any(b <= a for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"sizes must rise from at least 2 seeds, got {list(sizes)}")
    if conditions < 2:
        raise ValueError(f"conditions must be at least 2, got {conditions}")
    generator = np.random.default_rng(rng)
    noise = generator.standard_normal((draws, sizes[-1], conditions)) * spread / np.sqrt(2)
    noise[:, :, 0] += effect
    verdict, sign, used = np.zeros(draws, int), np.zeros(draws), np.full(draws, sizes[-1])
    for n in sizes:
        table = noise[:, :n]
        estimate = (table[:, :, 0] - table[:, :, 1]).mean(1)
        residual = table - table.mean(1, keepdims=True) - table.mean(2, keepdims=True)
        residual += table.mean((1, 2), keepdims=True)
        freedom = (n - 1) * (conditions - 1)
        pooled, own = (
            2 * (residual**2).sum((1, 2)) / freedom,
            (table[:, :, 0] - table[:, :, 1]).var(1, ddof=1),
        )
        error = np.sqrt(np.maximum(pooled, own) / n)
        half = scipy.stats.t.ppf((1 + level) / 2, freedom) * error
        inside = (zone.low < estimate - half) & (estimate + half < zone.high)
        found = np.where(inside, 2, np.where(np.abs(estimate) > half, 1, 0))
        fresh = (verdict == 0) & (found > 0)
        sign[fresh], used[fresh], verdict[fresh] = np.sign(estimate[fresh]), n, found[fresh]
    yes, small = verdict == 1, verdict == 2
    wrong = yes & (sign != np.sign(effect))
    return SequentialErrors(
        yes=float(yes.mean()),
        wrong_sign=float(wrong.mean()),
        no_larger=float(small.mean()),
        wrong_no_larger=float(small.mean()) if not zone.low < effect < zone.high else 0.0,
        cannot_tell=float((verdict == 0).mean()),
        seeds=float(used.mean()),
    )
