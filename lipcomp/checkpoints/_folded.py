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

The same holds for biases and for ``in_proj_weight``. Half precision is multiplied in float32, as the network runs.
Other parametrizations are code of their own and stay as they are; a network that needs such a weight is refused.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = tuple[str, ...]
NAMES = re.compile(r"(.*\.|)parametrizations\.(\w+)\.")


def _normed(g: Tensor, v: Tensor) -> Tensor | None:
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    if g.ndim not in (0, v.ndim) or any(
        g.ndim and g.shape[axis] != v.shape[axis] for axis in range(v.ndim) if axis not in axes
    ):
        return None
    return g * v / torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else None


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
    """The axis is stored nowhere: where the shapes fit several, u and v are the leading vectors of the right matrix."""
    matrices = [weight.movedim(axis, 0).flatten(1) for axis in range(weight.ndim)] if weight.ndim > 1 else []
    sigmas = [torch.dot(u, matrix @ v) for matrix in matrices if matrix.shape == (u.numel(), v.numel())]
    return weight / max(sigmas) if sigmas else None


def _pruned(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask if weight.shape == mask.shape else None


KINDS: tuple[tuple[str, Parts, Callable[..., Tensor | None]], ...] = (
    ("weight norm", ("{}{}_g", "{}{}_v"), _normed),
    ("weight norm", ("{}parametrizations.{}.original0", "{}parametrizations.{}.original1"), _normed),
    ("spectral norm", ("{}{}_orig", "{}{}_u", "{}{}_v"), _spectral),
    (
        "spectral norm",
        tuple("{}parametrizations.{}." + part for part in ("original", "0._u", "0._v")),
        _spectral,
    ),
    ("pruning", ("{}{}_orig", "{}{}_mask"), _pruned),
)


def fold(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Parts], tuple[str, ...]]:
    """The state with whole weights, the keys behind each of these, and a note for each kind."""
    whole, behind, notes = dict(state), dict[str, Parts](), Counter[str]()
    stored = Counter(match.group() for key in state if (match := NAMES.match(key)))
    for kind, parts, join in KINDS:
        pattern = re.compile(parts[0].format(r"(.*\.|)", r"(\w*weight|\w*bias)"))
        for match in [match for key in whole if (match := pattern.fullmatch(key))]:
            place, name = match.groups()
            keys = tuple(part.format(place, name) for part in parts)
            further = stored[f"{place}parametrizations.{name}."] not in (0, len(keys))
            # DINO's last layer belongs to its loss, and its format is known by these names
            if further or place + name in whole or re.search(r"(^|\.)last_layer\.$", place):
                continue
            if not all(
                key in whole and whole[key].is_floating_point() and whole[key].itemsize > 1 for key in keys
            ):
                continue
            weight = join(*(whole[key].float() if whole[key].itemsize < 4 else whole[key] for key in keys))
            if weight is not None:
                behind[place + name] = keys
                for key in keys:
                    del whole[key]
                whole[place + name] = weight
                notes[kind] += 1
    return whole, behind, tuple(f"{kind} of {count} weights put together" for kind, count in notes.items())
