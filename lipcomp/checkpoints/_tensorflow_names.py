"""The variables of TensorFlow checkpoints under our names: ``backbone.``, ``projector.``, ``predictor.``.

Two ways of naming are known. ``tf.train.Checkpoint`` follows Python attributes, so a name says its place:
``model/_resnet/block_groups/0/layers/1/...``. TensorFlow 1 numbers layers as they were made, so the order of
building has to be known: a block's projection shortcut comes before its main path (SimCLR v1 and v2).

Kernels are (height, width, in, out) there and (out, in, height, width) here; of dense layers, (in, out) and
(out, in).
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.encoders._resnet import DEPTHS

BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Optimiser state that stands beside a variable.
SLOTS = re.compile(
    r".*(/\.OPTIMIZER_SLOT/|/Momentum$|/Adam(_1)?$|/ExponentialMovingAverage$|^optimizer/|^opt/)"
)

# Whole networks by their first part -> our prefix. The target networks of BYOL are the "momentum" branch.
NETWORKS = {
    "_resnet": "backbone.",
    "resnet_model": "backbone.",
    "_projection_head": "projector.",
    "_projector": "predictor.",
    "_target_resnet": "momentum_backbone.",
    "_target_head": "momentum_projector.",
    "_target_projector": "momentum_predictor.",
}


def object_names(names: list[str]) -> dict[str, str]:
    """Our name -> variable, for a checkpoint of ``tf.train.Checkpoint`` (the paper's, SimCLR's TF2 code)."""
    ours = {}
    for name in names:
        match = re.fullmatch(rf"(?:[\w.]+/)*?({'|'.join(NETWORKS)})/(.+){re.escape(VALUE)}", name)
        if match and not SLOTS.match(name):
            network, rest = NETWORKS[match[1]], match[2]
            place = _in_resnet(rest) if network.endswith("backbone.") else _in_head(rest)
            if place:
                ours[network + place] = name
    return ours


def _in_resnet(rest: str) -> str | None:
    """A variable within a ResNet of the official code."""
    if match := re.fullmatch(r"initial_conv_relu_max_pool/\d+/(.+)", rest):
        return _layer("conv1", "bn1", match[1])
    match = re.fullmatch(r"block_groups/(\d+)/layers/(\d+)/(\w+)/(\d+)/(.+)", rest)
    if match is None:
        return None
    group, block, part, number = int(match[1]) + 1, int(match[2]), match[3], int(match[4])
    if part in ("projection_layers", "shortcut_layers"):
        place = _layer("downsample.0", "downsample.1", match[5])
    elif part in ("conv_relu_dropblock_layers", "conv2d_bn_layers"):
        every = 3 if part == "conv_relu_dropblock_layers" else 2
        place = _layer(f"conv{number // every + 1}", f"bn{number // every + 1}", match[5])
    else:
        return None
    return place and f"layer{group}.{block}.{place}"


def _layer(conv: str, norm: str, rest: str) -> str | None:
    if rest == "conv2d/kernel":
        return f"{conv}.weight"
    match = re.fullmatch(r"bn/(\w+)", rest)
    return f"{norm}.{BATCH_NORM[match[1]]}" if match and match[1] in BATCH_NORM else None


def _in_head(rest: str) -> str | None:
    """A variable within a head; dense layers and batch norms are numbered as build_head wants them.

    A head is hidden layers of dense, batch norm, ReLU, and a last dense layer. In C-BYOL's the predictor's last
    layer is number 2, since the sampling stands between, and a decoder follows as number 3.
    """
    match = re.fullmatch(r"linear_layers/(\d+)/(dense|bn_relu/bn|bn)/(\w+)", rest)
    if match is None:
        return None
    number, kind, what = int(match[1]), match[2], match[3]
    if kind == "dense":
        return f"{number}.dense.{'weight' if what == 'kernel' else what}"
    return f"{number}.norm.{BATCH_NORM[what]}" if what in BATCH_NORM else None


def number_head(ours: dict[str, str], prefix: str, keep: int | None = None) -> dict[str, str]:
    """The layers of a head renumbered as Linear, BN, ReLU, Linear ...; those beyond ``keep`` dense layers fall out."""
    head = {name: variable for name, variable in ours.items() if name.startswith(prefix)}
    rest = {name: variable for name, variable in ours.items() if name not in head}
    order = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in head})
    place, places = 0, {}
    for number in order[:keep]:
        normed = any(name.startswith(f"{prefix}{number}.norm.") for name in head)
        places[f"{prefix}{number}.dense."] = f"{prefix}{place}."
        places[f"{prefix}{number}.norm."] = f"{prefix}{place + 1}."
        place += 3 if normed else 2
    for name, variable in head.items():
        for old, new in places.items():
            if name.startswith(old):
                rest[new + name.removeprefix(old)] = variable
    return rest


def numbered_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Our name -> variable, for a checkpoint of TensorFlow 1 (SimCLR v1, v2), and its moving average as "momentum".

    Raises
    ------
    CheckpointError
        If the layers are not those of a plain ResNet; selective kernels (SimCLR v2's ``sk1``) are not supported.
    """
    ours: dict[str, str] = {}
    for root, branch in (("", ""), ("ema_model/", "momentum_")):
        kernels = _ordinal(shapes, rf"{root}base_model/conv2d(?:_(\d+))?/kernel")
        if not kernels:
            continue
        norms = _ordinal(shapes, rf"{root}base_model/batch_normalization(?:_(\d+))?/gamma")
        places = _resnet_order([shapes[name] for name in kernels])
        if places is None or len(places) != len(kernels) or len(norms) != len(kernels):
            raise CheckpointError(
                f"the TensorFlow checkpoint has {len(kernels)} convolutions, which make up no plain ResNet; "
                "selective kernels (SimCLR v2's sk1 models) are not supported, take an sk0 model"
            )
        for place, kernel, norm in zip(places, kernels, norms, strict=True):
            bn = place.replace("conv", "bn").replace("downsample.0", "downsample.1")
            ours[f"{branch}backbone.{place}.weight"] = kernel
            for theirs, name in BATCH_NORM.items():
                ours[f"{branch}backbone.{bn}.{name}"] = norm.removesuffix("gamma") + theirs
        for name in shapes:
            match = re.fullmatch(
                rf"{root}head_contrastive/nl_(\d+)/(dense|batch_normalization(?:_\d+)?)/(\w+)", name
            )
            if match and match[2] == "dense" and match[3] == "kernel":
                ours[f"{branch}projector.{match[1]}.dense.weight"] = name
            elif match and match[3] in BATCH_NORM:
                ours[f"{branch}projector.{match[1]}.norm.{BATCH_NORM[match[3]]}"] = name
    return ours


