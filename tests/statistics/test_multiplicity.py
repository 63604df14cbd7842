"""Adjusted p-values against statsmodels, and the guarantee itself."""

import numpy as np
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


@pytest.mark.parametrize("bad", [[0.5, 1.2], [-0.1], [float("nan")]])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        adjust(bad)


def test_unknown_method_is_refused():
    with pytest.raises((ValueError, TypeError), match="method"):  # TypeError while the tests check types
        adjust([0.1], method="bonferroni")  # type: ignore[arg-type]
