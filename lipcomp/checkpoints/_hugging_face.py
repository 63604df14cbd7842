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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lipcomp.checkpoints._dialects import RESNET, TRANSFORMERS, prefixes_of, translate as translate_names
from lipcomp.checkpoints._errors import CheckpointError

LARGEST = 16 << 20  # bytes of a JSON file
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

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
                    f"folder {str(folder)!r}: its index names {bad[0]!r}, which is not a file in it"
                )
            return [folder / shard for shard in shards]
    raise CheckpointError(
        f"folder {str(folder)!r} has neither {' nor '.join(WEIGHTS)}, nor a TensorFlow checkpoint; give the "
        f"checkpoint "
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
    kind = str(config["model_type"])
    if kind == "resnet":
        if config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
            raise CheckpointError(
                "a transformers ResNet with downsample_in_bottleneck or _first_stage is not supported"
            )
        if config.get("hidden_act", "relu") != "relu":
            raise CheckpointError(
                f"a transformers ResNet with activation {config['hidden_act']!r} is not supported"
            )
    elif config.get("hidden_act", "gelu") != "gelu" or config.get("use_swiglu_ffn"):
        raise CheckpointError(
            f"a transformers {kind} with another MLP than GELU's is not supported; load it with timm"
        )
    dialect = RESNET if kind == "resnet" else TRANSFORMERS
    prefix = next((prefix for found, prefix in prefixes_of(state) if found is dialect), None)
    if prefix is None:
        raise CheckpointError(
            f"the folder says it is a transformers {kind}, and has no key that ends in {dialect.sign!r}"
        )
    done = translate_names(state, dialect, prefix)
    keys = {name: (name,) for name in state if not name.startswith(prefix)} | done.keys
    weights = {name: state[name] for name in state if not name.startswith(prefix)} | done.weights
    told = (
        {}
        if kind == "resnet"
        else {
            "heads": config.get("num_attention_heads"),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12 if kind.startswith("vit") else 1e-6),
        }
    )
    return weights, keys, told
