"""How each operation changes an upper bound of the Lipschitz constant: layers, activations, sums, normalisation.

What only averages, picks, repeats or rearranges numbers is in :mod:`lipcomp.bound.pooling_rules`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from lipcomp.bound import pooling_rules as pooling
from lipcomp.bound.layer_norms import convolution_norm, linear_norm
from lipcomp.bound.pooling_rules import as_tuple
from lipcomp.bound.tracer import NoRule, Rule, Tracer, Track


def _factor(value: float) -> Rule:
    def rule(
        tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Track]:
        first = args[0] if args else kwargs["input"]
        bound = tracer.settle(first)
        result = func(*args, **kwargs)
        return result, Track(bound * value)

    return rule


def _elu(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    bound = tracer.settle(args[0] if args else kwargs["input"])
    alpha = kwargs.get("alpha", args[1] if len(args) > 1 else 1.0)
    return func(*args, **kwargs), Track(bound * max(1.0, abs(float(alpha))))


def _prelu(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    input, weight = _both(tracer, func, args, kwargs)
    return func(*args, **kwargs), Track(tracer.settle(input) * max(1.0, float(weight.detach().abs().max())))


def _leaky(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    bound = tracer.settle(args[0])
    slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
    return func(*args, **kwargs), Track(bound * max(1.0, abs(float(slope))))


def _linear(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    input, weight = _both(tracer, func, args, kwargs)
    name = f"linear {tuple(weight.shape)}"
    return func(*args, **kwargs), Track(tracer.settle(input), (weight.detach(), linear_norm, name))


def _convolution(dims: int) -> Rule:
    def rule(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
        input, weight = _both(tracer, func, args, kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        stride, dilation = (as_tuple(given.get(name, 1), dims) for name in ("stride", "dilation"))
        groups = given.get("groups", 1)

        def norm(value: Tensor) -> float:
            return convolution_norm(value, stride, dilation, groups)

        name = f"convolution {tuple(weight.shape)}"
        return func(*args, **kwargs), Track(tracer.settle(input), (weight.detach(), norm, name))

    return rule


def _both(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    input = kwargs.get("input", args[0] if args else None)
    weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
    if tracer.get(weight) is not None or weight is None or input is None:
        raise NoRule(f"{resolve_name(func)} has a weight that depends on the images")
    return input, weight


def _batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("training") or given.get("running_var") is None:
        raise NoRule("a batch norm in training mode has no Lipschitz constant of its own; call .eval()")
    scale = (given["running_var"].double() + given.get("eps", 1e-5)).rsqrt()
    if given.get("weight") is not None:
        scale = scale * given["weight"].detach().double()
    return func(*args, **kwargs), _scaled(tracer, given["input"], scale, channelwise=True)


def _scaled(tracer: Tracer, input: Tensor, scale: Tensor, *, channelwise: bool) -> Track:
    """The track of scale * input: folded into a layer that waits, where the scale is one a channel."""
    track = tracer.get(input)
    assert track is not None
    if channelwise and track.layer is not None and scale.dim() == 1:
        weight, norm, name = track.layer
        if len(scale) == weight.shape[0]:
            folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)).to(weight.device)
            return Track(track.bound, (folded, norm, f"{name} with batch norm"))
    return Track(tracer.settle(input) * float(scale.abs().max()))


def _add(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    alpha = abs(float(kwargs.get("alpha", 1)))
    bounds = [
        tracer.settle(value) * (alpha if place else 1.0)
        for place, value in enumerate(args[:2])
        if tracer.get(value) is not None
    ]
    result = func(*args, **kwargs)
    tracked = [value for value in args[:2] if tracer.get(value) is not None]
    # A broadcast image tensor is repeated: √ of how often.
    total = sum(
        bound * math.sqrt(result.numel() / value.numel())
        for bound, value in zip(bounds, tracked, strict=True)
    )
    assert isinstance(total, Tensor)
    return result, Track(total)


def _multiply(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    first, second = args[0], args[1]
    if tracer.get(first) is not None and tracer.get(second) is not None:
        raise NoRule(
            f"{resolve_name(func)} of two tensors that both depend on the images has no global constant"
        )
    dividing = func in DIVISIONS
    if dividing and tracer.get(first) is None:
        raise NoRule(f"{resolve_name(func)} by a tensor that depends on the images has no global constant")
    value, constant = (first, second) if tracer.get(first) is not None else (second, first)
    scale = torch.as_tensor(constant, dtype=torch.float64).abs()
    largest = float((1 / scale if dividing else scale).max())
    bound = tracer.settle(value)
    result = func(*args, **kwargs)
    return result, Track(bound * largest * math.sqrt(result.numel() / value.numel()))


def _normalize(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    given = dict(zip(("input", "p", "dim", "eps"), args, strict=False)) | kwargs
    input = given["input"]
    if given.get("p", 2) != 2 or given.get("dim", 1) not in (1, -1) or input.dim() != 2:
        raise NoRule("a normalisation other than h / |h| of vectors")
    bound = tracer.settle(input)
    left = input.double().norm(dim=1).cpu() - bound * tracer.radius  # (5.1)
    tracer.normalised = True
    return func(*args, **kwargs), Track(torch.where(left > 0, bound / left.clamp(min=1e-300), math.inf))


def _dropout(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Track]:
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    if given.get("training", True) and given.get("p", 0.5):
        raise NoRule("dropout in training mode; call .eval()")
    return func(*args, **kwargs), Track(tracer.settle(given["input"]))


def _named(*paths: str) -> list[Any]:
    """The torch functions of these names, those that this torch has."""
    found = []
    for path in paths:
        place: Any = torch
        for part in path.split("."):
            place = getattr(place, part, None)
        if place is not None:
            found.append(place)
    return found


PROPERTIES = set(
    _named("Tensor.dim", "Tensor.size", "Tensor.numel", "Tensor.is_floating_point", "is_floating_point")
)
DIVISIONS = set(
    _named("div", "true_divide", "Tensor.div", "Tensor.div_", "Tensor.__truediv__", "Tensor.true_divide")
)
RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        _named(
            "relu", "relu_", "Tensor.relu", "Tensor.relu_", "nn.functional.relu", "nn.functional.relu6",
            "nn.functional.hardtanh", "nn.functional.softplus", "nn.functional.softsign",
            "tanh", "Tensor.tanh", "nn.functional.tanh", "abs", "Tensor.abs", "Tensor.clamp", "clamp",
            "flatten", "Tensor.flatten", "Tensor.reshape", "reshape", "Tensor.view", "Tensor.contiguous",
            "Tensor.float", "Tensor.double", "Tensor.to", "squeeze", "Tensor.squeeze", "unsqueeze",
            "Tensor.unsqueeze", "permute", "Tensor.permute", "transpose", "Tensor.transpose", "Tensor.detach",
            "Tensor.clone",
            "Tensor.unflatten",
            "unflatten", "neg", "Tensor.__neg__", "nn.functional.pixel_shuffle",
            "nn.functional.pixel_unshuffle", "pixel_shuffle", "pixel_unshuffle", "nn.functional.logsigmoid",
        ),
        _factor(1.0),
    ),
    **dict.fromkeys(_named("sigmoid", "Tensor.sigmoid", "nn.functional.sigmoid"), _factor(0.25)),
    **dict.fromkeys(_named("nn.functional.gelu"), _factor(1.13)),
    **dict.fromkeys(_named("nn.functional.silu"), _factor(1.1)),
    **dict.fromkeys(_named("nn.functional.hardswish"), _factor(1.5)),
    **dict.fromkeys(_named("nn.functional.leaky_relu"), _leaky),
    **dict.fromkeys(_named("nn.functional.elu"), _elu),
    **dict.fromkeys(_named("prelu", "nn.functional.prelu"), _prelu),
    **dict.fromkeys(_named("nn.functional.linear"), _linear),
    **dict.fromkeys(_named("conv1d", "nn.functional.conv1d"), _convolution(1)),
    **dict.fromkeys(_named("conv2d", "nn.functional.conv2d"), _convolution(2)),
    **dict.fromkeys(_named("conv3d", "nn.functional.conv3d"), _convolution(3)),
    **dict.fromkeys(_named("nn.functional.batch_norm"), _batch_norm),
    **dict.fromkeys(
        _named(
            "add", "Tensor.add", "Tensor.__add__", "Tensor.__radd__", "Tensor.__iadd__", "Tensor.add_",
            "sub", "Tensor.sub", "Tensor.__sub__", "Tensor.__rsub__", "Tensor.__isub__", "Tensor.sub_",
        ),
        _add,
    ),
    **dict.fromkeys(
        [
            *_named("mul", "Tensor.mul", "Tensor.mul_", "Tensor.__mul__", "Tensor.__rmul__", "Tensor.__imul__"),
            *DIVISIONS,
        ],
        _multiply,
    ),
    **dict.fromkeys(_named("cat", "concat"), pooling.concatenate),
    **{
        function: rule(dims)
        for dims in (1, 2, 3)
        for kind, rule in (("avg", pooling.average), ("max", pooling.maximum))
        for function in _named(
            f"nn.functional.{kind}_pool{dims}d", f"{kind}_pool{dims}d", f"_C._nn.{kind}_pool{dims}d",
            f"nn.functional.{kind}_pool{dims}d_with_indices",
        )
    },
    **{
        function: pooling.adaptive(dims)
        for dims in (1, 2, 3)
        for function in _named(f"nn.functional.adaptive_avg_pool{dims}d", f"adaptive_avg_pool{dims}d")
    },
    **{function: pooling.norm(dims) for dims in (1, 2) for function in _named(f"nn.functional.lp_pool{dims}d")},
    **dict.fromkeys(_named("mean", "Tensor.mean"), pooling.mean),
    **dict.fromkeys(_named("sort", "Tensor.sort"), pooling.sort),
    **dict.fromkeys(_named("min", "Tensor.min"), pooling.extreme("min")),
    **dict.fromkeys(_named("max", "Tensor.max"), pooling.extreme("max")),
    **dict.fromkeys(_named("nn.functional.pad"), pooling.pad),
    **dict.fromkeys(_named("nn.functional.normalize"), _normalize),
    **dict.fromkeys(_named("nn.functional.dropout", "nn.functional.dropout2d"), _dropout),
}  # fmt: skip
