"""Per-image analysis against scikit-learn, scipy, brute force and statsmodels' own cluster-robust errors."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from lipcomp.statistics._per_image import _clustered_variance, auroc, clustered_logistic

metrics = pytest.importorskip("sklearn.metrics")
statsmodels = pytest.importorskip("statsmodels.discrete.discrete_model")


def rows(images=40, models=4, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    image, model = np.repeat(np.arange(images), models), np.tile(np.arange(models), images)
    score = rng.normal(size=images)[image] + 0.7 * rng.normal(size=image.size)
    label = rng.uniform(size=image.size) < 1 / (1 + np.exp(-slope * score))
    return score, label, image, model


@pytest.mark.parametrize("ties", [False, True])
def test_area_is_scikit_learns_and_mann_whitneys(ties):
    score, label, *_ = rows()
    score = np.round(score) if ties else score
    found = auroc(score, label).value
    assert found == pytest.approx(metrics.roc_auc_score(label, score))
    u = scipy.stats.mannwhitneyu(score[label], score[~label]).statistic
    assert found == pytest.approx(u / (label.sum() * (~label).sum()))


def test_inside_strata_compares_nobody_else():
    score, label, _, model = rows()
    wins = total = 0.0
    for m in range(4):
        one, zero = score[(model == m) & label], score[(model == m) & ~label]
        wins += (one[:, None] > zero).sum()
        total += one.size * zero.size
    assert auroc(score, label, within=model).value == pytest.approx(wins / total)
    # a shift of a whole model is invisible
    assert auroc(score + 10 * model, label, within=model) == auroc(score, label, within=model)


def test_independent_rows_give_delongs_variance():
    """DeLong's variance, written with its placement values over all pairs."""
    score, label, *_ = rows(images=60, models=1)
    one, zero = score[label], score[~label]
    beats = (one[:, None] > zero) + 0.5 * (one[:, None] == zero)
    delong = beats.mean(1).var(ddof=1) / one.size + beats.mean(0).var(ddof=1) / zero.size
    found = auroc(score, label)
    logit = [np.log(end / (1 - end)) for end in found.interval]
    spread = (logit[1] - logit[0]) / 2 / scipy.stats.t.ppf(0.975, 59) * found.value * (1 - found.value)
    assert spread == pytest.approx(np.sqrt(delong), rel=0.02)  # n/(n-1) against n1/(n1-1), n0/(n0-1)


def test_copies_of_images_are_no_new_images():
    score, label, image, _ = rows(models=1)
    once = auroc(score, label, image)
    thrice = auroc(np.repeat(score, 3), np.repeat(label, 3), np.repeat(image, 3))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.interval == pytest.approx(once.interval)
    assert thrice.p_value == pytest.approx(once.p_value)
    naive = auroc(np.repeat(score, 3), np.repeat(label, 3))
    assert naive.p_value < once.p_value


def test_a_flipped_score_mirrors_the_area():
    score, label, image, model = rows()
    one, other = auroc(score, label, [image, model]), auroc(-score, label, [image, model])
    assert one.value == pytest.approx(1 - other.value)
    assert one.interval == pytest.approx((1 - other.interval[1], 1 - other.interval[0]))
    assert one.p_value == pytest.approx(other.p_value)


def test_monotone_maps_leave_the_area_alone():
    score, label, image, _ = rows()
    assert auroc(np.exp(score), label, image) == auroc(score, label, image)


@pytest.mark.parametrize("two_way", [False, True])
def test_logistic_errors_are_statsmodels(two_way):
    """The same fit with statsmodels' cluster covariance, whose only other factor is its own correction."""
    score, label, image, model = rows(images=60, models=12)
    z = (score - score.mean()) / score.std()
    groups = np.column_stack([image, model]) if two_way else image
    reference = statsmodels.Logit(label.astype(float), np.column_stack([np.ones_like(z), z])).fit(
        disp=0, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
    )
    found = clustered_logistic(score, label, [image, model] if two_way else image)
    assert found.value == pytest.approx(reference.params[1])
    spread = (found.interval[1] - found.value) / scipy.stats.t.ppf(0.975, 11 if two_way else 59)
    # statsmodels multiplies by (n - 1)/(n - k) as well
    assert spread == pytest.approx(reference.bse[1], rel=2e-3)
    assert found.odds_ratio == pytest.approx(np.exp(found.value))


def test_logistic_is_invariant_to_the_scores_unit():
    score, label, image, _ = rows()
    one, other = clustered_logistic(score, label, image), clustered_logistic(1e-6 * score + 5, label, image)
    assert one.value == pytest.approx(other.value, rel=1e-6)
    assert one.p_value == pytest.approx(other.p_value, rel=1e-5)


def test_an_intercept_a_model_takes_out_what_models_differ_in():
    """Rough models flip more, but inside a model the score says nothing."""
    rng = np.random.default_rng(3)
    model = np.repeat(np.arange(6), 100)
    image = np.tile(np.arange(100), 6)
    score = model + rng.normal(size=600)
    label = rng.uniform(size=600) < 0.1 + 0.15 * model
    assert clustered_logistic(score, label, image).p_value < 1e-6
    assert clustered_logistic(score, label, image, within=model).p_value > 0.05


