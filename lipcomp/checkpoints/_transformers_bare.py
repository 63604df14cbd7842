"""Bare state dicts of transformers' models: the configuration that the weights show, for transformers to build.

===================  =============================================================  ===============================
model                keys that only it has                                          what they do not show
===================  =============================================================  ===============================
DeiT                 embeddings.distillation_token                                  heads
SigLIP               embeddings.patch_embedding.weight, head.probe                  heads
DINOv3, ViT          embeddings.register_tokens, embeddings.patch_embeddings        heads, image size
ConvNeXt, V2         embeddings.patch_embeddings, encoder.stages.0.layers.0.dwconv
DINOv3, ConvNeXt     stages.0.downsample_layers.0.weight, stages.0.layers.0.gamma
===================  =============================================================  ===============================

ViT, DINOv2, CLIP and ResNet are translated (:mod:`lipcomp.checkpoints._dialects`). Heads are those of the published
models of that width; of another width, the file alone is refused. What is left is transformers' default, and noted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """A model of transformers: its type, the keys that mark it, its published heads by width, and its configuration."""

    name: str
    signs: tuple[str, ...]
    settings: Callable[[State], dict[str, Any]]
    heads: Mapping[int, int] | None = None


def bare_config(kind: Kind, state: State) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration that these weights show, and notes on what they do not.

    Raises
    ------
    CheckpointError
        If the number of heads is not known.
    """
    settings = kind.settings(state)
    notes = ["what the file does not show is the default of transformers' configuration"]
    if kind.heads is not None:
        width = settings["hidden_size"]
        if width not in kind.heads:
            raise CheckpointError(
                f"ambiguous: a {kind.name} of width {width} may have any number of heads, which its config.json says; "
                f"give the folder in which both lie"
            )
        settings["num_attention_heads"] = kind.heads[width]
        notes.append(f"{kind.heads[width]} heads, as the published models of width {width} have")
    return {"model_type": kind.name, **settings}, tuple(notes)


def find_kinds(state: State) -> list[tuple[Kind, str]]:
    """The models that occur, each with the prefix behind which it stands."""
    return [
        (kind, prefix)
        for kind in KINDS
        for key in sorted(state)
        if key.endswith(kind.signs[0])
        and ((prefix := key.removesuffix(kind.signs[0])) == "" or prefix.endswith("."))
        and all(prefix + sign in state for sign in kind.signs)
    ]


def _vit(patch: str, hidden: str) -> Callable[[State], dict[str, Any]]:
    """A reader of a vision transformer's sizes, given two of its keys."""

    def settings(state: State) -> dict[str, Any]:
        kernel = state[patch]
        inner = next((value for key, value in state.items() if key.endswith(hidden)), kernel)
        return {
            "hidden_size": kernel.shape[0],
            "num_channels": kernel.shape[1],
            "patch_size": kernel.shape[2],
            "num_hidden_layers": _count(state, hidden),
            "intermediate_size": inner.shape[0],
        }

    return settings


def _count(state: State, ending: str) -> int:
    return sum(key.endswith(ending) for key in state)


def _deit(state: State) -> dict[str, Any]:
    found = _vit(
        "embeddings.patch_embeddings.projection.weight",
        "mlp.fc1.weight" if _count(state, "mlp.fc1.weight") else "intermediate.dense.weight",
    )(state)
    positions = state["embeddings.position_embeddings"].shape[1] - 2
    return {**found, "image_size": math.isqrt(positions) * found["patch_size"]}


def _siglip(state: State) -> dict[str, Any]:
    inside = {key: value for key, value in state.items() if not key.startswith("head.")}
    found = _vit("embeddings.patch_embedding.weight", "mlp.fc1.weight")(inside)
    positions = state["embeddings.position_embedding.weight"].shape[0]
    return {**found, "image_size": math.isqrt(positions) * found["patch_size"]}


def _dinov3(state: State) -> dict[str, Any]:
    gated = _count(state, "mlp.gate_proj.weight") > 0
    biases = {
        f"{name}_bias": _count(state, f"attention.{name[0]}_proj.bias") > 0
        for name in ("key", "query", "value")
    }
    return {
        **_vit("embeddings.patch_embeddings.weight", "mlp.up_proj.weight")(state),
        **biases,
        "num_register_tokens": state["embeddings.register_tokens"].shape[1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
    }


def _convnext(stages: str, block: str, stem: str) -> Callable[[State], dict[str, Any]]:
    """A reader of a ConvNeXt's sizes: where its stages, a block's convolution and the stem stand."""

    def settings(state: State) -> dict[str, Any]:
        found = [key for key in state if key.startswith(stages) and key.endswith(block)]
        numbers = sorted({int(key.removeprefix(stages).split(".")[0]) for key in found})
        depths = [sum(key.startswith(f"{stages}{number}.") for key in found) for number in numbers]
        widths = [state[f"{stages}{number}.layers.0.{block}"].shape[0] for number in numbers]
        scaled = any(key.endswith(("layer_scale_parameter", "gamma")) for key in state)
        more = {"patch_size": state[stem].shape[2], "num_stages": len(depths)} if stem == STEM else {}
        return {
            "depths": depths,
            "hidden_sizes": widths,
            "num_channels": state[stem].shape[1],
            **more,
            **({} if scaled else {"layer_scale_init_value": 0}),
        }

    return settings


STEM, BLOCK = "embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0."
OURS = _convnext("encoder.stages.", "dwconv.weight", STEM)
DINO = {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}
KINDS = (
    Kind("deit", ("embeddings.distillation_token",), _deit, {192: 3, 384: 6, 768: 12}),
    Kind(
        "siglip_vision_model",
        ("embeddings.patch_embedding.weight", "head.probe"),
        _siglip,
        {768: 12, 1024: 16, 1152: 16},
    ),
    Kind("dinov3_vit", (STEM, "embeddings.register_tokens"), _dinov3, DINO),
    Kind("convnextv2", (STEM, BLOCK + "dwconv.weight", BLOCK + "grn.weight"), OURS),
    Kind("convnext", (STEM, BLOCK + "dwconv.weight", BLOCK + "layer_scale_parameter"), OURS),
    *(
        Kind(
            "dinov3_convnext",
            (f"{stages}0.downsample_layers.0.weight", f"{stages}0.layers.0.gamma", "layer_norm.weight"),
            _convnext(stages, "depthwise_conv.weight", f"{stages}0.downsample_layers.0.weight"),
        )
        for stages in ("model.stages.", "stages.")
    ),
)
