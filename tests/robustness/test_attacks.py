# ruff: noqa: NPY002
"""Attacks on linear classifiers, where the exact answer is known, and where gradients vanish."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data import load_set
from lipcomp.robustness import auto_attack, pgd
from lipcomp.robustness._attacks import ascent
from lipcomp.robustness._embedding_attack import embedding_attack, found_again
from lipcomp.robustness._ood import mahalanobis_score
from lipcomp.robustness._probes import Classifier, NearestNeighbours, fit_linear_probe

SURROGATE = Classifier.surrogate


def linear(classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))


def exact_distance(model, images, labels, norm):
    """Least radius of a ball, cut with [0, 1], in which some other class wins; float64, by bisection.

    For one class the best point of a ball of radius r is known: x + r sign(w) or x + t w, clamped to [0, 1].
    """
    weight, bias = (t.detach().double() for t in (model[1].weight, model[1].bias))
    x = images.flatten(1).double()
    logits = x @ weight.T + bias
    nearest = torch.full((len(x),), np.inf, dtype=torch.float64)
    for other in range(len(weight)):
        w = weight[other] - weight[labels]
        margin = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        low, high = torch.zeros_like(margin), torch.full_like(margin, 1e4 if norm == "l2" else 1.0)

        def step(size, w=w):
            along = w if norm == "l2" else w.sign()
            return torch.minimum(torch.maximum(size[:, None] * along, -x), 1 - x)

        for _ in range(80):
            middle = (low + high) / 2
            reached = (w * step(middle)).sum(1) >= margin
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        away = step(high)
        there = (w * away).sum(1) >= margin - 1e-9
        distance = torch.where(there, away.norm(dim=1) if norm == "l2" else high, np.inf)
        distance[margin <= 0] = 0
        distance[labels == other] = np.inf
        nearest = torch.minimum(nearest, distance)
    return nearest


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 10])
@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.01), ("l2", 0.08)])
@pytest.mark.parametrize("middle", [pytest.param(True, marks=pytest.mark.slow), False])
def test_pgd_finds_what_exists_on_a_linear_classifier(norm, radius, classes, middle):
    """Within one point of the exact share, away from the borders of [0, 1] and on them."""
    model = linear(classes)
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = 0.5 + 0.1 * images if middle else (3 * images - 1).clamp(0, 1)
    labels = model(images).argmax(1)
    labels[:5] = (labels[:5] + 1) % classes  # wrong from the start
    found = pgd(model, images, labels, norm=norm, radius=radius)
    distance = exact_distance(model, images, labels, norm).numpy()
    assert (found.clean == (distance > 0)).all()
    assert found.right[distance > radius * 1.0001].all()
    assert 0.02 < (distance > radius).mean() < 0.98
    assert abs(found.accuracy.value - (distance > radius).mean()) <= 0.01
    assert found.distance.max() <= radius * 1.0001
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.accuracy.n == 200
    assert not found.blind.any()


class Rounding(nn.Module):
    """A linear classifier of pixels rounded to 32 levels: no gradient anywhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 31).round() / 31)


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.03), ("l2", 0.3)])
def test_a_classifier_without_gradient_is_named_and_searched(norm, radius):
    images = 0.4 + 0.2 * torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Rounding(linear(4))
    labels = model(images).argmax(1)
    found = pgd(model, images, labels, norm=norm, radius=radius)
    assert found.blind.all()
    truth = pgd(model.model, images, labels, norm=norm, radius=radius)
    assert found.right.mean() < truth.right.mean() + 0.15 < 0.9
    assert found.distance.max() <= radius * 1.0001


def test_nearest_neighbours_are_ascended_through_their_soft_votes():
    """One neighbour's vote has no gradient; the nearest other training feature bounds what an attack can find."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(30, 3 * 8 * 8, generator=generator)
    bank_labels = torch.arange(30) % 3
    images = torch.rand(40, 3, 8, 8, generator=generator)
    encoder = nn.Module()
    encoder.features = lambda x: x.flatten(1) - 0.5
    classifier = NearestNeighbours(bank, bank_labels, k=1).on(encoder)
    labels = classifier(images).argmax(1)
    found = pgd(classifier, images, labels, norm="linf", radius=0.1)
    assert not found.blind.any()
    assert found.right.mean() < 0.2
    wrong = classifier(found.images).argmax(1) != labels
    assert (wrong.numpy() == ~found.right).all()
    del Classifier.surrogate  # what it was without them
    try:
        assert pgd(classifier, images, labels, norm="linf", radius=0.1, queries=0).blind.all()
    finally:
        Classifier.surrogate = SURROGATE


def test_the_embedding_attack_reaches_the_largest_chord_of_a_linear_map_and_needs_no_labels():
    """In a small L2 ball the chord is sigma_max(J) r, J the Jacobian of the direction (theory, 4.1)."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12)).double()
    images = 0.4 + 0.2 * torch.rand(6, 3, 8, 8, dtype=torch.float64)
    radius = 1e-3
    found = embedding_attack(encoder, images, norm="l2", radius=radius, steps=200)
    for image, chord in zip(images, found.chord, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: nn.functional.normalize(encoder(x[None]), dim=1)[0], image
        ).reshape(12, -1)
        assert chord == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]) * radius, rel=2e-2)
    assert found.distance.max() <= radius * 1.0001

    def again(attack):
        clean, moved = (nn.functional.normalize(encoder(x), dim=1).detach() for x in (images, attack.images))
        return found_again(clean.numpy(), moved.numpy()).value

    assert again(found) == 1
    far = embedding_attack(encoder, images, norm="linf", radius=0.4)
    assert far.chord.mean() > 100 * found.chord.mean()
    assert far.images.min() >= 0
    assert far.images.max() <= 1
    assert again(far) < 1


