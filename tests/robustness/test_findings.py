"""What an evaluation reports, group by group, against the metrics themselves; zoo models in every room."""

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.bound import lower_bounds
from lipcomp.data import TensorImages
from lipcomp.jacobian import spectral_norm
from lipcomp.robustness import findings as f
from lipcomp.robustness.corruptions import COMMON, corrupt
from lipcomp.robustness.effective import baseline_fit, fit_baselines
from lipcomp.robustness.evaluate import Condition, clean_condition, generated_conditions
from lipcomp.robustness.features import fingerprint
from lipcomp.robustness.metrics import mean_corruption_error
from lipcomp.robustness.shifted import Shift, project
from lipcomp.robustness.videos import FrameSet
from lipcomp.robustness.zoo import ZooModel


def runner(network, cache=None):
    return f.Runner(network, fingerprint(network), 16, cache)


def image_set(n, classes, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % min(classes, 3)
    return TensorImages(f"noise{n}", pixels, labels, tuple(str(k) for k in range(classes)))


def network(classes, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, classes)).eval()


def test_mce_of_a_run_is_the_metric_of_its_cells(tmp_path):
    images, model = image_set(20, 1000), network(1000)
    with torch.no_grad():  # most images are of class 0 for this model, so that some are right
        model[3].bias[0] += 0.3
    conditions = generated_conditions(images, table="imagenet", names=COMMON)
    found = list(f.corruption_findings(runner(model, tmp_path), conditions, clean_condition(images)))
    errors = {name: [] for name in COMMON}
    for one in found[:75]:
        errors[one.settings["corruption"]].append(1 - one.estimate.value)
    by_name = {one.quantity: one.estimate for one in found[75:]}
    assert by_name["mce"].value == pytest.approx(mean_corruption_error(errors))
    assert by_name["accuracy.corruption.mean"].value == pytest.approx(1 - np.mean(list(errors.values())))
    assert set(by_name) == {"accuracy.corruption.mean", "mce", "mce.relative"}
    cell = next(
        one for one in found if one.settings.get("corruption") == "fog" and one.settings["severity"] == 2
    )
    fogged = corrupt(images.batch(torch.arange(20)), "fog", 2, "imagenet")
    assert cell.estimate.value == pytest.approx(
        float((model(fogged).argmax(1) == images.labels).double().mean())
    )


def test_all_nineteen_on_disk_have_their_effective_robustness():
    images, model = image_set(12, 1000), network(1000)
    with torch.no_grad():
        model[3].bias[0] += 1
    conditions = [
        Condition(images, torch.arange(12), {"data": "d", "corruption": name, "severity": s, "table": "disk"})
        for name in f.ALL_NINETEEN
        for s in (1, 5)
    ]
    found = {
        one.quantity: one for one in f.corruption_findings(runner(model), conditions, clean_condition(images))
    }
    accuracy = found["accuracy.corruption.mean"].estimate.value  # of unchanged images: the clean accuracy
    fit = baseline_fit("imagenet_c_disk")
    assert 0 < accuracy < 1
    expected = accuracy - float(fit.predict(accuracy))
    assert found["effective_robustness"].estimate.value == pytest.approx(expected)


def test_mce_needs_imagenets_classes_and_all_fifteen():
    images, model = image_set(6, 10), network(10)
    some = generated_conditions(images, table="imagenet", names=COMMON[:2])
    assert [one.quantity for one in f.corruption_findings(runner(model), some)][
        -1
    ] == "accuracy.corruption.mean"


