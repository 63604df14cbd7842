"""A local Hugging Face folder: ``config.json``, weights, and what the processor says of images.

=================  ===========================================================================
``config.json``    whose it is
=================  ===========================================================================
architecture       timm's: the weights have timm's names, ``pretrained_cfg`` the preprocessing
model_type         transformers': resnet, vit and dinov2 are translated into timm's names, others transformers builds
=================  ===========================================================================

Nothing is fetched: only files within the folder are read, and an index of shards that points out of it is refused.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lipcomp.checkpoints._dialects import RESNET, TRANSFORMERS, prefixes_of, translate as translate_names
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._preprocessing import CLIP_NORMALISATION

LARGEST = 16 << 20  # bytes of a JSON file
WEIGHTS, INDEX = ("model.safetensors", "pytorch_model.bin"), ".index.json"

OPENCLIP = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ODD = ("attentional_pool", "final_ln_after_pool", "act_kwargs", "norm_kwargs")  # settings of its towers
NUMBERED = re.compile(r"(model|pytorch_model)_\d+\.(safetensors|bin)")  # after WEIGHTS, of further networks
TRANSLATED = ("resnet", "vit", "vit_msn", "vit_mae", "dinov2", "dinov2_with_registers")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of reasonable size; {} if there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST:
        raise CheckpointError(
            f"{str(path)!r} is a JSON file of {path.stat().st_size} bytes; this is not a configuration"
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not valid JSON ({error}); correct it, or move it out of the folder"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{str(path)!r} does not hold a JSON object {{...}}; correct it, or move it out of the folder"
        )
    return value


def read_processor(folder: Path) -> tuple[dict[str, Any], str]:
    """The configuration of a folder's image processor, {} if it has none, and the file it is from, as transformers."""
    name = "processor_config.json"
    if isinstance(nested := read_json(folder / name).get("image_processor"), dict):
        return nested, name
    name = "preprocessor_config.json"
    return read_json(folder / name), name


def weight_files(folder: Path, name: str = "") -> tuple[list[Path], tuple[str, ...], Collection[str]]:
    """The files of weights in a folder: one, or the shards that an index names; a note where it holds others, and
    the names that the index promises. ``name`` is the file that the caller named.

    Raises
    ------
    CheckpointError
        If there are none or those of several networks, or the index names something that is not a file of the folder.
    """
    there = [name for own in WEIGHTS for name in (own, f"{own}{INDEX}") if (folder / name).is_file()]
    if not there:
        for other, name in (("flax_model.msgpack", "flax"), ("tf_model.h5", "tf")):
            if (folder / other).is_file():
                raise CheckpointError(
                    f"folder {str(folder)!r} holds {other} alone, which is not read; convert it with transformers 4: "
                    f"AutoModel.from_pretrained(FOLDER, from_{name}=True).save_pretrained(OUT)"
                )
        raise CheckpointError(
            f"folder {str(folder)!r} has neither {' nor '.join(WEIGHTS)}, nor a TensorFlow checkpoint; give the "
            f"checkpoint file itself, or the folder that save_pretrained wrote"
        )
    first, *others = sorted(there, key=lambda one: one != name)  # in the order of transformers
    several = sorted(file.name for file in folder.iterdir() if NUMBERED.fullmatch(file.name))
    if several and not name:  # as accelerate saves them
        raise CheckpointError(
            f"ambiguous: folder {str(folder)!r} holds the networks {first} and {', '.join(several)}; give one of these "
            f"files"
        )
    why = "" if name else ", as transformers does"
    note = f"took {first}{why}; the folder also holds {', '.join(others)}, which is not read"
    notes = (note,) if others else ()
    if not first.endswith(INDEX):
        return [folder / first], notes, ()
    index = read_json(folder / first).get("weight_map")
    shards = sorted({str(shard) for shard in index.values()}) if isinstance(index, Mapping) else []
    bad = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if bad or not shards:
        what = (
            f"its index names {bad[0]!r}, which is not a file in it" if bad else f"its {first} names no file"
        )
        raise CheckpointError(f"folder {str(folder)!r}: {what}; get the folder again")
    return [folder / shard for shard in shards], notes, tuple(index or ())