@pytest.mark.parametrize("narrow", [False, True])
def test_a_chord_of_float32_owes_nothing_to_rounding(narrow):
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    encoder = linear(6)

    def encode(x):
        if narrow and x.dtype == torch.float64:
            raise TypeError("float32 only")
        return encoder(x)

    found = embedding_attack(encode, images, norm="l2", radius=1e-6, steps=20)
    encoder.double()
    with torch.no_grad():
        clean, moved = (nn.functional.normalize(encoder(x.double()), dim=1) for x in (images, found.images))
    truth = (moved - clean).norm(dim=1).numpy()
    if narrow:
        assert (found.chord <= truth).all()
    else:
        np.testing.assert_allclose(found.chord, truth, rtol=1e-9)


def test_the_embedding_attack_finds_the_best_corner_of_a_small_image():
    """Of a convex chord the largest value stands at a corner, and all 256 can be tried."""
    x = 0.3 + 0.4 * torch.rand(4, 1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([-0.1, 0.1]).double()] * 8).view(-1, 1, 2, 4)
    found = embedding_attack(nn.Flatten(), x, norm="linf", radius=0.1)
    for image, chord in zip(x, found.chord, strict=True):
        tried = nn.functional.normalize((image + corners).flatten(1), dim=1)
        assert chord > 0.99 * (tried - nn.functional.normalize(image.flatten(), dim=0)).norm(dim=1).max()


def test_the_embedding_attack_of_an_image_at_a_corner_goes_on_until_the_last_step():
    """Half of its steps were spent at one corner: 50 points of 102, and 93% of the largest of all 65,536 chords."""
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = set()

    def encode(images):
        if images.requires_grad:
            seen.add(images.detach().numpy().tobytes())
        return images.flatten(1)

    embedding_attack(encode, x, norm="linf", radius=0.3)
    assert len(seen) > 70


