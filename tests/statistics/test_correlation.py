"""Correlations against scipy on repeated samples, closed forms, and all permutations."""

import itertools

import numpy as np
import pytest
import scipy.stats

from lipcomp.statistics import correlation
from lipcomp.statistics._correlation import _kendall, _residual, partial_correlation
from lipcomp.statistics._resampling import Arrangements, bootstrap_interval

SCIPY = {
    "spearman": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: scipy.stats.kendalltau(x, y).statistic,
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
}


def sample(n, ties, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = 0.6 * x + rng.normal(size=n)
    return (np.round(2 * x), np.round(2 * y)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", SCIPY)
def test_value_is_scipys(method, ties):
    x, y = sample(40, ties)
    assert correlation(x, y, method=method).value == pytest.approx(SCIPY[method](x, y), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", SCIPY)
def test_weights_are_repetitions(method, ties):
    """A bootstrap draw by weights is the coefficient of the sample written out."""
    x, y = sample(12, ties)
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=50)
    weighted, _ = _kendall(x, y) if method == "kendall" else _residual([x, y], method == "spearman")
    slow = [SCIPY[method](np.repeat(x, c), np.repeat(y, c)) for c in counts]
    np.testing.assert_allclose(weighted(counts.astype(float)), slow, atol=1e-12)


@pytest.mark.parametrize(("x", "y"), [([2, 1, 2, 3], [0, 0, 1, 0]), ([1, 0, 0, 1, 1], [1, 0, 3, 1, 1])])
@pytest.mark.parametrize("method", SCIPY)
def test_a_coefficient_of_zero_is_as_extreme_as_none(x, y, method):
    """Rounding made it 1e-17, and arrangements that give exactly 0 less extreme: p = 0.5."""
    if abs(SCIPY[method](x, y)) < 1e-12:
        assert correlation(x, y, method=method).p_value == 1.0


@pytest.mark.parametrize("method", SCIPY)
def test_small_samples_count_every_permutation(method):
    x, y = sample(6, False)
    observed = abs(SCIPY[method](x, y))
    every = [abs(SCIPY[method](x, y[list(order)])) for order in itertools.permutations(range(6))]
    found = correlation(x, y, method=method)
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= observed - 1e-12))
    assert found.smallest_p == pytest.approx(np.mean(np.array(every) >= max(every) - 1e-12))
    assert "all 720" in found.method


@pytest.mark.parametrize("method", SCIPY)
def test_bca_agrees_with_scipys(method):
    x, y = sample(40, False)
    reference = scipy.stats.bootstrap(
        (x, y), SCIPY[method], paired=True, vectorized=False, n_resamples=1500, method="BCa", random_state=0
    ).confidence_interval
    found = correlation(x, y, method=method, interval="bca", resamples=1500).interval
    assert found == pytest.approx(tuple(reference), abs=0.07 * (reference.high - reference.low))


def test_fisher_interval_is_scipys():
    x, y = sample(15, False)
    reference = scipy.stats.pearsonr(x, y).confidence_interval(0.9)
    assert correlation(x, y, method="pearson", level=0.9).interval == pytest.approx(tuple(reference))


def test_monotone_maps_leave_rank_correlations_alone():
    x, y = sample(20, False)
    for method in ("spearman", "kendall"):
        one, other = correlation(x, y, method=method), correlation(np.exp(x), y**3, method=method)
        assert one.value == pytest.approx(other.value)
        assert one.p_value == other.p_value
        assert one.interval == pytest.approx(other.interval)


def test_partial_pearson_is_the_textbook_formula():
    x, y = sample(30, False)
    z = x + y + np.random.default_rng(2).normal(size=30)
    xy, xz, yz = (SCIPY["pearson"](*pair) for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, z, method="pearson").value == pytest.approx(expected, abs=1e-12)


def test_partial_spearman_with_two_controls_is_the_correlation_of_rank_residuals():
    rng = np.random.default_rng(3)
    x, y, z, w = rng.normal(size=(4, 25))
    x, y = x + z, y + z - w
    ranks = [scipy.stats.rankdata(column) for column in (x, y, z, w)]
    design = np.column_stack([np.ones(25), ranks[2], ranks[3]])
    residual = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    expected = SCIPY["pearson"](*residual)
    assert partial_correlation(x, y, [z, w]).value == pytest.approx(expected, abs=1e-12)
    # a control given twice changes nothing
    assert partial_correlation(x, y, [z, w, w]).value == pytest.approx(expected, abs=1e-9)


def test_partial_weights_are_repetitions():
    rng = np.random.default_rng(4)
    x, y, z = rng.normal(size=(3, 12))
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=20)
    weighted, _ = _residual([x + z, y + z, z], ranked=True)
    slow = [
        partial_correlation(np.repeat(x + z, c), np.repeat(y + z, c), np.repeat(z, c), resamples=9).value
        for c in counts
    ]
    np.testing.assert_allclose(weighted(counts.astype(float)), slow, atol=1e-10)


def test_control_removes_a_common_cause():
    rng = np.random.default_rng(5)
    z = rng.normal(size=60)
    x, y = z + 0.3 * rng.normal(size=60), z + 0.3 * rng.normal(size=60)
    assert correlation(x, y).p_value < 0.001
    assert abs(partial_correlation(x, y, z).value) < 0.3
    assert partial_correlation(x, y, z).p_value > 0.05


