"""A map as a function of its input alone, made of operations whose derivatives cost one operation each.

Inside :func:`frozen` a torch function mode replaces what a map calls:

================  ======================================================================================
convolution       a pair of functions that are each other's derivative; they keep nothing but the weight
batch norm        a factor of the weight before it (evaluation mode; training mode is refused)
instance norm     a layer norm of every channel
layer norm        its differential, one fused kernel in either direction
GELU, SiLU        a product with the derivative, taken once
hard sigmoid      its formula (the native operator has no second derivative)
attention         four matrix products in either direction; with masks the math kernel, no fast path
dropout           nothing (training mode is refused)
checkpointing     nothing: what it wraps, run once
view              a copy where a convolution's memory layout asks for it
parameters        constants: no derivative in them is ever taken
================  ======================================================================================

These functions take derivatives of J v and Jᵀ u in v and u only; a third derivative, or one in the point, is not theirs
to give.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_iter

from lipcomp.jacobian._attention import attention, multi_head_attention
from lipcomp.jacobian._convolution import affine, convolution
from lipcomp.jacobian._precision import ProcessWide, full_precision


@contextmanager
def frozen() -> Iterator["_Frozen"]:
    """Run a map as a function of its input alone: weights constant, batch norm affine, attention differentiable."""
    with math_attention(), full_precision(), _Frozen() as mode:
        try:
            yield mode
        finally:
            mode.forget()


def _as_written() -> AbstractContextManager[object]:
    """What torch.compile has compiled, run as it was written: compiled code has no second derivative."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Straight:
    """In the place of torch's checkpointing, which runs a function again, outside of :func:`frozen`: runs it once."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)

    @staticmethod
    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield


CHECKPOINTING: dict[str, Any] = {  # of one version of torch or another
    "CheckpointFunction": _Straight,
    "_checkpoint_without_reentrant_generator": _Straight.generator,
    "_checkpoint_without_reentrant_generator_impl": _Straight.generator,
}


@contextmanager
def _by_math() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    native = {name: vars(checkpoint)[name] for name in CHECKPOINTING if hasattr(checkpoint, name)}
    torch.backends.mha.set_fastpath_enabled(False)
    vars(checkpoint).update({name: CHECKPOINTING[name] for name in native})
    try:
        with sdpa_kernel(SDPBackend.MATH), _as_written():
            yield
    finally:
        vars(checkpoint).update(native)
        torch.backends.mha.set_fastpath_enabled(fast)


math_attention = ProcessWide(_by_math)
"""Attention by the math kernel, without fast paths, nothing compiled or checkpointed; as it was afterwards."""


class _Frozen(TorchFunctionMode):
    """Replaces what a map calls by versions whose derivatives cost one operation in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: Any = None  # convolution: a batch norm may follow it, and then asks for its input
        self.left = False  # whether something with a derivative has left autograd's sight

    def forget(self, latest: Any = None) -> None:
        """Let go of the input of the latest convolution, and take another for the latest."""
        if self._latest is not None:
            self._latest.source = None
        self._latest = latest

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise ValueError(
                "fn, or the code that calls this, runs under torch.autocast, which has only two or three digits; take "
                "the autocast away and measure in float32"
            )
        args = tuple(_constant(value) for value in args)
        kwargs = {name: _constant(value) for name, value in (kwargs or {}).items()}
        if (func in LEAVING or not torch.is_grad_enabled()) and not self.left:
            self.left = any(
                isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_iter((args, kwargs))
            )
        replacement = REPLACEMENTS.get(func)
        if replacement is None or torch._C._functorch.peek_interpreter_stack() is not None:  # inside a vmap
            return func(*args, **kwargs)
        result = replacement(*args, **kwargs)
        if hasattr(getattr(result, "grad_fn", None), "source"):
            self.forget(result.grad_fn)
        return result


EXITS = {  # what takes numbers out of torch
    getattr(Tensor, name)
    for name in (
        "numpy", "__array__", "tolist", "item", "__dlpack__", "data_ptr",
        "__float__", "__int__", "__bool__", "__reduce_ex__", "__deepcopy__", "apply_", "map_", "map2_",
    )
}  # fmt: skip
_PROPERTIES: Any = Tensor
LEAVING = EXITS | {  # and what takes them, or what becomes of their derivative, out of autograd's sight
    torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.register_hook,
    *(getattr(_PROPERTIES, name).__get__ for name in ("data", "grad_fn")), _PROPERTIES.data.__set__,
}  # fmt: skip


def _constant(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach() if type(value) is not Tensor and isinstance(value, nn.Parameter) else value
    return value.clone() if value.is_inference() else value  # no graph may keep what was made there


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
    if running_mean is None and len(input) == 1:  # a weight that is standardised, or an image by itself
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "fn is in training mode, or its batch norm keeps no statistics: it normalises by the batch, which mixes "
            "the images; call .eval() on the encoder first"
        )
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return affine(input, scale, shift)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """A layer norm of every channel: PyTorch's own backward is wrong for one image in channels-last layout."""
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    pixels = input.flatten(2).contiguous()
    normal = _layer_norm(pixels, pixels.shape[2:], eps=eps).view(input.shape)
    if weight is None:
        return normal if bias is None else affine(normal, torch.ones_like(bias), bias)
    return affine(normal, weight, torch.zeros_like(weight) if bias is None else bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not input.requires_grad or any(part is not None and part.requires_grad for part in (weight, bias)):
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
        pulled = _LayerNormTransposed.apply(cotangents[0], *ctx.saved_tensors, ctx.shape, ctx.weight)
        return pulled, None, None, None, None


class _LayerNormTransposed(torch.autograd.Function):
    """u -> P (weight * u), in one kernel."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, at: Tensor, mean: Tensor, deviation: Tensor, shape: list[int],
        weight: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(at, mean, deviation)
        ctx.shape, ctx.weight = shape, weight
        return _differential(cotangent, at, mean, deviation, shape, weight)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        at, mean, deviation = ctx.saved_tensors
        pushed = _differential(cotangents[0], at, mean, deviation, ctx.shape, None)
        return pushed if ctx.weight is None else pushed.mul_(ctx.weight), None, None, None, None, None


def _differential(
    tangent: Tensor, at: Tensor, mean: Tensor, deviation: Tensor, shape: list[int], weight: Tensor | None
) -> Tensor:
    return torch.ops.aten.native_layer_norm_backward(
        tangent.contiguous(), at, shape, mean, deviation, weight, None, [True, False, False]
    )[0]


def _pointwise(native: Callable[..., Tensor], slope: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of single numbers, by its value and its slope."""

    def apply(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("inplace", None)
        if not input.requires_grad:
            return native(input, *args, **kwargs)
        return _Pointwise.apply(
            input, lambda x: native(x, *args, **kwargs), slope(input.detach(), *args, **kwargs)
        )

    return apply


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, function: Callable[[Tensor], Tensor], slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return function(input)

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


def _view(tensor: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """A view, or the copy that takes its place where a convolution has chosen another memory layout."""
    try:
        return tensor.view(*shape, **kwargs)
    except RuntimeError:
        if tensor.is_contiguous():
            raise
        return tensor.contiguous().view(*shape, **kwargs)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6  # the native operator has no second derivative


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: convolution(1),
    torch.conv2d: convolution(2),
    torch.conv3d: convolution(3),
    F.conv1d: convolution(1),
    F.conv2d: convolution(2),
    F.conv3d: convolution(3),
    Tensor.view: _view,
    Tensor.view_as: lambda tensor, other: _view(tensor, other.shape),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: multi_head_attention,
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
