"""Random resized crops: the box's law, and bicubic against a loop over pixels and against Pillow's kernel."""

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.data._crops import _keys, crop_and_resize, crop_picture, random_boxes


def keys(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_resize(line, size):
    """One line, one sample after the other; taps outside weigh nothing."""
    out = []
    for o in range(size):
        centre = (o + 0.5) * len(line) / size - 0.5
        taps = [t for t in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3) if 0 <= t < len(line)]
        weights = [keys(centre - t) for t in taps]
        out.append(sum(w * line[t] for w, t in zip(weights, taps, strict=True)) / sum(weights))
    return np.array(out)


def test_the_kernel_is_keys_and_ends_at_two():
    x = torch.linspace(-3.5, 3.5, 29, dtype=torch.float64)
    expected = torch.tensor([keys(float(value)) for value in x], dtype=torch.float64)
    terms = 10.0  # the largest term of the polynomial, at 2: its rounding is what may differ
    torch.testing.assert_close(_keys(x), expected, rtol=0, atol=4 * torch.finfo(x.dtype).eps * terms)


def test_a_batch_equals_a_loop_over_images_rows_and_columns(generator):
    images = torch.rand(5, 2, 9, 13, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 9, 13], [2, 3, 5, 4], [8, 12, 1, 1], [1, 0, 7, 13], [0, 5, 3, 8]])
    mirrored = torch.tensor([False, True, False, True, False])
    ours = crop_and_resize(images, boxes, (6, 8), mirrored)
    for image, (top, left, height, width), flip, out in zip(
        images.numpy(), boxes.tolist(), mirrored, ours, strict=True
    ):
        box = image[:, top : top + height, left : left + width]
        expected = np.apply_along_axis(slow_resize, 1, np.apply_along_axis(slow_resize, 2, box, 8), 6)
        expected = expected[:, :, ::-1] if flip else expected
        np.testing.assert_allclose(out, expected.clip(0, 1), atol=1e-12)


@pytest.mark.parametrize("size", [(40, 60), (61, 37)])
def test_enlarging_equals_pillows_bicubic(generator, size):
    """Pillow uses the same kernel and border; only when it reduces does it widen the kernel (antialias)."""
    image = torch.rand(17, 23, generator=generator)
    expected = Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    ours = crop_and_resize(image[None, None], torch.tensor([[0, 0, 17, 23]]), size)[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(np.array(expected)).clamp(0, 1), atol=2e-6, rtol=0)


def test_the_whole_image_at_its_own_size_is_the_image(generator):
    images = torch.rand(3, 3, 8, 8, generator=generator)
    whole = torch.tensor([[0, 0, 8, 8]]).expand(3, -1)
    torch.testing.assert_close(crop_and_resize(images, whole, (8, 8)), images, atol=1e-6, rtol=0)
    flipped = crop_and_resize(images, whole, (8, 8), torch.tensor([True] * 3))
    torch.testing.assert_close(flipped, images.flip(3), atol=1e-6, rtol=0)


def test_boxes_lie_inside_and_follow_the_published_law(generator):
    numbers = torch.rand(20000, 4, generator=generator)
    top, left, height, width = random_boxes(numbers, 375, 500).double().unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= 375
    assert (left + width).max() <= 500
    free = (height < 375) & (width < 500)  # not cut to the image
    area, ratio = height * width / (375 * 500), (width / height).log()
    expected = 0.08 + 0.92 * numbers[:, 0].double()
    torch.testing.assert_close(area[free], expected[free], rtol=0.02, atol=0)
    assert ratio[free].abs().max() < np.log(4 / 3) + 0.02
    assert abs(ratio[expected < 0.5].mean()) < 0.01
    small = height == 150
    assert len(top[small].unique()) > 10


def test_images_of_different_sizes_have_boxes_of_their_own(generator):
    numbers = torch.rand(1, 4, generator=generator).expand(2, 4)
    height, width = torch.tensor([100, 200]), torch.tensor([100, 200])
    one, two = random_boxes(numbers, height, width).tolist()
    np.testing.assert_allclose(2 * np.array(one), two, atol=2)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_picture_is_cropped_as_a_batch_is(channels, kind, generator):
    """Boxes larger and smaller than the result, of one pixel, at the borders; mirrored or not."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 51, channels)).astype(kind)
    pixels = pixels if kind is np.uint8 else pixels / np.float32(255)
    scale = 1 / 255 if kind is np.uint8 else 1.0
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() * scale
    boxes = random_boxes(torch.rand(20, 4, generator=generator), 37, 51).tolist()
    for number, box in enumerate([*boxes, [0, 0, 37, 51], [36, 50, 1, 1], [3, 4, 16, 24]]):
        mirrored = torch.tensor([number % 2 == 1])
        expected = crop_and_resize(batch, torch.tensor([box]), (16, 24), mirrored)[0]
        found = crop_picture(pixels, box, (16, 24), bool(mirrored), scale)
        torch.testing.assert_close(found.permute(2, 0, 1), expected, rtol=0, atol=1e-6)
