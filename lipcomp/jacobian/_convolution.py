"""Convolutions by constant weights, as a pair of functions that are each other's derivative.

They keep nothing but the weight, and run one convolution in either direction; a batch norm behind one is multiplied
into that weight. On the CPU each runs in the memory layout that is quicker for its shape: channels last (the transposed
convolution of ResNet's first stage takes 0.6 of its time so), except where a row of outputs is too short for that
kernel; and 1x1 convolutions as matrix products, whose transpose costs no more than themselves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT_ROW = 7  # outputs in a row: below, the channels-last kernel is the slower one


class Plan(NamedTuple):
    """How a convolution is run."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    layout: torch.memory_format | None
    product: bool


def convolution(dims: int) -> Callable[..., Tensor]:
    """The replacement of the convolution over ``dims`` axes."""
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
        of_images = weight.requires_grad or (bias is not None and bias.requires_grad)
        if isinstance(padding, str) or of_images or input.dim() != dims + 2:
            return native(input, weight, bias, stride, padding, dilation, groups)
        plan = _plan(
            input, weight, _repeat(stride, dims), _repeat(padding, dims), _repeat(dilation, dims), groups
        )
        return _Convolution.apply(input, weight, bias, plan)

    return convolve


def affine(input: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift each channel by a number.

    Where a convolution made the input, the derivative is that convolution with the scale in its weight; not where that
    convolution's own input was written to since, whose derivative is another.
    """
    made_by: Any = input.grad_fn
    wide = (-1, *[1] * (input.dim() - 2))
    if scale.requires_grad or shift.requires_grad:  # they depend on the images
        return torch.addcmul(shift.view(wide), input, scale.view(wide))
    source = getattr(made_by, "source", None)
    if source is None or source._version != made_by.version:
        return _Affine.apply(input, scale.view(wide), shift.view(wide))
    weight = made_by.saved_tensors[0] * scale.view(-1, 1, *wide[1:])
    return _AffineConvolution.apply(
        source, input.detach(), scale.view(wide), shift.view(wide), weight, made_by.plan
    )


def _repeat(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


def _plan(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Plan:
    chosen = (
        input.device.type == "cpu" and input.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )
    if not chosen or len(stride) != 2:
        return Plan(stride, padding, dilation, groups, None, False)
    product = groups == 1 and (*weight.shape[2:], *stride, *padding) == (1, 1, 1, 1, 0, 0)
    row = (input.shape[3] + 2 * padding[1] - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    last = product or row >= SHORT_ROW
    layout = torch.channels_last if last else torch.contiguous_format
    return Plan(stride, padding, dilation, groups, layout, product)


def _as(tensor: Tensor, plan: Plan) -> Tensor:
    return tensor if plan.layout is None else tensor.contiguous(memory_format=plan.layout)


def _product(input: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, channels last; not a view, so that what follows may work in place."""
    n, _, height, width = input.shape
    output = torch.empty(
        (n, matrix.shape[1], height, width), dtype=input.dtype, memory_format=torch.channels_last
    )
    pixels, into = (tensor.permute(0, 2, 3, 1).flatten(0, 2) for tensor in (input, output))
    if bias is None:
        torch.mm(pixels, matrix, out=into)
    else:
        torch.addmm(bias, pixels, matrix, out=into)
    return output


class _Convolution(torch.autograd.Function):
    """A convolution by a constant weight; its derivative is :class:`_Transposed`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        weight = _as(weight, plan)
        ctx.save_for_backward(weight)
        ctx.shape, ctx.plan, ctx.source, ctx.version = input.shape, plan, input, input._version
        if plan.product:
            return _product(_as(input, plan), weight.flatten(1).t(), bias)
        return torch.convolution(
            _as(input, plan), weight, bias, plan.stride, plan.padding, plan.dilation, False, [0] * len(plan.stride),
            plan.groups,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Transposed.apply(cotangents[0], weight, ctx.shape, ctx.plan), None, None, None


class _AffineConvolution(torch.autograd.Function):
    """A convolution with a factor and a summand per channel, where the convolution itself is known already."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, convolved: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, plan: Plan
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.plan = input.shape, plan
        return torch.addcmul(shift, convolved, scale)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Transposed.apply(cotangents[0], weight, ctx.shape, ctx.plan), *[None] * 5


class _Transposed(torch.autograd.Function):
    """The transpose of a convolution without bias; its derivative is the convolution again."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, weight: Tensor, shape: Any, plan: Plan) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.plan = plan
        cotangent = _as(cotangent, plan)
        if plan.product:
            return _product(cotangent, weight.flatten(1), None)
        unread = cotangent.new_empty(shape)  # only its shape is read, and its pages are never touched
        if plan.layout is not None:
            unread = torch.empty_like(unread, memory_format=plan.layout)
        return torch.ops.aten.convolution_backward(
            cotangent, unread, weight, None, plan.stride, plan.padding, plan.dilation, False, [0] * len(plan.stride),
            plan.groups, [True, False, False],
        )[0]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(cotangents[0], weight, None, ctx.plan), None, None, None


class _Affine(torch.autograd.Function):
    """A factor and a summand per channel."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(shift, input, scale)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (scale,) = ctx.saved_tensors
        return cotangents[0] * scale, None, None
