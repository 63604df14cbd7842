"""How what averages, picks, repeats or rearranges numbers changes an upper bound of the Lipschitz constant.

Averages over windows are products of one-dimensional ones, whose norms are exact: those of the matrix that the
operation gives. Where each output is one of its window's inputs (a maximum), or a norm of them, every input counts as
often as it lies in a window: the root of the largest such count.
"""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lipcomp.bound.tracer import NoRule, Rule, Tracer, Track

_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAXIMUM = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_NORM = ("input", "norm_type", "kernel_size", "stride", "ceil_mode")


def as_tuple(value: Any, dims: int) -> tuple[int, ...]:
    """One number an axis."""
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims // len(value))


def average(dims: int) -> Rule:
    """Average pooling."""

    def rule(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
        given = dict(zip(_AVERAGE, args, strict=False)) | kwargs
        if given.get("divisor_override"):
            raise NoRule("average pooling with a divisor of its own")
        bound, sizes, factor = tracer.settle(given["input"]), given["input"].shape[-dims:], 1.0
        how = (given.get("ceil_mode", False), given.get("count_include_pad", True))
        for size, (kernel, stride, padding, _) in zip(sizes, _windows(given, dims), strict=True):
            rows = torch.eye(size, dtype=torch.float64).unsqueeze(1)
            matrix = F.avg_pool1d(rows, kernel, stride, padding, *how).squeeze(1)
            factor *= float(torch.linalg.matrix_norm(matrix, 2))
        return func(*args, **kwargs), Track(bound * factor)

    return rule


def _picked(dims: int, names: tuple[str, ...]) -> Rule:
    """Pooling by the maximum of a window, or by its L2 norm, which changes by no more than its inputs."""

    def rule(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Any, Track]:
        given = dict(zip(names, args, strict=False)) | kwargs
        bound, sizes, factor = tracer.settle(given["input"]), given["input"].shape[-dims:], 1.0
        windows = _windows(given, dims)
        if float(given.get("norm_type", 2)) != 2:
            raise NoRule(f"pooling by the {given['norm_type']}-norm")
        ragged = any(
            (size - kernel) % stride for size, (kernel, stride, *_) in zip(sizes, windows, strict=True)
        )
        if "norm_type" in given and given.get("ceil_mode") and ragged:
            raise NoRule("pooling by norms whose last windows are not whole")
        result = func(*args, **kwargs)
        values = result if isinstance(result, Tensor) else result[0]
        for size, outputs, window in zip(sizes, values.shape[-dims:], windows, strict=True):
            factor *= math.sqrt(_overlap(size, outputs, *window))
        return result, Track(bound * factor)

    return rule


def maximum(dims: int) -> Rule:
    """Maximum pooling."""
    return _picked(dims, _MAXIMUM)


def norm(dims: int) -> Rule:
    """Pooling by the L2 norm."""
    return _picked(dims, _NORM)


def _windows(given: dict[str, Any], dims: int) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation along every axis."""
    kernel = as_tuple(given["kernel_size"], dims)
    stride = as_tuple(given["stride"], dims) if given.get("stride") not in (None, [], ()) else kernel
    padding, dilation = as_tuple(given.get("padding", 0), dims), as_tuple(given.get("dilation", 1), dims)
    return list(zip(kernel, stride, padding, dilation, strict=True))


def _overlap(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """In how many windows the input lies that lies in the most."""
    counts = Counter(
        place
        for output in range(outputs)
        for step in range(kernel)
        if 0 <= (place := output * stride - padding + step * dilation) < size
    )
    return max(counts.values(), default=1)


def adaptive(dims: int) -> Rule:
    """Average pooling to a given size, also to a larger one, which repeats."""

    def rule(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
        input = args[0] if args else kwargs["input"]
        bound, result, factor = tracer.settle(input), func(*args, **kwargs), 1.0
        for axis in range(-dims, 0):
            rows = torch.eye(input.shape[axis], dtype=torch.float64).unsqueeze(1)
            matrix = F.adaptive_avg_pool1d(rows, result.shape[axis]).squeeze(1)
            factor *= float(torch.linalg.matrix_norm(matrix, 2))
        return result, Track(bound * factor)

    return rule


def mean(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    """An average over axes of an image."""
    bound, input = tracer.settle(args[0]), args[0]
    result = func(*args, **kwargs)
    if result.dim() == 0 or result.shape[0] != tracer.n:
        raise NoRule("a mean over the images of the batch")
    return result, Track(bound / math.sqrt(input.numel() / result.numel()))


def sort(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Any, Track]:
    """Sorting rearranges: it brings no two points farther apart."""
    given = dict(zip(("input", "dim", "descending"), args, strict=False)) | kwargs
    if isinstance(given.get("dim", -1), int) and given.get("dim", -1) % given["input"].dim() == 0:
        raise NoRule("a sort over the images of the batch")
    return func(*args, **kwargs), Track(tracer.settle(given["input"]))


def extreme(kind: str) -> Rule:
    """The smallest or largest number along an axis."""

    def rule(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Any, Track]:
        given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
        input, dim = given["input"], given.get("dim")
        if not isinstance(dim, int) or tracer.get(input) is None or dim % input.dim() == 0:
            raise NoRule(f"a torch.{kind} that is not along one axis of an image")
        track = Track(tracer.settle(input), extreme=(input, kind, dim % input.dim()))
        return func(*args, **kwargs), track

    return rule


def concatenate(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    """Parts beside each other; the minimum and the maximum of the same two numbers are those, sorted."""
    tensors = args[0] if args else kwargs["tensors"]
    extremes = [
        track.extreme for t in tensors if (track := tracer.get(t)) is not None and track.extreme is not None
    ]
    if len(extremes) == len(tensors) == 2:
        (one, kind, axis), (other, other_kind, other_axis) = extremes
        pair = one is other and axis == other_axis and {kind, other_kind} == {"min", "max"}
        if pair and one.shape[axis] == 2:
            return func(*args, **kwargs), Track(tracer.settle(one))
    squares = [tracer.settle(t).square() for t in tensors if tracer.get(t) is not None]
    return func(*args, **kwargs), Track(torch.stack(squares).sum(0).sqrt())


def pad(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    """Constants add nothing; repeated numbers count as often as they are repeated."""
    given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    input = given["input"]
    bound, factor = tracer.settle(input), 1.0
    if given.get("mode", "constant") != "constant":
        with torch.enable_grad():
            one = torch.zeros((1, *input.shape[1:]), dtype=torch.float64, requires_grad=True)
            (counts,) = torch.autograd.grad(F.pad(one, given["pad"], given["mode"]).sum(), one)
        factor = math.sqrt(float(counts.max()))
    return func(*args, **kwargs), Track(bound * factor)
