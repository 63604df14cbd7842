# ruff: noqa: NPY002
"""Attacks on linear classifiers, where the exact answer is known: margin / dual norm of the weight difference."""

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.robustness.attacks import auto_attack, pgd


def linear(classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


def exact_distance(model, images, labels, norm):
    """Distance to the nearest other class, of images that are right (the box does not bind in the middle)."""
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    logits = images.flatten(1) @ weight.T + bias
    order = 1 if norm == "Linf" else 2
    out = torch.full((len(images),), np.inf)
    for other in range(len(weight)):
        margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        length = (weight[labels] - weight[other]).norm(p=order, dim=1)
        distance = torch.where(length > 0, margin / length, torch.tensor(np.inf))
        out = torch.minimum(out, distance)
    return out


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("norm", "radius"), [("Linf", 0.01), ("L2", 0.08)])
def test_pgd_finds_what_exists_on_a_linear_classifier(norm, radius, classes):
    model = linear(classes)
    images = 0.5 + 0.1 * torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % classes  # wrong from the start
    found = pgd(model, images, labels, norm=norm, radius=radius, steps=40)
    distance = exact_distance(model, images, labels, norm)
    assert (found.clean == (distance > 0).numpy()).all()
    assert found.right[(distance > radius).numpy()].all()
    # The nearest other class is not always the strongest, so with ten classes an ascent may miss a few.
    missed = found.right[(distance < 0.98 * radius).numpy()].mean()
    assert missed == 0 if classes == 2 else missed < 0.05
    assert found.distance.max() <= radius * 1.0001
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.accuracy.n == 60


@pytest.mark.parametrize(
    ("classes", "norm", "radius"), [(2, "Linf", 0.01), (6, "Linf", 0.01), (6, "L2", 0.08)]
)
def test_autoattack_equals_the_exact_robust_accuracy(norm, radius, classes):
    pytest.importorskip("pyautoattack")
    model = linear(classes).train()
    images = 0.5 + 0.1 * torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = model(images).argmax(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = auto_attack(model, images, labels, norm=norm, radius=radius, attacks=("apgd-ce", "apgd-t"))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    distance = exact_distance(model, images, labels, norm).numpy()
    clear = np.abs(distance - radius) > 0.02 * radius
    assert (found.right == (distance > radius))[clear].all()
    assert found.distance.max() <= radius * 1.0001


def test_no_radius_changes_nothing():
    model = linear()
    images = torch.rand(8, 3, 8, 8)
    labels = model(images).argmax(1)
    found = pgd(model, images, labels, norm="L2", radius=0.0, steps=3)
    assert found.right.all()
    assert torch.equal(found.images, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "L1"}, 'norm must be "L2" or "Linf"'),
        ({"radius": -0.1}, "0 or more pixels"),
        ({"radius": 8.0}, "8/255"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels \(n,\)"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"labels": torch.zeros(4, dtype=torch.long), "norm": "Linf", "radius": 0.1} | change
    with pytest.raises((ValueError, TypeError), match=message):
        pgd(linear(), torch.rand(4, 3, 8, 8), given.pop("labels"), **given)
