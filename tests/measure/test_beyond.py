"""Quantities beyond corruptions, against their functions on the same arrays; what does not fit is named first."""

import importlib
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lipcomp.data._sets import TensorImages
from lipcomp.measure import (
    CorruptionAccuracy,
    _beyond as beyond,
)
from lipcomp.measure._beyond import (
    ClassAccuracy,
    EmbeddingRobustness,
    LeaderboardRow,
    OutOfDistribution,
    ShapeBias,
    StreamAccuracy,
    WatermarkGap,
)
from lipcomp.robustness import _ood as ood
from lipcomp.robustness._robustbench import robustbench
from lipcomp.robustness._texture import conflicting, recombine
from lipcomp.robustness.corruptions import corrupt
from lipcomp.robustness.corruptions._corrupt import resave_jpeg


def findings_of(quantity, bench):
    return [one for unit in quantity.units(bench) for one in unit.measure(lambda n: None).findings]


def image_set(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return TensorImages(f"noise{seed}", pixels, torch.arange(n) % 3, tuple(str(k) for k in range(classes)))


@pytest.fixture
def small_bench(classifier_bench):
    def make(classes=5, n=20):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, classes)
        return classifier_bench(nn.Sequential(*layers).eval(), image_set(n, classes))

    return make


def test_each_ood_score_is_that_of_the_arrays(small_bench, monkeypatch):
    bench, other = small_bench(), image_set(12, 5, seed=1)
    monkeypatch.setattr(beyond, "load_set", lambda *a, **k: other)
    found = {(f.quantity, f.settings["score"]): f for f in findings_of(OutOfDistribution("other"), bench)}
    assert {score for _, score in found} == {*ood.SCORES}
    logits = bench.encoder(bench.images.batch(torch.arange(20))), bench.encoder(other.batch(torch.arange(12)))
    inside, outside = (torch.softmax(x.detach().double(), 1).amax(1).numpy() for x in logits)
    assert found["ood.auroc", "msp"].value == pytest.approx(ood.auroc(inside, outside).value)
    assert found["ood.auroc", "msp"].n == 32
    assert found["ood.fpr95", "knn"].settings["k"] == 20


def test_smaller_outside_images_are_enlarged_and_the_measured_ones_stay(small_bench, tmp_path):
    """They were refused after the clean accuracy, with --resize as the remedy, which changes the measured images."""
    bench = small_bench()
    for name, size in (("a", (16, 20)), ("b", (32, 32)), ("c", (50, 40))):
        Image.new("RGB", size, (90, 20, 30)).save(tmp_path / f"{name}.png")
    found = findings_of(OutOfDistribution(str(tmp_path)), bench)
    assert {f.n for f in found if f.settings["score"] == "msp"} == {23}
    assert bench.preparation["preprocessing"] is None


def test_images_are_not_told_from_themselves(small_bench, monkeypatch):
    """The measured images as their own outside set: an AUROC of 0.5 without a word; training images: below 0.5."""
    bench = small_bench()
    monkeypatch.setattr(beyond, "load_set", lambda *a, **k: image_set(20, 5))
    with pytest.raises(ValueError, match="'itself' shares images with noise0"):
        list(OutOfDistribution("itself").units(bench))


def test_accuracy_by_class_and_the_worst(small_bench):
    bench = small_bench()
    found = findings_of(ClassAccuracy(), bench)
    by_class = {f.settings["class"]: f.value for f in found if f.quantity == "accuracy.class"}
    assert set(by_class) == {"0", "1", "2"}
    assert found[-1].quantity == "accuracy.worst_class"
    assert found[-1].value == min(by_class.values())


def test_the_embedding_attack_is_kept_and_moves_more_in_a_larger_ball(small_bench):
    bench = small_bench()
    bench.map = lambda layer: lambda x: nn.functional.normalize(bench.encoder(x), dim=1)
    near, far = (
        {f.quantity: f.value for f in findings_of(EmbeddingRobustness("linf", r, limit=6), bench)}
        for r in (0.001, 0.2)
    )
    assert near["attack.found_again"] == 1
    assert far["attack.chord"] > 10 * near["attack.chord"] > 0
    calls = []
    handle = bench.encoder.register_forward_hook(lambda *_: calls.append(1))
    again = {f.quantity: f.value for f in findings_of(EmbeddingRobustness("linf", 0.2, limit=6), bench)}
    handle.remove()
    assert again == far
    assert not calls


