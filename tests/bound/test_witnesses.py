"""The pair that attains a bound comes with its images, and a picture of it on request."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lipcomp.bound import all_pairs, lower_bounds, measure_pairs
from lipcomp.bound._pairs import PairBlock
from lipcomp.measure._outputs import draw_pair


@pytest.fixture
def fn(generator):
    weight = torch.randn(48, 6, generator=generator)
    return lambda x: F.normalize(x.flatten(1) @ weight, dim=1)


def test_streamed_pairs_bring_their_images(fn, generator):
    first, second = torch.rand(2, 23, 3, 4, 4, generator=generator)
    second[4] = first[4]  # proves nothing
    at = torch.arange(23)
    blocks = [
        PairBlock(first[part], second[part], torch.stack([part, part + 100], 1)) for part in at.split(5)
    ]
    found = measure_pairs(fn, blocks, concentration=64.0)
    for name, bound in found.bounds.items():
        i = bound.witness.position
        assert bound.witness.pair == (i, i + 100), name
        assert torch.equal(bound.witness.images[0], first[i])
        assert torch.equal(bound.witness.images[1], second[i])
        distance = (second[i].double() - first[i].double()).norm()
        assert bound.witness.distance == pytest.approx(float(distance), rel=1e-12)


def test_all_pairs_bring_their_images(fn, generator):
    images = torch.rand(30, 3, 4, 4, generator=generator)
    found = all_pairs(fn(images), images, concentration=64.0, fn=fn, block_size=7)
    for bound in found.bounds.values():
        for place, image in zip(bound.witness.pair, bound.witness.images, strict=True):
            assert torch.equal(image, images[place])


def test_directions_alone_have_none(fn, generator):
    images = torch.rand(8, 3, 4, 4, generator=generator)
    found = lower_bounds(fn(images[:4]), fn(images[4:]), (images[:4] - images[4:]).flatten(1).norm(dim=1))
    assert found["direction"].witness.images is None


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_picture_of_both_and_of_their_difference(channels, tmp_path, generator):
    first = torch.rand(channels, 6, 8, generator=generator)
    second = (first + 1e-4 * torch.randn(first.shape, generator=generator)).clamp(0, 1)
    path = tmp_path / "new" / "pair.png"
    draw_pair(path, first, second)
    with Image.open(path) as picture:
        assert picture.size == (3 * 8 + 4, 6 + 2)
        grey = torch.from_numpy(np.array(picture.convert("L")))
    assert grey[:, 19:27].float().std() > 10  # the small step fills the scale
    draw_pair(path, first, first)
    assert [file.name for file in path.parent.iterdir()] == ["pair.png"]
