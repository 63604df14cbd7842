"""What an evaluation reports, group by group, against the metrics themselves; zoo models in every room."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lipcomp.data._folders import FolderImages
from lipcomp.data._sets import TensorImages
from lipcomp.measure import CleanAccuracy, CorruptionAccuracy, _corrupted, _shifted
from lipcomp.measure._accuracy import RobustAccuracy
from lipcomp.measure._conditions import Condition, clean_condition
from lipcomp.measure._shifted import FlipRate, ShiftAccuracy, VideoAccuracy
from lipcomp.robustness._effective import baseline_fit, read_baselines
from lipcomp.robustness._metrics import ALEXNET
from lipcomp.robustness._shifted import Shift, project
from lipcomp.robustness._videos import FrameSet
from lipcomp.robustness.corruptions import corrupt
from lipcomp.robustness.corruptions._tables import COMMON


def findings_of(quantity, bench):
    return [one for unit in quantity.units(bench) for one in unit.measure(lambda n: None).findings]


def image_set(n, classes, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % min(classes, 3)
    return TensorImages(f"noise{n}", pixels, labels, tuple(str(k) for k in range(classes)))


def network(classes, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, classes)).eval()


def test_mce_of_a_run_is_the_metric_of_its_cells(classifier_bench):
    images, model = image_set(20, 1000), network(1000)
    with torch.no_grad():  # most images are of class 0 for this model, so that some are right
        model[3].bias[0] += 0.3
    bench = classifier_bench(model, images)
    units = list(CorruptionAccuracy("imagenet", names=COMMON).units(bench))
    assert len(units) == 76
    cells = {(u.settings["corruption"], u.settings["severity"]): u for u in units[:75]}
    values = {key: u.measure(lambda n: None).findings[0].value for key, u in cells.items()}
    errors = {name: [1 - values[name, s] for s in range(1, 6)] for name in COMMON}
    by_name = {one.quantity: one.value for one in units[75].measure(lambda n: None).findings}
    assert by_name["mce"] == pytest.approx(
        np.mean([np.mean(errors[name]) / ALEXNET[name] for name in COMMON])
    )
    assert by_name["accuracy.corruption.mean"] == pytest.approx(1 - np.mean(list(errors.values())))
    assert set(by_name) == {"accuracy.corruption.mean", "mce", "mce.relative"}
    fogged = corrupt(images.batch(torch.arange(20)), "fog", 2, table="imagenet")
    assert values["fog", 2] == pytest.approx(
        float((model(fogged).argmax(1) == images.labels).double().mean())
    )


def test_all_nineteen_on_disk_have_their_effective_robustness(classifier_bench):
    images, model = image_set(12, 1000), network(1000)
    with torch.no_grad():
        model[3].bias[0] += 1
    conditions = [
        Condition(images, torch.arange(12), {"data": "d", "corruption": name, "severity": s, "table": "disk"})
        for name in _corrupted.ALL_NINETEEN
        for s in (1, 5)
    ]
    bench = classifier_bench(model, images)
    result = _corrupted._summary(bench, conditions, clean_condition(images), lambda n: None)
    found = {one.quantity: one.value for one in result.findings}
    accuracy = found["accuracy.corruption.mean"]  # of unchanged images: the clean accuracy
    fit = baseline_fit("imagenet_c_disk")
    assert 0 < accuracy < 1
    assert found["effective_robustness"] == pytest.approx(accuracy - float(fit.predict(accuracy)))


def test_mce_needs_imagenets_classes_and_all_fifteen(classifier_bench):
    bench = classifier_bench(network(10), image_set(6, 10))
    found = findings_of(CorruptionAccuracy("imagenet", names=COMMON[:2]), bench)
    assert found[-1].quantity == "accuracy.corruption.mean"


def test_bits_are_the_answers_of_each_condition(classifier_bench):
    bench = classifier_bench(network(3), image_set(21, 3))
    quantity = CorruptionAccuracy("cifar", names=("fog", "contrast"), severities=(1, 5), limit=13)
    bits = _corrupted.correctness_bits(bench, quantity)
    right = np.unpackbits(bits["right"], axis=-1, count=int(bits["n"])).astype(bool)
    assert right.shape == (5, 13)
    assert bits["corruption"].tolist() == ["clean", "fog", "fog", "contrast", "contrast"]
    for row, condition in zip(right[1:], quantity.conditions(bench), strict=True):
        assert (row == _corrupted.right_of(bench, condition)).all()
    clean = bench.encoder(bench.images.batch(torch.arange(13))).argmax(1)
    assert (right[0] == (clean == bench.images.labels[:13]).numpy()).all()


def test_of_a_set_on_disk_only_the_severities_asked_for_count(classifier_bench, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(6) % 3, 5))
    bench = classifier_bench(network(3), image_set(6, 3))
    *_, mean = CorruptionAccuracy(None, str(tmp_path), severities=(2,)).units(bench)
    assert mean.label == f"{tmp_path.name} corruptions, mean"  # two sets in one table
    made = CorruptionAccuracy(None, str(tmp_path), severities=(2, 4)).conditions(bench)
    assert [c.settings["severity"] for c in made] == [2, 4]
    with pytest.raises(ValueError, match=r"has no severity \[7\], only \[1, 2, 3, 4, 5\]"):
        CorruptionAccuracy(None, str(tmp_path), severities=(7,)).conditions(bench)


@pytest.mark.parametrize(("side", "table"), [(64, "tiny"), (72, "imagenet")])
def test_200_classes_are_tiny_imagenets_where_pictures_are_as_small(tmp_path, side, table):
    """ImageNet-C's folders of 200 classes, 10,000 images too, were comparable with Tiny-ImageNet-C."""
    Image.new("RGB", (side, side)).save(tmp_path / "1.png")
    cell = FolderImages("fog", (tmp_path / "1.png",), torch.zeros(1).long(), ("tench",), (3, 64, 64))
    settings = {"table": "disk", "layout": "imagenet", "corruption": "fog", "severity": 1}
    condition = Condition(cell, torch.arange(1), settings)
    assert _corrupted.protocol_of([condition], 200).table == table
    assert _corrupted.protocol_of([condition], 1000).table == "imagenet"


