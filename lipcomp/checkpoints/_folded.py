"""Weights that are stored in parts, put together as the network itself does in evaluation.

==============================  =============================  ====================================================
reparametrisation               parts of ``weight``            the weight W
==============================  =============================  ====================================================
weight norm                     weight_g, weight_v             g v / |v|, the norm over the axes on which g has one
... of torch.parametrizations   ...weight.original0, original1 the same
spectral norm                   weight_orig, _u, _v            W0 / (u . W0 v), W0 as a matrix
... of torch.parametrizations   ...weight.original, 0._u, 0._v the same
pruning                         weight_orig, weight_mask       W0 times its mask
==============================  =============================  ====================================================

Other parametrizations are code of their own and stay as they are; a network that needs such a weight is refused.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = tuple[str, ...]
NEW = "parametrizations.weight."


def _normed(g: Tensor, v: Tensor) -> Tensor | None:
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    if g.ndim not in (0, v.ndim) or any(
        g.ndim and g.shape[axis] != v.shape[axis] for axis in range(v.ndim) if axis not in axes
    ):
        return None
    return g * v / torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else None


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    for axis in range(min(2, weight.ndim)):  # transposed convolutions have their outputs second
        matrix = weight.movedim(axis, 0).flatten(1)
        if matrix.shape == (u.numel(), v.numel()):
            return weight / torch.dot(u, matrix @ v)
    return None


def _pruned(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask if weight.shape == mask.shape else None


KINDS: tuple[tuple[str, Parts, Callable[..., Tensor | None]], ...] = (
    ("weight norm", ("weight_g", "weight_v"), _normed),
    ("weight norm", (f"{NEW}original0", f"{NEW}original1"), _normed),
    ("spectral norm", ("weight_orig", "weight_u", "weight_v"), _spectral),
    ("spectral norm", (f"{NEW}original", f"{NEW}0._u", f"{NEW}0._v"), _spectral),
    ("pruning", ("weight_orig", "weight_mask"), _pruned),
)


def fold(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Parts], tuple[str, ...]]:
    """The state with whole weights, the keys behind each of these, and a note for each kind."""
    whole, behind, notes = dict(state), dict[str, Parts](), dict[str, int]()
    for kind, parts, join in KINDS:
        for key in [key for key in whole if key.endswith(parts[0])]:
            place = key.removesuffix(parts[0])
            keys = tuple(place + part for part in parts)
            others = {name for name in whole if NEW in name and name.startswith(place + NEW)} - {*keys}
            strange = not (place == "" or place.endswith(".")) or place + "weight" in whole or others
            # DINO's last layer belongs to its loss, and its format is known by these names
            if strange or re.search(r"(^|\.)last_layer\.$", place) or not all(name in whole for name in keys):
                continue
            if not all(whole[name].is_floating_point() for name in keys):
                continue
            weight = join(*(whole[name] for name in keys))
            if weight is not None:
                behind[place + "weight"] = keys
                whole = {name: value for name, value in whole.items() if name not in keys}
                whole[place + "weight"] = weight
                notes[kind] = notes.get(kind, 0) + 1
    return whole, behind, tuple(f"{kind} of {count} weights put together" for kind, count in notes.items())
