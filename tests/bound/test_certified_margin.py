"""Certified radii of a probe: exact for linear maps, below what any attack finds."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lipcomp.bound import certified_accuracy, certified_bound, certified_radius
from lipcomp.encoders import wrap
from lipcomp.robustness import auto_attack


def test_a_linear_probe_has_its_exact_distance_to_the_nearest_boundary(generator):
    weight = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    images = torch.rand(5, 12, generator=generator, dtype=torch.float64)
    logits = images @ weight.T
    first = logits.argmax(1)
    leads = logits.gather(1, first[:, None]) - logits
    distance = leads / (weight[first][:, None] - weight).norm(dim=2)
    expected = distance.scatter(1, first[:, None], torch.inf).amin(1)
    found = certified_radius(lambda x: x @ weight.T, images, 100.0)
    torch.testing.assert_close(found, expected)
    short = certified_radius(lambda x: x @ weight.T, images, 1e-3)
    torch.testing.assert_close(short, expected.clamp(max=1e-3))


def test_logits_that_are_no_numbers_certify_nothing_and_masked_classes_do_not_count():
    images = torch.tensor([[0.5, 0.4, 0.9]], dtype=torch.float64)
    mask = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    found = certified_radius(lambda x: x + mask, images, 1.0)
    torch.testing.assert_close(found, torch.tensor([0.1 / 2**0.5], dtype=torch.float64))
    for nothing in (torch.nan, torch.inf):
        factor = torch.tensor([1.0, 1.0, nothing], dtype=torch.float64)
        assert certified_radius(lambda x, factor=factor: x * factor, images, 1.0).tolist() == [0.0]


@pytest.mark.usefixtures("untyped")
def test_a_margin_a_little_short_of_the_radius_is_not_certified():
    images, labels = torch.tensor([[0.1 * (1 - 5e-7)], [0.3]], dtype=torch.float64), torch.tensor([0, 0])
    for radii in (
        [0.1],
        torch.tensor([0.1]),
        [torch.tensor(0.1)],
        np.array([0.1], np.float32),
        [np.float32(0.1)],
    ):
        assert certified_accuracy(lambda x: F.pad(x, [0, 1]), images, labels, radii).tolist() == [0.5]


def test_labels_are_one_class_per_image(untyped):
    """A column of labels was compared with every image."""
    images, fn = torch.tensor([[0.1], [0.3]], dtype=torch.float64), lambda x: F.pad(x, [0, 1])
    for labels, message in (
        (torch.tensor([[0], [0]]), r"2 whole numbers; got torch.int64 \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), "got torch.float32"),
        (torch.tensor([0, 2]), "between 0 and 1, the classes of fn; got 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            certified_accuracy(fn, images, labels, [0.1])


def test_one_logit_has_no_margin():
    """As numbers without a second axis too, which ended in an error of torch."""
    images = torch.full((2, 3), 0.5)
    for fn in (lambda x: x[:, :1], lambda x: x[:, 0]):
        with pytest.warns(UserWarning, match="for 2 of 2 images, which get 0: one logit has no margin"):
            held = certified_accuracy(fn, images, torch.tensor([0, 0]), [0.0, 0.1])
        assert held.tolist() == [1.0, 0.0]
    with pytest.warns(UserWarning, match="floor has no rule"):
        assert certified_radius(lambda x: x.floor(), images, 0.1).tolist() == [0.0, 0.0]


def test_an_encoder_takes_pixels():
    encoder = wrap(torch.nn.Flatten(), mean=0.5, std=0.25, image_shape=(1, 2, 2))
    images = torch.rand(2, 1, 2, 2)
    for certify in (certified_bound, partial(certified_radius, radius=0.1)):
        certify(encoder, images)
        with pytest.raises(ValueError, match="undo the normalisation, which the encoder does itself"):
            certify(encoder, (images - 0.5) / 0.25)


def test_radii_begin_at_the_images_themselves():
    images, labels = torch.tensor([[0.9], [0.3], [0.2]], dtype=torch.float64), torch.tensor([0, 0, 1])
    fn = lambda x: F.pad(x, [0, 1])  # noqa: E731
    torch.testing.assert_close(
        certified_accuracy(fn, images, labels, [0.0, 0.5]), torch.tensor([2 / 3, 1 / 3]).double()
    )
    for radii in ([], [0.1, -0.1], [torch.inf]):
        with pytest.raises(ValueError, match="radii must be finite and not negative, at least one"):
            certified_accuracy(fn, images, labels, radii)


def test_a_class_that_float32_takes_for_another_is_not_certified():
    """Float32 sees a tie at 1e8 and takes the first class; what is certified is that the other leads."""
    fn = lambda x: torch.cat([x, 1 - x], 1) + 1e8  # noqa: E731
    images, labels = torch.tensor([[0.2]]), torch.tensor([0])
    assert fn(images).argmax(1).equal(labels)
    assert certified_accuracy(fn, images, labels, [0.0, 0.1]).tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_certified_accuracy_is_below_what_an_attack_leaves(generator):
    weights = [
        torch.randn(a, b, generator=generator).double() / a**0.5 for a, b in ((12, 24), (24, 24), (24, 4))
    ]

    def fn(x):
        h = torch.relu(torch.relu(x @ weights[0]) @ weights[1])
        return 3 * F.normalize(h @ weights[2] + 0.01, dim=1)

    images = 0.2 + 0.6 * torch.rand(24, 12, generator=generator, dtype=torch.float64)
    labels = fn(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % 4
    radii = (1e-4, 0.02, 0.1, 0.4)
    certified = certified_accuracy(fn, images, labels, radii)
    assert float(certified[0]) == pytest.approx(20 / 24)
    assert (certified.diff() <= 0).all()
    for radius, share in zip(radii, certified, strict=True):
        step = torch.zeros_like(images)
        for _ in range(20):
            point = (images + step).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(fn(point), labels), point)
            step = step + radius / 4 * F.normalize(gradient, dim=1)
            step = step * (radius / step.norm(dim=1, keepdim=True)).clamp(max=1)
        left = (fn(images + step).argmax(1) == labels).double().mean()
        assert share <= left
    with pytest.raises(ValueError, match="radius"):
        certified_radius(fn, images, 0.0)


@pytest.mark.slow
def test_certified_accuracy_is_at_most_what_autoattack_leaves(generator):
    pytest.importorskip("pyautoattack")
    classifier = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(96, 4),
    )
    for weight in classifier.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 1.5 / weight[0].numel() ** 0.5
    classifier.eval().requires_grad_(False)
    images = 0.1 + 0.8 * torch.rand(16, 1, 8, 8, generator=generator)
    labels = classifier(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 4
    radii = (0.02, 0.1, 0.3)
    certified = certified_accuracy(classifier, images, labels, radii)
    left = [auto_attack(classifier, images, labels, norm="l2", radius=radius).right for radius in radii]
    for radius, share, right in zip(radii, certified.tolist(), left, strict=True):
        assert share <= right.mean(), radius
        held = certified_radius(classifier, images, radius) >= radius * (1 - 1e-6)
        assert not (held.numpy() & ~right & (classifier(images).argmax(1) == labels).numpy()).any()
    assert 0 < certified[1] < 13 / 16
