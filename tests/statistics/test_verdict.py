"""Verdicts: equivalence against statsmodels, planned seeds and repeated looks against simulation."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.weightstats import ttost_paired

from lipcomp.statistics import contrast, decide
from lipcomp.statistics._slopes import block_slope
from lipcomp.statistics._verdict import Verdict, Zone, units_needed

ZONE = Zone(-1.0, 1.0)


def paired(differences, level=0.95):
    n = len(differences)
    values = [*differences, *([0.0] * n)]
    return contrast(values, [*range(n), *range(n)], [*("t" * n), *("c" * n)], "t", "c", level=level)


def test_three_pairs_can_say_yes():
    assert decide(paired([-1.25, -1.2, -1.3]).interval, ZONE) is Verdict.YES


def test_equivalence_comes_before_yes_and_a_missing_interval_tells_nothing():
    assert decide((0.1, 0.3), ZONE) is Verdict.NO_LARGER
    assert decide((-1.0, 0.5), ZONE) is Verdict.CANNOT_TELL  # the zone is open
    assert decide((-0.9, 2.0), ZONE) is Verdict.CANNOT_TELL  # both signs, and out of the zone
    assert decide((-2.0, 0.9), ZONE) is Verdict.CANNOT_TELL
    assert decide((2.0, 2.0), ZONE) is Verdict.YES  # an exact law has an interval without width
    assert decide(None, ZONE) is Verdict.CANNOT_TELL


def test_equivalence_agrees_with_two_one_sided_tests():
    x = np.random.default_rng(0).normal(0.2, 0.5, 8)
    p = ttost_paired(x, np.zeros(8), -1.0, 1.0)[0]
    assert ZONE.holds(paired(x, level=0.90).interval) == (p < 0.05)


def test_a_zone_holds_zero():
    for low, high in ((0.0, 1.0), (-1.0, math.inf), (1.0, 2.0)):
        with pytest.raises(ValueError, match="zone must hold zero"):
            Zone(low, high)


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "spread"), [(2.0, 2.5), (0.0, 1.5), (0.5, 1.0)])
def test_the_units_that_are_said_to_decide_do(effect, spread):
    rng = np.random.default_rng(1)
    x = rng.normal(size=6)
    x = effect + spread * (x - x.mean()) / x.std(ddof=1)  # estimated to be exactly that
    needed = units_needed(paired(x), ZONE)

    def share(n):
        found = [decide(paired(rng.normal(effect, spread, n)).interval, ZONE) for _ in range(200)]
        return np.mean([v is not Verdict.CANNOT_TELL for v in found])

    assert 0.68 < share(needed) < 0.95
    assert share(max(3, needed // 2)) < share(needed)


def test_degrees_of_freedom_that_a_family_lends_grow_with_the_seeds():
    """Two methods beside the pair double them: n seeds then have 2 (n - 1), and fewer seeds are needed."""
    x = np.random.default_rng(3).normal(2.0, 1.6, 4)
    alone = paired(x)
    lent = dataclasses.replace(alone, freedom=2 * alone.freedom)

    n = np.arange(5, 101)

    def needed(effect, lends):
        error = effect.spread / np.sqrt(n)
        half = scipy.stats.t.ppf(0.975, lends * (n - 1)) * error
        z = scipy.stats.norm(effect.value, error).cdf
        inside = z(np.minimum(half, 1.0 - half)) - z(np.maximum(-half, half - 1.0))
        return n[np.argmax(1 - z(half) + z(-half) + np.maximum(0.0, inside) >= 0.8)]

    for value in np.linspace(1.5, 4.0, 30):
        for effect, lends in ((alone, 1), (lent, 2)):
            effect = dataclasses.replace(effect, value=value)
            assert units_needed(effect, ZONE) == needed(effect, lends)
    assert units_needed(lent, ZONE) < units_needed(alone, ZONE)


def test_what_no_number_of_units_decides_is_not_promised():
    wide = paired([50.0, -50.0, 30.0, -29.0])
    assert units_needed(wide, ZONE) is None
    assert units_needed(paired([1.0]), ZONE) is None


def looks(sizes, effect, spread, draws=4000, level=0.975):
    """Simulated studies that add seeds until they can tell: the share of yes, of yes with a wrong sign, of no larger.

    Three methods pool their noise; the interval is that of :func:`contrast`, the zone ZONE. Each look is one more
    chance of a false yes, which a higher level at every look makes up for (Pocock 1977).
    """
    noise = np.random.default_rng(0).standard_normal((draws, sizes[-1], 3)) * spread / np.sqrt(2)
    noise[:, :, 0] += effect
    ended, yes, sign, small = np.zeros((4, draws))
    for n in sizes:
        table = noise[:, :n]
        difference = table[:, :, 0] - table[:, :, 1]
        residual = table - table.mean(1, keepdims=True) - table.mean(2, keepdims=True)
        residual += table.mean((1, 2), keepdims=True)
        freedom = 2 * (n - 1)
        pooled = 2 * (residual**2).sum((1, 2)) / freedom
        error = np.sqrt(np.maximum(pooled, difference.var(1, ddof=1)) / n)
        half, middle = scipy.stats.t.ppf((1 + level) / 2, freedom) * error, difference.mean(1)
        inside = (ZONE.low < middle - half) & (middle + half < ZONE.high)
        tells = (ended == 0) & (inside | (np.abs(middle) > half))
        small[tells], yes[tells], sign[tells], ended[tells] = (
            inside[tells],
            ~inside[tells],
            np.sign(middle[tells]),
            1,
        )
    return yes.mean(), (yes * (sign != np.sign(effect))).mean(), small.mean()


def test_no_more_than_a_hundred_units_are_promised():
    zone, effect = Zone(-1e-9, 1e-9), paired([0.0, 2.0, 4.0, -1.0])
    effects = [dataclasses.replace(effect, value=v, spread=1.0) for v in np.linspace(0.26, 0.31, 100)]
    needed = [units_needed(e, zone, most=200) for e in effects]
    assert {100, 101} <= set(needed)
    assert [units_needed(e, zone) for e in effects] == [n if n <= 100 else None for n in needed]


def test_looking_again_errs_as_often_as_the_study_s_methods_say():
    """97.5% intervals at each of four looks: false yes in about 5% (three standard errors), no larger in less."""
    yes, wrong, _ = looks((5, 9, 13, 17), 0.0, 1.2)
    assert yes == wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    yes, _, _ = looks((5,), 0.0, 1.2)
    assert yes < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 4000)
    _, _, small = looks((5, 9, 13, 17), 1.0, 0.6)  # at the edge of the zone
    assert 0 < small < 0.05
    yes, wrong, _ = looks((5, 9, 13, 17), 2.0, 1.2, draws=1000)
    assert yes > 0.95
    assert wrong == 0


def test_slopes_are_those_of_least_squares_with_intercepts():
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    seed, method = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    x, y = rng.normal(size=20) + seed, rng.normal(size=20) + 2 * seed - method
    design = np.column_stack([x, np.eye(4)[seed], np.eye(5)[method][:, 1:]])
    fit = sm.OLS(y, design).fit()
    ours = block_slope(x, y, [seed, method])
    assert ours.value == pytest.approx(fit.params[0], rel=1e-9)
    assert ours.interval == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert ours.p_value == pytest.approx(fit.pvalues[0], rel=1e-9)


def test_an_exact_law_has_an_interval_of_either_sign():
    for sign in (1.0, -1.0):
        found = block_slope([1.0, 2.0, 3.0, 5.0], [sign * v for v in (2.0, 4.0, 6.0, 10.0)])
        assert found.interval == pytest.approx((2 * sign, 2 * sign))
        assert decide(found.interval, ZONE) is Verdict.YES
    assert block_slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).note == "x does not vary inside the blocks"


@pytest.mark.parametrize("ends", [(1.0, -1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_interval_that_is_none_has_no_verdict(ends):
    """(1, -1) was "no larger than"."""
    with pytest.raises(ValueError, match=r"interval must be \(low, high\), got"):
        decide(ends, (-1.5, 1.5))
