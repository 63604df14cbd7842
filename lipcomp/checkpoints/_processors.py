"""The preprocessing of a Hugging Face folder, read from the configuration of its image processor.

A configuration lists options, and the class that it names says what they do: ``size: 224`` is a square for ViT and a
shorter side for CLIP, LeViT resizes to 256/224 of it, an option that is left out has the class's own value. So the
classes whose steps are known are a table here, every row of it compared with transformers in
``tests/data/test_preprocessing.py``. Another class, or an option that asks for one more step (channels in the order
blue, green, red; padding; several crops), is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lipcomp.checkpoints._preprocessing import (
    CLIP_NORMALISATION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Inputs,
    floats,
)
from lipcomp.data._preprocessing import Preprocessing

Numbers = tuple[float, ...]
CLIP = CLIP_NORMALISATION
IMAGENET, HALF = (IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)

# PIL's numbers for filters, as transformers writes them.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
REMEDY = (
    "move the file out of the folder and pass mean=, std= and preprocessing=, or prepare the images yourself"
)


@dataclass(frozen=True)
class Processor:
    """What a class does with options that its configuration leaves out."""

    size: int | tuple[int, int]  # shorter side, or (height, width)
    normalisation: tuple[Numbers, Numbers]  # (mean, std)
    crop: int | None = None  # side of its centre crop; None if it takes none unless asked to
    interpolation: str = "bicubic"  # of the resize
    square: bool = False  # whether a size that is one number is a square


PROCESSORS = {
    "ViT": Processor((224, 224), HALF, None, "bilinear", square=True),
    "DeiT": Processor((256, 256), HALF, 224, square=True),
    "Beit": Processor((224, 224), HALF, square=True),
    "Pvt": Processor((224, 224), IMAGENET, square=True),
    "Segformer": Processor((512, 512), IMAGENET, None, "bilinear", square=True),
    "DINOv3ViT": Processor((224, 224), IMAGENET, None, "bilinear", square=True),
    "Siglip": Processor((224, 224), HALF),
    "Blip": Processor((384, 384), CLIP, square=True),
    "Bit": Processor(224, CLIP, 224),
    "CLIP": Processor(224, CLIP, 224),
    "ChineseCLIP": Processor(224, CLIP, 224),
    "ConvNext": Processor(384, HALF),
    "MobileNetV1": Processor(256, HALF, 224, "bilinear"),
    "MobileNetV2": Processor(256, HALF, 224, "bilinear"),
    "PoolFormer": Processor(224, IMAGENET, 224),
    "Levit": Processor(224, IMAGENET, 224),
    "EfficientNet": Processor((346, 346), HALF, None, square=True),
}
# Of the resized side, what the crop takes.
SHARES = {"ConvNext": 224 / 256, "PoolFormer": 0.9, "Levit": 224 / 256}
WHOLE = 384  # a ConvNeXt's side from which on nothing is cropped
# Options that are read here, or that do not change the pixels.
KNOWN = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "default_to_square", "do_convert_rgb", "data_format", "input_data_format",
    "return_tensors", "device", "image_processor_type", "feature_extractor_type", "processor_class", "num_channels",
    "do_reduce_labels", "disable_grouping", "transformers_version", "model_type",
}  # fmt: skip
MORE = {
    "ConvNext": {"crop_pct"},
    "PoolFormer": {"crop_pct"},
    "EfficientNet": {"rescale_offset", "include_top"},
}
# Options of all that these classes leave aside, or follow in another way than the others.
OWN = {"Segformer": {"do_center_crop"}, "ConvNext": {"do_center_crop"}}
ASKED = {"size": dict, "resample": int, "image_mean": list, "image_std": list}  # of one that names no class


def from_transformers(config: Mapping[str, Any], origin: str) -> Inputs | None:
    """Of an image processor's configuration; None where there is none.

    Raises
    ------
    ValueError
        If it has a step that is not known, or one that cannot be understood.
    """
    if not config:
        return None
    config = {key: value for key, value in config.items() if value is not None or key.startswith("do_")}
    name = _name(config)
    if name is None:
        if lacking := [key for key in ASKED if not isinstance(config.get(key), ASKED[key])]:
            raise ValueError(
                f"it names no image_processor_type, which would say what {lacking[0]} is; add that to it, or {REMEDY}"
            )
        usual = Processor(1, HALF)
    elif name in PROCESSORS:
        usual = PROCESSORS[name]
    else:
        raise ValueError(
            f"its image processor is of type {name!r}, whose steps lipcomp does not know; {REMEDY}"
        )
    strange = [
        key
        for key, value in config.items()
        if value
        and key not in (KNOWN - OWN.get(name or "", set())) | MORE.get(name or "", set())
        and not key.startswith("_")
    ]
    if strange:
        raise ValueError(f"it asks for {strange[0]}, a step that lipcomp does not have; {REMEDY}")
    size, crop = _geometry(config, usual, name)
    seen = crop or (size if isinstance(size, tuple) else (size, size))
    if not (isinstance(size, tuple) or crop) or not config.get("do_resize", True):
        origin = origin if crop else f"{origin}; it gives images of any shape, of which the centre is taken"
    chosen = config.get("resample", usual.interpolation)
    filtered = RESAMPLE.get(chosen, str(chosen))
    if name == "DINOv3ViT" and filtered not in ("nearest", "bilinear"):
        raise ValueError(
            f"it resizes by {filtered} without rounding or clipping to bytes, which lipcomp does not; {REMEDY}"
        )
    mean, std, white = _normalisation(
        config, usual, twice=name == "EfficientNet" and config.get("include_top", True)
    )
    if abs(white - 1) > 1e-6:
        origin = f"{origin}; white is {white:g} there"
    resize = size if config.get("do_resize", True) else None
    pipeline = Preprocessing(resize, seen, filtered, squash=isinstance(resize, tuple), processor=True)
    return Inputs(mean, std, seen, pipeline, origin)


def _name(config: Mapping[str, Any]) -> str | None:
    """The processor's class without what tells its versions apart; None where none is named."""
    told = config.get("image_processor_type") or config.get("feature_extractor_type")
    return None if not told else re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(told))


