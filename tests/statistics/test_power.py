"""The smallest detectable effect is detected as often as it says."""

import itertools

import numpy as np
import pytest
import scipy.stats

from lipcomp.statistics import correlation, paired_effect, smallest_detectable_effect
from lipcomp.statistics._per_image import auroc


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 8, 14])
def test_paired_power(n):
    effect = smallest_detectable_effect(n).value
    rng = np.random.default_rng(n)
    found = [
        paired_effect(rng.normal(effect, 1, n), np.zeros(n), interval="t").p_value <= 0.05
        for _ in range(1000)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / 1000))


def test_paired_effect_for_many_pairs_is_the_t_tests():
    """statsmodels solves the same equation."""
    power = pytest.importorskip("statsmodels.stats.power")
    for n in (12, 30, 1000):
        for found in (0.9, 0.1):  # of 10% a part is found with the wrong sign
            reference = power.TTestPower().solve_power(nobs=n, alpha=0.05, power=found)
            assert smallest_detectable_effect(n, power=found).value == pytest.approx(reference, rel=1e-4)


def test_the_simulated_and_the_closed_form_meet():
    at = [smallest_detectable_effect(n).value for n in (9, 10, 11, 12)]
    assert all(a > b for a, b in itertools.pairwise(at))
    assert at[1] / at[2] == pytest.approx(at[2] / at[3], abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["spearman", "kendall", "pearson"])
def test_correlation_power(test):
    n = 20
    value = smallest_detectable_effect(n, test=test).value
    r = {"pearson": value, "spearman": 2 * np.sin(np.pi * value / 6), "kendall": np.sin(np.pi * value / 2)}[
        test
    ]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        x = rng.normal(size=n)
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=n)
        found.append(
            correlation(x, y, method=test, interval="fisher", resamples=199, rng=rng).p_value <= 0.05
        )
    # Fisher's z is an approximation at n = 20, and 199 permutations cost a little power
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_auroc_power():
    shift = np.sqrt(2) * scipy.stats.norm.ppf(
        0.5 + smallest_detectable_effect(120, test="auroc", positives=40).value
    )
    rng = np.random.default_rng(1)
    label = np.arange(120) < 40
    found = [auroc(rng.normal(size=120) + shift * label, label).p_value <= 0.05 for _ in range(600)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_pairs_can_find_nothing(n):
    found = smallest_detectable_effect(n)
    assert found.value is None
    assert "cannot give a p-value below" in found.note
    assert str(found).startswith("not detectable")


def test_a_stricter_level_needs_more_pairs():
    assert smallest_detectable_effect(8, alpha=0.05 / 16).value is None
    assert smallest_detectable_effect(10, alpha=0.05 / 16).value > smallest_detectable_effect(10).value


def test_the_unit_is_given_where_the_spread_is_known():
    found = smallest_detectable_effect(30, sd=0.02)
    assert found.scaled == pytest.approx(0.02 * found.value)


@pytest.mark.parametrize(
    "options",
    [{"n": 0}, {"n": 9, "alpha": 0.0}, {"n": 9, "power": 1.0}, {"n": 9, "power": 0.01}, {"n": 9, "sd": 0.0}],
)
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"n must|alpha and power|sd must"):
        smallest_detectable_effect(**options)


@pytest.mark.parametrize(("n", "positives"), [(120, 40), (60, None), (31, None)])
def test_auroc_is_found_as_hanley_and_mcneil_say(n, positives):
    """Their standard error (1982, formula 1) at 1/2 and at the area found, for half of the rows where none is given."""
    one = n // 2 if positives is None else positives
    zero = n - one

    def error(area):
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        within = area * (1 - area) + (one - 1) * (q1 - area**2) + (zero - 1) * (q2 - area**2)
        return np.sqrt(within / (one * zero))

    found = smallest_detectable_effect(n, test="auroc", positives=positives).value
    half = scipy.stats.norm.ppf(0.975) * error(0.5) + scipy.stats.norm.ppf(0.8) * error(0.5 + found)
    assert found == pytest.approx(half, rel=1e-8)


def test_the_fewest_that_a_correlation_can_be_found_with():
    """A permutation test of n observations goes down to 2/n!; Fisher's z needs one more than it takes off."""
    for test, fewest in (("pearson", 5), ("spearman", 5), ("kendall", 5)):
        assert smallest_detectable_effect(fewest - 1, test=test).value is None
        assert smallest_detectable_effect(fewest, test=test).value is not None
    assert "below 0.083" in smallest_detectable_effect(4, test="pearson").note
    assert "needs more than 4" in smallest_detectable_effect(4, test="kendall", alpha=0.2).note
    assert smallest_detectable_effect(3, test="auroc").note == "1 positive and 2 negative rows are too few"
    assert smallest_detectable_effect(4, test="auroc").note == "2 positive and 2 negative rows are too few"


def test_two_rows_of_a_kind_suffice_among_many():
    assert smallest_detectable_effect(1000, test="auroc", positives=2).value is not None
    assert smallest_detectable_effect(1000, test="auroc", positives=998).value is not None
    for one in (1, 999):
        assert smallest_detectable_effect(1000, test="auroc", positives=one).value is None