def test_a_shift_with_baselines_has_its_effective_robustness(classifier_bench, tmp_path, monkeypatch):
    clean, shifted = image_set(30, 3), image_set(40, 3, seed=1)
    model, x = network(3), np.linspace(0.2, 0.9, 9)
    rows = "\n".join(f"{one},{0.9 * one}" for one in x)
    (tmp_path / "mine.csv").write_text(f"clean,shifted\n{rows}\n")
    monkeypatch.setattr(_shifted, "load_shift", lambda *a, **k: Shift("mine", shifted, None, 3))
    found = findings_of(
        ShiftAccuracy("mine", baselines=f"{tmp_path}/mine.csv"), classifier_bench(model, clean)
    )
    by_name = {one.quantity: one.value for one in found}
    accuracy = {
        name: float((model(s.batch(torch.arange(len(s)))).argmax(1) == s.labels).double().mean())
        for name, s in (("clean", clean), ("shift", shifted))
    }
    assert by_name["accuracy.shift"] == pytest.approx(accuracy["shift"])
    assert by_name["accuracy.clean.shift_classes"] == pytest.approx(accuracy["clean"])
    fit = read_baselines(tmp_path / "mine.csv", "clean", "shifted")
    expected = accuracy["shift"] - float(fit.predict(accuracy["clean"]))
    assert by_name["effective_robustness"] == pytest.approx(expected)


def test_videos_say_pm_k_and_effective_robustness_where_baselines_exist(classifier_bench, monkeypatch):
    frames, clean, model = image_set(9, 1000), image_set(40, 1000, seed=2), network(1000)
    class_map = ((0, 5), (1,), (2,))
    anchors = ((0, {-1: 1, 2: 2, 7: 3}), (4, {1: 5}), (8, {}))
    video = FrameSet("vid-robust", frames, anchors, tuple(frozenset({k}) for k in (0, 1, 2)), class_map)
    monkeypatch.setitem(_shifted.VIDEOS, "vid-robust", lambda *a, **k: video)
    found = findings_of(VideoAccuracy("vid-robust", "nowhere", (0, 2, 10)), classifier_bench(model, clean))
    scores = project(model(frames.batch(torch.arange(9))), class_map).argmax(1).tolist()
    members = {0: ([0], [4], [8]), 2: ([0, 1, 2], [4, 5], [8]), 10: ([0, 1, 2, 3], [4, 5], [8])}
    by_name = {one.quantity: one.value for one in found}
    for k, groups in members.items():
        right = [all(scores[i] == label for i in group) for label, group in enumerate(groups)]
        assert by_name[f"accuracy.pm{k}"] == pytest.approx(np.mean(right))
    baselines = [one.settings["k"] for one in found if one.quantity == "effective_robustness"]
    assert baselines in ([0, 10], [])
    few = classifier_bench(network(4), image_set(9, 4))
    with pytest.raises(ValueError, match="names class 5, but the model has 4 classes"):
        list(VideoAccuracy("vid-robust", "nowhere").units(few))  # before anything is measured


