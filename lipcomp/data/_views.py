"""Two augmented views of a batch, made on tensors, with separate draws for each image.

A *views* object is a frozen description of an augmentation, used in two steps:

    numbers = views.draw(n, generator)          # (n, views.numbers) uniform numbers in [0, 1), on the CPU
    view1, view2 = views.apply(images, numbers)

or at once, ``views(images, generator)``. Row i belongs to image i, so the numbers of a whole batch are drawn at one
place and cut like the images: each rank of a distributed run and each part of an accumulated batch applies its rows
and gets what one process would have made. The numbers do not depend on the images nor on the device, so the members of
a matched pair see the same views. One draw for a whole batch, which is what torchvision's transforms do when given a
batch, would be no augmentation for contrastive learning.

:class:`DigitViews` is one affine resampling and a change of contrast. :class:`PhotoViews` is the augmentation of the
paper: crop, flip, colour jitter, grey, blur, solarisation (BYOL's asymmetric version, which the official code uses for
both methods).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn import functional as F

from lipcomp._arguments import checked
from lipcomp.data._colour import adjust_saturation, shift_hue, to_grey
from lipcomp.data._crops import Boxes, crop_and_resize, random_boxes

Images = Float[Tensor, "batch channels height width"]
Numbers = Float[Tensor, "batch numbers"]


@runtime_checkable
class Views(Protocol):
    """A callable that makes two views of a batch from uniform numbers, one row per image."""

    @property
    def numbers(self) -> int:
        """Uniform numbers for one image, both views together."""

    def draw(self, n: int, generator: Generator) -> Numbers:
        """The numbers of ``n`` images."""

    def apply(self, images: Images, numbers: Numbers) -> tuple[Images, Images]:
        """Two augmented views, pixels in [0, 1]."""

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Draw and apply."""


def _between(low: float, high: float, numbers: Tensor) -> Tensor:
    return low + (high - low) * numbers


