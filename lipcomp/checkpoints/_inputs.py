"""The images of an encoder whose file may not say them: source, then format, then library, or a refusal."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lipcomp.checkpoints._backbone import Backbone
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._preprocessing import Inputs, convention
from lipcomp.checkpoints._recognise import Recognised
from lipcomp.checkpoints._sources import Source, State

Numbers = Sequence[float | int]
# Numbers of an image that a network is tried on, where the meta device does not do.
LARGEST_TRIAL = 3 * 512 * 512
STEM = re.compile(
    r"(.*\.)?(conv1|conv0|conv_stem|conv_proj|stem|patch_embed|features\.0|init_conv)\b.*weight"
)


def channels_of(weights: State) -> int:
    """Channels of the images: of the stem's convolution, or three if any convolution takes three."""
    kernels = {name: value for name, value in weights.items() if value.ndim == 4}
    stem = sorted(
        (name for name in kernels if STEM.fullmatch(name)), key=lambda name: (name.count("."), len(name))
    )
    first = int(kernels[stem[0]].shape[1]) if stem else 0
    if first <= 4 and stem:
        return first
    if first == 48:  # TResNet's, which reads 4 x 4 pixels of three colours as channels
        return 3
    taken = {int(value.shape[1]) for value in kernels.values()}
    return 3 if 3 in taken or not taken else min(taken)


def inputs_of(
    source: Source,
    found: Recognised,
    backbone: Backbone,
    weights: State,
    size: tuple[int, int] | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Inputs:
    """What the source says of its images, else its format's convention, else the library of its architecture.

    Raises
    ------
    CheckpointError
        If the weights fit networks of several normalisations and nothing says which.
    """
    known, native = source.preprocessing, backbone.image_size or (224, 224)
    if known is None and found.format.name == "plain":
        known = backbone.preprocessing
        if known and len(backbone.normalisations) > 1 and (mean is None or std is None):
            several = " or ".join(
                f"mean {_short(m)}, std {_short(s)} ({name})"
                for (m, s), name in backbone.normalisations.items()
            )
            raise CheckpointError(
                f"ambiguous: the weights fit {backbone.name}, whose images are normalised with {several}; pass mean= "
                "and std=, or arch= with one of these names"
            )
    if known is None:
        family = found.format.small if max(native) < 96 else found.format.normalisation
        usual: tuple[Numbers, Numbers] | None = found.conventions.get("normalisation", family)
        if usual is None and (mean is None or std is None):
            raise CheckpointError(
                f"ambiguous: nothing says how the images of {backbone.name} are normalised, with mean and std 0.5 as "
                f"Google's vision transformers or with ImageNet's as DINO's; pass mean= and std="
            )
        alike = (
            "networks of this size" if found.format.name == "plain" else f"{found.format.name} checkpoints"
        )
        origin = f"assumed as for most {alike}, since the file does not say; mean= and std= overrule"
        known = convention(channels_of(weights), size or native, *(usual or family), origin)
        if backbone.preprocessing and size is None:
            known = replace(known, size=backbone.preprocessing.size, pipeline=backbone.preprocessing.pipeline)
    if source.preprocessing is None and (stored := _stored_normalisation(found, source)):
        known = replace(known, mean=stored[0], std=stored[1], origin=stored[2])
    return known.for_channels(channels_of(weights)).with_given(size, mean, std)


def run_once(network: nn.Module, shape: tuple[int, ...], name: str | None = None) -> Any:
    """What a network gives for one image: as a twin without memory on the meta device, where it runs there.

    None where it runs only on a real device and the image is large. ``name`` is that of its argument, if it needs one.
    """

    def given(device: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        image = torch.zeros(1, *shape, device=device)
        return ((), {name: image}) if name else ((image,), {})

    network.eval()
    with torch.no_grad():
        with suppress(Exception):
            images, named = given("meta")
            return _twin(network)(*images, **named)
        if math.prod(shape) > LARGEST_TRIAL:
            return None
        images, named = given("cpu")
        return network(*images, **named)


def _twin(network: nn.Module) -> nn.Module:
    """A copy on the meta device; what it remembers of a call does not reach the network."""
    twins: dict[int, Any] = {id(value): value.to("meta") for value in network.buffers()}
    twins |= {
        id(value): nn.Parameter(value.to("meta"), value.requires_grad) for value in network.parameters()
    }
    return copy.deepcopy(network, twins)


def check_images(network: nn.Module, shape: tuple[int, ...], name: str, native: Sequence[int] | None) -> None:
    """Check that a network takes images of a shape, and gives one vector of features for each.

    Raises
    ------
    CheckpointError
        If it does not.
    """
    try:
        out = run_once(network, shape)
    except Exception as error:  # whatever a network of another library raises
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        hint = f"{native[0]}" if native and tuple(native) != shape[1:] else ""
        raise CheckpointError(
            f"{name} does not take images of {shape[1]} x {shape[2]} ({reason}); pass image_size={hint}"
        ) from error
    if isinstance(out, Tensor) and out.ndim != 2:
        raise CheckpointError(
            f"{name} gives {tuple(out.shape)} for an image, not one vector of features; name its pooling in the "
            f"folder's config.json (global_pool), or build it yourself (lipcomp.wrap), pooled"
        )


def _short(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.4g}" for number in numbers)


def _stored_normalisation(
    found: Recognised, source: Source
) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
    """Mean and std within the file: RobustBench's buffers, LightlyTrain's ``normalize_args``."""
    for names in (("normalize.mean", "normalize.std"), ("mu", "sigma"), ("model.mu", "model.sigma")):
        if all(name in found.state for name in names):
            mean, std = (tuple(found.state[name].flatten().tolist()) for name in names)
            return mean, std, "mean and std stored with the weights"
    told = source.tree.get("lightly_train")
    told = told.get("normalize_args") if isinstance(told, Mapping) else None
    if isinstance(told, Mapping) and {"mean", "std"} <= told.keys():
        mean, std = (tuple(float(number) for number in told[name]) for name in ("mean", "std"))
        return mean, std, "normalize_args of LightlyTrain"
    return None
