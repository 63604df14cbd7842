"""Contrasts over units against scipy's paired t and statsmodels' two-way layout; the images' share by simulation."""

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from hypothesis import given, settings, strategies as st

from lipcomp.statistics import contrast
from lipcomp.statistics._units import shared_image_variance

METHODS = ["t", "c", "d"]


def layout(n=5, methods=METHODS, effect=1.0, seed=0, loud=1.0):
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n), len(methods))
    condition = np.tile(methods, n)
    noise = rng.normal(size=unit.size) * np.where(condition == "t", loud, 1.0)
    values = 3 * rng.normal(size=n)[unit] + effect * (condition == "t") + noise
    return values, list(unit), list(condition)


def test_two_conditions_are_student_s_paired_test():
    values, unit, condition = layout(6, ["t", "c"])
    table = values.reshape(6, 2)
    theirs = scipy.stats.ttest_rel(table[:, 0], table[:, 1])
    ours = contrast(values, unit, condition, "t", "c")
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-10)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-10)
    assert (ours.n, ours.freedom) == (6, 5)


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_the_pooled_spread_is_that_of_the_two_way_layout_or_the_pairs_own(seed):
    values, unit, condition = layout(seed=seed)
    fit = smf.ols(
        "y ~ C(unit) + C(condition, Treatment('c'))", {"y": values, "unit": unit, "condition": condition}
    ).fit()
    ours = contrast(values, unit, condition, "t", "c", pool=METHODS)
    table = values.reshape(5, 3)
    own = np.var(table[:, 0] - table[:, 1], ddof=1) / 5
    assert ours.value == pytest.approx(fit.params["C(condition, Treatment('c'))[T.t]"], rel=1e-10)
    assert ours.error**2 == pytest.approx(
        max(fit.bse["C(condition, Treatment('c'))[T.t]"] ** 2, own), rel=1e-10
    )
    assert ours.freedom == fit.df_resid == 8


@pytest.mark.parametrize("seed", range(4))
def test_the_pooled_spread_of_a_table_with_holes_is_that_of_the_two_way_layout(seed):
    values, unit, condition = layout(7, seed=seed)
    kept = np.random.default_rng(seed).permutation(values.size)[:14]
    data = {"y": values[kept], "unit": np.array(unit)[kept], "condition": np.array(condition)[kept]}
    fit = smf.ols("y ~ C(unit) + C(condition)", data).fit()
    ours = contrast(data["y"], list(data["unit"]), list(data["condition"]), "t", "c", pool=METHODS)
    own = np.var(ours.differences, ddof=1)
    pooled = fit.df_resid > ours.n - 1
    assert ours.spread**2 == pytest.approx(max(own, 2 * fit.mse_resid) if pooled else own, rel=1e-10)
    assert ours.freedom == (fit.df_resid if pooled else ours.n - 1)


def test_a_thousand_seeds_are_no_matter_of_minutes():
    values, unit, condition = layout(1000)
    ours = contrast(values, unit, condition, "t", "c", pool=METHODS)
    table = values.reshape(-1, 3)
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    assert ours.freedom == 2 * 999
    assert ours.spread**2 == pytest.approx(
        max(2 * (residual**2).sum() / 1998, np.var(table[:, 0] - table[:, 1], ddof=1)), rel=1e-10
    )


def test_labels_may_be_infinite_or_lists():
    values, seeds = [2.0, 3.0, 5.0, 1.0, 1.0, 1.0], [["run", k] for k in range(3)] * 2
    assert contrast(values, seeds, [np.inf] * 3 + [1.0] * 3, np.inf, 1).value == pytest.approx(7 / 3)


def test_labels_are_compared_by_what_they_say():
    """Conditions 1 and 0, or seeds 0 and 0.0, found no unit that holds both; two missing seeds were one."""
    values = [1.0, 2.0, 3.0, 0.0, 1.0, 2.1]
    expected = contrast(values, [0, 1, 2, 0, 1, 2], list("tttccc"), "t", "c")
    for unit, condition, pair in (
        ([0, 1, 2, 0, 1, 2], [1, 1, 1, 0, 0, 0], (1, 0)),
        ([0, 1, 2, 0.0, 1.0, np.float32(2)], [True] * 3 + [False] * 3, (True, False)),
        (list("abcabc"), [1.0, 1, 1, 0, 0, 0], (1, np.float64(0))),
    ):
        found = contrast(values, unit, condition, *pair)
        assert found.interval == expected.interval
    for missing in (None, np.nan):
        with pytest.raises(ValueError, match="unit has a label that is missing"):
            contrast(values, [0, missing, missing, 0, missing, missing], list("tttccc"), "t", "c")
    with pytest.raises(ValueError, match="treated and control must be two conditions, got 't' twice"):
        contrast(values, [0, 1, 2, 0, 1, 2], list("tttccc"), "t", "t")


