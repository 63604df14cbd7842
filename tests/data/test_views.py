"""Views: draws of each image's own, decided by the generator alone; colour against torchvision's one-image code."""

import pytest
import torch
from torchvision.transforms.v2 import functional as V

from lipcomp.data import DigitViews, PhotoViews
from lipcomp.data.colour import adjust_saturation, shift_hue, to_grey
from lipcomp.data.views import gaussian_blur


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
    still = DigitViews(degrees=0, scale=(1, 1), shear=0, translate=0, contrast=(1, 1))
    for view in still(images, generator):
        torch.testing.assert_close(view, images, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_rot90(generator):
    images = torch.rand(2, 1, 28, 28, generator=generator)

    class Ninety(torch.Generator):
        pass

    views = DigitViews(degrees=90, scale=(1, 1), shear=0, translate=0, contrast=(1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda size, **_: torch.ones(size))
        turned = views.transform(images, generator)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


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
    images = torch.rand(3, 3, 60, 60, generator=generator)
    sigma = torch.tensor([0.3, 1.0, 2.0])
    for image, s, ours in zip(images, sigma, gaussian_blur(images, sigma), strict=True):
        torch.testing.assert_close(ours, V.gaussian_blur(image, [7, 7], [s.item()] * 2), atol=1e-5, rtol=0)


def test_photo_views_need_colour(generator):
    with pytest.raises(ValueError, match="needs 3 colour channels, got 1"):
        PhotoViews()(torch.rand(2, 1, 28, 28), generator)
