"""Encoders whose outputs are of any scale, not finite, of one value, or of a type of their own."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data._sets import TensorImages
from lipcomp.measure import (
    CleanAccuracy,
    CorruptionAccuracy,
    Images,
    Pairs,
    Plan,
    Sigma,
    Source,
    _corrupted,
    run,
)
from lipcomp.measure._accuracy import RobustAccuracy
from lipcomp.measure._beyond import OutOfDistribution, ShapeBias
from lipcomp.measure._conditions import Condition, clean_condition
from lipcomp.measure._plan import Probe
from lipcomp.robustness._probes import NearestNeighbours

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = nn.Linear(12, 6), scale
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(6, 12, generator=torch.Generator().manual_seed(0)))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x.flatten(1).to(self.layer.weight)) * self.scale

class Fixed(Net):
    def forward(self, x):
        return self.layer(x.double().flatten(1))

def plain(): return Net(1.0)
def small(): return Net(1e-200)
def large(): return Net(1e200)
def tiny(): return Net(1e-30)
def fixed(): return Fixed(1.0).double()

def images(split):
    g = torch.Generator().manual_seed(int(split == "test"))
    labels = torch.arange(40) % 2
    pixels = 0.7 * torch.rand(40, 3, 2, 2, generator=g) + 0.3 * labels.view(-1, 1, 1, 1)
    return torch.utils.data.TensorDataset(pixels, labels)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The records of one of the networks above, by quantity."""
    file = tmp_path_factory.mktemp("ranges") / "networks_of_any_range.py"
    file.write_text(OWN)

    def measure(network, *quantities, **plan):
        source = Source(None, factory=f"{file}:{network}", options={"image_size": (3, 2, 2)})
        asked = Plan((source,), Images(f"{file}:images"), quantities, device="cpu", **plan)
        return {r.quantity: r for done in run(asked) for r in done.records}

    return measure


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_the_scale_of_features_changes_no_accuracy(measured, kind):
    plain, small, large = (
        measured(name, CleanAccuracy(), probe=Probe(kind), precision="float64")
        for name in ("plain", "small", "large")
    )
    assert plain["accuracy.clean"].value > 0.5
    for other in (small, large):
        assert other["accuracy.clean"].value == plain["accuracy.clean"].value
        assert other["brier"].value == pytest.approx(plain["brier"].value, rel=1e-4)


@pytest.mark.parametrize("quantity", [Sigma(), Pairs("all")])
def test_an_embedding_whose_squares_are_lost_has_no_direction(measured, quantity):
    """It was 0, or of a length of its own, and so was its constant."""
    with pytest.raises(
        ValueError, match=r"values near \de[+-]200, whose squares float64 does not hold.*; scale"
    ):
        measured("small", quantity, precision="float64")
    if isinstance(quantity, Pairs):  # sigma goes from float32 to float64 by itself
        with pytest.raises(
            ValueError, match=r"values near \de-30, .* float32 does not hold.*use precision=\"float64\", or"
        ):
            measured("tiny", quantity)
    else:
        found, plain = (measured(name, quantity)["sigma_max.median"].value for name in ("tiny", "plain"))
        assert found == pytest.approx(plain, rel=1e-4)


def test_a_network_with_a_type_of_its_own_is_named(measured):
    with pytest.raises(
        ValueError, match=r"cannot run in float32, some of it has a type of its own .*another precision="
    ):
        measured("fixed", CleanAccuracy())
    assert measured("fixed", CleanAccuracy(), precision="float64")["accuracy.clean"].n == 40


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_neighbours_are_attacked_in_every_precision(measured, precision):
    quantities = CleanAccuracy(), RobustAccuracy("pgd", "linf", 1e-6, 8)
    found = measured("plain", *quantities, probe=Probe("knn", 300), precision=precision)
    assert found["accuracy.clean"].settings["k"] == 40  # as many as there are
    assert found["accuracy.robust"].value >= 0.5