def test_a_stream_gives_its_mean_and_its_blocks(small_bench, tmp_path):
    with tarfile.open(tmp_path / "serial_00000.tar", "w") as archive:
        for k in range(6):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (40 * k, 90, 0)).save(buffer, "JPEG")
            for name, data in ((f"{k}.input.jpg", buffer.getvalue()), (f"{k}.output.cls", b"%d" % k)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    found = findings_of(StreamAccuracy(str(tmp_path), block=4), small_bench(1000))
    blocks = [f for f in found if f.quantity == "accuracy.stream.block"]
    assert [b.n for b in blocks] == [4, 2]
    assert found[0].value == pytest.approx(np.average([b.value for b in blocks], weights=[4, 2]))
    with pytest.raises(ValueError, match="probe of 1000 classes"):
        findings_of(StreamAccuracy(str(tmp_path)), small_bench(5))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    with tarfile.open(tmp_path / "serial_00000.tar", "w") as archive:
        for name, data in (("a.input.jpg", buffer.getvalue()), ("a.output.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"image 0 is \(3, 8, 8\), the encoder takes \(3, 32, 32\)"):
        list(StreamAccuracy(str(tmp_path)).units(small_bench(1000)))  # before anything is measured


def test_the_leaderboard_row_is_what_robustbench_itself_gives(small_bench, tmp_path, monkeypatch):
    """All fifteen corruptions at five severities of a stand-in in memory, through its own benchmark()."""
    pytest.importorskip("robustbench")
    try:
        robustbench()
    except ImportError as error:
        pytest.skip(str(error))
    evaluation, data = (importlib.import_module(f"robustbench.{name}") for name in ("eval", "data"))
    key = evaluation.BenchmarkDataset("cifar10"), evaluation.ThreatModel("corruptions")
    labels, seen = torch.arange(30) % 3, {}

    def stand_in(n, severity=0, data_dir=None, shuffle=False, corruptions=("clean",)):
        (name,) = corruptions
        generator = torch.Generator().manual_seed(len(seen))
        seen[name, severity] = torch.rand(n, 3, 32, 32, generator=generator)
        return seen[name, severity], labels[:n]

    for folder in ("cifar-10-batches-py", "CIFAR-10-C"):
        (tmp_path / folder).mkdir()
    monkeypatch.setitem(evaluation.CORRUPTION_DATASET_LOADERS, key[0], {key[1]: stand_in})
    monkeypatch.setitem(data._clean_dataset_loaders, key[0], lambda n, folder, prepr: stand_in(n))
    bench = small_bench(10, 30)
    found = {one.quantity: one for one in findings_of(LeaderboardRow(str(tmp_path), images=30), bench)}
    clean, *others = (
        float((bench.encoder(images).argmax(1) == labels).double().mean()) for images in seen.values()
    )
    assert len(others) == 75
    assert len({name for name, _ in seen}) == 16
    assert found["robustbench.clean"].value == pytest.approx(clean, abs=1e-6)
    assert found["robustbench.corruptions"].value == pytest.approx(np.mean(others), abs=1e-6)
    assert "robustbench.mce" not in found


def test_shape_bias_of_made_conflicts_is_that_of_the_arrays(small_bench):
    bench = small_bench()
    labels = bench.clean.labels()
    places = conflicting(labels, bench.plan.images.seed)
    images = bench.images.batch(bench.indices)
    answers = bench.encoder(recombine(images, images[places])).argmax(1)
    shape, texture = answers == labels, answers == labels[places]
    bias, decided = findings_of(ShapeBias("fourier"), bench)
    assert bias.value == pytest.approx(float(shape.sum() / (shape | texture).sum()))
    assert decided.value == pytest.approx(float((shape | texture).double().mean()))


def test_a_cue_conflict_folder_without_the_probes_classes_is_refused(small_bench, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks 5 of the 5 class folders \(0, 1, 2\)$"):
        list(ShapeBias(str(tmp_path)).units(small_bench()))


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (WatermarkGap("none.otf"), "ImageNet's 1000 classes, got images of shape"),
        (LeaderboardRow("none"), "its probe has 5 classes"),
        (EmbeddingRobustness("linf", 0.0), "radius must be positive"),
    ],
)
def test_what_does_not_fit_is_named_before_the_work(small_bench, quantity, message):
    with pytest.raises(ValueError, match=message):
        list(quantity.units(small_bench()))


def test_a_mean_says_its_protocol_and_jpeg_is_another_condition(small_bench):
    bench = small_bench(1000)
    plain, saved = CorruptionAccuracy("imagenet"), CorruptionAccuracy("imagenet", jpeg=85)
    made = saved.conditions(bench)
    assert len(made) == 75  # fifteen corruptions, as the literature
    assert len(CorruptionAccuracy("imagenet", everything=True).conditions(bench)) == 95
    fog = next(c for c in made if c.settings["corruption"] == "fog")
    images = bench.images.batch(torch.arange(3))
    expected = resave_jpeg(corrupt(images, "fog", 1, table="imagenet"), 85)
    torch.testing.assert_close(fog.batch(torch.arange(3), bench.device, bench.dtype), expected)
    twin = next(c for c in plain.conditions(bench) if c.settings["corruption"] == "fog")
    assert twin.identity != fog.identity
    few = CorruptionAccuracy("imagenet", names=("fog", "contrast"), severities=(1,), jpeg=85)
    *_, mean = few.units(bench)
    assert mean.settings["made"] == "memory"
    assert mean.settings["jpeg"] == 85
    assert not mean.settings["comparable"]
    notes = mean.measure(lambda n: None).notes
    assert notes[0] == "2 corruptions of severity 1, made in memory, JPEG 85, 20 images"
    assert any("lacks gaussian_noise" in note for note in notes)
