"""Probes against scikit-learn and brute force; the cache; the classifier they make; linear evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data._sets import TensorImages
from lipcomp.robustness._features import extract_features
from lipcomp.robustness._linear_evaluation import LinearEvaluation, linear_evaluation
from lipcomp.robustness._probes import (
    LinearProbe,
    NearestNeighbours,
    _minimise,
    fit_linear_probe,
    split_by_class,
)


def clusters(n=300, d=12, classes=4, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    labels = rng.integers(0, classes, n)
    features = centres[labels] + spread * rng.normal(size=(n, d))
    features[:, 0] *= 100  # features of very different scales
    features[:, 1] = 3.0  # and a dead one
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


class Pooled(nn.Module):
    """The least encoder there is."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())

    def features(self, images):
        return self.layers(images).mean((2, 3))


def image_set(n=60, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = torch.rand(n, 1, 16, 16, generator=generator) * 60
    pixels = pixels + (labels * 70).view(-1, 1, 1, 1)
    return TensorImages(f"greys{n}", pixels.clamp(0, 255).to(torch.uint8), labels, tuple("abc"[:classes]))


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_linear_probe_is_the_minimum_that_scikit_learn_finds(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters()
    probe = fit_linear_probe(features, labels, penalties=[penalty])
    scaled = (features - features.mean(0)) / features.std(0, unbiased=False).clamp_min(1e-9)
    model = linear_model.LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=20000)
    model.fit(scaled.double().numpy(), labels.numpy())
    ours = torch.softmax(probe.logits(features).double(), 1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(scaled.double().numpy()), atol=2e-4)
    assert (probe.predict(features).numpy() == model.predict(scaled.double().numpy())).mean() > 0.995


def test_the_penalty_is_chosen_on_held_out_training_images():
    features, labels = clusters(400, spread=4.0)
    probe = fit_linear_probe(features, labels)
    losses = {point.penalty: point.loss for point in probe.path}
    assert probe.penalty == min(losses, key=losses.get)
    train, test = split_by_class(labels, 0.2)
    assert not set(train.tolist()) & set(test.tolist())
    assert sorted(train.tolist() + test.tolist()) == list(range(400))
    assert len(test) == sum(max(1, round(0.2 * n)) for n in labels.bincount().tolist())
    refitted = fit_linear_probe(features, labels, penalties=[probe.penalty])
    assert not refitted.path
    scale = float(probe.weight.abs().max())
    torch.testing.assert_close(refitted.weight, probe.weight, rtol=0, atol=1e-3 * scale)
    by_accuracy = fit_linear_probe(features, labels, choose_by="accuracy")
    assert by_accuracy.penalty == min(by_accuracy.path, key=lambda point: -point.accuracy).penalty


def test_a_fit_from_the_minimum_ends_where_it_starts():
    features, labels = clusters()
    features = features.double() / 64
    found, many = _minimise(features, labels, 4, 1e-2, None, 1000, 1e-7)
    again, few = _minimise(features, labels, 4, 1e-2, found, 1000, 1e-7)
    assert few <= 1 < many
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5 * float(found.abs().max()))


def test_the_one_image_of_a_class_is_trained_on():
    """As long-tailed sets have them; the other classes are held out as without it."""
    features, labels = clusters(80)
    train, test = split_by_class(torch.cat([labels, torch.tensor([4])]), 0.2)
    before = split_by_class(labels, 0.2)
    assert train.tolist() == [*before[0].tolist(), 80]
    assert torch.equal(test, before[1])
    far = torch.cat([features, 50 + features[:1]])
    assert int(fit_linear_probe(far, torch.cat([labels, torch.tensor([4])])).predict(far[-1:])) == 4


def test_a_probe_says_its_accuracy_with_an_interval_and_classifies_images():
    images = image_set()
    encoder = Pooled().eval()
    features = extract_features(encoder, images)
    probe = fit_linear_probe(features, images.labels)
    found = probe.accuracy(features, images.labels)
    assert found.n == 60
    assert found.interval[0] <= found.value <= found.interval[1]
    with torch.no_grad():
        logits = probe.on(encoder)(images.batch(torch.arange(5)))
    expected = probe(features[:5])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_nearest_neighbours_vote_as_by_hand():
    features, labels = clusters(80)
    queries, _ = clusters(10, seed=5)
    probe = NearestNeighbours(features, labels, k=7, temperature=0.2)
    unit = nn.functional.normalize(features, dim=1)
    for query, scores in zip(nn.functional.normalize(queries, dim=1), probe(queries), strict=True):
        cosine = unit @ query
        votes = torch.zeros(4)
        for i in cosine.argsort(descending=True)[:7]:
            votes[labels[i]] += torch.exp(cosine[i] / 0.2)
        torch.testing.assert_close(torch.softmax(scores, 0), votes / votes.sum(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-66, 2.0**66, 2.0**110])