def _each(values: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _within(views: Any, names: str, low: float, high: float = math.inf, *, ordered: bool = False) -> None:
    """Refuse a field of an augmentation, or a number of a pair, outside [low, high]; infinite ones always."""
    for name in names.split():
        value = getattr(views, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(low <= number <= high and number < math.inf for number in numbers):
            reach = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and at least {low:g}"
            raise ValueError(f"{name} must be {reach}, got {value}")
        if ordered and numbers[0] > numbers[1]:
            raise ValueError(f"{name} must be (lowest, highest), got {value}")


@checked
@dataclass(frozen=True)
class DigitViews:
    """Rotation, scale, shear and translation by one bilinear resampling, then contrast; for grey digits."""

    degrees: float = 25.0  # rotation in [-degrees, degrees]
    # bounds of the size factor, log-uniform, for each axis on its own
    scale: tuple[float, float] = (0.7, 1.3)
    shear: float = 0.3  # shear in [-shear, shear], as a tangent
    translate: float = 0.12  # shift in [-translate, translate], in fractions of the image's side
    # bounds of the factor on the pixels (clipped to [0, 1] afterwards)
    contrast: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self) -> None:
        _within(self, "degrees shear translate", 0.0)
        _within(self, "scale", 0.01, 100.0, ordered=True)
        _within(self, "contrast", 0.0, ordered=True)

    @property
    def numbers(self) -> int:
        """Seven per view."""
        return 14

    def draw(self, n: int, generator: Generator) -> Numbers:
        """Seven numbers per view of each image."""
        return torch.rand((n, self.numbers), generator=generator, dtype=torch.float32)

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Draw and apply."""
        return self.apply(images, self.draw(len(images), generator))

    def apply(self, images: Images, numbers: Numbers) -> tuple[Images, Images]:
        """Two views of every image; both are sampled in one call."""
        u = torch.cat(numbers.to(images.device, images.dtype).chunk(2, 1))
        first, second = self.transform(torch.cat([images, images]), u).chunk(2)
        return first, second

    def transform(self, images: Images, numbers: Float[Tensor, "batch 7"]) -> Images:
        """One augmented version of every image."""
        u = numbers.unbind(1)
        angle = _between(-math.radians(self.degrees), math.radians(self.degrees), u[0])
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        scale = [_between(low, high, v).exp() for v in u[1:3]]
        shear = _between(-self.shear, self.shear, u[3])
        shift = [_between(-2 * self.translate, 2 * self.translate, v) for v in u[4:6]]
        cos, sin = [angle.cos() / s for s in scale], [angle.sin() / s for s in scale]
        rows = [  # the inverse map: output grid -> input pixel
            torch.stack([cos[0], sin[0] + shear * cos[0], shift[0]], 1),
            torch.stack([-sin[1], cos[1] - shear * sin[1], shift[1]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (warped * _each(_between(*self.contrast, u[6]))).clamp(0, 1)


@checked
@dataclass(frozen=True)
class PhotoViews:
    """The paper's augmentation for colour images (Lee et al. 2021, appendix; official code and flags).

    In this order: crop of area U(area) and log-uniform absolute aspect ratio, brought back by bicubic interpolation
    without antialias; flip; colour jitter with probability 0.8 (additive brightness, contrast, saturation, hue, in
    random order, clipped after each); grey with probability 0.2; blur, zeros beyond the border, sigma from U(0.1, 2);
    solarisation at 0.5. The two views differ in the probabilities of the last two.

    ``sigma_group`` images in a row share one sigma of the blur: 1 draws it for each image; the official code draws one
    for the 128 images of a replica, for each view. ``flip`` is the probability of a mirror image (0 for digits).
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
    sigma_group: int = 1
    flip: float = 0.5

    # Columns of one view's numbers.
    _CROP, _FLIP, _JITTER = slice(0, 4), 4, 5
    _STRENGTHS, _ORDER = slice(6, 10), slice(10, 14)
    _GREY, _SIGMA, _BLUR, _SOLARISE, _WIDTH = 14, 15, 16, 17, 18

    def __post_init__(self) -> None:
        _within(self, "area", 0.0, 1.0, ordered=True)
        _within(self, "jitter contrast saturation grey blur solarise flip", 0.0, 1.0)
        _within(self, "hue", 0.0, 0.5)
        _within(self, "brightness", 0.0)
        _within(self, "sigma_group", 1.0)

    @property
    def numbers(self) -> int:
        """Eighteen per view."""
        return 2 * self._WIDTH

    def draw(self, n: int, generator: Generator) -> Numbers:
        """Eighteen numbers per view of each image."""
        numbers = torch.rand((n, self.numbers), generator=generator, dtype=torch.float32)
        if self.sigma_group > 1:
            first = torch.arange(n) // self.sigma_group * self.sigma_group
            for column in (self._SIGMA, self._WIDTH + self._SIGMA):
                numbers[:, column] = numbers[first, column]
        return numbers

    def __call__(self, images: Images, generator: Generator) -> tuple[Images, Images]:
        """Draw and apply."""
        return self.apply(images, self.draw(len(images), generator))

    def apply(self, images: Images, numbers: Numbers) -> tuple[Images, Images]:
        """Two views of every image, of the images' own size."""
        _need_colour(images.shape[1])
        size = (images.shape[2], images.shape[3])
        halves = numbers.to(images.device).chunk(2, 1)
        crops = [crop_and_resize(images, self.boxes(u, *size), size, self.mirrored(u)) for u in halves]
        return self.finish(crops[0], numbers, 0), self.finish(crops[1], numbers, 1)

    def boxes(self, numbers: Float[Tensor, "batch 18"], height: int, width: int) -> Boxes:
        """Where one view's crops lie in images of that size."""
        return random_boxes(numbers[:, self._CROP], height, width, self.area)

    def mirrored(self, numbers: Float[Tensor, "batch 18"]) -> Bool[Tensor, " batch"]:
        """Which of one view's crops are flipped left to right."""
        return numbers[:, self._FLIP] < self.flip

    def finish(self, crops: Images, numbers: Numbers, view: int) -> Images:
        """All that follows the crop and the flip: jitter, grey, blur, solarisation of view 0 or view 1."""
        _need_colour(crops.shape[1])
        u = numbers[:, view * self._WIDTH : (view + 1) * self._WIDTH]
        images = self._jitter(crops, u)
        u = u.to(crops.device, crops.dtype)
        images = torch.where(_each(u[:, self._GREY] < self.grey), to_grey(images), images)
        if self.blur[view] > 0:
            blurred = gaussian_blur(images, _between(0.1, 2.0, u[:, self._SIGMA]))
            images = torch.where(_each(u[:, self._BLUR] < self.blur[view]), blurred, images)
        if self.solarise[view] > 0:
            solarised = _each(u[:, self._SOLARISE] < self.solarise[view]) & (images >= 0.5)
            images = torch.where(solarised, 1 - images, images)
        return images.clamp(0, 1)

    def _jitter(self, images: Images, numbers: Float[Tensor, "batch 18"]) -> Images:
        """Apply the four colour changes in a separate random order for each image."""
        u = numbers[:, self._STRENGTHS]
        bounds = [
            (-self.brightness, self.brightness),
            (1 - self.contrast, 1 + self.contrast),
            (1 - self.saturation, 1 + self.saturation),
            (-self.hue, self.hue),
        ]
        strengths = torch.stack([_between(*b, u[:, i]) for i, b in enumerate(bounds)], 1)
        order = numbers[:, self._ORDER].argsort(1)
        order = torch.where((numbers[:, self._JITTER] < self.jitter).unsqueeze(1), order, -1).cpu()
        strengths = strengths.to(images.device, images.dtype)
        images = images.clone()
        for slot in range(4):
            for number, change in enumerate((_add_brightness, _scale_contrast, adjust_saturation, shift_hue)):
                members = (order[:, slot] == number).nonzero().squeeze(1).to(images.device)
                if len(members):
                    changed = change(images[members], _each(strengths[members, number]))
                    images[members] = changed.clamp(0, 1)
        return images


def _need_colour(channels: int) -> None:
    if channels != 3:
        raise ValueError(
            f"PhotoViews needs 3 colour channels, got {channels}; use DigitViews for grey images"
        )


def _add_brightness(images: Tensor, amount: Tensor) -> Tensor:
    return images + amount


def _scale_contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)  # each channel about its own mean, as TensorFlow does
    return (images - mean) * factor + mean


def gaussian_blur(images: Images, sigma: Float[Tensor, " batch"]) -> Images:
    """Blur each image with its own sigma; the kernel is a tenth of the height (odd), with zero padding."""
    n, channels, height, width = images.shape
    radius = max(1, height // 20)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, n * channels, height, width)
    flat = F.conv2d(flat, kernel.view(n * channels, 1, 1, -1), groups=n * channels, padding=(0, radius))
    flat = F.conv2d(flat, kernel.view(n * channels, 1, -1, 1), groups=n * channels, padding=(radius, 0))
    return flat.reshape(n, channels, height, width)
