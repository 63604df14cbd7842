"""The networks of timm, torchvision and transformers with random weights, each with its library's own features.

What :mod:`benchmarks.checkpoint_zoo` writes and loads again.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

State = dict[str, Tensor]


@dataclass
class Reference:
    """A library's network with its own evaluation path, and how the library writes it."""

    state: State
    features: Callable[[Tensor], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    config: dict[str, Any] | None
    processor: dict[str, Any] | None = None


class Undrawn(TorchFunctionMode):
    """Initial weights are not drawn: :func:`shake` replaces them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, value = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        skipped = name in (
            *("uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"),
        )
        if not skipped:
            return func(*args, **kwargs)
        with torch.no_grad():  # torch draws a truncated normal until every number is within its ends: zero is
            return value.zero_()


def shake(network: nn.Module) -> nn.Module:
    """Random weights and statistics in evaluation mode: nothing at its initial value."""
    draw, kept = torch.Generator().manual_seed(0), network.state_dict().keys()
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name not in kept or not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=draw))
            elif value.ndim <= 1:
                value.copy_(float(name.endswith("weight")) + 0.2 * torch.randn(value.shape, generator=draw))
            else:
                value.copy_(torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5)
    return network.eval().requires_grad_(False)


def of_timm(name: str) -> Reference:
    """Timm's network; its evaluation path is the network without its classifier, on its own normalisation."""
    import timm

    with Undrawn():
        network, headless = timm.create_model(name), timm.create_model(name, num_classes=0).eval()
    shake(network)
    told = headless.load_state_dict(network.state_dict(), strict=False)
    if told.missing_keys:
        raise RuntimeError(f"its own headless form lacks {told.missing_keys[0]}")
    config = dict(network.pretrained_cfg)
    folder = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": network.num_features,
        "pretrained_cfg": config,
    }
    if isinstance(pool := getattr(network, "global_pool", None), str) and pool:
        folder["global_pool"] = pool
    return Reference(
        network.state_dict(),
        headless,
        tuple(config["mean"]),
        tuple(config["std"]),
        tuple(config["input_size"][1:]),
        folder,
    )


def of_torchvision(name: str) -> Reference:
    """Torchvision's network without its last linear layer."""
    with Undrawn():
        network = torchvision.models.get_model(name, weights=None)
    shake(network)
    state = dict(network.state_dict())
    linears = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if name in ("googlenet", "inception_v3"):
        linears = ["fc"]
    if linears:
        parent, _, child = linears[-1].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    else:  # SqueezeNet's classifier is a convolution
        network.classifier = nn.AdaptiveAvgPool2d(1)
    ready = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    size = ready.crop_size[0]
    return Reference(state, network, tuple(ready.mean), tuple(ready.std), (size, size), None)


SMALL = {  # a transformers configuration that every kind of vision transformer takes in part
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip


def transformers_kind(kind: str) -> tuple[Any, Any]:
    """The class and the configuration of a kind of transformers model, small where its configuration allows it."""
    from transformers.models.auto import configuration_auto, modeling_auto

    settings = configuration_auto.CONFIG_MAPPING[kind]()
    if all(isinstance(getattr(settings, name, None), int) for name in SMALL):
        settings = type(settings)(**SMALL)
    if kind == "vit_mae":
        settings.mask_ratio = 0.0  # its features are those of all patches
    return modeling_auto.MODEL_MAPPING[type(settings)], settings


def of_transformers(kind: str) -> Reference:
    """A transformers model of one kind."""
    from transformers.models.auto import modeling_auto

    from lipcomp.checkpoints._transformers_models import TOKEN

    body, settings = transformers_kind(kind)
    network = shake(body(settings))
    inner = getattr(settings, "vision_config", settings)
    size = getattr(inner, "image_size", None) or 224
    size = (size, size) if isinstance(size, int) else tuple(size)
    token = kind in TOKEN or kind.startswith(("dinov2", "vit_m"))
    out = network.get_image_features if inner is not settings else network
    with torch.no_grad():
        tried = out(pixel_values=torch.zeros(1, 3, *size))
    seen: list[Tensor] = []
    if inner is settings and not token and getattr(tried, "pooler_output", None) is None:
        network = shake(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)](settings))
        network.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def features(images: Tensor) -> Tensor:
        out = (
            network.get_image_features(pixel_values=images)
            if inner is not settings
            else network(pixel_values=images)
        )
        if seen:  # what the library's own classifier reads
            return seen[-1].flatten(1)
        if token:
            return out.last_hidden_state[:, 0]
        return out if isinstance(out, Tensor) else out.pooler_output.flatten(1)

    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        from safetensors.torch import load_file

        state = load_file(Path(folder) / "model.safetensors")
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
    processor = {
        "size": {"height": size[0], "width": size[1]},
        "resample": 2,
        "image_mean": mean,
        "image_std": std,
        "rescale_factor": 1 / 255,
    }
    return Reference(state, features, mean, std, size, config, processor)


def architectures() -> list[tuple[str, str]]:
    """(library, name) of everything that is installed."""
    import timm

    names = [("torchvision", name) for name in torchvision.models.list_models(torchvision.models)]
    names += [("timm", name) for name in timm.list_models()]
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return names
    kinds = {
        *modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
    }
    # no networks of their own, or not of pixels
    kinds -= {"timm_wrapper", "timm_backbone", "perceiver", "imagegpt"}
    return names + [("transformers", kind) for kind in sorted(kinds)]


REFERENCES = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}