def test_flips_and_attacks_are_kept(classifier_bench, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (4, 5, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "brightness.npy", frames)
    model, images = network(3), image_set(20, 3)
    bench = classifier_bench(model, images, tmp_path / "cells")
    flips, attack = FlipRate(str(folder)), RobustAccuracy("pgd", "l2", 0.05)
    first, attacked = findings_of(flips, bench), findings_of(attack, bench)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    assert findings_of(flips, bench) == first
    assert findings_of(attack, bench) == attacked
    assert calls == []
    findings_of(RobustAccuracy("pgd", "l2", 0.06), bench)
    assert calls
    handle.remove()
    with pytest.raises(ValueError, match='"pgd" or "auto"'):
        findings_of(RobustAccuracy("fgsm", "l2", 0.1), bench)
    np.save(folder / "brightness.npy", frames[:, ::-1])  # other frames, the same name and size
    names = [unit.identity for unit in flips.units(bench)]
    np.save(folder / "brightness.npy", frames)
    assert all(a != b.identity for a, b in zip(names, flips.units(bench), strict=True))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4, 28, 28, 3), r"perturbation tilt holds images of shape \(3, 28, 28\)"),
     ((2, 1, 32, 32, 3), "perturbation tilt has sequences of one frame")],
)  # fmt: skip
def test_sequences_that_cannot_be_measured_are_refused_first(classifier_bench, tmp_path, shape, message):
    np.save(tmp_path / "tilt.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=message):
        list(FlipRate(str(tmp_path)).units(classifier_bench(network(3), image_set(9, 3))))
    np.save(tmp_path / "tilt.npy", np.zeros((2, 4, 32, 32, 3), np.uint8))
    (tmp_path / "alexnet.csv").write_text("perturbation,flip_rate\nfog,0.5\n")
    asked = FlipRate(str(tmp_path), reference=str(tmp_path / "alexnet.csv"))
    with pytest.raises(ValueError, match="the reference flip rates lack tilt"):
        list(asked.units(classifier_bench(network(3), image_set(9, 3))))


def test_noise_is_compared_with_the_first_frame_however_it_is_written(classifier_bench, tmp_path):
    """Frames a, b, b, b: all differ from the first, one from the frame before."""
    model, images = network(3), image_set(40, 3)
    with torch.no_grad():
        answers = model(images.batch(torch.arange(40))).argmax(1)
    one, other = 0, int((answers != answers[0]).nonzero()[0])
    frames = images.pixels[[one, other, other, other]].permute(0, 2, 3, 1).numpy()[None]
    np.save(tmp_path / "Gaussian_Noise.npy", frames)
    np.save(tmp_path / "tilt.npy", frames)
    noise, tilt, mean = findings_of(FlipRate(str(tmp_path)), classifier_bench(model, images))
    assert (noise.value, tilt.value, mean.value) == pytest.approx((1, 1 / 3, 2 / 3))


def test_a_classifier_in_bfloat16_is_attacked_in_finer_steps(classifier_bench):
    bench = classifier_bench(network(3).bfloat16(), image_set(12, 3))
    bench.dtype = torch.bfloat16
    whole = findings_of(CleanAccuracy(), bench)[0].value
    shares = [findings_of(RobustAccuracy("pgd", "linf", r), bench)[0].value for r in (1e-6, 8 / 255, 0.5)]
    assert whole == shares[0] > shares[2]
    assert shares == sorted(shares, reverse=True)
