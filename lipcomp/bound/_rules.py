"""Which rule each operation below Python has in the local certificate; those without one are refused by name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipcomp.bound._decompositions import aten
from lipcomp.bound._local import Rule
from lipcomp.bound._local_rules import (
    add,
    batch_norm,
    cast,
    clamp_low,
    convolution,
    copied,
    divide,
    elementwise,
    expanded,
    joined,
    linear,
    matmul,
    multiply,
    sum_or_mean,
    vector_norm,
)
from lipcomp.bound._maxima_rules import logsumexp, max_pool, maximum, softmax, sort


def _reshape(column: Tensor, shape: Any) -> Tensor:
    return column.reshape(shape)


def _slice_scatter(
    x: Tensor, part: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tensor:
    """With both ends in the tensor: vmap fails at negative ones, and at that of an open slice, the largest integer."""
    return aten.slice_scatter(x, part, dim, *slice(start, end, step).indices(x.shape[dim]))


VIEWS: dict[str, Callable[..., Any]] = {
    "view": _reshape, "_unsafe_view": _reshape, "reshape": _reshape, "expand": Tensor.expand,
    "unsqueeze": torch.unsqueeze, "alias": Tensor.clone, "clone": lambda x: x, "detach": lambda x: x,
    "lift_fresh": lambda x: x, "contiguous": lambda x: x, "squeeze": torch.squeeze,
}  # fmt: skip
PLAIN: dict[str, Callable[..., Any]] = {
    name: getattr(aten, name)
    for name in (
        "permute", "transpose", "t", "select", "slice", "split", "split_with_sizes", "unbind", "flip", "roll",
        "index", "_unsafe_index", "index_select", "gather", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
        "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
        "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "neg", "cumsum", "tril",
        "triu", "diagonal", "repeat", "im2col", "col2im", "unfold", "masked_fill", "index_fill", "narrow",
        "diag_embed", "trace", "view_as_real", "_fft_r2c", "_fft_c2c", "_fft_c2r",
    )
}  # fmt: skip
SMOOTH = (
    "relu", "leaky_relu", "abs", "_prelu_kernel", "prelu", "hardtanh", "clamp", "clamp_max", "elu", "celu", "selu",
    "hardswish", "hardsigmoid", "sigmoid", "tanh", "erf", "atan", "sin", "cos", "gelu", "silu", "mish", "softplus",
    "log_sigmoid_forward", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal",
    "pow", "erfc", "sinh", "cosh", "asinh", "acosh", "softshrink", "threshold", "logit",
)  # fmt: skip
TOGETHER = (
    "complex", "cat", "stack", "where", "select_scatter", "diagonal_scatter", "scatter", "scatter_add",
    "index_add", "index_copy", "index_put",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **{name: expanded(function) for name, function in VIEWS.items()},
    **{name: linear(function) for name, function in PLAIN.items()},
    **{name: joined(getattr(aten, name)) for name in TOGETHER},
    **dict.fromkeys(SMOOTH, elementwise),
    "add": add(1.0), "sub": add(-1.0), "mul": multiply, "div": divide,
    "linalg_vector_norm": vector_norm, "clamp_min": clamp_low, "sum": sum_or_mean, "mean": sum_or_mean,
    "mm": matmul, "bmm": matmul, "addmm": matmul, "baddbmm": matmul, "mv": matmul, "_softmax": softmax,
    "_safe_softmax": softmax, "logsumexp": logsumexp, "convolution": convolution, "_convolution": convolution,
    "slice_scatter": joined(_slice_scatter), "sort": sort, "_conj": linear(lambda z: torch.complex(z.real, -z.imag)),
    "view_as_complex": linear(lambda x: torch.complex(x[..., 0], x[..., 1])), "_neg_view": linear(torch.neg),
    "native_batch_norm": batch_norm, "cudnn_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm, "_to_copy": cast, "copy": copied,
    **{f"grid_sampler_{dims}d": linear(getattr(aten, f"grid_sampler_{dims}d")) for dims in (2, 3)},
    **{name: maximum(1.0) for name in ("amax", "max", "maximum")},
    **{name: maximum(-1.0) for name in ("amin", "min", "minimum")},
    **{f"max_pool{dims}d_with_indices": max_pool(dims) for dims in (1, 2, 3)},
    **{f"adaptive_max_pool{dims}d": max_pool(dims, adaptive=True) for dims in (2, 3)},
}  # fmt: skip
PASSIVE = {
    "empty_like", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty", "rand_like",
    "sym_size", "isnan",  # what has a bound is a number in all of the ball
}  # fmt: skip
