"""What networks and views of one's own draw belongs to seed and step, or is refused."""

import random
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data._sets import TensorImages
from lipcomp.data._views import DigitViews
from lipcomp.encoders._backbones import BACKBONES
from train.data import check_views, global_generators, seed_globals
from train.networks import Trainee
from train.parallel import Ranks


class Skipping(nn.Module):
    """Skips a layer at random while it is trained."""

    def __init__(self, channels, number):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 9, 3), nn.Conv2d(9, 9, 1)
        self.number = number

    def forward(self, images):
        found = self.first(images)
        skip = self.training and self.number() < 0.5
        return (found if skip else found + self.second(found)).mean((2, 3))


@pytest.mark.parametrize(
    ("number", "one", "two"),
    [
        (random.random, False, True),
        (lambda: np.random.rand(), False, True),  # noqa: NPY002
        (lambda: torch.rand(()).item(), False, "decide with Python's random"),
        (random.Random(0).random, "no run could be repeated or continued", "no run could be repeated"),
    ],
    ids=["python", "numpy", "torch", "own"],
)
def test_layers_that_are_skipped_at_random_are_skipped_alike_or_refused(
    long_runs, monkeypatch, number, one, two
):
    monkeypatch.setitem(BACKBONES, "mine:skipping", lambda channels: Skipping(channels, number))
    encoder = replace(long_runs[1].encoder, backbone="mine:skipping")
    trainee = Trainee(replace(long_runs[1], encoder=encoder), 0, 2).train()
    for size, told in enumerate((one, two), 1):
        with global_generators(torch.device("cpu")):
            if isinstance(told, bool):
                assert trainee.check_draws(Ranks(0, size), 8) is told
            else:
                with pytest.raises(ValueError, match=told):
                    trainee.check_draws(Ranks(0, size), 8)


class Exacting(nn.Module):
    """Takes its batch in four parts, keeps what it saw, moves a weight, calls a layer without weights or does not."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(channels, 9, 3), nn.BatchNorm2d(9), nn.ReLU()
        self.register_buffer("seen", torch.zeros(0, 9))

    def forward(self, images):
        found = self.first(images)
        if self.training:
            found = torch.cat([self.norm(part) for part in found.unflatten(0, (4, -1))])
            self.seen = torch.cat([self.seen, found.mean((2, 3))])
            if not hasattr(self, "count"):
                self.register_buffer("count", torch.zeros(()))
            self.first.weight.data.add_(0.1)
            found = self.act(found) if torch.rand(()) < 0.5 else found
        return found.mean((2, 3)) * torch.tensor([1] * 8 + [torch.nan])


def test_the_look_at_a_network_refuses_no_more_than_it_must_and_leaves_it_as_it_was(long_runs, monkeypatch):
    monkeypatch.setitem(BACKBONES, "mine:exacting", Exacting)
    encoder = replace(long_runs[1].encoder, backbone="mine:exacting")
    trainee = Trainee(replace(long_runs[1], encoder=encoder), 0, 2).train()
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    with global_generators(torch.device("cpu")):
        assert trainee.check_draws(Ranks(0, 2), 8) is False
    after = trainee.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_global_generators_belong_to_the_step_and_are_left_as_they_were():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    expected = drawn()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    found = []
    with global_generators(torch.device("cpu")):
        for rank, step in ((0, 5), (0, 5), (1, 5), (0, 6)):
            seed_globals(0, rank, step)
            found.append(drawn())
    assert drawn() == expected
    assert found[0] == found[1]
    assert found[2][:2] == found[0][:2]  # alike on all ranks, but for torch's
    assert found[2][2] != found[0][2]
    assert found[3] != found[0]


@dataclass(frozen=True)
class MyViews(DigitViews):
    """Views that draw from some generator."""

    where: str = "apply"
    number: ClassVar = staticmethod(random.random)

    def draw(self, n, generator):
        numbers = super().draw(n, generator) * (self.number() if self.where == "draw" else 1)
        return numbers[1:] if self.where == "rows" else numbers

    def apply(self, images, numbers):
        return super().apply(images * (self.number() if self.where == "apply" else 1), numbers)


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        ("apply", random.random, None),
        ("draw", random.random, r"MyViews\.draw must take all its random numbers from the generator"),
        ("rows", random.random, r"a tensor with 4 rows, one per image; it returned \(3, \d+\)"),
        ("apply", random.Random(0).random, r"MyViews\.apply makes other views"),
    ],
)
def test_views_of_ones_own_that_no_run_could_repeat_are_refused(where, number, said, monkeypatch):
    monkeypatch.setattr(MyViews, "number", staticmethod(number))
    images = TensorImages(
        "x", torch.full((4, 1, 8, 8), 200, dtype=torch.uint8), torch.arange(4), tuple("abcd")
    )
    with (
        global_generators(torch.device("cpu")),
        nullcontext() if said is None else pytest.raises(ValueError, match=said),
    ):
        check_views(MyViews(where=where), images, torch.device("cpu"))


def test_a_run_is_of_float32_whatever_the_callers_default_type(default_float64):
    with default_float64():
        with global_generators(torch.device("cpu")):
            assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).dtype == torch.float64
