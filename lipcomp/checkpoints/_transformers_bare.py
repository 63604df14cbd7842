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
from collections import Counter
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


def _vit(state: State, patch: str, hidden: str, positions: str = "", tokens: int = 0) -> dict[str, Any]:
    """The sizes of a vision transformer, from the keys of its patches, its MLP's first layer and its positions."""
    if state[patch].ndim != 4:
        raise CheckpointError(
            "the weights are of a vision transformer that takes patches with further inputs instead of images (as "
            "SigLIP 2's NaFlex); build it yourself, around what makes them (lipcomp.wrap)"
        )
    width, channels, side, _ = state[patch].shape
    inner = [value for key, value in state.items() if key.endswith(hidden) and not key.startswith("head.")]
    places = state[positions].shape[-2] - tokens if positions else 0
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": side,
        "num_hidden_layers": len(inner),
        "intermediate_size": inner[0].shape[0],
        **({"image_size": math.isqrt(places) * side} if positions else {}),
    }


def _deit(state: State) -> dict[str, Any]:
    hidden = "mlp.fc1.weight" if _has(state, "mlp.fc1.weight") else "intermediate.dense.weight"
    patch, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
    return _vit(state, patch, hidden, positions, 2)


def _siglip(state: State) -> dict[str, Any]:
    return _vit(
        state, "embeddings.patch_embedding.weight", "mlp.fc1.weight", "embeddings.position_embedding.weight"
    )


def _dinov3(state: State) -> dict[str, Any]:
    gated = _has(state, "mlp.gate_proj.weight")
    return {
        **_vit(state, STEM, "mlp.up_proj.weight"),
        **{
            f"{part}_bias": _has(state, f"attention.{part[0]}_proj.bias")
            for part in ("key", "query", "value")
        },
        "num_register_tokens": state["embeddings.register_tokens"].shape[1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
    }


def _has(state: State, ending: str) -> bool:
    return any(key.endswith(ending) for key in state)


def _convnext(state: State, stages: str = "encoder.stages.", block: str = "dwconv.weight") -> dict[str, Any]:
    """The sizes of a ConvNeXt, from where its stages and a block's first convolution stand."""
    stem = STEM if STEM in state else f"{stages}0.downsample_layers.0.weight"
    depths = Counter(int(key.removeprefix(stages).split(".")[0]) for key in state if key.endswith(block))
    return {
        "depths": [depths[number] for number in sorted(depths)],
        "hidden_sizes": [state[f"{stages}{number}.layers.0.{block}"].shape[0] for number in sorted(depths)],
        "num_channels": state[stem].shape[1],
        **({"patch_size": state[stem].shape[2], "num_stages": len(depths)} if stem == STEM else {}),
    }


def _dinov3_convnext(stages: str) -> Kind:
    signs = f"{stages}0.downsample_layers.0.weight", f"{stages}0.layers.0.gamma", "layer_norm.weight"
    return Kind("dinov3_convnext", signs, lambda state: _convnext(state, stages, "depthwise_conv.weight"))


STEM, BLOCK = "embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0."
CONVNEXT = (STEM, BLOCK + "dwconv.weight")
KINDS = (
    Kind("deit", ("embeddings.distillation_token",), _deit, {192: 3, 384: 6, 768: 12}),
    Kind(
        "siglip_vision_model",
        ("embeddings.patch_embedding.weight", "head.probe"),
        _siglip,
        {768: 12, 1024: 16, 1152: 16},
    ),
    Kind(
        "dinov3_vit",
        (STEM, "embeddings.register_tokens"),
        _dinov3,
        {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    ),
    Kind("convnextv2", (*CONVNEXT, BLOCK + "grn.weight"), _convnext),
    Kind("convnext", (*CONVNEXT, BLOCK + "layer_scale_parameter"), _convnext),
    _dinov3_convnext("model.stages."),
    _dinov3_convnext("stages."),
)
