"""Results tell themselves: one line, a summary, a frame, a picture."""

import numpy as np
import pandas as pd
import pytest
import torch

import lipcomp
from lipcomp.bound import all_pairs, certified_bound, search_ball
from lipcomp.jacobian import frobenius_norm, spectral_norm
from lipcomp.robustness import pgd
from lipcomp.statistics import adjust, contrast, paired_effect, smallest_detectable_effect

pytest.importorskip("seaborn")

MATRIX = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
IMAGES = torch.linspace(0.2, 0.8, 12).view(4, 3)


def linear(x):
    return x @ MATRIX


def unit(x):
    return torch.nn.functional.normalize(x - 0.1, dim=1)


def per_image():
    yield "sigma", spectral_norm(linear, IMAGES)
    yield "norm", frobenius_norm(linear, IMAGES)
    yield "bound", certified_bound(linear, IMAGES, radius=0.1)
    yield "searched", lipcomp.lipschitz(linear, IMAGES, radius=0.1, steps=2)
    yield "sigma", search_ball(linear, IMAGES, 0.1, steps=2)


@pytest.mark.parametrize(("column", "result"), per_image(), ids=lambda r: type(r).__name__)
def test_a_result_per_image(column, result):
    frame = result.to_frame()
    assert len(frame) == 4
    assert np.array_equal(frame[column].to_numpy(), getattr(result, column).numpy())
    assert len(repr(result)) < 400
    assert "\n" not in repr(result)
    assert f"n=4, {next(iter(frame))}=" in repr(result)
    lines = result.summary().splitlines()
    assert lines[0] == f"{type(result).__name__} of 4 rows"
    assert any(line.startswith(column) for line in lines)
    assert result.plot().get_xscale() == "log"


def test_the_numbers_of_a_summary_are_median_and_range():
    result = spectral_norm(lambda x: x * x, torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.5, 0.1]]))
    assert "sigma=0.4 (0.2 to 1)" in repr(result)
    assert "converged=3 of 3" in repr(result)


def test_bounds_over_pairs():
    found = all_pairs(unit(IMAGES), IMAGES, concentration=10.0)
    frame = found.to_frame()
    assert list(frame["bound"]) == ["published", "mean", "second_moment", "supremum", "direction"]
    row = frame.set_index("bound").loc["direction"]
    assert row["maximum"] == found["direction"].maximum
    assert (row["first"], row["second"]) == found["direction"].witness.pair
    assert f"direction={found['direction'].maximum:.4g}" in repr(found)
    star = found.plot(bound="direction").collections[-1].get_offsets()[0]
    assert star.tolist() == pytest.approx([row["distance"], row["maximum"]])


def test_estimates():
    effect = paired_effect([0.91, 0.93, 0.90], [0.90, 0.90, 0.88])
    assert repr(effect) == f"PairedEffect({effect})"
    assert effect.to_frame().loc[0, "value"] == effect.value
    assert "method" in effect.summary()
    with pytest.raises(TypeError, match="no picture of PairedEffect"):
        effect.plot()
    assert contrast([1.0, 2.0, 0.0, 1.1], [0, 1, 0, 1], list("ttcc"), "t", "c").to_frame().loc[0, "n"] == 2
    assert smallest_detectable_effect(5).to_frame().loc[0, "power"] == 0.8
    table = adjust({"fog": 0.01, "snow": 0.04, "frost": None}).to_frame()
    assert table["name"].tolist() == ["fog", "snow", "frost"]
    assert table["adjusted"].isna().tolist() == [False, False, True]


def test_an_attack():
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    images = torch.full((3, 1, 4, 4), 0.5)
    found = pgd(classifier, images, classifier(images).argmax(1), norm="l2", radius=0.0, steps=1)
    assert "right=3 of 3" in repr(found)
    assert found.to_frame()["clean"].all()
    assert found.accuracy.to_frame().loc[0, "n"] == 3


def test_lipschitz_in_one_call():
    """A linear map's constant is its largest singular value, from below, at the image, by search and from above."""
    found = lipcomp.lipschitz(linear, IMAGES, radius=0.05)
    assert found.local.numpy() == pytest.approx(5.0, rel=1e-5)
    assert found.searched.numpy() == pytest.approx(5.0, rel=1e-5)
    assert found.certified.numpy() == pytest.approx(5.0, rel=1e-5)
    assert bool((found.lower <= 5.0 * (1 + 1e-6)).all())
    assert found.in_order
    assert found.gap_decades == pytest.approx(0.0, abs=1e-4)
    assert "gap_decades" in repr(found)


def test_lipschitz_takes_a_checkpoint(tmp_path):
    from lipcomp.checkpoints import save_checkpoint
    from lipcomp.encoders import EncoderSpec, build_encoder

    save_checkpoint(
        tmp_path / "mine.safetensors", build_encoder(EncoderSpec("small_cnn", (1, 8, 8), projector=None))
    )
    loaded = lipcomp.load_encoder(tmp_path / "mine.safetensors")
    options = {"radius": 0.01, "steps": 1, "method": "product"}
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = lipcomp.lipschitz(loaded, images, **options)
    again = lipcomp.lipschitz(loaded.encoder, images, **options)
    pd.testing.assert_frame_equal(found.to_frame(), again.to_frame())


@pytest.mark.parametrize(
    ("encoder", "images", "error", "match"),
    [
        ("model.pth", IMAGES, TypeError, r"got str; lipcomp.load_encoder\(path\)"),
        (linear, IMAGES * 9, ValueError, "images"),
        (torch.nn.Dropout(), IMAGES, ValueError, "eval"),
    ],
)
def test_lipschitz_says_what_is_wrong(encoder, images, error, match):
    with pytest.raises(error, match=match):
        lipcomp.lipschitz(encoder, images)
