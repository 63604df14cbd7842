"""The product of norms: an upper bound of the Lipschitz constant, operation by operation, over all images or a ball.

===============================================  ==========================================================
operation                                        factor
===============================================  ==========================================================
convolution, matrix (with a batch norm folded)   its certified norm: :mod:`lipcomp.bound._layer_norms` (5.2)
elementwise functions                            the largest slope
linear with coefficients that are not negative   √(largest row sum · largest column sum)
max pooling; sorting, maxima, logsumexp          √(how often a number counts); 1
sum of two branches, concatenation               L + L', √(L² + L'²)
normalisation h / |h|                            (5.1) U / (‖h(x)‖ - U radius), on a ball, else none
===============================================  ==========================================================

The product is far above the truth for deep networks (2e7 times for a ResNet-18 was measured); it is tight for shallow
and for 1-Lipschitz ones, and needs one forward pass per image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from lipcomp.bound._capture import NoRule, check_dtype, leaves, name_of, with_values
from lipcomp.bound._layer_norms import convolution_norm, linear_norm
from lipcomp.bound._local import constant, exact, without
from lipcomp.bound._maxima_rules import windows
from lipcomp.bound._rules import PASSIVE, PLAIN, SMOOTH, VIEWS
from lipcomp.bound._slopes import largest_slope, shape_of

SIGNED = {"upsample_bicubic2d", "_upsample_bicubic2d_aa"}
JOINED = {"cat", "stack", "where", "slice_scatter", "select_scatter", "maximum", "minimum"}
SPREADING = {"where", "maximum", "minimum"}


@dataclass(eq=False)
class Norm:
    """A tensor that depends on the image: its value there, the constant of what it is made of, and a last layer."""

    value: Tensor
    before: float
    layer: tuple[Tensor, Callable[[Tensor], float], str] | None = None  # weight, its norm, name
    log: list[tuple[str, float]] = field(default_factory=list, repr=False)
    norm_of: "Norm | None" = None
    # of which pairs it is the "min" or "max", along which axis
    extreme: "tuple[Norm, str, int] | None" = None

    @cached_property
    def bound(self) -> float:
        """The constant, the last layer's norm multiplied in."""
        if self.layer is None:
            return self.before
        weight, norm, name = self.layer
        factor = norm(weight)
        self.log.append((name, factor))
        return self.before * factor


