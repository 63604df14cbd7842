"""What an image goes through before a foreign network sees it, taken from the source where the source says so.

The encoder itself takes pixels in [0, 1] of ``image_shape`` and normalises inside; ``resize``, ``crop`` and
``interpolation`` say how a photograph becomes such an image. A checkpoint that holds weights alone says none of
it: then the convention of its format is assumed, and ``origin`` says that it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

LARGEST = 4096  # pixels a side; a configuration that claims more would fill the memory

# PIL's numbers for filters, as transformers writes them.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocessing:
    """From a photograph to what the network sees.

    Parameters
    ----------
    mean, std
        Per-channel normalisation of pixels in [0, 1].
    size
        (height, width) that the network sees.
    resize
        The shorter side, or (height, width), before the crop; None for no resizing.
    crop
        "center" or "none".
    interpolation
        The filter of the resizing.
    origin
        Where these were read, or what was assumed.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    crop: str = "none"
    interpolation: str = "bilinear"
    origin: str = "assumed"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not 1 <= min(self.size) <= max(self.size) <= LARGEST:
            raise ValueError(
                f"an image size must be (height, width) between 1 and {LARGEST}, got {self.size}"
            )

    def __str__(self) -> str:
        """One line."""
        numbers = ", ".join(
            f"{name} ({', '.join(f'{number:.4g}' for number in values)})"
            for name, values in (("mean", self.mean), ("std", self.std))
        )
        if self.resize is None:
            way = "no resizing"
        else:
            side = (
                f"shorter side {self.resize}"
                if isinstance(self.resize, int)
                else "x".join(map(str, self.resize))
            )
            way = f"resize {side} ({self.interpolation}), crop {self.crop}"
        return f"{way}, {self.size[0]}x{self.size[1]}, {numbers}; {self.origin}"


def convention(
    channels: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], origin: str
) -> Preprocessing:
    """The preprocessing of a source that does not say: ImageNet's evaluation, or nothing at small sizes."""
    if channels != len(mean):
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    resize, crop = (round(size[0] / 0.875), "center") if min(size) >= 96 else (None, "none")
    return Preprocessing(tuple(mean), tuple(std), size, resize, crop, "bilinear", origin)


def from_timm(config: Mapping[str, Any], origin: str) -> Preprocessing | None:
    """Of timm's configuration, as its hub folders and its models carry it; None where it says nothing."""
    config = config.get("pretrained_cfg") or config
    if not isinstance(config, Mapping) or not {"mean", "std", "input_size"} <= config.keys():
        return None
    _, height, width = (int(number) for number in config["input_size"])
    share = float(config.get("crop_pct") or 1.0)
    return Preprocessing(
        _floats(config["mean"]),
        _floats(config["std"]),
        (height, width),
        int(height / share) if height == width else (int(height / share), int(width / share)),
        str(config.get("crop_mode") or "center"),
        str(config.get("interpolation") or "bilinear"),
        origin,
    )


def from_transformers(config: Mapping[str, Any], origin: str) -> Preprocessing | None:
    """Of a Hugging Face ``preprocessor_config.json``; None where it says nothing."""
    size, crop = config.get("size"), config.get("crop_size")
    resize = _side(size)
    seen = _side(crop) if config.get("do_center_crop") else resize
    if "crop_pct" in config and config["crop_pct"] and isinstance(resize, int) and not crop:
        seen, resize = resize, int(resize / float(config["crop_pct"]))
    if seen is None:
        return None
    normalises = config.get("do_normalize", True)
    mean, std = config.get("image_mean") or (0.5,) * 3, config.get("image_std") or (0.5,) * 3
    resample = config.get("resample", 2)
    return Preprocessing(
        _floats(mean) if normalises else (0.0,) * 3,
        _floats(std) if normalises else (1.0,) * 3,
        (seen, seen) if isinstance(seen, int) else seen,
        resize if config.get("do_resize", True) else None,
        "center" if seen != resize else "none",
        RESAMPLE.get(resample, "bilinear") if isinstance(resample, int) else str(resample),
        origin,
    )


def _side(value: Any) -> int | tuple[int, int] | None:
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return int(value["shortest_edge"])
        if {"height", "width"} <= value.keys():
            return (int(value["height"]), int(value["width"]))
        return None
    if isinstance(value, list | tuple) and len(value) == 2:
        return (int(value[0]), int(value[1]))
    return int(value) if isinstance(value, int | float) else None


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
