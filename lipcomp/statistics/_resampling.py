"""Bootstrap intervals and permutation p-values of any statistic, over units that may be groups.

A bootstrap draw is an array of counts, how often each unit was drawn, and a statistic is evaluated on counts
used as weights. So a draw of whole groups needs nothing more than to hand each member the count of its group,
and ranks within a draw come from cumulated weights without sorting again.

The interval is bias-corrected and accelerated (Efron 1987): with z0 the normal quantile of the share of draws
below the estimate and a the skewness of the leave-one-out estimates over six, its ends are the quantiles

    Phi(z0 + (z0 + z) / (1 - a (z0 + z)))        z = the two normal quantiles of the level

of the draws. A draw in which the statistic is undefined (a constant column) is left out; above one in twenty
there is no interval.

A permutation p-value counts the arrangements at least as extreme as the observed one, itself included: all of
them where they are few (then the p-value is exact), else a random sample, (1 + count) / (1 + draws), which
never understates.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

Weighted = Callable[[Float[np.ndarray, "draws n"]], Float[np.ndarray, " draws"]]
Arranged = Callable[[Int[np.ndarray, "draws n"]], Float[np.ndarray, " draws"]]

CHUNK = 2_000_000  # numbers held at once
BLOCKS = 500  # left out one at a time for the acceleration
DEGENERATE = 0.05  # share of undefined draws above which there is no interval


def bootstrap_interval(
    statistic: Weighted,
    units: Int[np.ndarray, " n"],
    count: int,
    *,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float] | None, str]:
    """The BCa interval, resampling ``count`` units; or None, and why there is none.

    Parameters
    ----------
    statistic
        Takes weights, one row per draw, and returns one number per row (NaN where undefined).
    units
        The unit (0..count-1) that each observation belongs to.
    """
    observed = statistic(np.ones((1, units.size)))[0]
    draws = []
    step = max(1, CHUNK // units.size)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = rng.multinomial(count, np.full(count, 1 / count), size=size)
        draws.append(statistic(counts[:, units].astype(np.float64)))
    values = np.concatenate(draws)
    defined = values[np.isfinite(values)]
    if defined.size < (1 - DEGENERATE) * resamples:
        return (
            None,
            f"{resamples - defined.size} of {resamples} draws leave the statistic undefined",
        )
    blocks = units % BLOCKS  # of many units the skewness is taken over blocks left out, not one by one
    sizes = min(count, BLOCKS)
    left_out = np.concatenate(
        [
            statistic((blocks != np.arange(start, min(start + step, sizes))[:, None]).astype(np.float64))
            for start in range(0, sizes, step)
        ]
    )
    if not np.isfinite(left_out).all():
        return None, "without one of its units the statistic is undefined"
    return bca(float(observed), defined, left_out, level)


def bca(
    observed: float, draws: Float[np.ndarray, " draws"], left_out: Float[np.ndarray, " units"], level: float
) -> tuple[tuple[float, float] | None, str]:
    """Ends of the BCa interval from bootstrap draws and leave-one-out estimates."""
    if np.ptp(draws) == 0:
        return None, "every bootstrap draw gives the same value"
    share = (np.mean(draws < observed) + np.mean(draws <= observed)) / 2
    if not 0 < share < 1:
        return None, "the estimate lies outside everything the bootstrap drew"
    bias = ndtri(share)
    deviation = left_out.mean() - left_out
    spread = (deviation**2).sum()
    acceleration = (deviation**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return (float(low), float(high)), ""


class Arrangements:
    """Rearrangements of observations that a null hypothesis calls equally likely: blocks change places with their like.

    Parameters
    ----------
    kinds
        For each kind of block the observations in it, (blocks, size); the blocks of a kind change places.
    limit
        Random draws to take when there are more arrangements than this.
    """

    def __init__(self, kinds: Sequence[Int[np.ndarray, "_ _"]], limit: int) -> None:
        self.kinds, self.limit = kinds, limit
        self.length = sum(kind.size for kind in kinds)
        self.total = math.prod(math.factorial(len(kind)) for kind in kinds)
        self.exact = self.total <= limit

    def chunks(self, rng: np.random.Generator) -> Iterator[Int[np.ndarray, "draws n"]]:
        """All arrangements, or ``limit`` random ones, some at a time."""
        step = max(1, CHUNK // self.length)
        if self.exact:
            everyone = self._everyone()
            while chunk := list(itertools.islice(everyone, step)):
                yield np.array(chunk)
        else:
            for start in range(0, self.limit, step):
                yield self._draw(rng, min(step, self.limit - start))

    def _everyone(self) -> Iterator[Int[np.ndarray, " n"]]:
        for choice in itertools.product(*(itertools.permutations(kind) for kind in self.kinds)):
            order = np.arange(self.length)
            for kind, moved in zip(self.kinds, choice, strict=True):
                order[kind.reshape(-1)] = np.concatenate(moved)
            yield order

    def _draw(self, rng: np.random.Generator, size: int) -> Int[np.ndarray, "draws n"]:
        order = np.tile(np.arange(self.length), (size, 1))
        for kind in self.kinds:
            which = rng.permuted(np.tile(np.arange(len(kind)), (size, 1)), axis=1)
            order[:, kind.reshape(-1)] = kind[which].reshape(size, -1)
        return order

    def p_value(self, statistic: Arranged, rng: np.random.Generator) -> tuple[float, float]:
        """Two-sided p-value, and the smallest that could have come out.

        Arrangements that leave the statistic undefined count as no more extreme than nothing.
        """
        observed = abs(statistic(np.arange(self.length)[None])[0])
        null = np.concatenate([np.abs(statistic(chunk)) for chunk in self.chunks(rng)])
        null = np.nan_to_num(null, nan=0.0)
        slack = 1e-12 + 1e-9 * observed  # of coefficients: one that is zero comes out as 1e-17
        if self.exact:
            top = null.max()
            return float(np.mean(null >= observed - slack)), float(np.mean(null >= top - 1e-9 * top))
        return float((1 + np.sum(null >= observed - slack)) / (1 + null.size)), 1 / (1 + null.size)

    def describe(self) -> str:
        """For the methods text."""
        return f"all {self.total}" if self.exact else f"{self.limit} random"


def free(n: int, limit: int) -> Arrangements:
    """Any observation may change places with any other."""
    return Arrangements([np.arange(n)[:, None]], limit)


def inside(groups: Int[np.ndarray, " n"], limit: int) -> Arrangements:
    """Observations change places inside their group only: what differs between groups stays as it is."""
    return Arrangements([member[:, None] for member in _members(groups)], limit)


def whole(groups: Int[np.ndarray, " n"], limit: int) -> Arrangements:
    """Groups change places as wholes, among those of equal size: what holds inside a group stays together."""
    sizes: dict[int, list[Int[np.ndarray, " size"]]] = {}
    for member in _members(groups):
        sizes.setdefault(member.size, []).append(member)
    return Arrangements([np.stack(alike) for alike in sizes.values()], limit)


def _members(groups: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " size"]]:
    return [np.flatnonzero(groups == code) for code in range(groups.max() + 1)]
