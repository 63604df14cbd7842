"""The network that a set of weights belongs to, read off their names and shapes.

First by the index of timm's and torchvision's architectures (:mod:`lipcomp.checkpoints._index`), then by readers that
know families of any width and depth: ResNets, Wide ResNets, pre-activation networks, vision transformers. What shapes
do not tell is a convention of the weights' format, and is noted where it is used.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.checkpoints._architectures import TRANSFORMED, build_backbone, ours, pad_stem, torchvisions
from lipcomp.checkpoints._backbone import Backbone, State, import_timm
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._index import Entry, digest_function, lookup
from lipcomp.checkpoints._lean import Budget, lean
from lipcomp.checkpoints._preprocessing import Inputs, from_timm, from_torchvision
from lipcomp.checkpoints._vits import heads_of, read_vit
from lipcomp.encoders._resnet import DEPTHS

GRIDS = (7, 8, 12, 14, 15, 16, 18, 20, 24, 27, 28, 32, 36, 37)  # patches on a side of the index's ViTs
PLAIN = re.compile(r"torchvision/(resnet\d+|wide_resnet\w+|resnext\w+)")  # what everybody means by a ResNet


def infer_backbone(state: State, conventions: Mapping[str, Any]) -> Backbone:
    """The backbone that these weights (in the names of torchvision, timm or RobustBench) fit, or a CheckpointError.

    ``conventions`` are what the weights' format fixes without showing it: ``stem_padding``, ``heads`` ...
    """
    budget = Budget.of(state)
    if heads_of(conventions, state) is not None:  # a format or a configuration says more than the index
        with lean(budget):
            if (found := read_vit(state, conventions)) is not None:
                return found
    known = lookup(state)
    named = [entry for entry in known if entry.name.rpartition("/")[2] in _said_architectures(conventions)]
    known = named or known
    if not known and (found := _read_resized(state, conventions, budget)) is not None:
        return found
    plain = [entry.name for entry in known if PLAIN.fullmatch(entry.name)]
    if known and not plain:
        return _read_index(known, conventions, budget)
    with lean(budget):
        for reader in READERS:
            if (found := reader(state, conventions)) is not None:
                others = [entry.name for entry in known if entry.name.rpartition("/")[2] != plain[0][12:]]
                if others and conventions.get("format") == "plain":
                    note = f"{found.name} assumed: {', '.join(others)} have the same names and shapes; arch= names one"
                    found = replace(found, notes=(*found.notes, note))
                return found
    some = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:4])
    raise CheckpointError(
        f"the architecture is not one that can be read off its weights (they begin {some}); "
        + (
            conventions.get("remedy")
            or "name it with arch= (resnet50, vit_small_patch16_224, any name of torchvision "
            "or timm), give the folder with its config.json, or build it yourself (lipcomp.wrap)"
        )
    )


def _said_architectures(conventions: Mapping[str, Any]) -> set[str]:
    """Names of architectures in the file's own settings, without the tag of weights."""
    return {str(name).partition(".")[0] for name in conventions.get("said", {}).get("architecture", ())}


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
            f"different things with them; pass arch= with one of these"
        )
    found = build_backbone(next(iter(functions.values())), 3, conventions, budget)
    normalisations: dict[Any, str] = {}
    for name in names:
        for tag, inputs in _tags(name):
            normalisations.setdefault(inputs.normalisation, tag)
    note = f"architecture read off names and shapes: {found.name}" + (
        f", the same as {', '.join(name for name in names if name != found.name)}" if len(names) > 1 else ""
    )
    places = {place for entry in known for place in entry.classifier}
    return replace(
        found,
        classifier=(*found.classifier, *sorted(places)),
        notes=(*found.notes, note),
        normalisations=normalisations,
    )


def _read_resized(state: State, conventions: Mapping[str, Any], budget: Budget) -> Backbone | None:
    """A ViT of the index for images of another size, where its function is not that of a plain ViT with a class token.

    CLIP's have another epsilon and may have QuickGELU, those without a class token other heads or norms.
    """
    positions, patch = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    usual = "cls_token" in state and not any(name.startswith(("norm_pre.", "attn_pool.")) for name in state)
    if positions is None or patch is None or usual or positions.ndim != 3 or patch.ndim != 4:
        return None
    if conventions.get("format") != "plain":  # which says what the shapes do not
        return None
    prefix = next(
        (n for n in (0, 1) if math.isqrt(positions.shape[1] - n) ** 2 == positions.shape[1] - n), None
    )
    if prefix is None:
        return None
    side = math.isqrt(positions.shape[1] - prefix)
    tables = [positions.new_empty((1, grid**2 + prefix, positions.shape[2])) for grid in GRIDS]
    known = [entry for table in tables for entry in lookup({**state, "pos_embed": table})]
    size = (side * patch.shape[2], side * patch.shape[3])
    told = {**conventions, "image_size": conventions.get("image_size") or size}
    names = {entry.function: entry.name for entry in known}
    now = {old: digest_function(build_backbone(name, 3, told, budget).network) for old, name in names.items()}
    if not known:
        return None
    found = _read_index([replace(entry, function=now[entry.function]) for entry in known], told, budget)
    ready = found.preprocessing and found.preprocessing.with_given(size)
    return replace(found, image_size=size, preprocessing=ready)


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
    timm = import_timm("an architecture of timm")
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
        return torchvisions(named, channels) if named and channels == 3 and kernel == 7 else None
    if inner != stem:
        return None
    width = "" if stem == 64 else f"_{stem / 64:g}x"
    padding = {"tensorflow": "_tf", "same": "_same"}.get(conventions.get("pool_padding", ""), "")
    found = ours(f"resnet{depth}{width}{suffix}{padding}", channels)
    if found is None:
        return None
    if "input_norm.weight" in state:
        return _framed(found, state, channels)
    found = pad_stem(found, conventions) if kernel == 3 else found
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


def _read_wide_resnet(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    first = state.get("block1.layer.0.conv1.weight")
    if first is None or "conv1.weight" not in state or first.ndim != 4:
        return None
    depth, width = 6 * _count(state, "block1.layer.") + 4, first.shape[0] // 16
    if width < 1 or first.shape[0] % 16:
        return None
    return ours(f"wrn_{depth}_{width}", state["conv1.weight"].shape[1])


def _read_preact(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    if not _pre_activation(state):
        return None
    name = "preact_resnet18" if "bn.weight" in state else "preact_resnet18_raw"
    return ours(name, state["conv1.weight"].shape[1])


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
