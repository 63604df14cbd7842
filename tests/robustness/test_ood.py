"""Out-of-distribution scores against scikit-learn's and scipy's, intervals by coverage."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.spatial import distance
from sklearn.metrics import roc_auc_score, roc_curve

from lipcomp.robustness._ood import SCORES, auroc, fpr95, knn_score, mahalanobis_score, scores

RNG = np.random.default_rng(0)


def openood(inside, outside):
    """AUROC and FPR95 as OpenOOD's auc_and_fpr_recall has them: out images positive, scored by minus the confidence."""
    positive = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    confidence = np.r_[inside, outside]
    fpr, tpr, _ = roc_curve(positive, -confidence, drop_intermediate=False)
    return roc_auc_score(positive, -confidence), fpr[np.argmax(tpr >= 0.95)]


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_fpr95_are_openoods(ties):
    for shift in (0.0, 1.0, 4.0):
        inside, outside = RNG.normal(shift, 1, 300), RNG.normal(0, 2, 111)
        if ties:
            inside, outside = np.round(inside), np.round(outside)
        area, false = openood(inside, outside)
        assert auroc(inside, outside).value == pytest.approx(area)
        assert fpr95(inside, outside, resamples=10).value == pytest.approx(false)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_intervals_cover(shift):
    truth = stats.norm.cdf(shift / np.sqrt(2))
    false = stats.norm.cdf(stats.norm.ppf(0.95) - shift)
    rng = np.random.default_rng(1)
    areas = falses = 0
    for _ in range(150):
        inside, outside = rng.normal(shift, 1, 200), rng.normal(0, 1, 100)
        low, high = auroc(inside, outside).interval
        areas += low <= truth <= high
        low, high = fpr95(inside, outside, resamples=200).interval
        falses += low <= false <= high
    assert stats.binom.cdf(areas, 150, 0.95) > 0.005
    assert stats.binom.cdf(falses, 150, 0.9) > 0.005


def test_the_interval_of_an_auroc_is_delongs_on_the_logit_scale():
    """Variances of placements by loops; sets of unequal sizes, with ties."""
    inside, outside = np.round(RNG.normal(0.7, 1, 13), 1), np.round(RNG.normal(0, 1, 7), 1)
    wins = np.array([[(a > b) + 0.5 * (a == b) for b in outside] for a in inside])
    area = wins.mean()
    error = np.sqrt(wins.mean(1).var(ddof=1) / 13 + wins.mean(0).var(ddof=1) / 7) / (area * (1 - area))
    ends = special.expit(special.logit(area) + stats.norm.ppf([0.025, 0.975]) * error)
    assert auroc(inside, outside).interval == pytest.approx(ends)
    none = auroc(np.zeros(10), np.zeros(20)).interval  # as if images were pairs
    assert none == pytest.approx((stats.beta.ppf(0.025, 5, 6), stats.beta.ppf(0.975, 6, 5)))


def test_the_interval_of_fpr95_is_that_of_resamples_of_both_sets():
    inside, outside = RNG.normal(0.5, 1, 60), RNG.normal(0, 1, 40)
    rng = np.random.default_rng(0)
    drawn = [openood(rng.choice(inside, 60), rng.choice(outside, 40))[1] for _ in range(29)]
    hits = round(openood(inside, outside)[1] * 60)
    exact = stats.beta.ppf([0.025, 0.975], [hits, hits + 1], [61 - hits, 60 - hits])
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = fpr95(inside, outside, resamples=29).interval
    assert found == pytest.approx((min(low, exact[0]), max(high, exact[1])))


def test_perfect_separation_has_an_interval_of_some_width():
    found = auroc(np.arange(50) + 100.0, np.arange(20.0))
    assert found.value == 1
    assert 0.8 < found.interval[0] < 1 == found.interval[1]


def test_scores_that_are_all_alike_prove_nothing():
    assert auroc(np.zeros(10), np.zeros(10)).value == 0.5
    low, high = auroc(np.zeros(10), np.zeros(10)).interval
    assert low < 0.3 < 0.7 < high
    for train, labels in ((torch.randn(10, 4), torch.arange(10)), (torch.ones(10, 4), torch.arange(10) % 2)):
        with pytest.raises(ValueError, match="vary within a class"):
            mahalanobis_score(train, labels, torch.randn(3, 4))


@pytest.mark.parametrize("offset", [0, 1000])
def test_knn_is_the_distance_to_the_kth_normalised_neighbour(offset):
    """Of features that all point nearly one way, cosines in float32 kept one digit of the distance."""
    train, test = (RNG.normal(size=(n, 7)).astype(np.float32) + offset for n in (60, 9))
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (test, train)]
    expected = -np.sort(distance.cdist(*unit), axis=1)[:, 4]
    found = knn_score(torch.tensor(train), torch.tensor(test), k=5)
    np.testing.assert_allclose(found, expected, rtol=2e-3 if offset else 1e-5)
    for k in (0, 61):
        with pytest.raises(ValueError, match="between 1 and the 60"):
            knn_score(torch.tensor(train), torch.tensor(test), k=k)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])  # no number loses digits
def test_knn_does_not_depend_on_the_scale_of_features(scale):
    train, features = torch.randn(60, 7), torch.randn(9, 7)
    assert (knn_score(train * scale, features * scale, k=3) == knn_score(train, features, k=3)).all()


@pytest.mark.parametrize("flat", [False, True])
def test_mahalanobis_is_scipys_distance_to_the_nearest_class(flat):
    labels = np.arange(90) % 3
    train = RNG.normal(size=(90, 5)) @ RNG.normal(size=(5, 5)) + 3 * labels[:, None]
    test = RNG.normal(size=(8, 5))
    means = np.stack([train[labels == k].mean(0) for k in range(3)])
    inverse = np.linalg.inv(np.cov((train - means[labels]).T, bias=True))
    expected = [-min(distance.mahalanobis(x, mean, inverse) ** 2 for mean in means) for x in test]
    arrays = [train, test]
    if flat:  # a feature that never varies changes nothing
        arrays = [np.c_[x, np.full(len(x), 2.0)] for x in arrays]
    found = mahalanobis_score(torch.tensor(arrays[0]), torch.tensor(labels), torch.tensor(arrays[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scores_of_logits_by_name():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    assert scores("msp", logits=logits)[0] == pytest.approx(special.softmax([2, 0, -1]).max())
    assert scores("max_logit", logits=logits)[0] == 2
    assert scores("energy", logits=logits)[0] == pytest.approx(special.logsumexp([2, 0, -1]))
    train = torch.tensor(RNG.normal(size=(10, 3)))
    for name in SCORES[3:]:
        assert scores(name, features=train[:2], train=train, labels=torch.arange(10) % 2).shape == (2,)
        with pytest.raises(ValueError, match="needs features and training"):
            scores(name, logits=logits)
    mixed = knn_score(train, train[:2].float(), k=1), knn_score(train.float(), train[:2], k=1)
    np.testing.assert_allclose(mixed, np.zeros((2, 2)), atol=1e-3)
    with pytest.raises(ValueError, match="one of msp"):
        scores("odin", logits=logits)
    with pytest.raises(ValueError, match="outside must be finite"):
        auroc(np.zeros(3), np.array([np.nan]))
