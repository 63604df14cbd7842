"""From a decoded picture to the pixels that a network sees: resize, crop, scale to [0, 1]; one description for all.

A :class:`Preprocessing` is what is printed, recorded, hashed and applied, in this order:

1. resize by Pillow, as the 8-bit pipelines of timm, torchvision and Hugging Face do (``antialias=False``: by torch);
2. cut the centre, or pad it where the picture is smaller;
3. divide bytes by 255.

The mean and std of a network are its own: pixels are in [0, 1] everywhere in lipcomp, so that corruptions, radii and
distances mean the same for each network. A ``rescale_factor`` r other than 1/255 belongs there too: (255 r x - mean) /
std is (x - mean / 255r) / (std / 255r).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional as V

from lipcomp._arguments import checked
from lipcomp.data._pictures import with_channels

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# Interpolations whose kernels for bytes torchvision has. Its nearest-exact takes other pixels than Pillow's at ties.
PROCESSORS = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos"}
_MOST = 1 << 28  # pixels of a resized picture, about where Pillow takes a file for a decompression bomb
Size = tuple[int, int]


@checked
@dataclass(frozen=True)
class Preprocessing:
    """The steps from a picture to the input of a network.

    Attributes
    ----------
    resize
        Length of the shorter side in pixels; or (height, width), which the picture covers with its aspect ratio kept,
        or matches exactly if ``squash``; or None.
    crop
        (height, width) of the centre crop, or None. Smaller pictures are padded with zeros.
    interpolation
        "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
    antialias
        Widen the kernel when the picture shrinks (Pillow's way). False is torch's interpolation of tensors without it
        (nearest, bilinear and bicubic only).
    squash
        Resize to (height, width) exactly, changing the aspect ratio.
    border
        A colour, (grey,) or (red, green, blue) as bytes: the picture fits whole into ``resize = (height, width)`` and
        the rest up to the crop has this colour (timm's ``crop_mode="border"``).
    enlarge
        Whether to enlarge pictures smaller than the result, as the libraries do; False raises an error.
    keep
        Do not resize pictures that have the size of the crop already.
    background
        Colour behind transparent pixels, as bytes.
    processor
        As Hugging Face's image processors do it: torchvision's kernels for bytes, which differ from Pillow's by up to
        four grey levels, and a corner of the crop that is rounded down.

    Raises
    ------
    ValueError
        If a field is not valid; the message names it.

    Examples
    --------
    >>> from PIL import Image
    >>> from lipcomp.data import Preprocessing
    >>> recipe = Preprocessing(resize=256, crop=(224, 224), interpolation="bicubic")
    >>> recipe(Image.new("RGB", (500, 375))).shape
    torch.Size([3, 224, 224])
    >>> print(recipe)
    shorter side to 256 (bicubic, antialias), centre crop 224 x 224
    """

    resize: int | Size | None = None
    crop: Size | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    squash: bool = False
    border: tuple[int, ...] | None = None
    enlarge: bool = True
    keep: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    processor: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {self.interpolation!r}"
            )
        if not self.antialias and self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"{self.interpolation} has no form without antialias; set antialias=True")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            sides = () if value is None else (value,) if isinstance(value, int) else tuple(value)
            if any(side < 1 for side in sides) or (name == "crop" and len(sides) == 1):
                raise ValueError(f"{name} must hold positive sizes in pixels, got {value!r}")
        if (self.squash or self.border) and not isinstance(self.resize, tuple):
            raise ValueError(f"squash and border need resize=(height, width), got resize={self.resize!r}")

    @classmethod
    def default(cls, height: int, width: int, *, enlarge: bool = False) -> "Preprocessing":
        """Lipcomp's evaluation where nothing else is known.

        The centre crop takes 0.875 of the shorter side above 64 pixels and all of it up to that; bilinear. Pictures
        of the right size are not touched, smaller ones are refused unless ``enlarge``.
        """
        fraction = 0.875 if min(height, width) > 64 else 1.0
        size = round(height / fraction), round(width / fraction)
        return cls(size[0] if height == width else size, (height, width), enlarge=enlarge, keep=True)

    @property
    def size(self) -> Size | None:
        """(height, width) of every result, or None if it depends on the picture."""
        if self.crop is not None:
            return self.crop
        return self.resize if self.squash and isinstance(self.resize, tuple) else None

    def overridden(
        self,
        *,
        resize: int | Size | None = None,
        crop: Size | None = None,
        interpolation: str | None = None,
    ) -> "Preprocessing":
        """The same with the given choices of a user; a resize to (height, width) squashes. Enlarges if resized."""
        changed = self
        if resize is not None:
            squash = isinstance(resize, tuple)
            changed = replace(changed, resize=resize, squash=squash, border=None, keep=False, enlarge=True)
        if crop is not None:
            changed = replace(changed, crop=crop, keep=False)
        return changed if interpolation is None else replace(changed, interpolation=interpolation)

    def record(self) -> dict[str, Any]:
        """The choices as plain values, for records."""
        return asdict(self)

    def __call__(self, picture: Image.Image) -> Float[Tensor, "channels height width"]:
        """Apply to a picture of bytes (modes L, RGB) or of numbers in [0, 1] (mode F); pixels in [0, 1].

        Raises
        ------
        ValueError
            If the picture is smaller than the result and ``enlarge`` is False.
        """
        done = self.keep and self.crop == (picture.height, picture.width)
        if not done:
            self._check_size(picture)
            picture = self._cropped(self._resized(picture))
        return _pixels(picture)

    def _check_size(self, picture: Image.Image) -> None:
        height, width = self.size or (0, 0)
        if not self.enlarge and (picture.height < height or picture.width < width):
            raise ValueError(
                f"is {picture.width} x {picture.height}, smaller than the {width} x {height} that the encoder takes; "
                f"use larger images, measure at a smaller size (image_size=), or let the preprocessing enlarge them "
                f"(enlarge=True)"
            )

    def _resized(self, picture: Image.Image) -> Image.Image:
        size = self._target(picture.height, picture.width)
        if size is None or size == (picture.height, picture.width):
            return picture
        if size[0] * size[1] > _MOST:
            raise ValueError(
                f"is {picture.width} x {picture.height} and would be {size[1]} x {size[0]} pixels after the resize "
                f"({self}); give a smaller resize, or leave this image out"
            )
        if self.antialias and not (self.processor and self.interpolation in PROCESSORS):
            return picture.resize((size[1], size[0]), getattr(Image.Resampling, self.interpolation.upper()))
        pixels = V.pil_to_tensor(picture)
        mode = InterpolationMode(PROCESSORS[self.interpolation] if self.processor else self.interpolation)
        return V.to_pil_image(V.resize(pixels, list(size), mode, antialias=self.antialias), mode=picture.mode)

    def _target(self, height: int, width: int) -> Size | None:
        """The size a picture is brought to before the crop; roundings are torchvision's and timm's."""
        if self.resize is None:
            return None
        if isinstance(self.resize, int):
            short, long = min(height, width), max(height, width)
            other = int(self.resize * long / short)
            return (self.resize, other) if height <= width else (other, self.resize)
        if self.squash:
            return self.resize
        ratios = height / self.resize[0], width / self.resize[1]
        ratio = min(ratios) if self.border is None else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _cropped(self, picture: Image.Image) -> Image.Image:
        if self.crop is None or self.crop == (picture.height, picture.width):
            return picture
        extents = (picture.width, self.crop[1]), (picture.height, self.crop[0])
        left, top = (_offset(extent, crop, self.processor) for extent, crop in extents)
        box = (left, top, left + self.crop[1], top + self.crop[0])
        if self.border is None:
            return picture.crop(box)  # zeros beyond the picture
        canvas = Image.new(picture.mode, (self.crop[1], self.crop[0]), _fill(self.border, picture.mode))
        canvas.paste(picture, (-left, -top))
        return canvas

    def __str__(self) -> str:
        steps = []
        if self.resize is not None:
            by, x = self.interpolation + (", antialias" if self.antialias else ", no antialias"), self.resize
            by += " as torchvision's" if self.processor else ""
            if isinstance(x, int):
                steps.append(f"shorter side to {x} ({by})")
            else:
                how = "squashed to" if self.squash else "fitted into" if self.border else "covering"
                steps.append(f"{how} {x[0]} x {x[1]} ({by})")
        if self.crop is not None:
            around = f" on {self.border}" if self.border else ""
            steps.append(f"centre crop {self.crop[0]} x {self.crop[1]}{around}")
        if self.keep and steps:
            steps.append("pictures of that size untouched")
        if not self.enlarge:
            steps.append("smaller ones refused")
        return ", ".join(steps) or "as stored"


def _offset(extent: int, crop: int, down: bool) -> int:
    """Where the centre starts, in torchvision's rounding or rounded down; negative where it is padded."""
    if extent < crop:
        return -((crop - extent) // 2)
    return (extent - crop) // 2 if down else round((extent - crop) / 2)


def _fill(colour: tuple[int, ...], mode: str) -> Any:
    """A colour of bytes in a picture's mode: three bytes, their mean, or that in [0, 1]."""
    if mode == "RGB":
        return colour * 3 if len(colour) == 1 else colour
    mean = sum(colour) / len(colour)
    return mean / 255 if mode == "F" else round(mean)


def _pixels(picture: Image.Image) -> Float[Tensor, "channels height width"]:
    pixels = V.pil_to_tensor(picture)
    return pixels.clamp(0, 1) if picture.mode == "F" else pixels.float().div_(255)


def to_shape(
    planes: Sequence[Image.Image],
    image_shape: tuple[int, int, int],
    preprocessing: Preprocessing | None,
    convert_channels: bool = False,
) -> Float[Tensor, "channels height width"]:
    """Bring a picture, or three grey ones that are its colours, to a shape; None leaves the size as it is.

    Raises
    ------
    ValueError
        If its size or channels do not allow it; the message is to follow the picture's name.
    """
    channels = image_shape[0]
    if len(planes) == 1:
        planes = [with_channels(planes[0], channels, convert_channels)]
    elif len(planes) != channels:
        raise ValueError(f"has {len(planes)} channels, the encoder takes {channels}")
    parts = [_pixels(plane) if preprocessing is None else preprocessing(plane) for plane in planes]
    pixels = torch.cat(parts).expand(channels, -1, -1)
    if preprocessing is not None and pixels.shape != image_shape:
        raise ValueError(
            f"has the shape {tuple(pixels.shape)} after the preprocessing ({preprocessing}), not {image_shape}; give "
            f"one with a crop"
        )
    return pixels