def _ordinal(names: Mapping[str, object], pattern: str) -> list[str]:
    found = {int(match[1] or 0): name for name in names if (match := re.fullmatch(pattern, name))}
    return [found[number] for number in sorted(found)]


def _resnet_order(kernels: list[tuple[int, ...]]) -> list[str] | None:
    """The places of a ResNet's convolutions in the order of building; None if no depth has so many.

    Also SimCLR's basic blocks project the first shortcut of every group, the first group's too.
    """
    for block, counts in DEPTHS.values():
        per_block = 3 if block.expansion == 4 else 2
        if len(kernels) != 1 + 4 + per_block * sum(counts):
            continue
        places = ["conv1"]
        for group, count in enumerate(counts, start=1):
            for number in range(count):
                shortcut = [f"layer{group}.{number}.downsample.0"] if number == 0 else []
                places += shortcut + [f"layer{group}.{number}.conv{i + 1}" for i in range(per_block)]
        wide = [kernel[0] for kernel, place in zip(kernels, places, strict=True) if "conv2" in place]
        if all(side == 3 for side in wide):
            return places
    return None


def to_ours(
    variables: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights under our names, in our layout, and the variable that each one was.

    Raises
    ------
    CheckpointError
        If no variable belongs to a known network.
    """
    numbered = any(re.match(r"(ema_model/)?base_model/conv2d", name) for name in variables)
    ours = numbered_names(variables) if numbered else object_names(list(variables))
    for prefix in ("projector.", "momentum_projector."):
        ours = number_head(ours, prefix)
    for prefix in ("predictor.", "momentum_predictor."):
        ours = number_head(ours, prefix, keep=2)
    if not any(name.startswith(("backbone.", "momentum_backbone.")) for name in ours):
        some = ", ".join(list(variables)[:3])
        raise CheckpointError(
            f"the TensorFlow checkpoint holds no ResNet of Lee et al. 2021's or SimCLR's code (its variables "
            f"begin {some})"
        )
    weights = {}
    for name, variable in ours.items():
        value = read(variable).float()
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        weights[name] = value.contiguous()
    return weights, ours


def why_left_out(variable: str) -> str:
    """Why a variable was not read."""
    if SLOTS.match(variable):
        return "optimiser state"
    if "supervised" in variable:
        return "classifier"
    if "target_" in variable or variable.startswith("ema_model/"):
        return "another branch"
    if "_projector/" in variable:
        return "the decoder behind the latent"
    return "bookkeeping"