def image_set(n, classes, seed=0):
    pixels = torch.randint(
        0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return TensorImages(f"noise{seed}", pixels, torch.arange(n) % 3, tuple(str(k) for k in range(classes)))


def findings_of(quantity, bench):
    results = [unit.measure(lambda n: None) for unit in quantity.units(bench)]
    return {f.quantity: f for result in results for f in result.findings}, [
        n for r in results for n in r.notes
    ]


def test_an_image_without_finite_scores_is_named(classifier_bench):
    images = image_set(9, 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    bench = classifier_bench(network, images)
    last = images.batch(torch.tensor([8]))
    network.features = lambda x: torch.where((x == last).all((1, 2, 3))[:, None], torch.inf, network(x))
    with pytest.raises(
        ValueError, match=r"scores must be finite.* 1 of 9 images of noise0 .*first is noise0\[8\]"
    ):
        findings_of(CleanAccuracy(), bench)


def test_neighbours_without_a_vote_have_no_likelihood_and_no_rank(classifier_bench):
    images = image_set(30, 10)
    features = images.batch(torch.arange(30)).flatten(1)
    network = nn.Sequential(nn.Flatten()).eval()
    bench = classifier_bench(network, images)
    bench.plan = Plan(bench.plan.sources, bench.plan.images, (), Probe("knn", 1))
    bench._probes = {0: NearestNeighbours(features, (images.labels + 1) % 3, k=1, classes=10)}
    found, notes = findings_of(CleanAccuracy(), bench)
    # each has a neighbour of another class
    assert found["accuracy.clean"].value == found["accuracy.top5"].value == 0
    assert found["nll"].value is None
    assert notes == ["no nll: 30 of 30 images have no neighbour of their class, whose likelihood is 0"]


def test_a_dead_encoder_has_no_shape_bias_and_no_mahalanobis(classifier_bench, monkeypatch):
    """The others of its scores are told, and those of the encoders after it."""
    images = image_set(30, 4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).eval()
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0])  # answers a class without images
    bench = classifier_bench(network, images)
    found, notes = findings_of(ShapeBias("fourier"), bench)
    assert found["shape_bias"].value is None
    assert found["shape_bias.decided"].value == 0
    assert notes == ["no shape bias: no image was answered by its shape or its texture"]
    monkeypatch.setattr("lipcomp.measure._beyond.load_set", lambda *a, **k: image_set(9, 4, seed=1))
    (unit,) = OutOfDistribution("other").units(bench)
    result = unit.measure(lambda n: None)
    values = {f.settings["score"]: f.value for f in result.findings if f.quantity == "ood.auroc"}
    assert values == {"msp": 0.5, "max_logit": 0.5, "energy": 0.5, "knn": 0.5, "mahalanobis": None}
    assert result.notes[0].startswith("no mahalanobis: ")


def test_relative_mce_is_of_the_same_images(classifier_bench):
    images = image_set(12, 1000)
    other = TensorImages("other", images.pixels, images.labels.flip(0), images.classes)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 1000)).eval()

    def quantities(corrupted):
        made = [
            Condition(
                corrupted, torch.arange(12), {"data": "d", "corruption": c, "severity": s, "table": "disk"}
            )
            for c in _corrupted.COMMON
            for s in range(1, 6)
        ]
        bench = classifier_bench(network, images)
        result = _corrupted._summary(bench, made, clean_condition(images), lambda n: None)
        return {f.quantity for f in result.findings}

    assert {"mce", "mce.relative"} <= quantities(images)
    assert quantities(other) == quantities(images) - {"mce.relative"}


def test_of_the_severities_of_a_folder_only_those_asked_for_are_needed(classifier_bench, tmp_path):
    from PIL import Image

    for name in ("0", "1", "2"):
        place = tmp_path / "fog" / "5" / name
        place.mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 40 * int(name) + 9, np.uint8)).save(place / "a.png")
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    bench = classifier_bench(network, image_set(6, 3))
    made = CorruptionAccuracy(None, str(tmp_path), severities=(5,)).conditions(bench)
    assert [(c.settings["severity"], c.labels().tolist()) for c in made] == [(5, [0, 1, 2])]
    with pytest.raises(
        FileNotFoundError, match=r"fog/1' is missing.*or take those that are there with severities="
    ):
        CorruptionAccuracy(None, str(tmp_path)).conditions(bench)


CIFARS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = ("butterfly", "cat", "chicken", "cow", "dog", "elephant", "horse", "sheep", "spider", "squirrel")


@pytest.mark.parametrize(
    ("names", "side", "moved"),
    [
        (CIFARS, 32, None),
        (tuple(sorted(CIFARS)), 32, "bird is number 0, not 2"),
        (tuple(sorted(CIFARS)), 24, None),  # other images, as those of STL-10
        (ANIMALS, 32, None),
    ],
)
def test_a_corrupted_cifar_of_classes_in_another_order_is_refused(
    classifier_bench, tmp_path, names, side, moved
):
    np.save(
        tmp_path / "fog.npy", np.random.default_rng(0).integers(0, 256, (50, side, side, 3), dtype=np.uint8)
    )
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 10)).eval()
    images = TensorImages("ten", torch.zeros(10, 3, side, side, dtype=torch.uint8), torch.arange(10), names)
    with pytest.raises(ValueError, match=f"of the classes here {moved}") if moved else nullcontext():
        made = CorruptionAccuracy(None, str(tmp_path)).conditions(classifier_bench(network, images))
        assert len(made) == 5
