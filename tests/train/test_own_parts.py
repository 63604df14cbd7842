"""Objectives, networks and views of one's own: what training refuses at once, and what it keeps."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from lipcomp._commands import run
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.data._sets import TensorImages
from lipcomp.data._views import DigitViews, PhotoViews
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.objectives import Loss, Objective
from train.command import main
from train.data import fit
from train.pretrain import pretrain


def quiet(line):
    pass


@dataclass(frozen=True)
class Unclear(Objective):
    """An objective that logs what is no number."""

    family: ClassVar = "simclr"

    def __call__(self, first, second, **options):
        return Loss((first - second).square().mean(), {"mine": torch.tensor(torch.nan)})


def test_a_metric_that_is_no_number_does_not_end_the_run(recipes, tmp_path):
    """The last step could not be written down, so the run was never finished."""
    path = pretrain(replace(recipes["simclr"], epochs=1, objective=Unclear()), 0, tmp_path, report=quiet)
    metrics = load_checkpoint(path).metadata.metrics
    assert "mine" not in metrics
    assert "loss" in metrics


def test_objectives_of_ones_own_say_how_they_are_called_and_return_a_loss(recipes, tmp_path):
    with pytest.raises(ValueError, match=r"Bare must say how it is called: family = one of \('simclr', "):
        type("Bare", (Objective,), {})

    @dataclass(frozen=True)
    class Number(Objective):
        family: ClassVar = "simclr"

        def __call__(self, first, second, **options):
            return (first - second).square().mean()

    try:
        with pytest.raises(ValueError, match=r"Number must return a Loss\(value, metrics\), got Tensor"):
            pretrain(replace(recipes["simclr"], objective=Number()), 0, tmp_path, report=quiet)
    finally:
        Objective.known.pop("Number")


def test_a_backbone_of_ones_own_that_fails_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours_that_fails.py").write_text("def net(channels):\n    raise KeyError('width')\n")
    assert run(main, ["mnist_simclr", "--backbone", "ours_that_fails.py:net", "--device", "cpu"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "'ours_that_fails.py:net' failed, called with (1,) (KeyError: 'width')" in error


class Waves(nn.Module):
    """Features of random frequencies, which no state_dict keeps."""

    def __init__(self, channels):
        super().__init__()
        self.waves = torch.randn(16, 5)

    def forward(self, images):
        return (images.mean((1, 2)) @ self.waves).cos()


class Auxiliary(nn.Module):
    """As torchvision's Inception, two outputs while it is trained."""

    def __init__(self, channels):
        super().__init__()
        self.net = nn.Conv2d(channels, 4, 3)

    def forward(self, images):
        return (self.net(images), images) if self.training else self.net(images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Waves, "gives other features when it is read again"),
        (Auxiliary, "while it trains too; got tuple"),
        (lambda channels: nn.Conv2d(channels, 4, 17), r"failed on an image of shape \(1, 16, 16\)"),
    ],
)
def test_backbones_of_ones_own_that_would_be_useless_are_refused_at_once(
    recipes, tmp_path, monkeypatch, make, message
):
    """Not after training, when the encoder is written."""
    monkeypatch.setitem(BACKBONES, "mine:net", make)
    recipe = replace(recipes["simclr"], encoder=replace(recipes["simclr"].encoder, backbone="mine:net"))
    with pytest.raises(ValueError, match=message):
        pretrain(recipe, 1, tmp_path, report=quiet)  # an encoder is read with what seed 0 draws
    assert not list(tmp_path.glob("*.safetensors*"))


@dataclass(frozen=True)
class Mine(DigitViews):
    """Views of one's own: what ``returned`` makes of the images."""

    returned: str = ""

    def apply(self, images, numbers):
        return eval(self.returned, {"x": images})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x", r"two batches of images like .*\(8, 1, 16, 16\) of torch.float32; it returned \(8,"),
        ("(x, x, x)", "return two batches"),
        ("(x, x[:4])", "must return two batches"),
        ("(x, x.double())", "must return two batches"),
        ("None", "it returned NoneType"),
        ("(9 * x - 4, x)", r"must return pixels in \[0, 1\]"),
    ],
)
def test_views_of_ones_own_that_return_something_else_are_named(recipes, tmp_path, returned, message):
    with pytest.raises(ValueError, match=rf"Mine\.apply .*{message}"):
        pretrain(replace(recipes["simclr"], views=Mine(returned=returned)), 0, tmp_path, report=quiet)


def test_views_of_ones_own_are_kept_for_other_images(recipes):
    """Made from lipcomp's views for another number of channels, they were replaced."""
    colour = TensorImages("c", torch.zeros(4, 3, 16, 16).byte(), torch.arange(4) % 2, ("a", "b"))
    mine = Mine(returned="(x, x)")
    assert fit(replace(recipes["simclr"], views=mine), colour).views is mine
    assert type(fit(replace(recipes["simclr"], views=DigitViews()), colour).views) is PhotoViews