def test_a_control_determines_what_follows_from_it_by_the_method_that_is_asked_for():
    z, y = np.arange(8.0), np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    assert partial_correlation(z**3, y, z, method="spearman").note == "the control determines x"
    assert partial_correlation(z**3, y, z, method="pearson").value is not None
    assert partial_correlation(y, 2 - z, z, method="pearson").note == "the control determines y"


def test_copies_of_a_model_are_no_new_models():
    """Three identical copies of six models, grouped: the p-value of six models, not of eighteen."""
    x, y = sample(6, False)
    label = np.repeat(np.arange(6), 3)
    six = correlation(x, y, method="pearson")
    grouped = correlation(np.repeat(x, 3), np.repeat(y, 3), method="pearson", groups=label)
    assert grouped.value == pytest.approx(six.value)
    assert grouped.p_value == six.p_value
    assert grouped.interval == pytest.approx(six.interval)
    assert correlation(np.repeat(x, 3), np.repeat(y, 3), method="pearson").p_value < six.p_value


def test_the_order_of_the_rows_means_nothing_to_whole_groups():
    x, y = sample(12, False)
    label = np.tile(["a", "b", "c", "d"], 3)
    order = np.argsort(label, kind="stable")
    assert (
        correlation(x, y, groups=label).p_value
        == correlation(x[order], y[order], groups=label[order]).p_value
    )


def test_groups_of_different_sizes():
    x, y = sample(9, False)
    found = correlation(x, y, groups=[0, 1, 1, 2, 2, 2, 3, 3, 3])
    assert found.p_value is not None  # the two groups of three may change places
    none = correlation(x, y, groups=[0, 1, 1, 2, 2, 2, 2, 2, 2])
    assert none.p_value is None
    assert "same size" in none.note


def test_a_draw_without_spread_is_left_out_not_counted():
    x = np.r_[np.zeros(29), 1.0]  # a third of the draws leave the one out
    y = np.random.default_rng(6).normal(size=30)
    found = correlation(x, y, method="pearson", interval="bca")
    assert found.value is not None
    assert found.interval is None
    assert "undefined" in found.note


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [([1, 1, 1, 1], [1, 2, 3, 4], "x is constant"), ([1, 2, 3, 4], [5, 5, 5, 5], "y is constant")],
)
def test_constant_arguments_are_not_estimable(x, y, word):
    for method in SCIPY:
        found = correlation(x, y, method=method)
        assert found.value is None
        assert word in found.note
        assert "not estimable" in str(found)


def test_too_few_models_are_not_estimable():
    assert "3 are needed" in correlation([1, 2], [2, 1]).note
    assert "4 are needed" in partial_correlation([1, 2, 3], [2, 1, 3], [1, 3, 2]).note
    assert (
        "control determines x"
        in partial_correlation([1, 2, 3, 5], [2, 1, 3, 9], [2, 4, 6, 10], method="pearson").note
    )
    assert "2 groups are too few" in correlation([1, 2, 3, 4], [2, 1, 4, 3], groups=[0, 0, 1, 1]).note


def test_many_observations_fit_in_memory_and_stay_exact_in_value():
    rng = np.random.default_rng(7)
    x = rng.normal(size=20000)
    y = 0.02 * x + rng.normal(size=20000)
    found = correlation(x, y, resamples=199)
    assert found.value == pytest.approx(SCIPY["spearman"](x, y), abs=1e-12)
    assert found.interval[0] < found.value < found.interval[1]
    assert "take Spearman" in correlation(x, y, method="kendall").note


def test_the_generator_decides_and_is_repeatable():
    x, y = sample(30, False)
    assert correlation(x, y, rng=3) == correlation(x, y, rng=np.random.default_rng(3))
    assert correlation(x, y, rng=3).interval != correlation(x, y, rng=4).interval


def test_bootstrap_of_a_linear_statistic_is_the_normal_interval():
    """Of a mean of many observations, where BCa and the central limit theorem agree."""
    values = np.random.default_rng(8).normal(size=2000)
    ends, _ = bootstrap_interval(
        lambda w: (w @ values) / w.sum(1), np.arange(2000), 2000,
        level=0.95, resamples=4000, rng=np.random.default_rng(0),
    )  # fmt: skip
    half = 1.96 * values.std() / np.sqrt(2000)
    assert ends == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_random_arrangements_count_the_observed_one():
    """Two rising sequences of 20: none of 99 drawn arrangements is as extreme, and p is 1 / (1 + draws)."""
    found = correlation(
        np.arange(20.0), np.arange(20.0) ** 2, method="spearman", resamples=99, interval="fisher"
    )
    assert found.p_value == found.smallest_p == 1 / 100


@pytest.mark.parametrize("limit", [7, 4000, 40_000])
def test_as_many_arrangements_are_drawn_as_were_asked_for(limit):
    """In chunks whose last one is smaller; all of them where there are no more."""
    many = Arrangements([np.arange(60)[:, None]], limit)
    assert sum(len(chunk) for chunk in many.chunks(np.random.default_rng(0))) == limit
    few = Arrangements([np.arange(3)[:, None]], limit)
    assert sum(len(chunk) for chunk in few.chunks(np.random.default_rng(0))) == 6