@pytest.mark.parametrize(
    ("classes", "norm", "radius"),
    [
        (2, "linf", 0.01),
        *(pytest.param(6, *ball, marks=pytest.mark.slow) for ball in [("linf", 0.01), ("l2", 0.08)]),
    ],
)
def test_autoattack_equals_the_exact_robust_accuracy(norm, radius, classes):
    pytest.importorskip("pyautoattack")
    model = linear(classes).train()
    images = 0.5 + 0.1 * torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = model(images).argmax(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    outer = sys.gettrace()  # of a debugger, or of what counts the lines that tests reach
    tracer = outer or (lambda *_: None)
    sys.settrace(tracer)
    found = auto_attack(model, images, labels, norm=norm, radius=radius, attacks=("apgd-ce", "apgd-t"))
    after = sys.gettrace()
    sys.settrace(outer)
    assert after is tracer
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    distance = exact_distance(model, images, labels, norm).numpy()
    clear = np.abs(distance - radius) > 0.02 * radius
    assert (found.right == (distance > radius))[clear].all()
    assert found.distance.max() <= radius * 1.0001


def test_attacks_and_probes_do_not_depend_on_where_the_call_stands(surroundings):
    model, encoder = linear(4), linear(6, seed=1)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(images).argmax(1)
        features = torch.rand(40, 5, generator=torch.Generator().manual_seed(3))
    classes = (features[:, 0] * 4).long()

    def measured():
        told = {"norm": "l2", "radius": 0.1}
        found = [pgd(model, images, labels, steps=3, **told).images]
        found.append(embedding_attack(encoder, images, steps=4, **told).images)
        found.append(fit_linear_probe(features, classes).weight)
        return [*found, torch.from_numpy(mahalanobis_score(features, classes, features))]

    expected = measured()
    with surroundings():
        found = measured()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_autoattack_takes_a_classifier_of_either_precision_wherever_it_is_called(default_float64):
    """In float64, under another default type or device it ended in errors of torch."""
    pytest.importorskip("pyautoattack")
    model = linear(4)
    images = 0.5 + 0.1 * torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    told = {"norm": "linf", "radius": 0.01, "attacks": ("apgd-ce",)}
    single = auto_attack(model, images, labels, **told).accuracy.value
    with default_float64():
        with torch.device("meta"):
            double = auto_attack(model.double(), images.double(), labels, **told).accuracy.value
        assert torch.get_default_dtype() == torch.float64
    assert single == double
    with pytest.raises(
        ValueError, match=r"classifier does not take images of torch\.float32 .* images\.to\(weight\)"
    ):
        pgd(model, images, labels, norm="linf", radius=0.01)


def test_no_radius_changes_nothing():
    model = linear()
    images = torch.rand(8, 3, 8, 8)
    labels = model(images).argmax(1)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(None))
    for attack in (pgd, auto_attack):
        found = attack(model, images, labels, norm="l2", radius=0.0)
        assert found.right.all()
        assert torch.equal(found.images, images)
    assert torch.equal(embedding_attack(model, images, norm="l2", radius=0.0).images, images)
    assert len(calls) < 12  # no step is taken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, 'norm must be "l2" or "linf"'),
        ({"radius": -0.1}, "0 or more pixels"),
        ({"radius": 8.0}, "8/255"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels \(n,\)"),
        ({"labels": torch.full((4,), 2)}, "between 0 and 1, the classifier's classes; got 2 to 2"),
        ({"labels": torch.full((4,), -1)}, "got -1 to -1"),
        ({"labels": torch.eye(4)}, "whole numbers, one class per image, got torch.float32"),
        ({"images": 255 * torch.rand(4, 3, 8, 8)}, r"pixels in \[0, 1\]"),
        ({"images": torch.full((4, 3, 8, 8), float("nan"))}, "from nan"),
        ({"bias": float("nan")}, "gives NaN"),
        ({"classes": 1}, r"two logits or more, got 1; of one score z give \(-z, z\)"),
    ],
)
@pytest.mark.parametrize("attack", [pgd, auto_attack])
def test_bad_input_is_named(change, message, attack, untyped):
    given = {
        "images": torch.rand(4, 3, 8, 8),
        "labels": torch.zeros(4, dtype=torch.long),
        "norm": "linf",
        "radius": 0.1,
        "bias": 0.0,
    } | change
    model = linear(given.pop("classes", 2))
    with torch.no_grad():
        model[1].bias += given.pop("bias")
    with pytest.raises((ValueError, TypeError), match=message):
        attack(model, given.pop("images"), given.pop("labels"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({name: -1}, f"{name} must be at least")
            for name in ("steps", "starts", "targets", "queries", "batch_size")
        ),
        ({"images": torch.rand(4, 3, 8, 8).bfloat16()}, "float32 or float64.*torch.bfloat16"),
    ],
)
def test_an_attack_that_would_do_nothing_is_refused(change, message):
    given = {"images": torch.rand(4, 3, 8, 8), "labels": torch.zeros(4, dtype=torch.long)} | change
    with pytest.raises(ValueError, match=message):
        pgd(linear(), given.pop("images"), given.pop("labels"), norm="linf", radius=0.1, **given)
    given = {"images": torch.rand(4, 3, 8, 8)} | change
    if "targets" not in given:
        with pytest.raises(ValueError, match=message):
            embedding_attack(linear(), given.pop("images"), norm="linf", radius=0.1, **given)


def test_a_ball_larger_than_all_images_is_all_images():
    model, images = linear(), torch.rand(20, 3, 8, 8)
    labels = model(images).argmax(1)
    reached = [
        pgd(model, images, labels, norm="l2", radius=r, steps=10) for r in (0.01, 1.0, 1e3, 1e30, np.inf)
    ]
    shares = [attack.right.mean() for attack in reached]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
    assert all(0 <= a.images.min() <= a.images.max() <= 1 for a in reached)
    assert np.isfinite(embedding_attack(model, images, norm="l2", radius=np.inf).chord).all()


@pytest.mark.parametrize("rounded", [False, True])
def test_nan_inside_the_ball_is_no_success(rounded):
    class Breaking(nn.Module):
        def forward(self, x):
            logits = (Rounding(linear(4)) if rounded else linear(4))(x)
            return torch.where((x.flatten(1).amax(1) > 0.61)[:, None], torch.nan, logits)

    images = 0.4 + 0.2 * torch.rand(6, 3, 8, 8)
    labels = Breaking()(images).argmax(1)
    with pytest.raises(ValueError, match="gives NaN"):
        pgd(Breaking(), images, labels, norm="linf", radius=0.05, steps=5)


