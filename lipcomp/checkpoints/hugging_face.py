"""A local Hugging Face folder: ``config.json``, weights, and what the processor says of images.

=================  ===========================================================================
``config.json``    whose it is
=================  ===========================================================================
architecture       timm's: the weights have timm's names, ``pretrained_cfg`` the preprocessing
model_type         transformers': resnet, vit, dinov2 and dinov2_with_registers are translated
=================  ===========================================================================

Nothing is fetched: only files within the folder are read, and an index of shards that points out of it is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcomp.checkpoints.errors import CheckpointError

LARGEST = 16 << 20  # bytes of a JSON file
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# A transformers ViT's names within timm's; the query, key and value matrices are joined beforehand.
VIT = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
QKV = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")

RESNET = (
    (r"embedder\.embedder\.convolution\.weight", "conv1.weight"),
    (r"embedder\.embedder\.normalization\.(\w+)", r"bn1.\1"),
)
RESNET_BLOCK = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))\.(convolution|normalization)\.(\w+)"
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of reasonable size; {} if there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST:
        raise CheckpointError(
            f"{str(path)!r} is a JSON file of {path.stat().st_size} bytes; that is no configuration"
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} does not hold a JSON object")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder: one, or the shards that an index names.

    Raises
    ------
    CheckpointError
        If there are none, or the index names something that is not a file of the folder.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = read_json(folder / f"{name}.index.json").get("weight_map")
        if isinstance(index, Mapping):
            shards = sorted({str(shard) for shard in index.values()})
            bad = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
            if bad:
                raise CheckpointError(
                    f"folder {str(folder)!r}: its index names {bad[0]!r}, which is no file in it"
                )
            return [folder / shard for shard in shards]
    raise CheckpointError(
        f"folder {str(folder)!r} has neither {' nor '.join(WEIGHTS)}, nor a TensorFlow checkpoint; give the checkpoint "
        f"file itself, or the folder that save_pretrained wrote"
    )


def translate(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], dict[str, Any]]:
    """The weights of a transformers model under timm's or torchvision's names.

    Returns
    -------
    tuple
        The weights, the file's keys behind each, and what the configuration fixes besides the shapes.

    Raises
    ------
    CheckpointError
        If the kind of model is not known, or has an option that the translation does not have.
    """
    kind = str(config.get("model_type"))
    match kind:
        case "resnet":
            if config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
                raise CheckpointError(
                    "a transformers ResNet with downsample_in_bottleneck or _first_stage is not supported"
                )
            if config.get("hidden_act", "relu") != "relu":
                raise CheckpointError(
                    f"a transformers ResNet with activation {config['hidden_act']!r} is not supported"
                )
            return *_rename(state, "resnet.", _resnet_name), {}
        case "vit" | "dinov2" | "dinov2_with_registers" | "vit_msn":
            if config.get("hidden_act", "gelu") != "gelu" or config.get("use_swiglu_ffn"):
                raise CheckpointError(
                    f"a transformers {kind} with another MLP than GELU's is not supported; load it with timm"
                )
            prefix = {"dinov2_with_registers": "dinov2_with_registers."}.get(
                kind, f"{kind.removesuffix('_msn')}."
            )
            weights, keys = _rename(state, prefix, _vit_name)
            weights, keys = _join_qkv(weights, keys)
            told = {
                "heads": config.get("num_attention_heads"),
                "layer_norm_eps": config.get("layer_norm_eps", 1e-12 if kind.startswith("vit") else 1e-6),
            }
            return weights, keys, told
        case _:
            raise CheckpointError(
                f"the folder holds a transformers model of type {kind!r}; known are resnet, vit, vit_msn, dinov2 and "
                f"dinov2_with_registers. Load it in Python and give it to lipcomp.encoders.wrap, or use --factory"
            )


def _rename(
    state: Mapping[str, Tensor], prefix: str, name_of: Any
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    weights: dict[str, Tensor] = {}
    keys: dict[str, tuple[str, ...]] = {}
    for key, value in state.items():
        name = name_of(key.removeprefix(prefix))
        weights[name or key] = value
        keys[name or key] = (key,)
    return weights, keys


def _vit_name(key: str) -> str | None:
    for pattern, name in VIT:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    if match := QKV.fullmatch(key):
        return f"blocks.{match[1]}.attn.{match[2]}.{match[3]}"
    return None


def _join_qkv(
    weights: dict[str, Tensor], keys: dict[str, tuple[str, ...]]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Query, key and value one above the other, as timm keeps them."""
    weights, keys = dict(weights), dict(keys)
    for first in [name for name in weights if re.fullmatch(r"blocks\.\d+\.attn\.query\.(weight|bias)", name)]:
        parts = [first.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if not all(part in weights and weights[part].ndim == weights[first].ndim for part in parts):
            raise CheckpointError(f"the transformers weights have {first} without its key and value")
        joined = first.replace(".query.", ".qkv.")
        weights[joined] = torch.cat([weights.pop(part) for part in parts])
        keys[joined] = tuple(key for part in parts for key in keys.pop(part))
    return weights, keys


def _resnet_name(key: str) -> str | None:
    for pattern, name in RESNET:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    match = RESNET_BLOCK.fullmatch(key)
    if match is None:
        return None
    stage, block, number, shortcut, kind, what = match.groups()
    convolution = kind == "convolution"
    if shortcut:
        place = "downsample.0" if convolution else "downsample.1"
    else:
        place = f"{'conv' if convolution else 'bn'}{int(number) + 1}"
    return f"layer{int(stage) + 1}.{block}.{place}.{what}"
