"""Networks by name.

A name is looked for here in this order; ``torchvision/NAME`` and ``timm/NAME`` skip the others.

=================================  =====================================================================
resnet50, resnet50_2x, ..._cifar   our ResNets (torchvision's names): any width, either stem, either padding
wrn_28_10, preact_resnet18         pre-activation networks of RobustBench's CIFAR zoo
anything of torchvision.models     without its classifier
anything of timm                   without its classifier (needs the extra ``timm``)
=================================  =====================================================================
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from lipcomp._messages import nearest
from lipcomp.checkpoints._backbone import Backbone, import_timm
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import Budget, build_lean
from lipcomp.checkpoints._preprocessing import from_timm, from_torchvision
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.encoders._preact import PreActResNet, WideResNet
from lipcomp.encoders._resnet import DEPTHS, ResNet

OURS = re.compile(r"resnet(\d+)(?:_([\d.]+)x)?(_cifar)?(_tf|_same)?")
WIDE = re.compile(r"wrn_(\d+)_(\d+)")
TRANSFORMED = ("inception_v3", "googlenet")  # torchvision's with transform_input
UNSAID = {  # of torchvision's networks, what their weights do not say
    **dict.fromkeys(TRANSFORMED, "transform_input is off: what it does is part of the normalisation"),
    "mobilenet_v2": "ReLU6 assumed; torchvision.models.quantization's float network has ReLU (lipcomp.wrap)",
}
SIZED = ("vit_", "deit", "beit", "eva", "flexivit", "samvit", "xcit", "cait")  # take img_size
DEEPEST, WIDEST = 1000, 100  # of a Wide ResNet


def build_backbone(
    name: str,
    channels: int = 3,
    conventions: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
) -> Backbone:
    """Build a backbone by name, without memory for its weights (see :mod:`lipcomp.checkpoints._lean`).

    ``name`` is NAME, torchvision/NAME or timm/NAME; timm's may end in a tag (``vit_base_patch16_224.dino``).
    ``conventions`` are what it does not say: a stem's padding, ``image_size``, timm's ``model_args`` and
    ``global_pool``. A name that no library knows is refused, and a network larger than the budget.
    """
    return build_lean(lambda: _build(name, channels, conventions or {}), budget or Budget())


def _build(name: str, channels: int, told: Mapping[str, Any]) -> Backbone:
    library, _, short = name.rpartition("/")
    if library in ("", "lipcomp") and (found := ours(short, channels)):
        return pad_stem(found, told) if "_cifar" in short else found
    if library in ("", "torchvision") and short in torchvision.models.list_models(torchvision.models):
        return torchvisions(short, channels)
    if library in ("", "timm"):
        return _timm(short, channels, told)
    raise CheckpointError(f"arch {name!r} is of no known library; write NAME, torchvision/NAME or timm/NAME")


def ours(name: str, channels: int) -> Backbone | None:
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


def torchvisions(name: str, channels: int) -> Backbone:
    """One of torchvision's networks without its classifier."""
    if channels != 3:
        raise CheckpointError(
            f"arch {name!r} of torchvision takes 3 channels; build the network yourself (lipcomp.wrap)"
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
        notes=tuple(note for known, note in UNSAID.items() if known == name),
    )


def _timm(name: str, channels: int, told: Mapping[str, Any]) -> Backbone:
    timm = import_timm(f"arch {name!r}, none of lipcomp's or torchvision's networks,")
    if not re.fullmatch(r"[\w.]+", name) or not timm.is_model(name):
        known = [*BACKBONES, *torchvision.models.list_models(torchvision.models), *timm.list_models()]
        hint = nearest(name, known)
        raise CheckpointError(
            f"arch {name!r} is known neither to lipcomp, torchvision nor timm{hint} A network of your own is "
            f"built by you (lipcomp.wrap)"
        )
    options = {"num_classes": 0, "in_chans": channels, **told.get("model_args", {})}
    builders = (timm.create_model, timm.models.build_model_with_cfg)
    own = {"features_only", "out_indices"}.union(*(inspect.signature(one).parameters for one in builders))
    if strange := sorted(own & options.keys()):  # such as checkpoint_path, a file
        raise CheckpointError(
            f"the model_args of config.json hold {strange[0]!r}, which is no setting of a network; leave it out"
        )
    size, tagged = told.get("image_size"), timm.get_pretrained_cfg(name)
    usual = tuple(tagged.input_size[1:]) if tagged else None
    sized = "img_size" in options or (tagged and (tagged.fixed_input_size or name.startswith(SIZED)))
    if size and usual and sized and ("img_size" in options or tuple(size) != usual):
        options["img_size"] = size
    try:
        network = _create(name, options, told.get("global_pool"))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library makes of options that do not fit
        raise CheckpointError(
            f"arch {name!r}: timm does not build it with {_few(options)} ({str(error).splitlines()[0]}); leave "
            f"image_size= out, or build it yourself (lipcomp.wrap)"
        ) from error
    features = told.get("num_features", getattr(network, "num_features", None))
    if features != getattr(network, "num_features", features):
        raise CheckpointError(
            f"arch {name!r}: the folder says num_features {features}, timm builds it with {network.num_features}; "
            "its config.json lacks the model_args that it was built with; build it yourself (lipcomp.wrap)"
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
    timm = import_timm("a network of timm")
    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    if pool is not None and "global_pool" not in options and getattr(network, "global_pool", pool) != pool:
        network = timm.create_model(name, pretrained=False, global_pool=pool, **options)
    return network


def _few(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items() if name != "num_classes")


def pad_stem(backbone: Backbone, conventions: Mapping[str, Any]) -> Backbone:
    """A 3 x 3 stem with the padding that its format has."""
    padding = conventions.get("stem_padding", 1)
    backbone.network.conv1.padding = (padding, padding)  # type: ignore[union-attr]
    note = (
        f"3 x 3 stem: padding {padding} and no max-pool, the convention of its format; the weights do not say"
    )
    return Backbone(backbone.name, backbone.network, backbone.classifier, None, (32, 32), (note,))
