"""Simpson's check: what holds inside pairs against what holds between them."""

import itertools

import numpy as np
import pytest
import scipy.stats

from lipcomp.statistics import within_pairs


def opposed(pairs=8, noise=0.05, seed=0):
    """Inside each pair y falls with x; pairs with larger x have larger y."""
    rng = np.random.default_rng(seed)
    pair = np.repeat(np.arange(pairs), 2)
    inside = rng.normal(size=2 * pairs)
    x = 5 * pair + inside
    y = 5 * pair - inside + noise * rng.normal(size=2 * pairs)
    return x, y, pair


def test_opposite_relations_are_shown_apart():
    found = within_pairs(*opposed())
    assert found.within.value < -0.9
    assert found.between.value > 0.9
    assert found.pooled.value > 0.9
    assert found.reversal
    assert found.concordance == 0
    assert found.comparisons == 8


def test_concordance_counts_comparisons_as_kendalls_tau():
    """(tau + 1) / 2 of each group, weighted by its comparisons; scipy's tau, no ties."""
    rng = np.random.default_rng(2)
    pair = np.repeat([0, 1, 2], [4, 6, 3])
    x, y = rng.normal(size=13) - 1, rng.normal(size=13)
    counts = np.array([6, 15, 3])
    shares = [(scipy.stats.kendalltau(x[pair == k], y[pair == k]).statistic + 1) / 2 for k in range(3)]
    found = within_pairs(x, y, pair)
    assert found.comparisons == counts.sum()
    assert found.concordance == pytest.approx(counts @ shares / counts.sum())


def test_within_is_the_partial_correlation_given_the_pairs():
    """The residuals of a regression on one dummy a pair."""
    rng = np.random.default_rng(1)
    pair = np.repeat(np.arange(5), 3)
    x, y = rng.normal(size=15) + pair, rng.normal(size=15) - pair
    y[:3] = 0.7  # of one pair they do not vary
    dummies = (pair[:, None] == np.arange(5)).astype(float)
    rx, ry = (c - dummies @ np.linalg.lstsq(dummies, c, rcond=None)[0] for c in (x, y))
    expected = np.corrcoef(rx, ry)[0, 1]
    assert within_pairs(x, y, pair).within.value == pytest.approx(expected)


def test_within_counts_every_exchange_inside_pairs():
    x, y, pair = opposed(pairs=5, noise=2.0)
    dx, dy = (c - (np.bincount(pair, c) / 2)[pair] for c in (x, y))
    observed = abs(dx @ dy)
    every = []
    for flips in itertools.product((False, True), repeat=5):
        order = np.arange(10).reshape(5, 2)
        order[list(flips)] = order[list(flips)][:, ::-1]
        every.append(abs(dx @ dy[order.reshape(-1)]))
    found = within_pairs(x, y, pair).within
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= observed - 1e-9))
    assert found.smallest_p == 2 / 32


def test_shifting_a_pair_changes_nothing_inside():
    x, y, pair = opposed(noise=1.0)
    shift = np.random.default_rng(2).normal(size=8)[pair] * 100
    one, other = within_pairs(x, y, pair).within, within_pairs(x + shift, y - 3 * shift, pair).within
    assert one.value == pytest.approx(other.value, abs=1e-9)
    assert one.p_value == other.p_value


def test_a_model_without_partner_counts_between_alone():
    x, y, pair = opposed()
    found = within_pairs(np.r_[x, 100.0], np.r_[y, -50.0], np.r_[pair, 99])
    assert found.within == within_pairs(x, y, pair).within
    assert found.between.n == 9


def test_spearman_is_pearson_of_ranks():
    x, y, pair = opposed(noise=1.0)
    rank = lambda v: np.argsort(np.argsort(v)) + 1.0  # noqa: E731
    assert within_pairs(x, y, pair, method="spearman").within.value == pytest.approx(
        within_pairs(rank(x), rank(y), pair).within.value
    )


@pytest.mark.parametrize(
    ("x", "y", "pair", "word"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2], "degrees of freedom"),
        ([1, 2], [3, 4], [0, 0], "degrees of freedom"),
        ([1, 1, 2, 2], [1, 2, 3, 4], [0, 0, 1, 1], "x does not vary inside any pair"),
        ([1, 2, 3, 4], [1, 1, 2, 2], [0, 0, 1, 1], "y does not vary inside any pair"),
    ],
)
def test_what_pairs_cannot_show_is_not_estimable(x, y, pair, word):
    found = within_pairs(x, y, pair)
    assert found.within.value is None
    assert word in found.within.note
    assert not found.reversal


def test_strings_name_pairs():
    x, y, pair = opposed()
    assert (
        within_pairs(x, y, [f"seed{p}" for p in pair]).within.value == within_pairs(x, y, pair).within.value
    )
