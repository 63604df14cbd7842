"""From an interval to one of three verdicts: yes, no larger than, cannot tell (theory 7.1).

With a zone (low, high) around zero that was fixed before the data, an interval says

- **no larger than** the zone, if it lies inside it (equivalence: two one-sided tests, Schuirmann 1987). This comes
  first: an effect that is surely there and surely negligible is negligible;
- **yes**, if it leaves out zero;
- **cannot tell** otherwise, and then how many units would: :func:`units_needed`.

No verdict asks for a permutation p-value beside the interval: those of n pairs cannot fall below 2^(1-n), so with
fewer than six pairs the answer could never be yes (theory 7.2).
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import scipy.stats

from lipcomp._arguments import checked
from lipcomp.statistics._units import Contrast


class Verdict(StrEnum):
    """What a study may say of an effect."""

    YES = "yes"
    NO_LARGER = "no larger than"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Zone:
    """Effects that would make no difference: open interval around zero, in the unit of the effect."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < 0 < self.high < math.inf:
            raise ValueError(f"a zone must hold zero inside finite ends, got {self.low} to {self.high}")

    def holds(self, interval: tuple[float, float]) -> bool:
        """Whether an interval lies inside."""
        return self.low < interval[0] and interval[1] < self.high


@checked
def decide(interval: tuple[float, float] | None, zone: Zone | tuple[float, float]) -> Verdict:
    """The verdict on an effect: "yes", "no larger than" or "cannot tell".

    Parameters
    ----------
    interval
        The effect's confidence interval; None if there is none, then the verdict is "cannot tell".
    zone
        The effects that would make no difference, (low, high) around zero, fixed before the data.

    Raises
    ------
    ValueError
        If the ends of the interval are not in order, or those of the zone not on both sides of zero.

    Examples
    --------
    >>> from lipcomp.statistics import decide
    >>> [str(decide(ends, (-1.0, 1.0))) for ends in ((0.2, 3.0), (0.2, 0.8), (-0.9, 2.0), None)]
    ['yes', 'no larger than', 'cannot tell', 'cannot tell']
    """
    zone = zone if isinstance(zone, Zone) else Zone(*zone)
    if interval is None:
        return Verdict.CANNOT_TELL
    if not interval[0] <= interval[1]:
        raise ValueError(
            f"interval must be (low, high), got {interval}; give None where there is no interval"
        )
    if zone.holds(interval):
        return Verdict.NO_LARGER
    return Verdict.YES if interval[0] > 0 or interval[1] < 0 else Verdict.CANNOT_TELL


def units_needed(
    effect: Contrast, zone: Zone, *, margin: float = 0.0, power: float = 0.8, most: int = 100
) -> int | None:
    """How many units would decide, if effect and spread are what they were estimated to be.

    The smallest number above ``effect.n`` with which the verdict would be *yes* or *no larger than* with probability
    ``power``. It is a plan, not a promise: both are estimates. ``margin`` is what widens the interval on each side at
    any number of units.

    Returns
    -------
    int or None
        None if ``most`` units would not be enough, or nothing is known of the spread: the effect has no interval.
    """
    if effect.value is None or effect.interval is None or effect.spread is None:
        return None
    n = np.arange(effect.n + 1, most + 1)
    per_unit = effect.freedom / max(1, effect.n - 1) if not effect.shared else 1.0
    error = np.sqrt(effect.spread**2 / n + effect.shared)
    half = scipy.stats.t.ppf((1 + effect.level) / 2, np.maximum(1.0, per_unit * (n - 1))) * error + margin
    error = np.maximum(error, 1e-300)

    def below(x: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.stats.norm.cdf((x - effect.value) / error))

    undecided = below(half) - below(-half)  # it does not leave out zero ...
    inside = below(np.minimum(half, zone.high - half)) - below(np.maximum(-half, zone.low + half))
    decided = 1 - undecided + np.maximum(0.0, inside)  # ... but may lie inside the zone
    enough = np.flatnonzero(decided >= power)
    return int(n[enough[0]]) if enough.size else None
