"""What each corruption's five severities are, for each published benchmark.

``imagenet``: ImageNet-C (Hendrycks & Dietterich 2019). Lengths are in pixels whatever the image's size, as in the
published code, but for the elastic warp's, which are in parts of the side (244/224 of the code's, which counts 244).

``cifar``: CIFAR-10-C and CIFAR-100-C. Milder: Gaussian noise of severity 3 is 0.08 here and 0.18 there.

``tiny``: Tiny-ImageNet-C and ImageNet-64x64-C, 64 x 64, between the two.

``imagenet-bar``, ``cifar-bar``: ImageNet-C-bar and CIFAR-10-C-bar (Mintun, Kirillov & Xie 2021), chosen to be unlike
the former.

``mnist``: MNIST-C (Mu & Gilmer 2019), 28 x 28 grey. The published set has **one** setting a corruption; it is the
severity in the field *published* below. The other severities are those of the published code, except that stripe,
dotted line, zigzag and Canny edges have none there: theirs are ours, with the published setting in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lipcomp.robustness.corruptions import (
    _bar_patterns as bar_patterns,
    _bar_warps as bar_warps,
    _blur as blur,
    _digital as digital,
    _digits as digits,
    _jpeg as jpeg,
    _noise as noise,
    _spatter as spatter,
    _weather as weather,
)
from lipcomp.robustness.corruptions._bar_warps import OneImage
from lipcomp.robustness.corruptions._filters import Images


@dataclass(frozen=True)
class Corruption:
    """A transformation and its five settings, mildest first.

    Raises
    ------
    ValueError
        If there are not five settings, each a tuple.
    """

    # called as ``transform(images, draws, *setting)``; its result is clipped to [0, 1] afterwards
    transform: Callable[..., Images]
    settings: tuple[tuple[Any, ...], ...]  # one for each severity from 1 to 5
    published: int | None = None  # the severity of the published set, where that has only one

    def __post_init__(self) -> None:
        if len(self.settings) != 5 or not all(isinstance(setting, tuple) for setting in self.settings):
            raise ValueError(f"settings must be five tuples, one per severity, got {self.settings!r}")


def _each(*values: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple((value,) for value in values)


BYTEWISE = (digital.pixelate, jpeg.jpeg_compression)  # take bytes as they are, if the images are large

# The order of the published sets: fifteen, then four that were held back for validation.
_TRANSFORMS: dict[str, Callable[..., Images]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": jpeg.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter.spatter,
    "saturate": digital.saturate,
}
COMMON = tuple(_TRANSFORMS)[:15]
VALIDATION = tuple(_TRANSFORMS)[15:]

_ELASTIC = 244 / 224

_IMAGENET: dict[str, tuple[tuple[Any, ...], ...]] = {
    "gaussian_noise": _each(0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": _each(60, 25, 12, 5, 3),
    "impulse_noise": _each(0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1.0, 0.4, 1.0), (0.8, 0.6, 1.0), (0.7, 0.7, 1.0), (0.65, 0.7, 1.0), (0.6, 0.75, 1.0)),
    "fog": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    "brightness": _each(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _each(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (2 * _ELASTIC, 0.7 * _ELASTIC, 0.1 * _ELASTIC),
        (2 * _ELASTIC, 0.08 * _ELASTIC, 0.2 * _ELASTIC),
        (0.05 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
        (0.07 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
        (0.12 * _ELASTIC, 0.01 * _ELASTIC, 0.02 * _ELASTIC),
    ),
    "pixelate": _each(0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _each(25, 18, 15, 10, 7),
    "speckle_noise": _each(0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": _each(1, 2, 3, 4, 6),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}

_CIFAR: dict[str, tuple[tuple[Any, ...], ...]] = {
    "gaussian_noise": _each(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _each(500, 250, 100, 75, 50),
    "impulse_noise": _each(0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1.0, 0.2, 0.2), (1.0, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1.0, 2), (1.5, 1.75)),
    "brightness": _each(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _each(0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": _each(0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _each(80, 65, 58, 50, 40),
    "speckle_noise": _each(0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": _each(0.4, 0.6, 0.7, 0.8, 1.0),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}

_TINY: dict[str, tuple[tuple[Any, ...], ...]] = {
    "gaussian_noise": _each(0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": _each(250, 100, 50, 30, 15),
    "impulse_noise": _each(0.01, 0.02, 0.05, 0.08, 0.14),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1.0, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    "fog": ((0.4, 3), (0.7, 3), (1.0, 2.5), (1.5, 2), (2.0, 1.75)),
    "brightness": _each(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _each(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (0.0, 0.0, 0.08),
        (0.05, 0.3, 0.06),
        (0.1, 0.08, 0.06),
        (0.1, 0.03, 0.03),
        (0.16, 0.03, 0.02),
    ),
    "pixelate": _each(0.9, 0.8, 0.7, 0.6, 0.5),
    "jpeg_compression": _each(65, 58, 50, 40, 25),
    "speckle_noise": _each(0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": _each(0.5, 0.75, 1, 1.25, 1.5),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, False),
        (0.65, 0.1, 0.8, 0.7, 0.6, False),
        (0.65, 0.3, 1, 0.69, 0.6, False),
        (0.65, 0.1, 0.7, 0.68, 0.6, True),
        (0.65, 0.1, 0.5, 0.67, 0.6, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
}

MNIST: dict[str, Corruption] = {
    "shot_noise": Corruption(noise.shot_noise, _each(60, 25, 12, 5, 3), 5),
    "impulse_noise": Corruption(noise.impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27), 4),
    "glass_blur": Corruption(
        blur.glass_swaps, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), 1
    ),
    "motion_blur": Corruption(blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), 1),
    "shear": Corruption(digits.shear, _each(0.2, 0.4, 0.6, 0.8, 1.0), 2),
    "scale": Corruption(digits.scale, _each(0.9, 0.8, 0.7, 0.6, 0.5), 3),
    "rotate": Corruption(digits.rotate, _each(0.2, 0.4, 0.6, 0.8, 1.0), 2),
    "brightness": Corruption(digital.brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5), 5),
    "translate": Corruption(digits.translate, _each(1, 2, 3, 4, 5), 3),
    "stripe": Corruption(digits.stripe, _each(3, 5, 7, 9, 11), 3),
    "fog": Corruption(
        weather.fog, ((1.5, 2, 256), (2.0, 2, 256), (2.5, 1.7, 256), (2.5, 1.5, 256), (3.0, 1.4, 256)), 5
    ),
    "spatter": Corruption(
        spatter.spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, True),
            (0.65, 0.3, 3, 0.68, 0.6, True),
            (0.65, 0.3, 2, 0.68, 0.5, True),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        4,
    ),
    "dotted_line": Corruption(digits.dotted_line, _each(1.3, 1.8, 2.3, 3.2, 4.5), 3),
    "zigzag": Corruption(digits.zigzag, _each(1.3, 1.8, 2.3, 3.2, 4.5), 3),
    "canny_edges": Corruption(digits.canny_edges, _each(0.6, 0.8, 1.0, 1.25, 1.5), 3),
}

_IMAGENET_BAR: dict[str, tuple[OneImage, tuple[float | int, ...]]] = {
    "caustic_refraction": (bar_warps.caustic_refraction, (2.35, 3.2, 4.9, 6.6, 9.15)),
    "inverse_sparkles": (bar_patterns.inverse_sparkles, (1, 2, 4, 9, 10)),
    "sparkles": (bar_patterns.sparkles, (1, 2, 3, 5, 6)),
    "perlin_noise": (bar_patterns.perlin_noise, (4.6, 5.2, 5.8, 7.6, 8.8)),
    "blue_noise_sample": (bar_patterns.blue_noise_sample, (0.8, 1.6, 2.4, 4.0, 5.6)),
    "plasma_noise": (bar_patterns.plasma_noise, (4.75, 7, 8.5, 9.25, 10)),
    "checkerboard_cutout": (bar_patterns.checkerboard_cutout, (2, 3, 4, 5, 6)),
    "cocentric_sine_waves": (bar_patterns.cocentric_sine_waves, (3, 5, 8, 9, 10)),
    "single_frequency_greyscale": (bar_patterns.single_frequency_greyscale, (1, 1.5, 2, 4.5, 5)),
    "brownish_noise": (bar_patterns.brownish_noise, (1, 2, 3, 4, 5)),
}

_CIFAR_BAR: dict[str, tuple[OneImage, tuple[float | int, ...]]] = {
    "blue_noise_sample": (bar_patterns.blue_noise_sample, (0.7, 1.4, 2.1, 3.5, 4.2)),
    "checkerboard_cutout": (bar_patterns.checkerboard_cutout, (1, 2, 3, 4, 5)),
    "inverse_sparkles": (bar_patterns.inverse_sparkles, (1, 1.5, 2.5, 4.5, 5)),
    "pinch_and_twirl": (bar_warps.pinch_and_twirl, (5.5, 6, 6.5, 8.5, 10)),
    "ripple": (bar_warps.ripple, (5.5, 6, 6.5, 7.5, 8)),
    "brownish_noise": (bar_patterns.brownish_noise, (2.5, 4, 5.5, 6.5, 7)),
    "circular_motion_blur": (bar_warps.circular_motion_blur, (2.8, 3.6, 4.4, 5.2, 6)),
    "lines": (bar_patterns.lines, (0.5, 1, 1.5, 2, 2.5)),
    "sparkles": (bar_patterns.sparkles, (0.7, 3.5, 5.6, 6.3, 7)),
    "transverse_chromatic_abberation": (bar_warps.transverse_chromatic_abberation, (1, 2, 5, 9, 10)),
}


def _bar(table: dict[str, tuple[OneImage, tuple[float | int, ...]]]) -> dict[str, Corruption]:
    return {name: Corruption(bar_warps.one_by_one(f), _each(*levels)) for name, (f, levels) in table.items()}


TABLES: dict[str, dict[str, Corruption]] = {
    "imagenet": {name: Corruption(transform, _IMAGENET[name]) for name, transform in _TRANSFORMS.items()},
    "cifar": {name: Corruption(transform, _CIFAR[name]) for name, transform in _TRANSFORMS.items()},
    "tiny": {name: Corruption(transform, _TINY[name]) for name, transform in _TRANSFORMS.items()},
    "mnist": MNIST,
    "imagenet-bar": _bar(_IMAGENET_BAR),
    "cifar-bar": _bar(_CIFAR_BAR),
}
