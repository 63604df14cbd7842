"""What a file says of its network besides its weights, and where that disagrees with what is assumed.

Training programs keep their settings with the weights: ``args`` and ``hyper_parameters``, a model's ``config``, the
metadata of a safetensors file. They describe the whole run, so nothing is built from them. They are heard where they
name other heads, epsilon, activation or pooling than would be assumed, or one of the architectures that weights fit.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

DEEPEST = 5
NAMES = {  # of a setting -> what it says
    "heads": ("num_heads", "num_attention_heads", "n_heads", "nheads", "nhead", "n_head", "heads"),
    "epsilon": ("layer_norm_eps", "norm_eps"),
    "activation": ("hidden_act", "act_layer"),
    "pooling": ("global_pool", "pool_type", "gp"),
    "architecture": ("arch", "architecture", "model_name", "model", "backbone"),
}
# Settings of something else than the network, by a word of the name that they stand below.
OTHERS = re.compile(
    r"(.*_)?(text|decoder|predictor|proj(ector|ection)?|heads?|classifier|teacher|optim\w*|loss|data\w*)(_.*)?"
)
ALIKE = ({"gelu", "gelu_python"}, {"token", "tok", "cls", "cls_token"}, {"avg", "mean", "gap"})

# Strides of a ResNet that its weights do not show, as timm, torchvision and OpenMMLab write them.
STRIDES = re.compile(
    r"\b(style\W{1,5}caffe|output_stride\W{1,5}(8|16)|strides\W{1,40}[12](?=\W+\d)(?!(\W+2){3}\b)|"
    r"dilations\W{1,40}[12](?=\W+\d)(?!(\W+1){3}\b)|replace_stride_with_dilation\W{1,5}[\w,\s]*True)\b"
)


def strides_of(tree: Mapping[str, Any]) -> str:
    """What the settings say of unusual strides; "" if nothing."""
    texts = (f"{key}={value}" for key, value in _plain(tree, 0, set()))
    return next((" ".join(found[0].split()) for text in texts if (found := STRIDES.search(text))), "")


def settings_of(tree: Mapping[str, Any]) -> dict[str, set[Any]]:
    """The values of each setting, numbers or words in small letters, by what it says, wherever they stand."""
    said: dict[str, set[Any]] = {name: set() for name in NAMES}
    for key, value in _plain(tree, 0, set()):
        for name, keys in NAMES.items():
            if key.lower() in keys and isinstance(value, str | int | float) and not isinstance(value, bool):
                told = _number_or_word(value)
                if isinstance(told, float) == (name in ("heads", "epsilon")):  # gp=10 is a gradient's penalty
                    said[name].add(told)
    return said


def _plain(tree: Mapping[Any, Any], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    seen.add(id(tree))
    for key, value in tree.items():
        if isinstance(value, Mapping):
            strange = "param_groups" in value or OTHERS.fullmatch(str(key).lower())
            if depth < DEEPEST and id(value) not in seen and not strange:
                yield from _plain(value, depth + 1, seen)
        elif isinstance(key, str) and not isinstance(value, Tensor):
            yield key, value


def _number_or_word(value: Any) -> float | str:
    """A setting, whose numbers are words in the metadata of safetensors; of ``torch.nn.GELU``, its last part."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return re.sub(r".*\.|\W+$", "", str(value)).lower() if "nn." in str(value) else str(value).lower()


def disagreement(said: Mapping[str, set[Any]], heads: int, epsilon: float, pooling: str) -> str:
    """What the settings say against a plain vision transformer with these; "" if nothing."""
    taken: dict[str, Any] = {"heads": heads, "epsilon": epsilon, "activation": "gelu", "pooling": pooling}
    for name, value in taken.items():
        values = said.get(name, set())
        alike = next((group for group in ALIKE if value in group), {value})
        near = any(math.isclose(one, value, rel_tol=1e-3) for one in values if name in ("heads", "epsilon"))
        if values and not values & alike and not near:
            told = sorted(f"{one:g}" if isinstance(one, float) else one or "none" for one in values)
            return f"{name} {' or '.join(told)}, and {value} would be assumed"
    return ""
