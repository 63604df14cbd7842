"""Views: draws of each image's own, decided by the generator alone; colour against torchvision's one-image code."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as V

from lipcomp.data._colour import adjust_saturation, shift_hue, to_grey
from lipcomp.data._views import DigitViews, PhotoViews, gaussian_blur


@pytest.mark.parametrize(("views", "channels"), [(DigitViews(), 1), (PhotoViews(), 3)])
def test_draws_come_from_the_generator_and_nowhere_else(views, channels):
    images = torch.rand(6, channels, 28, 28, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    one = views(images, torch.Generator().manual_seed(5))
    two = views(images, torch.Generator().manual_seed(5))
    other = views(images, torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
        assert a.shape == images.shape
        assert 0 <= a.min() <= a.max() <= 1
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(("views", "channels"), [(DigitViews(), 1), (PhotoViews(), 3)])
def test_how_much_randomness_is_used_does_not_depend_on_the_images(views, channels):
    ends = []
    for pixels in (torch.zeros(5, channels, 28, 28), torch.rand(5, channels, 28, 28)):
        generator = torch.Generator().manual_seed(2)
        views(pixels, generator)
        ends.append(generator.get_state())
    assert torch.equal(*ends)


@pytest.mark.parametrize(("views", "channels"), [(DigitViews(), 1), (PhotoViews(), 3)])
def test_equal_images_of_a_batch_get_different_views(views, channels, generator):
    image = torch.rand(1, channels, 28, 28, generator=generator)
    first, _ = views(image.expand(8, -1, -1, -1).clone(), generator)
    assert len({bytes(v.numpy().tobytes()) for v in first}) == 8


def test_digit_views_without_any_strength_are_the_image(generator):
    images = torch.rand(3, 1, 28, 28, generator=generator)
    still = DigitViews(0.0, (1.0, 1.0), 0.0, 0.0, (1.0, 1.0))
    for view in still(images, generator):
        torch.testing.assert_close(view, images, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_rot90(generator):
    images = torch.rand(2, 1, 28, 28, generator=generator)
    views = DigitViews(90.0, (1.0, 1.0), 0.0, 0.0, (1.0, 1.0))
    turned = views.transform(images, torch.ones(2, 7))
    torch.testing.assert_close(turned, images.rot90(-1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("views", "channels"), [(DigitViews(), 1), (PhotoViews(), 3)])
def test_parts_of_a_batch_with_their_rows_make_the_views_of_the_whole(views, channels, generator):
    images = torch.rand(7, channels, 28, 28, generator=generator)
    numbers = views.draw(7, generator)
    assert numbers.shape == (7, views.numbers)
    whole = views.apply(images, numbers)
    parts = [views.apply(images[rows], numbers[rows]) for rows in (slice(0, 3), slice(3, 7))]
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([p[view] for p in parts]), whole[view], atol=1e-6, rtol=0)


def test_a_group_shares_one_sigma_and_nothing_else(generator):
    views = PhotoViews(sigma_group=4)
    numbers = views.draw(10, generator)
    distinct = [len(numbers[:4, c].unique()) for c in range(36)]
    assert [c for c, n in enumerate(distinct) if n == 1] == [15, 33]
    assert len(numbers[:, 15].unique()) == len(numbers[:, 33].unique()) == 3


def test_colour_changes_equal_torchvisions_image_by_image(generator):
    images = torch.rand(5, 3, 8, 8, generator=generator)
    amounts = torch.tensor([-0.5, -0.1, 0.0, 0.2, 0.5]).view(-1, 1, 1, 1)
    for image, amount, ours in zip(images, amounts, shift_hue(images, amounts), strict=True):
        torch.testing.assert_close(ours, V.adjust_hue(image, amount.item()), atol=1e-5, rtol=0)
    torch.testing.assert_close(to_grey(images)[:, :1], V.rgb_to_grayscale(images, 1), atol=1e-5, rtol=0)


def test_saturation_is_hsvs(generator):
    import colorsys

    images = torch.rand(2, 3, 2, 2, generator=generator)
    factors = torch.tensor([0.5, 1.7]).view(-1, 1, 1, 1)
    for image, factor, ours in zip(images, factors, adjust_saturation(images, factors), strict=True):
        for i in range(2):
            for j in range(2):
                h, s, v = colorsys.rgb_to_hsv(*image[:, i, j].tolist())
                expected = colorsys.hsv_to_rgb(h, min(1.0, s * factor.item()), v)
                torch.testing.assert_close(ours[:, i, j], torch.tensor(expected), atol=1e-5, rtol=0)
    grey = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(adjust_saturation(grey, torch.full((1, 1, 1, 1), 1.2)), grey)


def test_blur_equals_torchvisions_with_a_sigma_for_each_image(generator):
    """The same but at the border, where torchvision reflects and the official code has zeros."""
    images = torch.rand(3, 3, 60, 60, generator=generator)
    sigma = torch.tensor([0.3, 1.0, 2.0])
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for image, s, ours in zip(padded, sigma, gaussian_blur(images, sigma), strict=True):
        expected = V.gaussian_blur(image, [7, 7], [s.item()] * 2)[:, 3:-3, 3:-3]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_the_order_of_the_colour_changes_is_each_images_own(generator):
    """One image at a time, the four operations in the order its numbers give, is what the batch makes."""
    views = PhotoViews(area=(1.0, 1.0), jitter=1.0, grey=0.0, blur=(0.0, 0.0), solarise=(0.0, 0.0))
    images = torch.rand(12, 3, 6, 6, generator=generator)
    numbers = views.draw(12, generator)
    orders = set()
    for image, row, ours in zip(images, numbers[:, :18], views.finish(images, numbers, 0), strict=True):
        operations = {
            0: lambda x, u: x + (-0.4 + 0.8 * u),
            1: lambda x, u: (
                (x - x.mean((1, 2), keepdim=True)) * (0.6 + 0.8 * u) + x.mean((1, 2), keepdim=True)
            ),
            2: lambda x, u: adjust_saturation(x[None], (0.8 + 0.4 * u).view(1, 1, 1, 1))[0],
            3: lambda x, u: V.adjust_hue(x, (-0.1 + 0.2 * u).item()),
        }
        order = row[10:14].argsort().tolist()
        orders.add(tuple(order))
        for number in order:
            image = operations[number](image, row[6 + number]).clamp(0, 1)
        torch.testing.assert_close(ours, image, atol=1e-5, rtol=0)
    assert len(orders) > 5


def test_photo_views_need_colour(generator):
    with pytest.raises(ValueError, match="needs 3 colour channels, got 1"):
        PhotoViews()(torch.rand(2, 1, 28, 28), generator)


def test_digit_views_are_one_affine_map_within_the_stated_bounds(generator):
    """A ramp shows where each pixel was read: diag(1/s) R(angle) shear x + shift, each number from end to end."""
    views = DigitViews()
    numbers = torch.rand(40, 7, generator=generator)
    numbers[0], numbers[1], numbers[2] = 0.0, 1.0, 0.5
    side = (torch.arange(28) + 0.5) / 14 - 1
    ramps = [0.3 + 0.1 * side.expand(28, 28), 0.3 + 0.1 * side[:, None].expand(28, 28)]
    found = [views.transform(ramp.expand(40, 1, 28, 28).clone(), numbers)[:, 0].double() for ramp in ramps]
    at = torch.stack([side.expand(28, 28), side[:, None].expand(28, 28)]).double()
    for i, u in enumerate(numbers.double().tolist()):
        angle, shear = (2 * u[0] - 1) * math.radians(25), (2 * u[3] - 1) * 0.3
        scale = [0.7 * (1.3 / 0.7) ** v for v in u[1:3]]
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        inverse = torch.diag(1 / torch.tensor(scale)) @ turn @ torch.tensor([[1.0, shear], [0.0, 1.0]])
        # the grid is 2 wide
        shift = torch.tensor([(2 * v - 1) * 0.12 * 2 for v in u[4:6]], dtype=torch.float64)
        expected = torch.einsum("ij,jab->iab", inverse.double(), at) + shift[:, None, None]
        inside = (expected.abs() < 1 - 2 / 28).all(0)
        assert inside.sum() > 100
        for ours, coordinate in zip(found, expected, strict=True):
            pixels = (0.3 + 0.1 * coordinate[inside]) * (0.5 + u[6])
            torch.testing.assert_close(ours[i][inside], pixels, rtol=0, atol=1e-5)


def test_each_change_happens_as_often_as_it_should(generator):
    """Grey, flip, jitter, blur and solarisation come below their probability, in the view that they belong to."""
    views = PhotoViews()
    images = torch.rand(1, 3, 24, 24, generator=generator)
    never = torch.full((1, 36), 0.999)
    columns = {"flip": views._FLIP, "jitter": views._JITTER, "grey": views._GREY, "blur": views._BLUR,
               "solarise": views._SOLARISE}  # fmt: skip
    # the first view is always blurred
    plain = [gaussian_blur(images, torch.tensor([0.1 + 1.9 * 0.999])), images]
    for view in (0, 1):
        torch.testing.assert_close(views.finish(images, never, view), plain[view])
    for name, column in columns.items():
        chances = getattr(views, name)
        for view, chance in enumerate(chances if isinstance(chances, tuple) else (chances, chances)):
            for u, happens in ((chance - 1e-3, True), (chance + 1e-3, False)):
                if not 0 <= u < 0.998:
                    continue
                numbers = never.clone()
                numbers[:, view * 18 + column] = u
                if name == "flip":
                    assert bool(views.mirrored(numbers.chunk(2, 1)[view])) == happens
                else:
                    changed = not torch.equal(
                        views.finish(images, numbers, view), views.finish(images, never, view)
                    )
                    assert changed == happens, (name, view, u)


@pytest.mark.parametrize("views", [DigitViews(), PhotoViews()])
def test_the_callers_default_type_changes_no_view(views, default_float64):
    expected = views.draw(3, torch.Generator().manual_seed(0))
    with default_float64():
        assert torch.equal(views.draw(3, torch.Generator().manual_seed(0)), expected)
