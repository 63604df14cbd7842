"""The hierarchical model on simulated bits, and mediation against closed forms and a published value."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from benchmarks.coverage import simulated_bits
from lipcomp.statistics import contrast
from lipcomp.statistics._hierarchical import hierarchical_effect
from lipcomp.statistics._mediation import mediation, robustness_value
from lipcomp.statistics._slopes import block_slope


def runs(effect, spread, seed, seeds=5, images=120):
    return simulated_bits(np.random.default_rng(seed), seeds, spread, effect, images)


def test_an_effect_is_found_and_its_interval_is_that_of_seeds_not_of_bits():
    found = hierarchical_effect(*runs(0.8, 0.1, 0))
    assert found.interval[0] < 0.75 < found.interval[1] + 0.1  # cells average images, which shrinks log-odds
    assert found.interval[0] > 0.2
    assert found.n == 5
    assert found.points_interval[0] < found.points < found.points_interval[1]
    assert set(found.spreads) == {"seed", "run", "images", "images x method", "corruption x method"}
    noisy = hierarchical_effect(*runs(0.8, 0.8, 0))
    assert np.ptp(noisy.interval) > 2 * np.ptp(found.interval)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_the_maximum_not_a_point_on_the_boundary(seed):
    """L-BFGS reports standard errors of 0.4 where the maximum has 0.1 (log-likelihood -197, not -174)."""
    found = hierarchical_effect(*runs(0.8, 0.1, seed))
    assert np.ptp(found.interval) / 2 < 2.78 * 0.2
    assert found.spreads["images"] < 1.0  # simulated: 0 between blocks, up to their averaging


def test_runs_that_differ_in_nothing_have_an_estimate():
    """Where a spread is near zero an optimiser meets singular matrices: one study in ten had no number."""
    found = hierarchical_effect(*runs(0.0, 0.0, 4, images=60))
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.slow
def test_runs_that_differ_for_no_reason_are_no_effect():
    """Independent bits would call two in three of these an effect: 5 x 960 of them a side."""
    said = [hierarchical_effect(*runs(0.0, 0.4, seed, images=60)).p_value < 0.05 for seed in range(12)]
    assert sum(said) <= 3


def test_what_cannot_be_fitted_says_so():
    bits, corruption, treated, seed = runs(0.0, 0.1, 0, seeds=1)
    assert "seeds that hold both methods: 1," in hierarchical_effect(bits, corruption, treated, seed).note
    with pytest.raises(ValueError, match="bits must have one shape"):
        hierarchical_effect([bits[0], bits[1][:, :5]], corruption, treated, seed)


def pieces(a, b, noise, seed, n=8):
    rng = np.random.default_rng(seed)
    difference = a + noise * rng.normal(size=n)
    effect = contrast([*difference, *[0.0] * n], [*range(n), *range(n)], [*"t" * n, *"c" * n], "t", "c")
    x = rng.normal(size=30)
    return effect, block_slope(x, b * x + noise * rng.normal(size=30))


def test_the_product_covers_the_truth():
    held = []
    for seed in range(60):
        found = mediation(*pieces(1.0, 0.5, 0.5, seed), draws=2000)
        held.append(found.interval[0] < 0.5 < found.interval[1])
    assert np.mean(held) >= 0.85
    exact = mediation(*pieces(1.0, 0.5, 0.0, 0))
    assert exact.interval == pytest.approx((0.5, 0.5))
    assert exact.robustness is None


@pytest.mark.parametrize("level", [0.9, 0.99])
def test_the_product_with_an_exact_slope_has_students_interval(level):
    """Without an error of the slope the product is the effect, stretched; three standard errors of its quantiles."""
    effect, slope = pieces(1.0, 0.5, 0.0, 0)
    slope = dataclasses.replace(slope, value=-2.0, error=0.0)
    effect = dataclasses.replace(effect, value=1.0, error=0.3, freedom=6.0)
    found = mediation(effect, slope, level=level, draws=40_000).interval
    tail = (1 - level) / 2
    at = scipy.stats.t.ppf([tail, 1 - tail], 6)
    wrong = 3 * np.sqrt(tail * (1 - tail) / 40_000) / scipy.stats.t.pdf(at, 6)
    assert (np.abs((np.array(found) + 2.0) / 0.6 - at) < wrong).all()


def test_the_robustness_value_is_the_published_one():
    """Cinelli and Hazlett (2020), section 4: t = 4.18 with 783 degrees of freedom."""
    assert robustness_value(4.18, 783.0) == pytest.approx(0.139, abs=5e-4)
    assert robustness_value(0.0, 10.0) == 0
    single, _ = pieces(1.0, 0.5, 0.5, 0, n=1)
    assert "has no interval" in mediation(single, block_slope([0.0, 1, 2], [0.0, 1, 3])).note
