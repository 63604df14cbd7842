"""What each corruption's five severities are, for each published benchmark.

``mnist``: MNIST-C (Mu & Gilmer 2019), 28 x 28 grey. The published set has **one** setting a corruption; it is the
severity in the field *published* below. The other severities are those of the published code, except that stripe,
dotted line, zigzag and Canny edges have none there: theirs are ours, with the published setting in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lipcomp.robustness.corruptions import blur, digital, digits, noise, weather
from lipcomp.robustness.corruptions.filters import Images


@dataclass(frozen=True)
class Corruption:
    """A transformation and its five settings, mildest first.

    Parameters
    ----------
    transform
        Called as ``transform(images, draws, *setting)``; its result is clipped to [0, 1] afterwards.
    settings
        One for each severity from 1 to 5.
    published
        The severity of the published set, where that has only one.
    """

    transform: Callable[..., Images]
    settings: tuple[tuple[Any, ...], ...]
    published: int | None = None


def _each(*values: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple((value,) for value in values)


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
        weather.spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6),
            (0.65, 0.3, 3, 0.68, 0.6),
            (0.65, 0.3, 2, 0.68, 0.5),
            (0.65, 0.3, 1, 0.65, 1.5),
            (0.67, 0.4, 1, 0.65, 1.5),
        ),
        4,
    ),
    "dotted_line": Corruption(digits.dotted_line, _each(1.3, 1.8, 2.3, 3.2, 4.5), 3),
    "zigzag": Corruption(digits.zigzag, _each(1.3, 1.8, 2.3, 3.2, 4.5), 3),
    "canny_edges": Corruption(digits.canny_edges, _each(0.6, 0.8, 1.0, 1.25, 1.5), 3),
}

TABLES: dict[str, dict[str, Corruption]] = {"mnist": MNIST}