@settings(max_examples=20)
@given(shift=st.floats(-1e6, 1e6), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_shift_and_scale_carry_through(shift, scale, seed):
    values, unit, condition = layout(seed=seed)
    base = contrast(values, unit, condition, "t", "c", pool=METHODS)
    moved = contrast(scale * values + shift, unit, condition, "t", "c", pool=METHODS)
    tolerance = 1e-9 * (abs(shift) + scale)
    assert moved.value == pytest.approx(scale * base.value, abs=tolerance)
    assert np.subtract(moved.interval, scale * np.array(base.interval)) == pytest.approx(
        [0, 0], abs=10 * tolerance
    )


def test_runs_of_one_unit_are_averaged_and_units_without_both_are_left_out():
    values = [1.0, 3.0, 0.0, 5.0, 1.0, 9.0]
    unit = ["a", "a", "a", "b", "b", "c"]
    condition = ["t", "t", "c", "t", "c", "t"]
    found = contrast(values, unit, condition, "t", "c")
    assert found.differences == (2.0, 4.0)
    assert found.units == ("a", "b")


def test_what_cannot_be_estimated_says_so():
    one = contrast([1.0, 2.0], ["a", "a"], ["t", "c"], "t", "c")
    assert (one.value, one.interval) == (-1.0, None)
    none = contrast([1.0, 2.0], ["a", "b"], ["t", "c"], "t", "c")
    assert none.value is None
    assert "no unit holds both" in none.note
    assert "no run of 'q'" in contrast([1.0, 2.0], [0, 0], ["t", "c"], "q", "c").note
    same = contrast([1.5, 1.0, 2.5, 2.0], [0, 0, 1, 1], list("tctc"), "t", "c")
    assert (same.value, same.interval, same.p_value) == (0.5, None, None)
    assert "do not vary" in same.note
    for wrong in ({"unit": ["a"]}, {"condition": ["t"]}):
        arguments = {"unit": ["a", "a"], "condition": ["t", "c"], **wrong}
        with pytest.raises(ValueError, match=next(iter(wrong))):
            contrast([1.0, 2.0], treated="t", control="c", **arguments)
    with pytest.raises(ValueError, match="shared"):
        contrast([1.0], ["a"], ["t"], "t", "c", shared=-1.0)


def test_the_images_share_of_the_variance_is_what_simulation_gives():
    rng = np.random.default_rng(0)
    units, images, deviation = 5, 200, 0.8
    draws = [
        0.3 * rng.normal(size=(units, 1))
        + deviation * rng.normal(size=images)
        + rng.normal(size=(units, images))
        for _ in range(300)
    ]
    found = [shared_image_variance(d)[0] for d in draws]
    assert np.mean(found) == pytest.approx(deviation**2 / images, rel=0.05)
    between = np.mean([np.var(d.mean(1), ddof=1) / units for d in draws])
    truth = np.var([d.mean() for d in draws], ddof=1)
    assert between + np.mean(found) == pytest.approx(truth, rel=0.25)
    assert shared_image_variance(np.zeros((3, 10)))[0] == 0


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-600, 2.0**600, 2.0**1018])
def test_the_unit_of_the_values_changes_no_verdict(scale):
    """Squares under- and overflowed: at 1e-200 four differences that vary had an interval of no width and p = 0."""
    values, unit, condition = layout(4)
    base = contrast(values, unit, condition, "t", "c", pool=METHODS)
    far = contrast(values * scale, unit, condition, "t", "c", pool=METHODS)
    assert far.p_value == pytest.approx(base.p_value, rel=1e-9)
    for name in ("value", "interval", "error", "spread", "differences"):
        expected = np.array(getattr(base, name)) * scale
        np.testing.assert_allclose(getattr(far, name), expected, rtol=1e-9)


@pytest.mark.parametrize("freedom", [7.0, math.inf])
def test_a_variance_that_all_units_share_widens_by_welch_and_satterthwaite(freedom):
    values, unit, condition = layout(5, ["t", "c"])
    alone = contrast(values, unit, condition, "t", "c")
    shared = 0.4 * alone.error**2
    both = contrast(values, unit, condition, "t", "c", shared=shared, shared_freedom=freedom)
    assert both.error == pytest.approx(math.sqrt(1.4) * alone.error)
    assert both.freedom == pytest.approx(1.4**2 / (1 / 4 + 0.4**2 / freedom))
    half = scipy.stats.t.ppf(0.975, both.freedom) * both.error
    assert both.interval == pytest.approx((both.value - half, both.value + half))
    assert both.value == alone.value
