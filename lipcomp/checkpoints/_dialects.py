"""Networks under other names than timm's or torchvision's, with the tensors that have to be joined or turned.

=================  ===================================================================  =======================
dialect            a key that only it has                                               besides the names
=================  ===================================================================  =======================
transformers' ...  embedder.embedder.convolution.weight                                 (its ResNet)
transformers       embeddings.patch_embeddings.projection.weight                        query, key, value apart
transformers CLIP  embeddings.patch_embedding.weight                                    the same; no batch axes
OpenCLIP           transformer.resblocks.0.attn.in_proj_weight                          no batch axes
mmpretrain         layers.0.ffn.layers.0.0.weight
=================  ===================================================================  =======================

A row is found by its sign behind any prefix. What the configuration beside the weights would fix (heads, epsilon,
activation) is not in a bare file: the usual values are taken and noted, or the caller chooses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._preprocessing import CLIP_NORMALISATION

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Dialect:
    """How one library names a vision transformer."""

    name: str  # what messages call it
    # a key that marks it, behind any prefix; ``stem`` is another, where a text tower has the first one too
    sign: str
    rules: Rules  # pattern of a whole key -> timm's name
    # key of a projection after the pooled token, (in, out) if ``turned``, and its name in the head
    projector: str = ""
    conventions: Mapping[str, Any] = field(default_factory=dict)  # what the weights do not show
    format: str = "huggingface"
    notes: tuple[str, ...] = ()
    stem: str = ""


@dataclass(frozen=True)
class Translated:
    """Weights under timm's names, and the keys of the file behind each."""

    dialect: Dialect
    weights: dict[str, Tensor]
    keys: dict[str, tuple[str, ...]]


LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."  # as files have it, and as modules of version 5 do

TRANSFORMERS = Dialect(
    "transformers",
    "embeddings.patch_embeddings.projection.weight",
    (
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.mask_token", "mask_token"),
        (r"embeddings\.register_tokens", "register_tokens"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (LAYER + r"attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (LAYER + r"attention\.(q|k|v)_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
        (LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
        (LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (LAYER + r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (r"layernorm\.(\w+)", r"norm.\1"),
    ),
    conventions={"configured": True},
)
CLIP = Dialect(
    "transformers' CLIP",
    "embeddings.patch_embedding.weight",
    (
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
        (r"pre_layrnorm\.(\w+)", r"norm_pre.\1"),
        (r"encoder\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
        (r"post_layernorm\.(\w+)", r"norm.\1"),
    ),
    "visual_projection.weight",
    {"layer_norm_eps": 1e-5, "configured": True, "normalisation": CLIP_NORMALISATION, "hidden_act": None},
)
OPENCLIP = Dialect(
    "OpenCLIP",
    "transformer.resblocks.0.attn.in_proj_weight",
    (
        (r"class_embedding", "cls_token"),
        (r"positional_embedding", "pos_embed"),
        (r"conv1\.(\w+)", r"patch_embed.proj.\1"),
        (r"ln_pre\.(\w+)", r"norm_pre.\1"),
        (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
        (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"transformer\.resblocks\.(\d+)\.ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
        (r"ln_post\.(\w+)", r"norm.\1"),
    ),
    "proj",
    {"layer_norm_eps": 1e-5, "normalisation": CLIP_NORMALISATION, "hidden_act": None},
    "openclip",
    stem="conv1.weight",
)
MMPRETRAIN = Dialect(
    "mmpretrain",
    "layers.0.ffn.layers.0.0.weight",
    (
        (r"(cls_token|pos_embed)", r"\1"),
        (r"patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (r"layers\.(\d+)\.attn\.(qkv|proj)\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (r"layers\.(\d+)\.attn\.gamma1\.weight", r"blocks.\1.ls1.gamma"),
        (r"layers\.(\d+)\.ffn\.gamma2\.weight", r"blocks.\1.ls2.gamma"),
        (r"layers\.(\d+)\.ln([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"pre_norm\.(\w+)", r"norm_pre.\1"),
        (r"ln1\.(\w+)", r"norm.\1"),
    ),
    conventions={"antialias": False},  # where positions are resampled
    format="mmselfsup",
)
RESNET = Dialect(
    "transformers' ResNet",
    "embedder.embedder.convolution.weight",
    (
        (r"embedder\.embedder\.convolution\.weight", "conv1.weight"),
        (r"embedder\.embedder\.normalization\.(\w+)", r"bn1.\1"),
        *(
            (rf"encoder\.stages\.{stage}\.layers\.(\d+)\.{theirs}\.(\w+)", rf"layer{stage + 1}.\1.{ours}.\2")
            for stage in range(4)
            for theirs, ours in (
                *((rf"layer\.{n}\.convolution", f"conv{n + 1}") for n in range(3)),
                *((rf"layer\.{n}\.normalization", f"bn{n + 1}") for n in range(3)),
                (r"shortcut\.convolution", "downsample.0"),
                (r"shortcut\.normalization", "downsample.1"),
            )
        ),
    ),
)
DIALECTS = (RESNET, TRANSFORMERS, CLIP, OPENCLIP, MMPRETRAIN)
APART = re.compile(r"(blocks\.\d+\.attn)\.(query|q)\.(weight|bias)")
PARTS = {"query": ("query", "key", "value"), "q": ("q", "k", "v")}


def prefixes_of(state: Mapping[str, Tensor]) -> list[tuple[Dialect, str]]:
    """The dialects that occur, each with the prefix behind which it stands."""
    return [
        (dialect, prefix)
        for dialect in DIALECTS
        for key in sorted(state)
        if key.endswith(dialect.sign)
        and ((prefix := key.removesuffix(dialect.sign)) == "" or prefix.endswith("."))
        and (not dialect.stem or prefix + dialect.stem in state)
    ]


def translate(state: Mapping[str, Tensor], dialect: Dialect, prefix: str) -> Translated:
    """The weights behind a prefix under timm's names; what no rule knows keeps its name.

    Raises
    ------
    CheckpointError
        If a query matrix is there without its key and value.
    """
    weights: dict[str, Tensor] = {}
    keys: dict[str, tuple[str, ...]] = {}
    layers = re.compile(LAYER)  # transformers 5 saves those of its MSN without the prefix
    apart = dialect is TRANSFORMERS and not any(map(re.compile(re.escape(prefix) + LAYER).match, state))
    for key, value in state.items():
        if key.startswith(prefix) or (apart and layers.match(key)):
            name = _rename(key.removeprefix(prefix), dialect.rules)
            weights[name], keys[name] = value, (key,)
    for first in [name for name in weights if APART.fullmatch(name)]:
        place, part, kind = first.rsplit(".", 2)
        names = [f"{place}.{other}.{kind}" for other in PARTS[part]]
        if kind == "bias" and names[1] not in weights and names[2] in weights:
            continue  # BEiT's keys have no bias; its network is another
        if not all(name in weights and weights[name].ndim == weights[first].ndim for name in names):
            raise CheckpointError(f"the {dialect.name} weights have {first} without its key and value")
        weights[f"{place}.qkv.{kind}"] = torch.cat([weights.pop(name) for name in names])
        keys[f"{place}.qkv.{kind}"] = tuple(key for name in names for key in keys.pop(name))
    for name, axes in (("cls_token", 3), ("pos_embed", 3)):
        if name in weights and weights[name].ndim < axes:
            weights[name] = weights[name].reshape(
                (1,) * (axes - weights[name].ndim) + tuple(weights[name].shape)
            )
    return Translated(dialect, weights, keys)


def _rename(key: str, rules: Rules) -> str:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key
