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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.checkpoints.backbone import Backbone, State, import_timm
from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.index import Entry, lookup
from lipcomp.checkpoints.lean import Budget, lean
from lipcomp.checkpoints.preprocessing import Inputs, from_timm, from_torchvision
from lipcomp.checkpoints.vits import read_vit
from lipcomp.encoders import BACKBONES, PreActResNet, ResNet, WideResNet
from lipcomp.encoders.resnet import DEPTHS

OURS = re.compile(r"resnet(\d+)(?:_([\d.]+)x)?(_cifar)?(_tf|_same)?")
WIDE = re.compile(r"wrn_(\d+)_(\d+)")
PLAIN = re.compile(r"torchvision/(resnet\d+|wide_resnet\w+|resnext\w+)")  # what everybody means by a ResNet
TRANSFORMED = ("inception_v3", "googlenet")  # torchvision's with transform_input
SIZED = ("vit_", "deit", "beit", "eva", "flexivit", "samvit", "xcit", "cait")  # take img_size
DEEPEST, WIDEST = 1000, 100  # of a Wide ResNet


def build_backbone(
    name: str,
    channels: int = 3,
    conventions: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
) -> Backbone:
    """Build a backbone by name, without memory for its weights (see :mod:`lipcomp.checkpoints.lean`).

    Parameters
    ----------
    name
        NAME, torchvision/NAME or timm/NAME; timm's may end in a tag (``vit_base_patch16_224.dino``).
    channels
        Of the images.
    conventions
        What a name does not say: a stem's padding, ``image_size``, timm's ``model_args`` and ``global_pool``.
    budget
        The most that it may hold.

    Raises
    ------
    CheckpointError
        If no library knows the name, or the network is larger than the budget.
    ImportError
        If only timm could know it, and timm is not installed.
    """
    told = conventions or {}
    try:
        with lean(budget or Budget()):
            return _build(name, channels, told)
    except CheckpointError as error:
        if "meta" not in str(error.__cause__):
            raise
        with lean(budget or Budget(), empty=False):  # a constructor that runs a part of the network
            return _build(name, channels, told)


def _build(name: str, channels: int, told: Mapping[str, Any]) -> Backbone:
    library, _, short = name.rpartition("/")
    if library in ("", "lipcomp") and (found := _ours(short, channels)):
        return _pad_stem(found, told) if "_cifar" in short else found
    if library in ("", "torchvision") and short in torchvision.models.list_models(torchvision.models):
        return _torchvision(short, channels)
    if library in ("", "timm"):
        return _timm(short, channels, told)
    raise CheckpointError(f"arch {name!r} is of no known library; write NAME, torchvision/NAME or timm/NAME")


def _ours(name: str, channels: int) -> Backbone | None:
    """One of our networks; None where the name is none of them."""
    if match := OURS.fullmatch(name):
        depth, width = int(match[1]), float(match[2] or 1)
        if depth in DEPTHS and 1 / 64 <= width <= 16:
            stem = "cifar" if match[3] else "imagenet"
            padding = {None: "torchvision", "_tf": "tensorflow", "_same": "same"}[match[4]]
            network = ResNet(depth, stem, width, channels, padding)  # type: ignore[arg-type]
            return Backbone(name, network, image_size=(32, 32) if match[3] else None)
    if (match := WIDE.fullmatch(name)) and int(match[1]) <= DEEPEST and int(match[2]) <= WIDEST:
        return Backbone(name, WideResNet(int(match[1]), int(match[2]), channels), image_size=(32, 32))
    if name in ("preact_resnet18", "preact_resnet18_raw"):
        raw = name.endswith("raw")  # Wong2020Fast's: raw shortcuts, no last batch norm
        return Backbone(name, PreActResNet(channels, not raw, raw), ("linear",), image_size=(32, 32))
    if name in BACKBONES:
        return Backbone(name, BACKBONES[name](channels), image_size=(28, 28) if channels == 1 else (32, 32))
    return None


def _torchvision(name: str, channels: int) -> Backbone:
    if channels != 3:
        raise CheckpointError(
            f"arch {name!r} of torchvision takes 3 channels; use --factory with a function that builds the network"
        )
    more = {"init_weights": False} if name in TRANSFORMED else {}
    network = torchvision.models.get_model(name, weights=None, **more)
    linears = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    last, pooled = (linears[-1], nn.Identity()) if linears else ("classifier", nn.AdaptiveAvgPool2d(1))
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, pooled)
    auxiliary = tuple(place for place in ("AuxLogits", "aux1", "aux2") if hasattr(network, place))
    for place in auxiliary:
        setattr(network, place, None)  # they answer in training only
    return Backbone(
        f"torchvision/{name}",
        network,
        (last, *auxiliary),
        from_torchvision(name, f"torchvision's weights of {name}"),
        notes=(
            ("transform_input is off: what it does is part of the normalisation",)
            if name in TRANSFORMED
            else ()
        ),
    )


