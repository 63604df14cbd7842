"""On simulated data with known truth: intervals cover at the stated rate, p-values are uniform under the null.

The scenarios are those of ``python -m benchmarks.coverage``, which prints the whole table; here the important ones,
with fewer repeats and tolerances of four binomial standard errors around what is claimed. ``make test`` runs a few.
"""

import numpy as np
import pytest
import scipy.stats

from benchmarks.coverage import scenarios, simulate

REPEATS = 150
BY_NAME = {scenario.name: scenario for scenario in scenarios(resamples=299)}
ERROR = np.sqrt(0.95 * 0.05 / REPEATS)

AT_LEVEL = [
    "paired normal, n=3",
    "paired normal, n=5",
    "paired laplace, n=10",
    "paired normal, n=50",
    "spearman r=0, n=15",
    "spearman r=0.6, n=15",
    "spearman r=0.6, n=60",
    "kendall r=0.6, n=15",
    "pearson r=0.6, n=15",
    "groups 40x3, shared 0.9, r=0.6",
    "partial spearman r=0.5, n=15",
    "within 6x2 r=-0.6",
    "within 40x2 r=-0.6",
    "auroc 100 images x 5, by image, r=0.5",
    "auroc 100 images x 15, two-way, r=0.5",
    "logistic 100 images x 15, two-way, slope=0.7",
]
CAUTIOUS = [
    "groups 5x3, shared 0.9, r=0.6",
    "groups 15x3, shared 0.2, r=0.6",
    "auroc 100 images x 3, two-way, r=0.5",
]
QUICK = {
    "paired normal, n=5",
    "spearman r=0.6, n=15",
    "within 6x2 r=-0.6",
    "auroc 100 images x 5, by image, r=0.5",
    "groups 15x3, shared 0.2, r=0.6",
    "paired normal, n=10",
    "spearman r=0, n=15",
    "auroc independent n=100, r=0",
}
NULL = [
    "paired normal, n=10",
    "paired laplace, n=20",
    "spearman r=0, n=15",
    "kendall r=0, n=15",
    "pearson r=0, n=15",
    "groups 15x3, shared 0.9, r=0",
    "partial pearson r=0, n=15",
    "within 15x2 r=0",
    "auroc independent n=100, r=0",
    "auroc 100 images x 15, two-way, r=0",
    "logistic 100 images x 15, two-way, slope=0",
]


def _marked(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", _marked(AT_LEVEL))
def test_intervals_cover_at_the_stated_rate(name):
    found = simulate(BY_NAME[name], REPEATS, seed=11)
    assert found.missing == 0
    assert abs(found.coverage - 0.95) <= 4 * ERROR, found


@pytest.mark.parametrize("name", _marked(CAUTIOUS))
def test_few_groups_cover_at_least(name):
    found = simulate(BY_NAME[name], REPEATS // 2, seed=11)
    assert found.coverage >= 0.95 - 4 * ERROR, found


@pytest.mark.parametrize("name", _marked(NULL))
def test_p_values_are_uniform_under_the_null(name):
    p = np.array(simulate(BY_NAME[name], REPEATS, seed=12).p_values)
    assert p.size == REPEATS
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-4, name
    for level in (0.05, 0.2):
        assert np.mean(p <= level) <= level + 4 * np.sqrt(level * (1 - level) / REPEATS), (name, level)


def test_three_seeds_never_reject():
    """A sign-flip test of three pairs has no p-value below 0.25, under the null as under any effect."""
    assert min(simulate(BY_NAME["paired normal, n=3"], 100).p_values) >= 0.25


def test_why_few_pairs_get_no_bootstrap():
    found = simulate(BY_NAME["paired normal, n=3, always BCa"], REPEATS)
    assert found.coverage < 0.85
