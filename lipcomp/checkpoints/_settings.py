"""What a file says of its network besides its weights, and where that disagrees with what is assumed.

Training programs keep their settings with the weights: ``args`` and ``hyper_parameters``, a model's ``config``, the
metadata of a safetensors file. They describe the whole run, so nothing is built from them. They are heard where they
name other heads, epsilon, activation or pooling than would be assumed, or one of the architectures that weights fit.
"""

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
ALIKE = ({"gelu", "gelu_python", "nn.gelu"}, {"token", "tok", "cls", "cls_token"}, {"avg", "mean", "gap"})


def settings_of(tree: Mapping[str, Any]) -> dict[str, set[Any]]:
    """The values of each setting, by what it says, wherever they stand."""
    said: dict[str, set[Any]] = {name: set() for name in NAMES}
    for key, value in _plain(tree, 0):
        for name, keys in NAMES.items():
            if key.lower() in keys and isinstance(value, str | int | float) and not isinstance(value, bool):
                said[name].add(value)
    return said


def _plain(tree: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and depth < DEEPEST and "param_groups" not in value:
            yield from _plain(value, depth + 1)
        elif isinstance(key, str) and not isinstance(value, Tensor):
            yield key, value


def _number_or_word(value: Any) -> Any:
    """A setting, whose numbers are words in the metadata of safetensors."""
    try:
        return float(value)
    except ValueError:
        return str(value).lower()


def disagreement(said: Mapping[str, set[Any]], heads: int, epsilon: float, pooling: str) -> str:
    """What the settings say against a plain vision transformer with these; "" if nothing."""
    taken = {"heads": heads, "epsilon": epsilon, "activation": "gelu", "pooling": pooling}
    for name, value in taken.items():
        values = {_number_or_word(one) for one in said.get(name, ())}
        alike = next((group for group in ALIKE if value in group), {value})
        if values and not values & alike:
            told = sorted(f"{one:g}" if isinstance(one, float) else one for one in values)
            return f"{name} {' or '.join(told)}, and {value} would be assumed"
    return ""
