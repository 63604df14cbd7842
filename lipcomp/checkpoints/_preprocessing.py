"""The preprocessing of images for a network of another library, read from its source if the source says it.

The encoder itself takes pixels in [0, 1] of ``image_shape`` and normalises inside; how a photograph becomes such an
image is a :class:`lipcomp.data.Preprocessing`. A checkpoint that holds weights alone says none of it: then the
convention of its format is assumed, and ``origin`` says that it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torchvision

from lipcomp.data._preprocessing import INTERPOLATIONS, Preprocessing
from lipcomp.encoders._encoder import NormalisationError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_NORMALISATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# What timm takes where its configuration is silent (an empty or zero entry is silence to it).
TIMM: dict[str, Any] = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
    "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
}  # fmt: skip
LARGEST = 4096  # pixels a side; a configuration that claims more would fill the memory


@dataclass(frozen=True)
class Inputs:
    """From a photograph to what the network sees."""

    # mean, std: per-channel normalisation of pixels in [0, 1]; part of the encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]  # (height, width) that the network sees
    pipeline: Preprocessing  # how a photograph becomes pixels of that size, for :func:`lipcomp.data.load_set`
    origin: str = "assumed"  # where these were read, or what was assumed

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not 1 <= min(self.size) <= max(self.size) <= LARGEST:
            raise ValueError(
                f"an image size must be (height, width) between 1 and {LARGEST}, got {self.size}"
            )
        numbers = (*self.mean, *self.std)
        if not numbers or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise NormalisationError(
                f"mean= and std= must be finite, and std= positive, got mean {self.mean}, std {self.std}"
            )

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std)."""
        return self.mean, self.std

    def with_given(
        self,
        size: tuple[int, int] | None = None,
        mean: Sequence[float | int] | None = None,
        std: Sequence[float | int] | None = None,
    ) -> "Inputs":
        """The same with what a caller chose: at another size, photographs are resized to it whole, without a crop."""
        changed = self
        if size is not None and size != self.size:
            pipeline = replace(self.pipeline, resize=size, crop=size, squash=True, border=None, enlarge=True)
            changed = replace(
                changed, size=size, pipeline=pipeline, origin=f"{changed.origin}; size as given"
            )
        if mean is not None or std is not None:
            changed = replace(
                changed,
                mean=changed.mean if mean is None else floats(mean),
                std=changed.std if std is None else floats(std),
                origin=f"{changed.origin}; mean, std as given".removeprefix("; "),
            )
        return changed

    def for_channels(self, channels: int) -> "Inputs":
        """The same for a network of another number of channels, which takes the mean of the colours' numbers."""
        if len(self.mean) in (1, channels):
            return self
        mean, std = (sum(numbers) / len(numbers) for numbers in self.normalisation)
        origin = f"{self.origin}; the mean of its colours for {channels} channels"
        return replace(self, mean=(mean,) * channels, std=(std,) * channels, origin=origin)

    def overridden(self, **choices: Any) -> "Inputs":
        """The same with choices of a user for :meth:`lipcomp.data.Preprocessing.overridden`."""
        if not choices:
            return self
        pipeline = self.pipeline.overridden(**choices)
        return replace(self, pipeline=pipeline, origin=f"{self.origin}; {', '.join(choices)} as given")

    def __str__(self) -> str:
        """One line."""
        numbers = ", ".join(
            f"{name} ({', '.join(f'{number:.4g}' for number in values)})"
            for name, values in (("mean", self.mean), ("std", self.std))
        )
        return f"{self.pipeline}, {self.size[0]}x{self.size[1]}, {numbers}; {self.origin}"


def convention(
    channels: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], origin: str
) -> Inputs:
    """The preprocessing of a source that does not say: ImageNet's evaluation, or nothing at small sizes."""
    mean, std = (tuple(numbers) * (channels if len(numbers) == 1 else 1) for numbers in (mean, std))
    return Inputs(mean, std, size, Preprocessing.default(*size), origin).for_channels(channels)


def from_timm(config: Mapping[str, Any], origin: str) -> Inputs | None:
    """Of timm's configuration, as its hub folders and its models carry it; None where it says nothing."""
    built = (config.get("model_args") or {}).get("img_size")  # outranks the size of the weights it began from
    config = config.get("pretrained_cfg") or config
    if not isinstance(config, Mapping) or not TIMM.keys() & config.keys():
        return None
    config = TIMM | {key: value for key, value in config.items() if value}
    channels, height, width = (int(number) for number in config["input_size"])
    share, filtered = float(config["crop_pct"]), str(config["interpolation"])
    mode = config["crop_mode"] if config["crop_mode"] in ("squash", "border") else "center"  # as timm
    mean, std = floats(config["mean"]), floats(config["std"])
    if len(mean) not in (1, channels):
        raise ValueError(
            f"its input_size {config['input_size']} is (channels, height, width), its mean has {len(mean)} numbers"
        )
    if max(*mean, *std) > 1:
        raise ValueError(f"its mean {mean} and std {std} must be of pixels in [0, 1]; divide both by 255")
    scaled = (math.floor(height / share), math.floor(width / share))
    if mode == "center" and scaled[0] != scaled[1]:
        # timm hands the interpolation to none of its resizes to another shape than a square, nor does OpenCLIP
        filtered = "bicubic" if "fill_color" in config else "bilinear"
    if filtered not in INTERPOLATIONS or not 0 < share <= 2:  # "random", "bicubic,bilinear": as in training
        raise ValueError(
            f"interpolation {filtered!r} and crop_pct {share} are not an evaluation preprocessing"
        )
    pipeline = Preprocessing(
        scaled[0] if mode == "center" and scaled[0] == scaled[1] else scaled,
        (height, width),
        filtered,
        squash=mode == "squash",
        border=tuple(config.get("fill_color") or (round(255 * number) for number in mean))
        if mode == "border"
        else None,  # OpenCLIP's own colour, timm's mean
    )
    found = Inputs(mean, std, (height, width), pipeline, origin)
    if not built:
        return found
    sides = built if isinstance(built, list) else [built]
    return found.with_given((int(sides[0]), int(sides[-1])))


def from_torchvision(name: str, origin: str) -> Inputs | None:
    """Of torchvision's weights for an architecture: those its recipe calls DEFAULT."""
    weights = torchvision.models.get_model_weights(name)
    told = weights["DEFAULT"].transforms() if len(weights) else None
    if told is None or not hasattr(told, "crop_size"):
        return None
    size = (int(told.crop_size[0]), int(told.crop_size[-1]))
    pipeline = Preprocessing(
        int(told.resize_size[0]), size, str(told.interpolation.value), bool(told.antialias)
    )
    return Inputs(floats(told.mean), floats(told.std), size, pipeline, origin)


def floats(values: Sequence[Any]) -> tuple[float, ...]:
    """Numbers of a configuration."""
    return tuple(float(value) for value in values)