@pytest.mark.parametrize("hide", [lambda x: (x * 31).round() / 31, lambda x: x.detach()])
def test_an_embedding_without_gradient_is_named_and_searched(hide):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12))
    images = 0.4 + 0.2 * torch.rand(6, 3, 8, 8)
    truth = embedding_attack(encoder, images, norm="linf", radius=0.05)
    found = embedding_attack(lambda x: encoder(hide(x)), images, norm="linf", radius=0.05)
    assert found.blind.all()
    assert not truth.blind.any()
    assert found.chord.mean() > 0.6 * truth.chord.mean()
    chord = (
        nn.functional.normalize(encoder(hide(found.images))) - nn.functional.normalize(encoder(hide(images)))
    ).norm(dim=1)
    np.testing.assert_allclose(found.chord, chord.detach(), rtol=1e-4)
    assert (found.images - images).abs().max() <= 0.05 * 1.0001


def test_the_attacks_of_autoattack_are_those_that_fit():
    given = {"norm": "l2", "radius": 0.1}
    images, labels = torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    for attacks, message in (
        ((), "one or more of apgd-ce.*got none"),
        (("pgd",), "got pgd"),
        (("square",), "cannot lay its patches"),
    ):
        with pytest.raises(ValueError, match=message):
            auto_attack(model, images, labels, attacks=attacks, **given)


@pytest.mark.parametrize("size", [(5, 5), (8, 8), (12, 12), (13, 13), (14, 14), (19, 19), (24, 24), (32, 48)])
def test_square_in_l2_is_refused_where_its_patches_leave_the_image(size, monkeypatch):
    """It ended in a RuntimeError of shapes, after the other attacks, as soon as an image withstood these."""
    square = pytest.importorskip("pyautoattack.square").SquareAttack
    first = square.__init__
    monkeypatch.setattr(square, "__init__", lambda self, *a, **k: first(self, *a, **{**k, "n_queries": 3}))
    images, labels = torch.rand(1, 1, *size), torch.zeros(1, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], 2))
    with torch.no_grad():
        model[1].bias[0] += 100
    run = partial(auto_attack, model, images, labels, norm="l2", radius=0.1, attacks=("square",))
    if size in ((5, 5), (8, 8), (13, 13)):
        assert run().right.all()
    else:
        with pytest.raises(ValueError, match=r"cannot lay its patches on images of \("):
            run()


def linear_probe_on_pixels():
    """The linear probe of raw digits as one linear layer, with the first 200 test images and their labels."""
    train, test = load_set("mnist5k", "train"), load_set("mnist5k", "test")
    pixels = train.batch(torch.arange(len(train))).flatten(1)
    probe = fit_linear_probe(pixels, train.labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels.shape[1], 10)).requires_grad_(False)
    start = torch.zeros(1, pixels.shape[1], dtype=pixels.dtype)
    model[1].bias.copy_(probe(start)[0])
    model[1].weight.copy_((probe(torch.eye(pixels.shape[1])) - model[1].bias).T)
    return model, test.batch(torch.arange(200)), test.labels[:200]


if __name__ == "__main__":
    model, images, labels = linear_probe_on_pixels()
    print("| norm | radius | exact | PGD | AutoAttack |\n|---|---|---|---|---|")
    for norm, radius in [("linf", r) for r in (0.01, 0.03, 0.06)] + [("l2", r) for r in (0.1, 0.3, 0.6)]:
        exact = float((exact_distance(model, images, labels, norm) > radius).double().mean())
        found = [f(model, images, labels, norm=norm, radius=radius).right.mean() for f in (pgd, auto_attack)]
        print(f"| {norm} | {radius} | {exact:.3f} | {found[0]:.3f} | {found[1]:.3f} |", flush=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_attack_ascends_along_the_gradient_in_every_layout(norm, layout):
    """PyTorch's own backward of the norms is wrong for one image whose features go on as tokens."""
    torch.manual_seed(0)
    tokens, head = (
        nn.Sequential(nn.Conv2d(3, 8, 1), norm).double().eval().to(memory_format=layout),
        nn.Linear(8, 3),
    )
    head.double()

    def classify(x):
        features = tokens(x).flatten(2).transpose(1, 2)
        return head(torch.cat([features[:, :1], features], 1))[:, 1:].tanh().mean(1)

    image, along = (torch.rand(1, 3, 4, 4, dtype=torch.float64).to(memory_format=layout) for _ in range(2))
    labels, aim = torch.tensor([0]), torch.tensor([1])
    _, gradient = ascent(classify, image, labels, aim)
    one, other = (classify(image + side * 1e-6 * along).detach()[0] for side in (1, -1))
    slope = ((one - other)[1] - (one - other)[0]) / 2e-6
    torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-5, atol=1e-8)