class Product:
    """The product of norms of one captured map; the norms are computed once for all images."""

    def __init__(self, graph: fx.GraphModule, radius: float) -> None:
        self.graph, self.radius, self.everywhere = graph, radius, True
        self.layers: list[tuple[str, float]] = []
        self._known: dict[str, float] = {}

    def bound(self, image: Tensor) -> float:
        """The bound at one image.

        Raises
        ------
        NoRule
            If an operation has no factor.
        """
        found: dict[fx.Node, Any] = {}
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                found[node] = Norm(image.double(), 1.0)
            elif node.op == "get_attr":
                found[node] = getattr(self.graph, node.target).detach()
            elif node.op == "output":
                output = found[node.args[0]]
                if not isinstance(output, Norm):
                    raise NoRule("the output does not depend on the images by operations that are followed")
                return output.bound
            else:
                found[node] = self._run(node, found)
        raise NoRule("the map gives nothing")

    def _run(self, node: fx.Node, found: dict[fx.Node, Any]) -> Any:
        args, kwargs = with_values(node, found.__getitem__)
        name = name_of(node)
        if name == "getitem":
            part = args[0][args[1]]
            if part is None:
                raise NoRule(f"{name_of(node.args[0])} has no rule for its part {args[1]}")  # type: ignore[arg-type]
            return part
        inputs = [found[a] for a in leaves(node) if isinstance(a, fx.Node)]  # x * x has two
        tracked = [v for v in inputs if isinstance(v, Norm)]
        nested = any(isinstance(v, list | tuple) and any(isinstance(p, Norm) for p in v) for v in inputs)
        if not tracked and not nested:
            return constant(node, args, kwargs)
        kwargs = {k: v for k, v in kwargs.items() if not isinstance(v, torch.dtype) and k != "memory_format"}
        values = [_plain(a) for a in args]
        target: Any = VIEWS.get(name, node.target)  # numbers of float64 may lie in another order
        run = lambda: target(*values, **{k: _plain(v) for k, v in kwargs.items()})  # noqa: E731
        if name in PASSIVE:
            return run()
        check_dtype(node)
        if name == "_to_copy":
            return tracked[0]
        try:
            return self._rule(name, node, args, kwargs, tracked, values, run)
        except NoRule as missing:
            raise NoRule(f"{name}: {missing}") from missing
        except (RuntimeError, TypeError, IndexError, KeyError, ValueError) as error:
            raise NoRule(f"{name} has no rule for these arguments ({str(error)[:120]})") from error

    def _rule(
        self,
        name: str,
        node: fx.Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracked: list[Norm],
        values: list[Any],
        run: Callable[[], Any],
    ) -> Any:
        first = args[0] if args else None
        pair = [t.extreme for t in _all(args)] if name == "cat" else []
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
            (one, kind, axis), (other, other_kind, other_axis) = pair[0], pair[1]
            # both numbers of every pair, sorted
            if one is other and axis == other_axis and kind != other_kind:
                return Norm(run(), one.bound, log=self.layers)
        if name in JOINED or (name in ("max", "min") and len(tracked) > 1):
            if name == "where" and isinstance(first, Norm):
                raise NoRule("has no rule for a condition that depends on the images")
            result = run()
            spread = name not in JOINED - SPREADING  # what is broadcast counts as often as it is repeated
            bounds = [t.bound * (self._repeat(result, t) if spread else 1.0) for t in _all(args)]
            return Norm(result, math.hypot(*bounds), log=self.layers)
        if name == "copy":
            result, source = run(), args[1]
            factor = self._repeat(result, source) if isinstance(source, Norm) else 0.0
            return Norm(result, source.bound * factor, log=self.layers) if factor else result
        if name in ("add", "sub"):
            return self._sum(args, kwargs, run())
        if name == "div" and len(tracked) == 2 and args[1].norm_of is first:
            return self._direction(first, args[1], run())
        if name in ("mm", "bmm", "addmm", "baddbmm", "mv"):
            return self._matrix(name, args, kwargs, run())
        if kwargs.get("rounding_mode") is not None:
            raise NoRule("rounds")
        if len(tracked) != 1 or (not isinstance(first, Norm) and name != "mul"):
            raise NoRule("has no constant over all images for these arguments that depend on them")
        track = tracked[0]
        result = run()
        if name in ("convolution", "_convolution"):
            return self._convolution(track, args, result)
        if "batch_norm" in name:
            return self._batch_norm(name, node, track, values, result), None, None
        if name == "linalg_vector_norm":
            return self._vector_norm(track, values, result)
        limit = name == "clamp_min" and isinstance(values[1], int | float)
        if (limit or name in ("expand", "unsqueeze", "view")) and track.norm_of is not None:
            return Norm(
                result, track.bound * self._repeat(result, track), log=self.layers, norm_of=track.norm_of
            )
        if name in ("amax", "amin", "sort", "max", "min"):
            out = Norm(result if isinstance(result, Tensor) else result[0], track.bound, log=self.layers)
            if isinstance(result, Tensor):
                return out
            axis = values[1] % track.value.dim() if name in ("min", "max") else -1
            if axis >= 0 and track.value.shape[axis] == 2:
                out.extreme = (track, name, axis)
            return out, None
        if name in ("_softmax", "_safe_softmax"):
            return Norm(result, track.bound / 2, log=self.layers)
        if name == "logsumexp":  # its gradient is a softmax, of norm 1 at most
            return Norm(result, track.bound, log=self.layers)
        if "max_pool" in name:
            return self._max_pool(node, track, values, result)
        if name in SMOOTH:
            return self._elementwise(name, node, track, values, kwargs, result)
        if name == "neg" or (name in VIEWS and name != "expand"):
            return Norm(result, track.bound, log=self.layers)
        if (
            name in ("mul", "div")
            or name in ("expand", "sum", "mean")
            or (name in PLAIN and name not in SIGNED)
        ):
            return self._averaging(name, node, track, args, values, kwargs, result)
        raise NoRule("has no rule")

    def _once(self, node: fx.Node, compute: Callable[[], float]) -> float:
        if node.name not in self._known:
            self._known[node.name] = compute()
        return self._known[node.name]

    @staticmethod
    def _repeat(result: Tensor, track: Norm) -> float:
        return math.sqrt(max(result.numel() / track.value.numel(), 1.0))

    def _sum(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Norm:
        alpha = abs(float(kwargs.get("alpha", 1)))
        total = sum(
            weight * part.bound * self._repeat(result, part)
            for weight, part in zip((1.0, alpha), args[:2], strict=True)
            if isinstance(part, Norm)
        )
        return Norm(result, float(total), log=self.layers)

    def _direction(self, h: Norm, norm: Norm, result: Tensor) -> Norm:
        self.everywhere = False
        if h.value.numel() != h.value.shape[-1]:
            raise NoRule("is a normalisation of several vectors")
        length = float(h.value.norm())
        low = float(norm.value.min())
        left = length * (1 - 1e-12) - h.bound * self.radius  # (5.1)
        bound = h.bound / left if left > 0 and low <= length * (1 + 1e-12) else math.inf
        return Norm(result, bound, log=self.layers)

    def _vector_norm(self, track: Norm, values: list[Any], result: Tensor) -> Norm:
        if len(values) > 1 and float(values[1]) != 2:
            raise NoRule("has no rule for norms of an order below 1")
        whole = track if result.numel() == 1 else None  # over an axis of length 1 it is |h| number by number
        return Norm(result, track.bound, log=self.layers, norm_of=whole)

    def _matrix(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> Norm:
        bias = args[0] if name in ("addmm", "baddbmm") else None
        first, second = args[-2:] if bias is None else args[1:3]
        alpha, beta = abs(float(kwargs.get("alpha", 1))), abs(float(kwargs.get("beta", 1)))
        if isinstance(first, Norm) and isinstance(second, Norm):
            raise NoRule("of two tensors that both depend on the images has no constant over all images")
        extra = beta * bias.bound * self._repeat(result, bias) if isinstance(bias, Norm) else 0.0
        track, matrix = (first, second) if isinstance(first, Norm) else (second, first)
        if not isinstance(track, Norm):
            return Norm(result, extra, log=self.layers)
        matrix = matrix.detach().double() * alpha
        if matrix.dim() == 1:
            matrix = matrix[:, None]
        title = f"linear {tuple(matrix.mT.shape)}"
        if extra or matrix.dim() != 2 or not isinstance(first, Norm):
            top = max(linear_norm(part) for part in matrix.reshape(-1, *matrix.shape[-2:]))
            self.layers.append((title, top))
            return Norm(result, track.bound * top + extra, log=self.layers)
        return Norm(result, track.bound, (matrix.mT, linear_norm, title), self.layers)

    def _convolution(self, track: Norm, args: tuple[Any, ...], result: Tensor) -> Norm:
        weight, _, stride, _, dilation, transposed, _, groups = args[1:9]
        dims = weight.dim() - 2
        stride, dilation = (tuple(v) * (dims // len(v)) for v in (stride, dilation))

        def norm(kernel: Tensor) -> float:
            return convolution_norm(kernel, stride, dilation, groups)

        weight = weight.detach()
        title = f"{'transposed ' if transposed else ''}convolution {tuple(weight.shape)}"
        if transposed:  # the adjoint of the convolution with this kernel
            factor = norm(weight)
            self.layers.append((title, factor))
            return Norm(result, track.bound * factor, log=self.layers)
        return Norm(result, track.bound, (weight, norm, title), self.layers)

    def _batch_norm(self, name: str, node: fx.Node, track: Norm, values: list[Any], result: Any) -> Norm:
        _, weight, _, _, var, *rest = values
        if name != "_native_batch_norm_legit_no_training" and rest[0]:
            raise NoRule("is in training mode; call .eval()")
        scale = (var + rest[-1]).rsqrt() * (1 if weight is None else weight)
        if track.layer is not None and len(scale) == track.layer[0].shape[0]:
            kernel, norm, title = track.layer
            folded = kernel.double() * scale.view(-1, *[1] * (kernel.dim() - 1)).to(kernel.device)
            factor = self._once(node, lambda: norm(folded))
            if not any(
                entry[0] == f"{title} with batch norm" and entry[1] == factor for entry in self.layers
            ):
                self.layers.append((f"{title} with batch norm", factor))
            return Norm(result[0], track.before * factor, log=self.layers)
        return Norm(result[0], track.bound * float(scale.abs().max()), log=self.layers)

    def _max_pool(self, node: fx.Node, track: Norm, values: list[Any], result: Any) -> Any:
        adaptive, dims = name_of(node).startswith("adaptive"), int(name_of(node).split("pool")[1][0])
        out = result[0]

        def overlap() -> float:
            sizes, outputs = tuple(track.value.shape[-dims:]), tuple(out.shape[-dims:])
            places = windows(sizes, None if adaptive else values[1:], outputs)
            counts = torch.zeros(math.prod(track.value.shape[-dims:]))
            for line in places.mT:
                # a place outside counts for one inside: more
                counts.index_add_(0, line, torch.ones(len(line)))
            return math.sqrt(float(counts.max()))

        return Norm(out, track.bound * self._once(node, overlap), log=self.layers), None

    def _elementwise(
        self, name: str, node: fx.Node, track: Norm, values: list[Any], kwargs: dict[str, Any], result: Any
    ) -> Any:
        if any(isinstance(v, Tensor) for v in values[1:]) and not name.endswith(("prelu", "prelu_kernel")):
            raise NoRule("has no rule for limits that are tensors")
        shape = shape_of(
            name, tuple(v for v in (*values[1:], *kwargs.values()) if isinstance(v, int | float | str))
        )
        if shape is None:
            raise NoRule("has no rule for these arguments")

        def function(z: Tensor) -> Tensor:
            found = node.target(z, *values[1:], **kwargs)  # type: ignore[operator]
            return found if isinstance(found, Tensor) else found[0]

        factor = self._once(node, lambda: largest_slope(function, shape, track.value))
        out = Norm(result if isinstance(result, Tensor) else result[0], track.bound * factor, log=self.layers)
        return out if isinstance(result, Tensor) else (out, None)

    def _averaging(
        self,
        name: str,
        node: fx.Node,
        track: Norm,
        args: tuple[Any, ...],
        values: list[Any],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        """An affine operation with coefficients of one sign: from its row and column sums."""
        place = next(i for i, a in enumerate(args) if a is track)
        others = [v.abs() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
        if name in ("mul", "div"):  # whole numbers have signs too; elsewhere they are axes and places
            others = [_size(v) for v in values]
        target: Any = node.target

        def parts_of(first: Tensor) -> list[Tensor]:
            out = target(*others[:place], first, *others[place + 1 :], **kwargs)
            return [out] if isinstance(out, Tensor) else list(out)

        def sums() -> float:
            with torch.enable_grad():
                one = torch.ones_like(track.value).requires_grad_()
                constants, parts = parts_of(torch.zeros_like(one)), parts_of(one)
                total = torch.stack([part.sum() for part in parts]).sum()
                (columns,) = torch.autograd.grad(total, one)
            rows = [without(*both).abs().max() for both in zip(constants, parts, strict=True)]
            return math.sqrt(max(map(float, rows)) * float(columns.abs().max())) * (1 + 1e-12)

        bound = track.bound * self._once(node, sums)
        if isinstance(result, Tensor):
            return Norm(result, bound, log=self.layers)
        return [Norm(part, bound, log=self.layers) for part in result]


def _size(factor: Any) -> Any:
    return factor if isinstance(factor, Tensor) and factor.dtype == torch.bool else abs(factor)


def _plain(value: Any) -> Any:
    """Values at the image, constants in float64."""
    if isinstance(value, list | tuple):
        return type(value)(_plain(part) for part in value)
    return value.value if isinstance(value, Norm) else exact(value)


def _all(values: Any) -> list[Norm]:
    if isinstance(values, list | tuple):
        return [norm for value in values for norm in _all(value)]
    return [values] if isinstance(values, Norm) else []