def test_probes_do_not_depend_on_the_scale_of_features(scale):
    """Squares of 1e-20 and 1e20 leave the range of float32: what was lost there was a prediction of chance."""
    features, labels = clusters(80, d=5)
    queries, _ = clusters(10, d=5, seed=5)
    for fit in (
        lambda x: NearestNeighbours(x, labels, k=7),
        lambda x: fit_linear_probe(x, labels, penalties=[1e-2], dtype=torch.float32),
        lambda x: fit_linear_probe(x, labels, penalties=[1e-2]),
    ):
        torch.testing.assert_close(fit(features * scale)(queries * scale), fit(features)(queries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.full((4, 2), float("nan"))}, "must be finite"),
        ({"labels": torch.tensor([0, 1, 2, 9]), "classes": 3}, "got 0 to 9"),
        ({"labels": torch.tensor([0, 1, -1, 1])}, "got -1"),
        (
            {"labels": torch.tensor([0.0, 0.0, 1.0, 1.0])},
            "whole numbers, one class per image, got torch.float32",
        ),
        ({"labels": [0, 0, 1, 1]}, "got list"),
        ({"features": np.zeros((4, 2))}, "features must be a tensor"),
        ({"penalties": [-1.0]}, "numbers? >= 0"),
        ({"penalties": [1.0, float("nan")]}, "finite number >= 0"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"tolerance": float("nan")}, "tolerance a number >= 0"),
        ({"dtype": torch.float16}, "float32 or torch.float64"),
        ({"features": torch.zeros(4, 2, dtype=torch.complex64)}, "real numbers"),
        ({"features": torch.zeros(4, 0)}, "one or more per image"),
        (
            {"start": LinearProbe(torch.zeros(2, 3), torch.zeros(2))},
            r"start must be a probe of 2 classes on 2",
        ),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "each of the 4 classes has one training image"),
        ({"choose_by": "luck"}, "choose_by"),
    ],
)
def test_bad_input_is_named(change, message, untyped):
    given = {"features": torch.rand(4, 2), "labels": torch.tensor([0, 0, 1, 1])} | change
    with pytest.raises((ValueError, TypeError), match=message):
        fit_linear_probe(given.pop("features"), given.pop("labels"), **given)
    whole = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)  # as MNIST's files have them
    assert len(fit_linear_probe(torch.rand(4, 2), whole).bias) == 2
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        NearestNeighbours(torch.rand(4, 2), whole, k=1, temperature=float("nan"))
    with pytest.raises(ValueError, match="k must lie between"):
        NearestNeighbours(torch.rand(4, 2), torch.tensor([0, 0, 1, 1]), k=5)


def test_features_are_of_the_images_that_are_named(untyped):
    """A mask was read as the indices 0 and 1."""
    images, encoder = image_set(), Pooled()
    mask = torch.zeros(len(images), dtype=torch.bool)
    for wrong, message in (
        ({"indices": mask}, "got a mask"),
        ({"indices": torch.tensor([len(images)])}, "indices must lie between"),
        ({"indices": torch.tensor([], dtype=torch.long)}, "there is no image"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            extract_features(encoder, images, **wrong)
    with pytest.raises(ValueError, match=r"an image set, got Pooled and Tensor.*load_set"):
        extract_features(encoder, torch.rand(2, 3, 8, 8))


def test_features_are_those_of_evaluation_mode_and_leave_the_mode_alone():
    images, encoder = image_set(), Pooled().train()
    calls = []
    original = encoder.features
    encoder.features = lambda x: (calls.append(encoder.layers[1].training), original(x))[1]
    extract_features(encoder, images)
    assert encoder.training
    assert calls == [False]


def test_linear_evaluation_learns_leaves_the_encoder_alone_and_follows_its_seed():
    images, encoder = image_set(120), Pooled().train()
    weights = [p.clone() for p in encoder.parameters()]
    statistics = encoder.layers[1].running_mean.clone()
    recipe = LinearEvaluation(epochs=40, batch_size=60, learning_rate=4.0, area=(0.5, 1.0), flip=False)
    probe = linear_evaluation(encoder, images, recipe, seed=1)
    assert encoder.training
    assert all(torch.equal(a, b) for a, b in zip(weights, encoder.parameters(), strict=True))
    assert torch.equal(statistics, encoder.layers[1].running_mean)
    features = extract_features(encoder, images)
    assert probe.accuracy(features, images.labels).value > 0.9
    again = linear_evaluation(encoder, images, recipe, seed=1)
    assert torch.equal(probe.weight, again.weight)
    standardised = replace(recipe, standardise=True, learning_rate=0.5)
    folded = linear_evaluation(encoder, images, standardised, seed=1)
    assert folded.accuracy(features, images.labels).value > 0.9
    with pytest.raises(ValueError, match="epochs and batch_size"):
        LinearEvaluation(epochs=0)
    for area in ((0.5, 2.0), (0.0, 1.0), (0.9, 0.5)):
        with pytest.raises(ValueError, match="area must be"):
            LinearEvaluation(area=area)


def test_a_linear_evaluation_that_is_not_finite_is_refused():
    """Its weights were NaN, and every image of the first class."""
    encoder, recipe = Pooled(), LinearEvaluation(epochs=2, batch_size=16)
    encoder.layers[0].weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="linear evaluation came to NaN or infinity"):
        linear_evaluation(encoder, image_set(), recipe)


def test_the_soft_vote_of_neighbours_is_the_sum_over_every_training_image(generator):
    """What attacks ascend: log sum exp(cosine / temperature) of each class, up to a constant of the image."""
    bank, features = (torch.randn(n, 5, generator=generator) * 3 for n in (12, 4))
    labels = torch.arange(12) % 3
    found = NearestNeighbours(bank, labels, k=2, temperature=0.3).soft(features)
    for i, feature in enumerate(features):
        cosine = torch.nn.functional.cosine_similarity(feature[None], bank) / 0.3
        votes = torch.stack([cosine[labels == c].logsumexp(0) for c in range(3)])
        torch.testing.assert_close(found[i] - found[i, 0], votes - votes[0])
