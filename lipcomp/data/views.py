"""Two augmented views of a batch, made on tensors, each image with draws of its own.

A *views* object is a frozen description of an augmentation; calling it with a batch and a generator gives two
views. Every number is drawn on the CPU from that generator, in an order that does not depend on the images, so the
same seed gives the same draws on every device and for both members of a matched pair. One draw for a whole batch,
which is what torchvision's transforms do when given a batch, would be no augmentation for contrastive learning.

:class:`DigitViews` is one affine resampling and a change of contrast. :class:`PhotoViews` is the augmentation of
the paper: crop, flip, colour jitter, grey, blur, solarisation (BYOL's asymmetric version, which the official code
uses for both methods).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from lipcomp.data.colour import adjust_saturation, shift_hue, to_grey

Images = Float[Tensor, "batch channels height width"]


class Views(Protocol):
    """Anything that makes two views of a batch from a generator's draws."""

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Two augmented views, pixels in [0, 1]."""


def _uniform(
    shape: int | tuple[int, ...], low: float, high: float, generator: Generator, like: Tensor
) -> Tensor:
    size = (shape,) if isinstance(shape, int) else shape
    draw = torch.rand(size, generator=generator, dtype=torch.float32) * (high - low) + low
    return draw.to(like.device, like.dtype)


@dataclass(frozen=True)
class DigitViews:
    """Rotation, scale, shear and translation by one bilinear resampling, then contrast; for grey digits.

    Parameters
    ----------
    degrees
        Rotation in [-degrees, degrees].
    scale
        Bounds of the size factor, log-uniform, for each axis on its own.
    shear
        Shear in [-shear, shear], as a tangent.
    translate
        Shift in [-translate, translate], in fractions of the image's side.
    contrast
        Bounds of the factor on the pixels (clipped to [0, 1] afterwards).
    """

    degrees: float = 25.0
    scale: tuple[float, float] = (0.7, 1.3)
    shear: float = 0.3
    translate: float = 0.12
    contrast: tuple[float, float] = (0.5, 1.5)

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Two views of every image; both are sampled in one call."""
        first, second = self.transform(torch.cat([images, images]), generator).chunk(2)
        return first, second

    def transform(self, images: Images, generator: Generator) -> Images:
        """One augmented version of every image."""
        n = len(images)
        angle = _uniform(n, -math.radians(self.degrees), math.radians(self.degrees), generator, images)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        scale = _uniform((2, n), low, high, generator, images).exp()
        shear = _uniform(n, -self.shear, self.shear, generator, images)
        shift = _uniform((2, n), -2 * self.translate, 2 * self.translate, generator, images)
        factor = _uniform(n, *self.contrast, generator, images)
        cos, sin = angle.cos() / scale, angle.sin() / scale  # the inverse map: output grid -> input pixel
        rows = [
            torch.stack([cos[0], sin[0] + shear * cos[0], shift[0]], 1),
            torch.stack([-sin[1], cos[1] - shear * sin[1], shift[1]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (warped * factor.view(-1, 1, 1, 1)).clamp(0, 1)


@dataclass(frozen=True)
class PhotoViews:
    """The paper's augmentation for colour images (Lee et al. 2021, appendix; official flags).

    In this order: crop of area U(area) and log-uniform absolute aspect ratio, resized back by bicubic interpolation
    without antialias; flip; colour jitter with probability 0.8 (additive brightness, contrast, saturation, hue, in
    random order, clipped after each); grey with probability 0.2; blur with one sigma from U(0.1, 2) an image;
    solarisation at 0.5. The two views differ in the probabilities of the last two.

    Deviations from the official code: sigma of the blur is drawn for each image instead of once a batch, and the
    bicubic kernel is PyTorch's (a = -0.75) instead of TensorFlow's (a = -0.5).
    """

    area: tuple[float, float] = (0.08, 1.0)
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    solarise: tuple[float, float] = (0.0, 0.2)

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Two views of every image."""
        if images.shape[1] != 3:
            raise ValueError(
                f"PhotoViews needs 3 colour channels, got {images.shape[1]}; use DigitViews for grey images"
            )
        return self.transform(images, generator, 0), self.transform(images, generator, 1)

    def transform(self, images: Images, generator: Generator, view: int) -> Images:
        """One augmented version of every image: view 0 or view 1."""
        images = self._crop_and_flip(images, generator)
        images = self._jitter(images, generator)
        n = len(images)
        grey = _uniform(n, 0, 1, generator, images) < self.grey
        images = torch.where(grey.view(-1, 1, 1, 1), to_grey(images), images)
        sigma = _uniform(n, 0.1, 2.0, generator, images)
        blurred = _uniform(n, 0, 1, generator, images) < self.blur[view]
        if blurred.any():
            images = torch.where(blurred.view(-1, 1, 1, 1), gaussian_blur(images, sigma), images)
        solarised = _uniform(n, 0, 1, generator, images) < self.solarise[view]
        inverted = torch.where(images < 0.5, images, 1 - images)
        return torch.where(solarised.view(-1, 1, 1, 1), inverted, images).clamp(0, 1)

    def _crop_and_flip(self, images: Images, generator: Generator) -> Images:
        n, _, height, width = images.shape
        area = _uniform(n, *self.area, generator, images)
        aspect = _uniform(n, math.log(3 / 4), math.log(4 / 3), generator, images).exp()
        crop_width = (area * height * width * aspect).sqrt().clamp(max=width) / width
        crop_height = (area * height * width / aspect).sqrt().clamp(max=height) / height
        x = (1 - crop_width) * _uniform(n, -1, 1, generator, images)
        y = (1 - crop_height) * _uniform(n, -1, 1, generator, images)
        sign = torch.where(_uniform(n, 0, 1, generator, images) < 0.5, -1.0, 1.0).to(images.dtype)
        zero = torch.zeros_like(x)
        theta = torch.stack(
            [torch.stack([crop_width * sign, zero, x], 1), torch.stack([zero, crop_height, y], 1)], 1
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        # Border padding repeats the edge of the *image*, where a crop's own edge would be repeated by a resize.
        cropped = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return cropped.clamp(0, 1)

    def _jitter(self, images: Images, generator: Generator) -> Images:
        n = len(images)
        chosen = _uniform(n, 0, 1, generator, images) < self.jitter
        strengths = [
            _uniform(n, -self.brightness, self.brightness, generator, images),
            _uniform(n, 1 - self.contrast, 1 + self.contrast, generator, images),
            _uniform(n, 1 - self.saturation, 1 + self.saturation, generator, images),
            _uniform(n, -self.hue, self.hue, generator, images),
        ]
        order = torch.rand((n, 4), generator=generator).argsort(1).to(images.device)
        operations = [_add_brightness, _scale_contrast, adjust_saturation, shift_hue]
        images = images.clone()
        for slot in range(4):
            for number, operation in enumerate(operations):
                members = (chosen & (order[:, slot] == number)).nonzero().squeeze(1)
                if len(members):
                    amount = strengths[number][members].view(-1, 1, 1, 1)
                    images[members] = operation(images[members], amount).clamp(0, 1)
        return images


def _add_brightness(images: Tensor, amount: Tensor) -> Tensor:
    return images + amount


def _scale_contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)  # each channel about its own mean, as TensorFlow does
    return (images - mean) * factor + mean


def gaussian_blur(images: Images, sigma: Float[Tensor, " batch"]) -> Images:
    """Blur each image with a sigma of its own; kernel a tenth of the height, odd, reflected at the border."""
    n, channels, height, width = images.shape
    radius = max(1, height // 20)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(images, (radius, radius, radius, radius), mode="reflect").reshape(
        1, n * channels, height + 2 * radius, -1
    )
    flat = F.conv2d(flat, kernel.view(n * channels, 1, 1, -1), groups=n * channels)
    flat = F.conv2d(flat, kernel.view(n * channels, 1, -1, 1), groups=n * channels)
    return flat.reshape(n, channels, height, width)
