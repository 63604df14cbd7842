"""A head rebuilt from its keys: the numbers in the names give the order of the layers.

Projection and prediction heads are sequences of linear layers and batch norms with activations between, and their
children are numbered. A number with weights is a linear layer (two dimensions) or a batch norm (one dimension, or
running statistics alone); a number without weights is an activation. So ``0, 1, 3`` with a batch norm at 1 is
Linear, BN, ReLU, Linear.

What the weights do not show is the activation (ReLU, but GELU in DINO), and what a batch norm's epsilon is (1e-5).
"""

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from lipcomp.checkpoints._errors import CheckpointError

State = Mapping[str, Tensor]

NUMBERED = re.compile(r"(\d+)\.(weight|bias|running_mean|running_var|num_batches_tracked)")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def build_head(state: State, in_features: int, name: str, activation: str = "relu") -> nn.Sequential:
    """The head whose keys, without their prefix, these are; its weights are loaded.

    Keys are ``NUMBER.weight`` and so on, or ``weight`` and ``bias`` alone for a single linear layer; the activation
    is "relu" or "gelu". Another shape of head, or one that does not fit the features, is refused.
    """
    if state.keys() <= {"weight", "bias"}:
        state = {f"0.{key}": value for key, value in state.items()}
    parts: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = NUMBERED.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"the {name} has a key {key!r} that is no numbered linear layer or batch norm; load the backbone "
                f'alone with head="none"'
            )
        parts.setdefault(int(match[1]), {})[match[2]] = value
    if min(parts, default=0) > 0:
        raise CheckpointError(
            f"ambiguous: the {name} begins at number {min(parts)}, and what precedes it (an activation, a "
            f"dropout or nothing) "
            f'is not in the file; load the backbone alone with head="none", or build it yourself (lipcomp.wrap)'
        )
    modules: list[nn.Module] = []
    width = in_features
    for number in range(max(parts) + 1):
        if number not in parts:
            first = number - 1 in parts  # of two without weights, one is a dropout or the like
            modules.append(ACTIVATIONS[activation]() if first else nn.Identity())
            continue
        layer, width = _layer(parts[number], width, f"{name}, layer {number}")
        modules.append(layer)
    if any(isinstance(a, nn.Linear) and isinstance(b, nn.Linear) for a, b in pairwise(modules)):
        raise CheckpointError(
            f"the {name} has two linear layers with nothing between, so its activations are elsewhere; "
            f'load the backbone alone with head="none"'
        )
    head = nn.Sequential(*modules)
    head.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    return head


def _layer(tensors: Mapping[str, Tensor], width: int, place: str) -> tuple[nn.Module, int]:
    """One linear layer or batch norm, and the width after it."""
    weight = tensors.get("weight")
    if weight is not None and weight.ndim == 2:
        if weight.shape[1] != width:
            raise CheckpointError(f"{place}: its weight takes {weight.shape[1]} features, it gets {width}")
        bias = tensors.get("bias")
        if bias is not None and tuple(bias.shape) != (weight.shape[0],):
            raise CheckpointError(
                f"{place}: its bias has shape {tuple(bias.shape)}, not ({weight.shape[0]},)"
            )
        return nn.Linear(width, weight.shape[0], bias=bias is not None), weight.shape[0]
    if "running_mean" in tensors and "running_var" in tensors:
        for name, value in tensors.items():
            if name != "num_batches_tracked" and tuple(value.shape) != (width,):
                raise CheckpointError(f"{place}: {name} has shape {tuple(value.shape)}, not ({width},)")
        if weight is None and "bias" in tensors:
            raise CheckpointError(
                f"{place} is a batch norm with a bias and no weight; the file is incomplete"
            )
        norm = nn.BatchNorm1d(width, affine=weight is not None)
        if weight is not None and "bias" not in tensors:
            nn.init.zeros_(norm.bias)
        return norm, width
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    raise CheckpointError(
        f"{place} is neither a linear layer nor a batch norm with running statistics ({shapes})"
    )