def _geometry(
    config: Mapping[str, Any], usual: Processor, name: str | None
) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """The size that pictures are brought to, a shorter side or (height, width), and the crop."""
    square = bool(config.get("default_to_square", usual.square))
    size = _side(config["size"], square) if "size" in config else usual.size
    crop = _side(config["crop_size"], True) if "crop_size" in config else usual.crop
    crop = (crop, crop) if isinstance(crop, int) else crop
    if not config.get("do_center_crop", usual.crop is not None):
        crop = None
    elif crop is None:
        raise ValueError("it asks for a centre crop and has no crop_size")
    whole = not config.get("do_resize", True)
    if name not in SHARES or whole or (name == "Levit" and isinstance(size, tuple)):
        return size, crop
    share = float(config.get("crop_pct", SHARES[name]))
    if not 0 < share <= 1:
        raise ValueError(f"its crop_pct {share} is no share")
    if name == "ConvNext":
        if isinstance(size, tuple):
            raise ValueError("a ConvNext processor's size is a shortest_edge")
        return (int(size / share), (size, size)) if size < WHOLE else ((size, size), None)
    if isinstance(size, tuple):
        return int(size[0] / share) if size[0] == size[1] else tuple(int(side / share) for side in size), crop  # type: ignore[return-value]
    return int(256 / 224 * size) if name == "Levit" else int(size / share), crop


def _side(value: Any, square: bool) -> int | tuple[int, int]:
    """A size of a configuration: a shorter side or (height, width)."""
    if isinstance(value, Mapping):
        told = {key for key, number in value.items() if number is not None}
        if told == {"shortest_edge"}:
            return int(value["shortest_edge"])
        if told == {"height", "width"}:
            return int(value["height"]), int(value["width"])
        raise ValueError(
            f"its size {dict(value)} is neither shortest_edge nor height and width, so that images keep a shape of "
            f"their own; {REMEDY}"
        )
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return int(value[0]), int(value[1])
    return (int(value), int(value)) if square else int(value)


def _normalisation(
    config: Mapping[str, Any], usual: Processor, *, twice: bool
) -> tuple[Numbers, Numbers, float]:
    """Mean and std of pixels in [0, 1], and the processor's value of a white pixel.

    The processor gives (white x - offset - mean) / std, an EfficientNet's once more divided by std.
    """
    mean, std = (
        _numbers(config.get(key), given)
        for key, given in zip(("image_mean", "image_std"), usual.normalisation, strict=True)
    )
    rescaled = config.get("do_rescale", True)
    white = 255 * (float(config.get("rescale_factor", 1 / 255)) if rescaled else 1.0)
    again = std if twice else (1.0,) * len(std)
    if not config.get("do_normalize", True):
        mean, std = (0.0,) * len(std), (1.0,) * len(std)
    offset = float(bool(config.get("rescale_offset") and rescaled))
    scaled = (s * t / white for s, t in zip(std, again, strict=True))
    return tuple((m + offset) / white for m in mean), tuple(scaled), white


def _numbers(value: Any, usual: Numbers) -> Numbers:
    if value is None:
        return usual
    return floats(value) if isinstance(value, Sequence) else (float(value),) * len(usual)
