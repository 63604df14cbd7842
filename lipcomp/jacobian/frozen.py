"""A map as a function of its input alone, made of operations whose derivatives cost one operation each.

Inside :func:`frozen` a torch function mode replaces what a map calls:

================  ======================================================================================
convolution       a pair of functions that are each other's derivative; they keep nothing but the weight
batch norm        a product with a constant (evaluation mode; training mode is refused)
layer norm        its differential, one fused kernel in either direction
GELU, SiLU        a product with the derivative, taken once
hard sigmoid      its formula (the native operator has no second derivative)
attention         the math kernel, the only one with the derivatives; no fast path
dropout           nothing (training mode is refused)
parameters        constants: no derivative in them is ever taken
================  ======================================================================================

These functions take derivatives of J v and Jᵀ u in v and u only; a third derivative, or one in the point, is not theirs
to give.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def frozen() -> Iterator[None]:
    """Run a map as a function of its input alone: weights constant, batch norm affine, attention differentiable."""
    with math_attention(), _Frozen():
        yield


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by the math kernel, without fast paths; as it was afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Frozen(TorchFunctionMode):
    """Replaces what a map calls by versions whose derivatives cost one operation in each direction."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple(_constant(value) for value in args)
        kwargs = {name: _constant(value) for name, value in (kwargs or {}).items()}
        replacement = REPLACEMENTS.get(func)
        return func(*args, **kwargs) if replacement is None else replacement(*args, **kwargs)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) else value


def _convolution(dims: int) -> Callable[..., Tensor]:
    native = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or weight.requires_grad or input.dim() != dims + 2:
            return native(input, weight, bias, stride, padding, dilation, groups)
        options = (_repeat(stride, dims), _repeat(padding, dims), _repeat(dilation, dims), groups)
        return _Convolution.apply(input, weight, bias, options)

    return convolve


def _repeat(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


class _Convolution(torch.autograd.Function):
    """A convolution by a constant weight; its derivative is :class:`_Transposed`."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = input.shape, options
        stride, padding, dilation, groups = options
        return torch.convolution(
            input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Transposed.apply(cotangents[0], weight, ctx.shape, ctx.options), None, None, None


class _Transposed(torch.autograd.Function):
    """The transpose of a convolution without bias; its derivative is the convolution again."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, weight: Tensor, shape: Any, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = options
        stride, padding, dilation, groups = options
        unread = cotangent.new_empty(1).expand(shape)  # only its shape is read
        return torch.ops.aten.convolution_backward(
            cotangent, unread, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )[0]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(cotangents[0], weight, None, ctx.options), None, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "fn is in training mode, or its batch norm keeps no statistics: it normalises by the batch, which mixes "
            "the images; call .eval() on the encoder first"
        )
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not input.requires_grad:
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _LayerNorm.apply(input, list(normalized_shape), weight, bias, eps)


class _LayerNorm(torch.autograd.Function):
    """Layer norm; with P the (symmetric) differential of the plain one, v -> weight * P v."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        output, mean, deviation = torch.native_layer_norm(input, shape, weight, bias, eps)
        ctx.save_for_backward(input.detach(), mean, deviation)
        ctx.shape, ctx.weight = shape, weight
        return output

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        scaled = cotangents[0] if ctx.weight is None else cotangents[0] * ctx.weight
        return _LayerNormDifferential.apply(scaled, *ctx.saved_tensors, ctx.shape), None, None, None, None


class _LayerNormDifferential(torch.autograd.Function):
    """P: symmetric, so that it is its own derivative."""

    @staticmethod
    def forward(
        ctx: Any, tangent: Tensor, at: Tensor, mean: Tensor, deviation: Tensor, shape: list[int]
    ) -> Tensor:
        ctx.save_for_backward(at, mean, deviation)
        ctx.shape = shape
        return torch.ops.aten.native_layer_norm_backward(
            tangent.contiguous(), at, shape, mean, deviation, None, None, [True, False, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return (
            _LayerNormDifferential.apply(cotangents[0], *ctx.saved_tensors, ctx.shape),
            None,
            None,
            None,
            None,
        )


def _pointwise(native: Callable[..., Tensor], slope: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of single numbers, by its value and its slope."""

    def apply(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("inplace", None)
        if not input.requires_grad:
            return native(input, *args, **kwargs)
        value = native(input.detach(), *args, **kwargs)
        return _Pointwise.apply(input, value, slope(input.detach(), *args, **kwargs))

    return apply


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return cotangents[0] * slope, None, None


def _gelu_slope(input: Tensor, approximate: str = "none") -> Tensor:
    return torch.ops.aten.gelu_backward(torch.ones_like(input), input, approximate=approximate)


def _silu_slope(input: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(torch.ones_like(input), input)


def _dropout(native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p > 0:
            raise ValueError(
                f"fn is in training mode: it applies dropout with p = {p}, so it is not deterministic; call .eval() "
                f"on the encoder first"
            )
        return input

    return dropout


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6  # the native operator has no second derivative


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.batch_norm: _batch_norm,
    F.hardsigmoid: _hardsigmoid,
    F.layer_norm: _layer_norm,
    F.gelu: _pointwise(F.gelu, _gelu_slope),
    F.silu: _pointwise(F.silu, _silu_slope),
    **{
        native: _dropout(native)
        for native in (
            F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        )
    },
}  # fmt: skip