def read_openclip(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What OpenCLIP's configuration of a folder says of its image tower, and of images in timm's words.

    Raises
    ------
    CheckpointError
        If the tower is another than a plain one with a class token.
    """
    told = read_json(folder / OPENCLIP[0])
    model, images = told.get("model_cfg") or {}, told.get("preprocess_cfg") or {}
    tower = model.get("vision_cfg") or {}
    try:
        size = images.get("size", tower.get("image_size", 224))
        sides = size if isinstance(size, list) else [size, size]
        modes = {"shortest": "center", "squash": "squash", "longest": "border"}
        words = modes[images.get("resize_mode", "shortest")]
        ready = {
            "input_size": (3, *sides),
            "interpolation": images.get("interpolation", "bicubic"),
            "crop_pct": 1.0,
        }
        mean, std = (
            images.get(name, usual) for name, usual in zip(("mean", "std"), CLIP_NORMALISATION, strict=True)
        )
        fill = [int(images.get("fill_color", 0))] * 3
        ready |= {"crop_mode": words, "mean": mean, "std": std, "fill_color": fill}
        if "timm_model_name" in tower:  # which has names and conventions of its own
            return {}, ready
        odd = [name for name in ODD if tower.get(name)] + ["pool_type"] * (
            tower.get("pool_type", "tok") != "tok"
        )
        heads = int(tower["width"]) // int(tower.get("head_width", 64))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{str(folder / OPENCLIP[0])!r} does not describe an image tower ({error!r})"
        ) from error
    if odd:
        raise CheckpointError(
            f"{str(folder / OPENCLIP[0])!r} says {odd[0]}, a tower that only OpenCLIP builds; load it there, and "
            f"wrap it (lipcomp.wrap)"
        )
    return {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "heads": heads}, ready


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a model is one that translates into timm's or torchvision's; transformers builds the others."""
    kind = config["model_type"]
    if kind == "resnet":
        odd = config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage")
        return not odd and config.get("hidden_act", "relu") == "relu"
    plain = config.get("hidden_act", "gelu") == "gelu" and not config.get("use_swiglu_ffn")
    if kind == "vit_mae" and not plain:
        raise CheckpointError("a transformers vit_mae with another MLP than GELU's is not supported")
    return kind in TRANSLATED and plain


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
        If the weights are not those of the model that the configuration describes.
    """
    kind = str(config["model_type"])
    dialect = RESNET if kind == "resnet" else TRANSFORMERS
    prefix = next((prefix for found, prefix in prefixes_of(state) if found is dialect), None)
    if prefix is None:
        raise CheckpointError(
            f"the folder says it is a transformers {kind}, and has no key that ends in {dialect.sign!r}"
        )
    done = translate_names(state, dialect, prefix)
    for key, have in (_resnet_facts if kind == "resnet" else _vit_facts)(done.weights).items():
        said = config.get(key)
        if said is not None and said != have:
            raise CheckpointError(
                f"the config.json of the folder says {key} {said}, its weights have {have}; one of them is another "
                f"model's"
            )
    if kind == "resnet":
        return done.weights, done.keys, {}
    epsilon = config.get("layer_norm_eps", 1e-12 if kind in ("vit", "vit_mae") else 1e-6)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise CheckpointError(
            f"the config.json of the folder says layer_norm_eps {epsilon}, which must lie between 0 and 1"
        )
    heads = config.get("num_attention_heads")
    if heads is not None and not str(heads).lstrip("0").isdecimal():
        raise CheckpointError(
            f"the config.json of the folder says num_attention_heads {heads}, which must be a whole number, at least 1"
        )
    told = {"heads": heads, "layer_norm_eps": epsilon}
    if config.get("image_size"):
        told["native_size"] = _pair(config["image_size"])
    if kind == "vit":  # Google's have another normalisation than DINO's
        told["normalisation"] = None
    return done.weights, done.keys, told


def _vit_facts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a vision transformer's weights say of its configuration."""
    width, channels, *patch = weights["patch_embed.proj.weight"].shape
    facts: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "num_hidden_layers": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
    if "blocks.0.mlp.fc1.weight" in weights:
        hidden = int(weights["blocks.0.mlp.fc1.weight"].shape[0])
        scaled = "blocks.0.ls1.gamma" in weights  # DINOv2's, whose width mlp_ratio says and nothing else
        facts |= {"mlp_ratio": hidden / width} if scaled else {"intermediate_size": hidden}
    if "register_tokens" in weights:
        facts["num_register_tokens"] = int(weights["register_tokens"].shape[1])
    return facts


def _resnet_facts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a ResNet's weights say of its configuration."""
    bottleneck = "layer1.0.conv3.weight" in weights
    blocks = [
        {name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")} for stage in range(1, 5)
    ]
    last = f"0.conv{3 if bottleneck else 2}.weight"
    ends = [weights.get(f"layer{stage}.{last}") for stage in range(1, 5)]
    return {
        "depths": [len(numbers) for numbers in blocks],
        "hidden_sizes": [0 if end is None else int(end.shape[0]) for end in ends],
        "embedding_size": int(weights["conv1.weight"].shape[0]),
        "num_channels": int(weights["conv1.weight"].shape[1]),
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


def _pair(size: Any) -> tuple[int, int]:
    sides = size if isinstance(size, list) else [size, size]
    return int(sides[0]), int(sides[-1])
