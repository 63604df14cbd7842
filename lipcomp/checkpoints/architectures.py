"""The network that a set of weights belongs to: built by name, or read off the shapes.

A name is looked for here in this order; ``torchvision/NAME`` and ``timm/NAME`` skip the others.

=================================  =====================================================================
resnet50, resnet50_2x, ..._cifar   our ResNets (torchvision's names): any width, either stem, either padding
wrn_28_10, preact_resnet18         pre-activation networks of RobustBench's CIFAR zoo
anything of torchvision.models     without its classifier
anything of timm                   without its classifier (needs the extra ``timm``)
=================================  =====================================================================

What shapes do not tell is a convention, and is noted where it is used: a ViT's number of heads, the padding of a
3 x 3 stem.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.checkpoints.backbone import Backbone, State, import_timm
from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.preprocessing import from_timm
from lipcomp.checkpoints.vits import read_vit
from lipcomp.encoders import BACKBONES, PreActResNet, ResNet, WideResNet
from lipcomp.encoders.resnet import DEPTHS

OURS = re.compile(r"resnet(\d+)(?:_([\d.]+)x)?(_cifar)?(_tf|_same)?")
WIDE = re.compile(r"wrn_(\d+)_(\d+)")


def build_backbone(name: str, channels: int = 3, conventions: Mapping[str, Any] | None = None) -> Backbone:
    """Build a backbone by name, with weights that are about to be replaced.

    ``conventions`` are those of the weights' format, which a name does not say (a stem's padding).

    Raises
    ------
    CheckpointError
        If no library knows the name.
    ImportError
        If only timm could know it, and timm is not installed.
    """
    library, _, short = name.rpartition("/")
    with torch.random.fork_rng(devices=[]):
        if library in ("", "lipcomp") and (found := _ours(short, channels)):
            return _pad_stem(found, conventions or {}) if "_cifar" in short else found
        if library in ("", "torchvision") and short in torchvision.models.list_models(torchvision.models):
            return _torchvision(short, channels)
        if library in ("", "timm"):
            return _timm(short, channels, (conventions or {}).get("image_size"))
    raise CheckpointError(f"arch {name!r} is of no known library; write NAME, torchvision/NAME or timm/NAME")


def _ours(name: str, channels: int) -> Backbone | None:
    """One of our networks, without memory: a small file must not claim a network of many gigabytes."""
    with torch.device("meta"):
        return _ours_on_meta(name, channels)


def _ours_on_meta(name: str, channels: int) -> Backbone | None:
    if match := OURS.fullmatch(name):
        depth, width = int(match[1]), float(match[2] or 1)
        if depth in DEPTHS and 1 / 64 <= width <= 16:
            stem = "cifar" if match[3] else "imagenet"
            padding = {None: "torchvision", "_tf": "tensorflow", "_same": "same"}[match[4]]
            network = ResNet(depth, stem, width, channels, padding)  # type: ignore[arg-type]
            return Backbone(name, network, image_size=(32, 32) if match[3] else None)
    if match := WIDE.fullmatch(name):
        return Backbone(name, WideResNet(int(match[1]), int(match[2]), channels), image_size=(32, 32))
    if name in ("preact_resnet18", "preact_resnet18_raw"):
        raw = name.endswith("raw")  # Wong2020Fast's: raw shortcuts, no last batch norm
        return Backbone(name, PreActResNet(channels, not raw, raw), ("linear",), image_size=(32, 32))
    if name in BACKBONES:
        return Backbone(name, BACKBONES[name](channels), image_size=(28, 28) if channels == 1 else (32, 32))
    return None


def _torchvision(name: str, channels: int) -> Backbone:
    network = torchvision.models.get_model(name, weights=None)
    linears = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or channels != 3:
        reason = "takes 3 channels" if linears else "has no linear classifier to take off"
        raise CheckpointError(
            f"arch {name!r} of torchvision {reason}; use --factory with a function that builds the network"
        )
    last = linears[-1]
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    auxiliary = tuple(place for place in ("AuxLogits", "aux1", "aux2") if hasattr(network, place))
    return Backbone(f"torchvision/{name}", network, (last, *auxiliary))


def _timm(name: str, channels: int, size: tuple[int, int] | None = None) -> Backbone:
    if not re.fullmatch(r"[\w.]+", name):
        raise CheckpointError(f"arch {name!r} is no name of a timm architecture (letters, digits, _ and .)")
    timm = import_timm(f"arch {name!r} is none of lipcomp's or torchvision's networks")
    try:
        options = (
            {"img_size": size} if size and timm.is_model(name) and name.startswith(("vit_", "deit")) else {}
        )
        network = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        known = [*BACKBONES, *torchvision.models.list_models(torchvision.models), *timm.list_models()]
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(
            f"arch {name!r} is known neither to lipcomp, torchvision nor timm{hint} For a network of your own, use "
            f"--factory package.module:function ({str(error).splitlines()[0]})"
        ) from error
    config = network.pretrained_cfg
    classifier = config.get("classifier") or ("head", "fc")
    return Backbone(
        f"timm/{name}",
        network,
        (classifier,) if isinstance(classifier, str) else tuple(classifier),
        from_timm(config, f"timm's default for {name}"),
        tuple(config["input_size"][1:]) if config.get("input_size") else None,
    )


# Reading an architecture off the shapes of its weights.


def infer_backbone(state: State, conventions: Mapping[str, Any]) -> Backbone:
    """The backbone that these weights (in the names of torchvision, timm or RobustBench) fit.

    Parameters
    ----------
    state
        The weights.
    conventions
        What the weights' format fixes without showing it: ``stem_padding``, ``pool_padding``, ``heads`` ...

    Raises
    ------
    CheckpointError
        If they fit none.
    """
    with torch.random.fork_rng(devices=[]):
        for reader in READERS:
            if (found := reader(state, conventions)) is not None:
                return found
    some = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:4])
    raise CheckpointError(
        f"the architecture is not one that can be read off its weights (they begin {some}); name it with --arch "
        f"(resnet50, vit_small_patch16_224, any name of torchvision or timm) or build it with --factory"
    )


def _read_resnet(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    if "input_norm.weight" in state:
        state = {key.removeprefix("resnet."): value for key, value in state.items()}
    if not {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys() or "layer1.0.bn1.weight" not in state:
        return None
    if _pre_activation(state):
        return None
    counts = [_count(state, f"layer{number}.") for number in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in state
    depth = next(
        (
            depth
            for depth, (block, known) in DEPTHS.items()
            if known == counts and (block.expansion == 4) == bottleneck
        ),
        None,
    )
    stem, channels, kernel = state["conv1.weight"].shape[:3] if state["conv1.weight"].ndim == 4 else (0, 0, 0)
    if depth is None or not stem or kernel not in (3, 7):
        return None
    suffix = "_cifar" if kernel == 3 else ""
    inner, outer = state["layer1.0.conv1.weight"].shape[0], state["layer1.0.conv2.weight"].shape[1]
    if bottleneck and (inner != stem or outer != inner):  # inner widths of their own: Wide ResNet, ResNeXt
        named = {
            (50, 128, 128): "wide_resnet50_2",
            (101, 128, 128): "wide_resnet101_2",
            (50, 128, 4): "resnext50_32x4d",
            (101, 256, 8): "resnext101_32x8d",
            (101, 256, 4): "resnext101_64x4d",
        }.get((depth, inner, outer))
        return _torchvision(named, channels) if named and channels == 3 and kernel == 7 else None
    if inner != stem:
        return None
    width = "" if stem == 64 else f"_{stem / 64:g}x"
    padding = {"tensorflow": "_tf", "same": "_same"}.get(conventions.get("pool_padding", ""), "")
    found = _ours(f"resnet{depth}{width}{suffix}{padding}", channels)
    if found is None:
        return None
    if "input_norm.weight" in state:
        return _framed(found, state, channels)
    found = _pad_stem(found, conventions) if kernel == 3 else found
    if conventions.get("stem_relu") is False:
        found.network.relu = nn.Identity()
        note = "no ReLU after the stem: lightly's ResNet calls it as a function, which a Sequential of children lacks"
        found = replace(found, notes=(*found.notes, note))
    return found


class Framed(nn.Module):
    """Between a batch norm on the pixels and a 1 x 1 convolution before pooling: the networks of lightly's old zoo."""

    def __init__(self, resnet: nn.Module, channels: int, features: int, outputs: int) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(channels)
        self.resnet = resnet
        self.last = nn.Conv2d(features, outputs, 1)
        self.out_features = outputs

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Pooled features; the last convolution is linear, so it may come after pooling."""
        return self.last(self.resnet(self.input_norm(x))[:, :, None, None]).flatten(1)


def _framed(backbone: Backbone, state: State, channels: int) -> Backbone | None:
    last = state.get("last.weight")
    if last is None or last.ndim != 4:
        return None
    with torch.device("meta"):
        network = Framed(backbone.network, channels, int(backbone.network.out_features), last.shape[0])  # type: ignore[arg-type]
    backbone.network.relu = nn.Identity()
    return Backbone(
        backbone.name, network, (), None, (32, 32), ("no ReLU after the stem, as in lightly's old zoo",)
    )


def _pad_stem(backbone: Backbone, conventions: Mapping[str, Any]) -> Backbone:
    padding = conventions.get("stem_padding", 1)
    backbone.network.conv1.padding = (padding, padding)  # type: ignore[union-attr]
    note = (
        f"3 x 3 stem: padding {padding} and no max-pool, the convention of its format; the weights do not say"
    )
    return Backbone(backbone.name, backbone.network, backbone.classifier, None, (32, 32), (note,))


def _read_deep_stem(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    """The ResNet-C, -D and -S: three 3 x 3 convolutions as the stem."""
    if "conv1.0.weight" not in state or "layer1.0.conv1.weight" not in state:
        return None
    bottleneck, counts = (
        "layer1.0.conv3.weight" in state,
        [_count(state, f"layer{number}.") for number in range(1, 5)],
    )
    for depth, (block, known) in DEPTHS.items():
        if known == counts and (block.expansion == 4) == bottleneck:
            for suffix in ("d", "c", "s", "t"):
                try:
                    backbone = _timm(f"resnet{depth}{suffix}", state["conv1.0.weight"].shape[1])
                except CheckpointError:
                    continue
                wanted = {key: value.shape for key, value in backbone.network.state_dict().items()}
                if all(key in state and state[key].shape == shape for key, shape in wanted.items()):
                    return backbone
    return None


def _read_wide_resnet(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    first = state.get("block1.layer.0.conv1.weight")
    if first is None or "conv1.weight" not in state or first.ndim != 4:
        return None
    depth, width = 6 * _count(state, "block1.layer.") + 4, first.shape[0] // 16
    if width < 1 or first.shape[0] % 16:
        return None
    return _ours(f"wrn_{depth}_{width}", state["conv1.weight"].shape[1])


def _read_preact(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    if not _pre_activation(state):
        return None
    name = "preact_resnet18" if "bn.weight" in state else "preact_resnet18_raw"
    return _ours(name, state["conv1.weight"].shape[1])


def _pre_activation(state: State) -> bool:
    """No batch norm ``bn1`` after the stem, but in every block."""
    return {"conv1.weight", "layer4.0.bn1.weight"} <= state.keys() and "bn1.weight" not in state


def _count(state: State, prefix: str) -> int:
    """How many numbered children stand behind a prefix."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(numbers)


READERS: list[Callable[[State, Mapping[str, Any]], Backbone | None]] = [
    _read_resnet,
    _read_deep_stem,
    _read_wide_resnet,
    _read_preact,
    read_vit,
]