def test_a_shift_with_baselines_has_its_effective_robustness():
    clean, shifted = image_set(30, 3), image_set(40, 3, seed=1)
    model = network(3)
    shift = Shift("mine", shifted, None, 3)
    x = np.linspace(0.2, 0.9, 9)
    found = {
        one.quantity: one
        for one in f.shift_findings(runner(model), shift, clean_condition(clean), fit_baselines(x, 0.9 * x))
    }
    accuracy = {
        name: float((model(s.batch(torch.arange(len(s)))).argmax(1) == s.labels).double().mean())
        for name, s in (("clean", clean), ("shift", shifted))
    }
    assert found["accuracy.shift"].estimate.value == pytest.approx(accuracy["shift"])
    assert found["accuracy.clean.shift_classes"].estimate.value == pytest.approx(accuracy["clean"])
    fit = fit_baselines(x, 0.9 * x)
    expected = accuracy["shift"] - float(fit.predict(accuracy["clean"]))
    assert found["effective_robustness"].estimate.value == pytest.approx(expected)


def test_videos_say_pm_k_and_effective_robustness_where_baselines_exist():
    frames, clean, model = image_set(9, 1000), image_set(40, 1000, seed=2), network(1000)
    class_map = ((0, 5), (1,), (2,))
    anchors = ((0, {-1: 1, 2: 2, 7: 3}), (4, {1: 5}), (8, {}))
    video = FrameSet("vid-robust", frames, anchors, tuple(frozenset({k}) for k in (0, 1, 2)), class_map)
    found = list(f.video_findings(runner(model), video, (0, 2, 10), clean_condition(clean)))
    scores = project(model(frames.batch(torch.arange(9))), class_map).argmax(1).tolist()
    members = {0: ([0], [4], [8]), 2: ([0, 1, 2], [4, 5], [8]), 10: ([0, 1, 2, 3], [4, 5], [8])}
    by_name = {one.quantity: one.estimate.value for one in found}
    for k, groups in members.items():
        right = [all(scores[i] == label for i in group) for label, group in enumerate(groups)]
        assert by_name[f"accuracy.pm{k}"] == pytest.approx(np.mean(right))
    baselines = [one.settings["k"] for one in found if one.quantity == "effective_robustness"]
    assert baselines in ([0, 10], [])


def test_flips_and_attacks_are_kept(tmp_path):
    np.save(
        tmp_path / "brightness.npy",
        np.random.default_rng(0).integers(0, 256, (4, 5, 32, 32, 3), dtype=np.uint8),
    )
    model = network(3)
    one = runner(model, tmp_path / "cells")
    places = {"brightness": tmp_path / "brightness.npy"}
    device = torch.device("cpu")
    first = list(f.flip_findings(one, places, device))
    images = clean_condition(image_set(20, 3))
    attacked = list(f.attack_findings(one, images, "pgd", "L2", 0.05, device=device))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert list(f.flip_findings(one, places, device)) == first
    assert list(f.attack_findings(one, images, "pgd", "L2", 0.05, device=device)) == attacked
    assert calls == []
    list(f.attack_findings(one, images, "pgd", "L2", 0.06, device=device))
    assert calls
    with pytest.raises(ValueError, match='"pgd" or "auto"'):
        list(f.attack_findings(one, images, "fgsm", "L2", 0.1, device=device))


def test_a_zoo_model_runs_through_bounds_jacobians_and_robustness():
    model = ZooModel(network(5), (3, 32, 32), "tiny")
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mu = model(images)
        moved = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        other = model(moved)
    distance = (images - moved).flatten(1).norm(dim=1)
    bounds = lower_bounds(mu, other, distance, 10.0)
    sigma = spectral_norm(model, images)
    assert len(sigma.values) == 4
    direction = max(bound.maximum for bound in bounds.bounds.values() if bound.unit == "1/pixel L2")
    assert direction > 0
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], images[0]).flatten(1)
    assert float(torch.linalg.svdvals(jacobian)[0]) == pytest.approx(float(sigma.values[0]), rel=1e-3)
    (found, *_) = f.clean_findings(runner(model.classifier), clean_condition(image_set(10, 5)))
    assert found.estimate.n == 10
    with pytest.raises(ValueError, match="layer must be one of"):
        model.embedding(images, "projection")
    with pytest.raises(ValueError, match="no linear layer"):
        ZooModel(nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten()), (3, 32, 32))
