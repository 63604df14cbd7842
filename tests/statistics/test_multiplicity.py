"""Adjusted p-values against statsmodels, and the guarantee itself."""

import numpy as np
import pandas as pd
import pytest

from lipcomp.statistics import adjust

multitest = pytest.importorskip("statsmodels.stats.multitest")


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
@pytest.mark.parametrize("size", [1, 2, 16, 101])
def test_agrees_with_statsmodels(ours, theirs, size):
    p = np.random.default_rng(size).uniform(size=size) ** 2
    p[: size // 3] = p[0]  # ties
    reject, expected, *_ = multitest.multipletests(p, 0.05, theirs)
    found = adjust(p, method=ours)
    np.testing.assert_allclose(found.adjusted, expected, atol=1e-14)
    assert list(found.rejected) == list(reject)


def test_tests_without_a_p_value_do_not_enlarge_the_family():
    found = adjust({"fog": 0.01, "snow": None, "jpeg": 0.04})
    assert found.tests == 2
    assert found.names == ("fog", "snow", "jpeg")
    assert found.adjusted == (0.02, None, 0.04)
    assert "adjusted=(0.02, none, 0.04)" in repr(found)
    assert found.rejected == (True, False, True)
    assert "over 2 tests" in found.method


def test_what_is_missing_is_missing_in_whatever_it_comes():
    """An array of numbers and a data frame have NaN alone for it."""
    found = adjust([0.01, None, 0.04])
    column = pd.Series([0.01, np.nan, 0.04], index=["fog", "snow", "jpeg"])
    for given in (np.array([0.01, np.nan, 0.04]), found.columns()["p_value"], column):
        assert adjust(given).adjusted == found.adjusted
    assert adjust(column).names == ("fog", "snow", "jpeg")


@pytest.mark.parametrize(("ours", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_a_family_that_was_planned_larger_counts_whole(ours, theirs):
    p = [0.004, 0.03, None, 0.02]
    expected = multitest.multipletests([0.004, 0.03, 0.02, 1.0, 1.0, 1.0, 1.0], 0.05, theirs)[1]
    found = adjust(p, method=ours, tests=7)
    assert [q for q in found.adjusted if q is not None] == pytest.approx(expected[:3])
    assert found.tests == 7
    with pytest.raises(ValueError, match="tests must be at least 3, the number of p-values, got 2"):
        adjust(p, tests=2)


def test_an_empty_family_is_no_error():
    assert adjust([]).adjusted == ()
    assert adjust([None, None]).adjusted == (None, None)


def test_holm_bounds_the_chance_of_any_false_finding():
    rng = np.random.default_rng(0)
    false = [any(adjust(rng.uniform(size=16)).rejected) for _ in range(2000)]
    assert np.mean(false) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    naive = [(rng.uniform(size=16) <= 0.05).any() for _ in range(2000)]
    assert np.mean(naive) > 0.5  # why it is needed


def test_bh_bounds_the_share_of_false_findings():
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(1000):
        p = np.r_[rng.uniform(size=12), rng.uniform(size=4) * 1e-4]  # four true effects
        found = np.array(adjust(p, method="bh").rejected)
        shares.append(found[:12].sum() / max(1, found.sum()))
    assert np.mean(shares) <= 0.05 * 12 / 16 + 0.01


@pytest.mark.parametrize("bad", [[0.5, 1.2], [-0.1], [float("inf")], {"fog": "low"}, np.ones((2, 2))])
def test_what_is_no_probability_is_refused(bad, untyped):
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        adjust(bad)


def test_unknown_method_is_refused():
    with pytest.raises((ValueError, TypeError), match="method"):  # TypeError while the tests check types
        adjust([0.1], method="bonferroni")  # type: ignore[arg-type]
