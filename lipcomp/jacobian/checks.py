"""What a map and its images must be before anything is measured, and which outputs can be measured at all."""

import functools
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lipcomp.jacobian.frozen import frozen, math_attention
from lipcomp.jacobian.precision import full_precision
from lipcomp.jacobian.products import Map

PROBES = 2
EXCLUSIONS = ("non-finite output", "zero-norm embedding", "non-finite derivative")
# Of a mean direction's norm: beyond float32 and half-precision rounding, below any real defect.
TOLERANCE = 1e-3


def check_images(
    images: Float[Tensor, "n ..."], domain: tuple[float, float] | None = (0.0, 1.0), *, at_least: int = 1
) -> None:
    """Refuse images that are too few, not finite, or not pixels.

    Raises
    ------
    ValueError
        Naming what was received and the remedy.
    """
    if not isinstance(images, Tensor) or images.dim() < 2 or not images.is_floating_point():
        kind = (
            f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ValueError(f"images must be a floating-point batch, first axis the images; got {kind}")
    if len(images) < at_least:
        raise ValueError(f"need at least {at_least} image{'s' * (at_least > 1)}, got {len(images)}")
    if images.numel() == 0:
        raise ValueError(f"images must hold pixels, got shape {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        raise ValueError("images must be finite; some pixels are NaN or infinite")
    if domain is not None and not (domain[0] <= low and high <= domain[1]):
        raise ValueError(
            f"images must be pixels in [{domain[0]:g}, {domain[1]:g}], got values from {low:.4g} to {high:.4g}; divide "
            f"bytes by 255, undo the normalisation (it belongs to the map), or give domain=None for other inputs"
        )


def check_map(fn: Map, images: Float[Tensor, "n ..."]) -> int:
    """Refuse a map in training mode, one that draws random numbers, and one that mixes the images of a batch.

    Evaluates two images together, and one of them alone and by PyTorch's own operations.
    Returns the dimension of the output.

    Raises
    ------
    ValueError
        Naming the defect and the remedy.
    """
    network = _network(fn)
    if network is not None:
        modules = [
            name or type(module).__name__
            for name, module in network.named_modules()
            if _acts_in_training(module)
        ]
        if modules:
            raise ValueError(
                f"the encoder is in training mode ({', '.join(modules[:3])}{' ...' * (len(modules) > 3)}); "
                f"call .eval() on it first"
            )
    few = images[:PROBES]
    with torch.no_grad():
        with frozen():
            first = fn(few)
        if not isinstance(first, Tensor) or first.shape[:1] != few.shape[:1]:
            found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(f"fn must return one row an image; for {len(few)} images it returned {found}")
        with math_attention(), full_precision():
            apart = fn(few[:1])  # a second call, alone, and as PyTorch has it
        if _apart(first, apart):
            _complain(fn, few, first, apart)
    first = first.flatten(1)
    return first.shape[1]


def _difference(first: Tensor, other: Tensor) -> float:
    """The largest difference between the images of two outputs, relative to the largest number."""
    scale = first.abs().nan_to_num(0, 0, 0).amax().clamp(min=torch.finfo(first.dtype).tiny)
    return float(((first[: len(other)] - other).abs().nan_to_num(0, 0, 0).amax() / scale).cpu())


def _apart(first: Tensor, other: Tensor) -> bool:
    return _difference(first, other) > (1e-3 if first.dtype in (torch.float16, torch.bfloat16) else 1e-4)


def _complain(fn: Map, few: Tensor, first: Tensor, apart: Tensor) -> None:
    """Find out which of the three it was."""
    remedy = "call .eval() on the encoder, and take random layers and batch statistics out of it"
    with frozen():
        again, alone = fn(few), fn(few[:1])
    for other, defect in (
        (again, "fn is not deterministic: two calls with the same images differ"),
        (alone, "fn mixes the images of a batch: an image alone gives another output than in company"),
    ):
        if _apart(first, other):
            raise ValueError(f"{defect} (by {_difference(first, other):.2g} of the largest output); {remedy}")
    raise ValueError(
        f"fn gives another output (by {_difference(first, apart):.2g} of the largest) when its operations are replaced "
        f"by lipcomp's (lipcomp.jacobian.frozen); it may write into a view, or look at memory layouts: take that out, "
        f"and please report it"
    )


def check_layer(encoder: Any, layer: str) -> None:
    """Refuse a layer that an encoder (anything with ``layers()``) does not have.

    Raises
    ------
    ValueError
        Naming the layers it has.
    """
    if layer not in encoder.layers():
        raise ValueError(
            f"--layer must be one of {', '.join(encoder.layers())} for this encoder, got {layer!r}"
        )


def _network(fn: Map) -> nn.Module | None:
    """The module behind a map: itself, a partial of it, or the owner of a method."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", fn)
    return owner if isinstance(owner, nn.Module) else None


def _acts_in_training(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return module.training and isinstance(module, kinds)


def usable_outputs(
    outputs: Float[Tensor, "n dim"],
) -> tuple[Bool[Tensor, " n"], dict[str, int]]:
    """Which outputs can be measured, and how many were left out, by reason.

    A vector that is not finite is left out. Among mean directions (most of the batch has norm one) a vector of
    another norm has none: it came from a zero embedding, where mu is not defined.
    """
    finite = outputs.isfinite().all(1)
    norm = outputs.norm(dim=1)
    unit = (norm - 1).abs() < TOLERANCE
    directions = bool(unit.any()) and bool(((norm < TOLERANCE) | unit | ~finite).all())
    none = finite & ~unit if directions else torch.zeros_like(finite)
    usable = (finite & ~none).cpu()
    counts = (int((~finite).sum()), int(none.sum()), 0)
    return usable, dict(zip(EXCLUSIONS, counts, strict=True))
