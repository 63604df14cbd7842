"""How much of an effect runs through a mediator, and how much unmeasured confounding would undo it.

With a the effect of a method on the mediator (over seeds) and b the slope of the outcome on the mediator among runs of
one method and seed, the part through the mediator is a b (product of coefficients; MacKinnon 2008). Its interval comes
from draws of a and b from their t distributions, since a product is not normal. a was randomised (the method was set);
b was not: whatever moves mediator and outcome from run to run is in it. The **robustness value** (Cinelli and Hazlett
2020) is the share of what is left of mediator and outcome, both, that an unmeasured cause would have to explain to
bring b to zero: with f = |t_b| / sqrt(freedom), RV = (sqrt(f^4 + 4 f^2) - f^2) / 2.

>>> round(robustness_value(4.18, 783.0), 3)  # Cinelli and Hazlett's example (Darfur), table 1
0.139
"""

import math
from dataclasses import dataclass

import numpy as np

from lipcomp.statistics._estimate import Estimate, check_level
from lipcomp.statistics._slopes import Slope
from lipcomp.statistics._units import Contrast


@dataclass(frozen=True)
class Mediation(Estimate):
    """The part of an effect that runs through a mediator, in the unit of the outcome."""

    # the robustness value of the slope, in [0, 1]; None where the slope has no error
    robustness: float | None = None


def robustness_value(t: float, freedom: float) -> float:
    """Share of both residual variances that a confounder must explain to bring an estimate with this t to zero."""
    f2 = t * t / freedom
    return 0.5 * (math.sqrt(f2 * f2 + 4 * f2) - f2)


def mediation(
    to_mediator: Contrast,
    to_outcome: Slope,
    *,
    level: float = 0.95,
    draws: int = 20000,
    rng: np.random.Generator | int = 0,
) -> Mediation:
    """The product of the effect on the mediator and the slope of the outcome on it.

    Parameters
    ----------
    to_mediator
        Effect of the method on the mediator.
    to_outcome
        Slope of the outcome on the mediator, method and seed held fixed.
    level
        Nominal coverage of the interval.
    draws
        Monte-Carlo draws.
    rng
        Random generator, or its seed.

    Returns
    -------
    Mediation
        Without value, and with the reason, where either is not estimable.
    """
    check_level(level)
    name, method = "effect through the mediator", f"product of coefficients, {draws} Monte-Carlo draws"
    for part, what in (
        (to_mediator, "the effect on the mediator"),
        (to_outcome, "the slope on the mediator"),
    ):
        if part.value is None or part.error is None:
            return Mediation(
                name, None, None, None, to_mediator.n, method, level, note=f"{what} has no interval"
            )
    generator = np.random.default_rng(rng)
    a, b = (
        part.value + part.error * generator.standard_t(max(1.0, part.freedom), draws)  # type: ignore[operator]
        for part in (to_mediator, to_outcome)
    )
    low, high = np.quantile(a * b, [(1 - level) / 2, (1 + level) / 2])
    value = to_mediator.value * to_outcome.value  # type: ignore[operator]
    robustness = None
    if to_outcome.error:
        robustness = robustness_value(to_outcome.value / to_outcome.error, to_outcome.freedom)  # type: ignore[operator]
    return Mediation(
        name, value, (float(low), float(high)), None, to_mediator.n, method, level, robustness=robustness
    )