def test_a_control_is_partialled_out():
    rng = np.random.default_rng(4)
    margin = rng.normal(size=800)
    score = -margin + 0.5 * rng.normal(size=800)
    label = rng.uniform(size=800) < 1 / (1 + np.exp(2 * margin))
    assert clustered_logistic(score, label).p_value < 1e-6
    assert clustered_logistic(score, label, controls=[margin]).p_value > 0.01


@pytest.mark.parametrize("function", [auroc, clustered_logistic])
def test_degenerate_rows_are_not_estimable(function):
    found = function([0.1, 0.2, 0.3], [1, 1, 1])
    assert found.value is None
    assert "do not both occur (3 of 3 are 1)" in found.note
    assert "do not both occur" in function([1, 2, 3, 4], [0, 0, 1, 1], within=["a", "a", "b", "b"]).note
    constant = function([1.0] * 6, [0, 1, 0, 1, 0, 1])
    assert constant.interval is None
    assert "constant" in constant.note


def test_separation_is_said_not_fitted():
    score = np.arange(20.0)
    found = clustered_logistic(score, score > 9.5)
    assert found.value is None
    assert "separate" in found.note
    area = auroc(score, score > 9.5)
    assert area.value == 1
    assert area.interval is None


def test_collinear_controls_are_said():
    score, label, *_ = rows()
    assert "collinear" in clustered_logistic(score, label, controls=[2 * score + 1]).note


def test_few_models_are_noted():
    score, label, image, model = rows(models=3)
    assert "only 3 groups" in auroc(score, label, [image, model]).note


@pytest.mark.parametrize("function", [auroc, clustered_logistic])
def test_labels_other_than_zero_and_one_are_refused(function):
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        function([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="one or two"):
        function([0.1, 0.2], [0, 1], [[0, 1], [0, 1], [0, 1]])


def test_strata_of_unequal_sizes_by_loops():
    """Area and error with the module's definition written out: a row's wins, its opponents, its stratum's own area."""
    rng = np.random.default_rng(5)
    model = np.repeat([0, 1, 2], [12, 30, 19])
    score = rng.normal(size=61) + 0.3 * model
    label = rng.uniform(size=61) < np.array([0.3, 0.5, 0.8])[model]
    score[label] += 0.8 * model[label]
    wins, opponents, own = np.zeros(61), np.zeros(61), np.zeros(61)
    for i in range(61):
        for j in range(61):
            if model[i] == model[j] and label[i] != label[j]:
                opponents[i] += 1
                wins[i] += (score[i] > score[j]) if label[i] else (score[j] > score[i])
    for i in range(61):
        positive = (model == model[i]) & label
        own[i] = wins[positive].sum() / opponents[positive].sum()
    total = opponents[label].sum()
    area = wins[label].sum() / total
    influence = (wins - (own + area) / 2 * opponents) / total
    error = np.sqrt(61 / 60 * (influence**2).sum()) / (area * (1 - area))
    freedom = min(label.sum(), (~label).sum()) - 1
    reach = scipy.stats.t.ppf(0.95, freedom) * error
    ends = scipy.special.expit(scipy.special.logit(area) + np.array([-reach, reach]))
    found = auroc(score, label, within=model, level=0.9)
    assert found.value == pytest.approx(area, rel=1e-12)
    assert found.interval == pytest.approx(tuple(ends), rel=1e-9)
    p_value = 2 * scipy.stats.t.sf(abs(scipy.special.logit(area)) / error, freedom)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)


def test_strata_of_one_pair_each_are_coin_tosses():
    """Then the area is a share of K pairs, with the variance p (1 - p) / (K - 1) and Student's t at K - 1."""
    pairs, rng = 40, np.random.default_rng(2)
    stratum, label = np.repeat(np.arange(pairs), 2), np.tile([0, 1], pairs)
    score = rng.normal(size=2 * pairs) + 0.8 * label
    share = np.mean(score[1::2] > score[::2])
    found = auroc(score, label, stratum, within=stratum)
    assert found.value == pytest.approx(share)
    half = scipy.stats.t.ppf(0.975, pairs - 1) / np.sqrt(share * (1 - share) * (pairs - 1))
    middle = scipy.special.logit(share)
    assert found.interval == pytest.approx(tuple(scipy.special.expit([middle - half, middle + half])))


def test_a_last_stratum_without_label_1_adds_nothing():
    score, label, stratum = [0.3, 0.2, 0.7, 0.5, 0.1, 0.9, 0.4], [0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]
    assert auroc(score, label, within=stratum).value == auroc(score[:5], label[:5]).value


def test_where_the_two_way_variance_is_negative_the_larger_one_way_variance_stands():
    """Sums over rows 0.3 and 0, over columns 0, 0 and 0.3, each times groups over groups minus one."""
    influence = np.array([1.0, -1.0, 0.3, -1.0, 1.0, 0.0])[:, None]
    clusters = [np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2])]
    variance, freedom, _ = _clustered_variance(influence, clusters)
    np.testing.assert_allclose(variance, [[0.09 * 2]])
    assert freedom == 1
    variance, _, _ = _clustered_variance(influence, clusters[::-1])
    np.testing.assert_allclose(variance, [[0.09 * 2]])
