"""Paired effects against scipy's own tests, brute force and exact identities."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from lipcomp.statistics import paired_effect
from lipcomp.statistics._paired import _hedges
from lipcomp.statistics._resampling import bca


@pytest.mark.parametrize("n", [2, 3, 5, 9, 13])
def test_sign_flip_counts_every_pattern(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n) + 0.4, rng.normal(size=n)
    d = a - b
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=n)]
    brute = np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    found = paired_effect(a, b)
    assert found.p_value == pytest.approx(brute, abs=1e-15)
    assert found.smallest_p == 2.0 ** (1 - n)
    assert min(found.p_value, found.smallest_p) == found.smallest_p


def test_sign_flip_agrees_with_scipy_beyond_the_exact_range():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    a = a - a.mean() + b.mean() + 0.35
    other = scipy.stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=20000, random_state=1
    )
    assert paired_effect(a, b, resamples=20000).p_value == pytest.approx(other.pvalue, abs=0.01)


def test_interval_and_wilcoxon_are_scipys_for_few_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=8), rng.normal(size=8)
    found, reference = paired_effect(a, b, level=0.9), scipy.stats.ttest_rel(a, b)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.9)))
    assert found.wilcoxon_p == pytest.approx(scipy.stats.wilcoxon(a, b).pvalue)
    assert "Student" in found.method


def test_bca_agrees_with_scipys():
    rng = np.random.default_rng(2)
    a, b = rng.exponential(size=30), rng.normal(size=30)
    reference = scipy.stats.bootstrap((a - b,), np.mean, n_resamples=20000, method="BCa", random_state=3)
    found = paired_effect(a, b, interval="bca", resamples=20000)
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found.interval == pytest.approx(tuple(reference.confidence_interval), abs=0.03 * width)


def test_studentized_interval_follows_its_definition():
    """Against a loop over the very same draws."""
    rng = np.random.default_rng(4)
    d = rng.normal(size=12)
    found = paired_effect(d, np.zeros(12), resamples=200, rng=7, interval="studentized")
    draw = np.random.default_rng(7)
    ratios = []
    for counts in draw.multinomial(12, np.full(12, 1 / 12), size=200):
        sample = np.repeat(d, counts)
        ratios.append(abs(sample.mean() - d.mean()) / (sample.std(ddof=1) / math.sqrt(12)))
    half = np.quantile(ratios, 0.95) * d.std(ddof=1) / math.sqrt(12)
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half))


def test_swapping_the_sides_mirrors_everything():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=7), rng.normal(size=7)
    one, other = paired_effect(a, b), paired_effect(b, a)
    assert one.value == -other.value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.p_value == other.p_value
    assert one.standardized == pytest.approx(-other.standardized)
    assert one.rank_biserial == pytest.approx(-other.rank_biserial)
    assert one.wins + other.wins == 7


def test_rank_biserial_is_the_share_of_rank_sums():
    # differences 1, -2, 3: ranks 1, 2, 3; favourable 4 of 6, unfavourable 2 of 6
    assert paired_effect([1, 0, 3], [0, 2, 0]).rank_biserial == pytest.approx(4 / 6 - 2 / 6)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_standardized_effect_is_unbiased(n):
    """E[g] = delta for normal differences: the mean of 20,000 simulated g, to four standard errors."""
    rng = np.random.default_rng(6)
    d = rng.normal(0.8, 1, (20000, n))
    g = d.mean(1) / d.std(1, ddof=1) * _hedges(n)
    # at n = 3 g has two degrees of freedom and infinite variance: there compare medians of batch means
    if n == 3:
        assert np.median(g.reshape(200, 100).mean(1)) == pytest.approx(0.8, abs=0.1)
    else:
        assert g.mean() == pytest.approx(0.8, abs=4 * g.std() / math.sqrt(20000))


def test_equal_pairs_show_no_effect_and_say_so():
    found = paired_effect([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert found.value == 0
    assert found.p_value == 1
    assert found.interval is None
    assert found.wilcoxon_p is None
    assert found.rank_biserial is None
    assert "do not vary" in found.note


def test_rounding_makes_no_differences():
    """0.1 + 0.2 is not 0.3 in binary; that is no difference between two seeds."""
    found = paired_effect([0.1 + 0.2, 0.5, 0.7], [0.3, 0.5, 0.7])
    assert found.differences == (0.0, 0.0, 0.0)


def test_a_constant_shift_has_a_p_value_and_no_interval():
    found = paired_effect([1.0, 2.0, 3.0, 4.0], [0.5, 1.5, 2.5, 3.5])
    assert found.value == 0.5
    assert found.p_value == 0.125
    assert found.interval is None
    assert found.standardized is None


def test_one_pair_shows_a_difference_and_nothing_else():
    found = paired_effect([0.9], [0.8])
    assert found.value == pytest.approx(0.1)
    assert found.interval is found.p_value is found.standardized is None
    assert "one pair" in found.note


def test_three_pairs_say_that_no_small_p_is_possible():
    assert "cannot give a p-value below 0.25" in str(paired_effect([3, 2, 4], [1, 1, 1]))


def test_random_sign_patterns_count_the_observed_one():
    """Twenty differences of one sign: no drawn pattern reaches them (but 2 in 2^20), and p is 1 / (1 + draws)."""
    found = paired_effect(np.arange(20) + 1.0, np.zeros(20), resamples=99)
    assert found.p_value == found.smallest_p == 1 / 100
    # and one in which every pattern is as extreme: all are counted, the observed one too
    zero = paired_effect(np.r_[1.0, -1.0, np.zeros(18)], np.zeros(20), resamples=99)
    assert zero.p_value == 1.0


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-600, 2.0**600, 2.0**1018])
def test_the_unit_of_the_values_changes_no_effect(n, scale):
    a = np.random.default_rng(0).normal(size=n)
    base, far = paired_effect(a + 0.5, -a), paired_effect((a + 0.5) * scale, -a * scale)
    for name in ("p_value", "wilcoxon_p", "standardized", "rank_biserial"):
        assert getattr(far, name) == pytest.approx(getattr(base, name), rel=1e-9)
    for name in ("value", "interval", "differences"):
        np.testing.assert_allclose(getattr(far, name), np.array(getattr(base, name)) * scale, rtol=1e-9)


def test_a_difference_that_no_number_holds_is_refused():
    with pytest.raises(ValueError, match="no float64 holds the result; divide them by a constant"):
        paired_effect([1.5e308, 1.7e308], [-1.5e308, -1.0e308])


def test_a_bootstrap_without_width_is_no_interval():
    found = paired_effect([1.0, 2.0], [0.0, 0.0], interval="studentized")
    assert found.interval is None
    assert 'use interval="t"' in found.note


def test_an_estimate_outside_all_draws_has_no_bca_interval():
    draws, left_out = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    for observed in (0.5, 3.5):
        assert bca(observed, draws, left_out, 0.95)[0] is None
    assert bca(2.0, draws, left_out, 0.95)[0] is not None