def _timm(name: str, channels: int, told: Mapping[str, Any]) -> Backbone:
    if not re.fullmatch(r"[\w.]+", name):
        raise CheckpointError(f"arch {name!r} is no name of a timm architecture (letters, digits, _ and .)")
    timm = import_timm(f"arch {name!r} is none of lipcomp's or torchvision's networks")
    if not timm.is_model(name):
        known = [*BACKBONES, *torchvision.models.list_models(torchvision.models), *timm.list_models()]
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(
            f"arch {name!r} is known neither to lipcomp, torchvision nor timm{hint} For a network of your own, use "
            f"--factory package.module:function"
        )
    options = {"num_classes": 0, "in_chans": channels, **told.get("model_args", {})}
    size, tagged = told.get("image_size"), timm.get_pretrained_cfg(name)
    usual = tuple(tagged.input_size[1:]) if tagged else None
    if size and usual and tuple(size) != usual and (tagged.fixed_input_size or name.startswith(SIZED)):
        options["img_size"] = size
    try:
        network = _create(name, options, told.get("global_pool"))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library makes of options that do not fit
        raise CheckpointError(
            f"arch {name!r}: timm does not build it with {_few(options)} ({str(error).splitlines()[0]}); leave "
            f"--image-size out, or build it with --factory package.module:function"
        ) from error
    features = told.get("num_features", getattr(network, "num_features", None))
    if features != getattr(network, "num_features", features):
        raise CheckpointError(
            f"arch {name!r}: the folder says num_features {features}, timm builds it with "
            f"{network.num_features}; its "
            f"config.json lacks the model_args that it was built with; use --factory package.module:function"
        )
    config: Any = network.pretrained_cfg
    classifier = config.get("classifier") or ("head", "fc")
    return Backbone(
        f"timm/{name}",
        network,
        (classifier,) if isinstance(classifier, str) else tuple(classifier),
        from_timm(config, f"timm's default for {name}"),
        tuple(config["input_size"][1:]) if config.get("input_size") else None,
    )


def _create(name: str, options: Mapping[str, Any], pool: str | None) -> nn.Module:
    """Timm's network; with the pooling that a folder names where that is not the network's own."""
    timm = import_timm("timm's networks")
    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    if pool and "global_pool" not in options and getattr(network, "global_pool", pool) != pool:
        network = timm.create_model(name, pretrained=False, global_pool=pool, **options)
    return network


def _few(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items() if name != "num_classes")


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
    budget = Budget.of(state)
    known = lookup(state)
    plain = [entry.name for entry in known if PLAIN.fullmatch(entry.name)]
    if known and not plain:
        return _read_index(known, conventions, budget)
    with lean(budget):
        for reader in READERS:
            if (found := reader(state, conventions)) is not None:
                others = [entry.name for entry in known if entry.name.rpartition("/")[2] != plain[0][12:]]
                if others and conventions.get("format") == "plain":
                    note = f"{found.name} assumed: {', '.join(others)} have the same names and shapes; --arch names one"
                    found = replace(found, notes=(*found.notes, note))
                return found
    some = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:4])
    raise CheckpointError(
        f"the architecture is not one that can be read off its weights (they begin {some}); name it with --arch "
        f"(resnet50, vit_small_patch16_224, any name of torchvision or timm), give the folder with its "
        f"config.json, or "
        f"build it with --factory package.module:function"
    )


def _read_index(known: list[Entry], conventions: Mapping[str, Any], budget: Budget) -> Backbone:
    """The architecture of the index; refused where several with these names and shapes compute different things."""
    names = [entry.name for entry in known]
    twins = {name for name in names if f"torchvision/{name.rpartition('/')[2]}" in names}  # the same in both
    functions = {entry.function: entry.name for entry in known if entry.name not in twins}
    if twins:
        functions["twins"] = min(twins)
    if len(functions) > 1:
        raise CheckpointError(
            f"ambiguous: the weights have the names and shapes of {' or '.join(functions.values())}, which compute "
            f"different things with them; pass --arch with one of these"
        )
    found = build_backbone(next(iter(functions.values())), 3, conventions, budget)
    normalisations: dict[Any, str] = {}
    for name in names:
        for tag, inputs in _tags(name):
            normalisations.setdefault(inputs.normalisation, tag)
    note = f"architecture read off names and shapes: {found.name}" + (
        f", the same as {', '.join(name for name in names if name != found.name)}" if len(names) > 1 else ""
    )
    return replace(found, notes=(*found.notes, note), normalisations=normalisations)


def _tags(name: str) -> Iterator[tuple[str, Inputs]]:
    """What the library's weights for an architecture say of their images, by the name that chooses them."""
    library, _, short = name.partition("/")
    if library == "torchvision":
        found = from_torchvision(short, "")
        if found is not None:
            yield name, found
        if found is not None and short in TRANSFORMED:  # its transform_input turns ImageNet's into this
            yield (
                "the released weights, with transform_input",
                replace(found, mean=(0.5,) * 3, std=(0.5,) * 3),
            )
        return
    timm = import_timm("the architecture is one of timm's")
    for full in timm.list_models(f"{short}.*", include_tags=True) or [short]:
        config = timm.get_pretrained_cfg(full)
        try:
            found = from_timm(config.to_dict(), "") if config else None
        except ValueError:
            continue
        if found is not None:
            yield f"timm/{full}", found


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
    _read_wide_resnet,
    _read_preact,
    read_vit,
]
