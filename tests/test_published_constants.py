"""Numbers that others published, every one of them against tests/reference/constants.json, which names the sources."""

import inspect
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from lipcomp.checkpoints import _preprocessing as conventions
from lipcomp.data._crops import random_boxes
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.data._views import PhotoViews, gaussian_blur
from lipcomp.objectives import Objective
from lipcomp.robustness import _calibration, _ood
from lipcomp.robustness.corruptions._tables import MNIST
from lipcomp.statistics import smallest_detectable_effect
from train.recipes import find_recipe


@pytest.fixture
def published(reference):
    return json.loads((reference / "constants.json").read_text())


def test_imagenets_normalisation_and_crop(published):
    table = published["imagenet"]
    assert [*conventions.IMAGENET_MEAN] == table["mean"]
    assert [*conventions.IMAGENET_STD] == table["std"]
    recipe = Preprocessing.default(table["crop"], table["crop"])
    assert (recipe.resize, recipe.crop) == (table["resize"], (table["crop"],) * 2)
    assert table["crop"] / table["resize"] == table["crop_share"]
    told = {"mean": (0,) * 3, "std": (1,) * 3, "input_size": (3, 224, 224)}
    assert conventions.from_timm(told, "").pipeline.resize == table["resize"]


def test_the_table_is_what_torchvision_and_timm_say(published):
    from torchvision.models import ResNet18_Weights

    table = published["imagenet"]
    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert (theirs.mean, theirs.std) == (table["mean"], table["std"])
    assert (theirs.resize_size, theirs.crop_size) == ([table["resize"]], [table["crop"]])
    constants = pytest.importorskip("timm.data.constants")
    assert [*constants.IMAGENET_DEFAULT_MEAN] == table["mean"]
    assert [*constants.IMAGENET_DEFAULT_STD] == table["std"]
    assert table["crop_share"] == constants.DEFAULT_CROP_PCT


def test_small_images_are_not_cropped():
    for side, resize in ((64, 64), (32, 32), (65, 74)):
        assert Preprocessing.default(side, side).resize == resize


def test_cifars_normalisation(published):
    """Their bytes have one decimal, ours four of a unit: they agree to the rounding of both."""
    encoder = find_recipe("cifar10_simclr").encoder
    for ours in ((conventions.CIFAR_MEAN, conventions.CIFAR_STD), (encoder.mean, encoder.std)):
        for values, name in zip(ours, ("mean", "std"), strict=True):
            np.testing.assert_allclose(
                values, np.array(published["cifar10"][name]) / 255, rtol=0, atol=0.5e-4 + 0.05 / 255
            )


def test_the_severities_of_mnist_c(published):
    assert {name: one.published for name, one in MNIST.items()} == published["mnist_c"]["severity"]


def test_the_strengths_of_the_photo_views(published):
    table = dict(published["photo_views"])
    table.pop("source")
    views = PhotoViews()
    for name in (
        "area",
        "flip",
        "jitter",
        "brightness",
        "contrast",
        "saturation",
        "hue",
        "grey",
        "blur",
        "solarise",
    ):
        value = getattr(views, name)
        assert (list(value) if isinstance(value, tuple) else value) == table.pop(name), name
    assert list(inspect.signature(random_boxes).parameters["aspect"].default) == table.pop("aspect")
    assert (
        list(inspect.signature(random_boxes).parameters["area"].default) == published["photo_views"]["area"]
    )
    plain = PhotoViews(jitter=0.0, grey=0.0, blur=(1.0, 0.0), solarise=(0.0, 1.0))
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for u, sigma in zip((0.0, 1.0), table.pop("sigma"), strict=True):
        numbers = torch.zeros(1, plain.numbers)
        numbers[:, plain._SIGMA] = u
        blurred = plain.finish(images, numbers, 0)
        torch.testing.assert_close(blurred, gaussian_blur(images, torch.tensor([sigma])))
    point = torch.zeros(1, 3, 224, 224)
    point[..., 112, 112] = 1.0
    spread = gaussian_blur(point, torch.tensor([1e3]))[0, 0]
    assert int((spread[112] > 0).sum()) == int((spread[:, 112] > 0).sum()) == table.pop("blur_kernel_at_224")
    threshold = table.pop("solarise_threshold")
    ramp = torch.linspace(0, 1, 255).view(1, 1, 5, 51).repeat(1, 3, 1, 1)
    found = plain.finish(ramp, torch.zeros(1, plain.numbers), 1)
    torch.testing.assert_close(found, torch.where(ramp >= threshold, 1 - ramp, ramp))
    assert not table  # every entry was compared


def test_fifteen_bins_of_calibration(published, monkeypatch):
    """13/15 parts .86 (all wrong) from .87 (all right); of 12 to 19 bins only 15 have an edge there."""
    assert published["calibration"]["bins"] == _calibration.BINS
    confidence = np.repeat([0.86, 0.87], 500)
    right = np.concatenate([np.zeros(500, bool), np.ones(500, bool)])
    apart = 0.5 * 0.86 + 0.5 * 0.13
    logits = torch.zeros(1000, 2, dtype=torch.float64)
    logits[:, 0] = torch.from_numpy(np.log(confidence / (1 - confidence)))
    labels = torch.from_numpy(~right).long()  # class 0 is predicted
    assert _calibration.calibration_error(logits, labels).value == pytest.approx(apart)
    for bins in (14, 16):
        monkeypatch.setattr(_calibration, "BINS", bins)
        together = _calibration.calibration_error(logits, labels, resamples=20)
        assert together.value == pytest.approx(0.5 * 0.86 - 0.5 * 0.13)


def test_openoods_numbers(published):
    table = published["out_of_distribution"]
    assert table["neighbours"] == _ood.NEIGHBOURS
    for function in (_ood.knn_score, _ood.scores):
        assert inspect.signature(function).parameters["k"].default == table["neighbours"]
    outside, inside = np.arange(100.0), np.array([93.0, 94.0, 95.0, 96.0])  # 95 of 100 lie at or below 94
    assert _ood.fpr95(inside, outside, resamples=10).value == 0.5
    assert table["recall"] == 0.95


@pytest.mark.parametrize("test", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize(("n", "alpha", "power"), [(6, 0.05, 0.8), (20, 0.01, 0.9)])
def test_correlations_are_found_as_fishers_z_says(published, test, n, alpha, power):
    law = published["correlation_power"][test]
    value = smallest_detectable_effect(n, test=test, alpha=alpha, power=power).value
    variance = (law["constant"] + law["square"] * value**2) / (n - law["less"])
    reach = scipy.stats.norm.isf(alpha / 2) + scipy.stats.norm.isf(1 - power)
    assert math.atanh(value) == pytest.approx(reach * math.sqrt(variance), rel=1e-9)


def test_the_objectives_defaults(published):
    """Every number among them."""
    table = published["objectives"]
    del table["source"]
    own = {name for name, objective in Objective.known.items() if objective.__module__.startswith("lipcomp.")}
    assert table.keys() == own
    for name, values in table.items():
        told = Objective.from_dict({"name": name}).to_dict()
        assert {k: v for k, v in told.items() if type(v) is float} == values
