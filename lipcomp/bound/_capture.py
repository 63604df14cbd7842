"""A map as a graph of pure operations below Python: what certificates follow, so that nothing of the images escapes.

The map is run once on an image without numbers. Every operation that it dispatches, from Python, from TorchScript or
from within torch, becomes a node; views and changes in place become pure operations. What has no number cannot be read
off (``item``, ``numpy``, a branch on a value): that ends in :class:`NoRule`. The graph is then compared with the map
itself at two points, so that a value that left torch and came back as a constant is found.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from lipcomp.bound._decompositions import decompositions
from lipcomp.jacobian._frozen import EXITS, math_attention
from lipcomp.jacobian._products import Map


class NoRule(Exception):  # noqa: N818  (it is no error: a bound is not known)
    """An operation without a rule; says which, and what follows."""


class _NoExit(TorchFunctionMode):
    """Refuses the functions that take a tensor's numbers out of torch; replaces those that hide what they do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fake = args and isinstance(args[0], Tensor) and _without_numbers(args[0])
        if func in EXITS and fake:
            raise NoRule(f"the map reads numbers that depend on the images ({func.__name__})")
        if func in REPLACEMENTS:
            found = REPLACEMENTS[func](*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _circular(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor | None:
    """Circular padding writes into an empty tensor; here by indices."""
    if mode != "circular":
        return None
    for place in range(len(pad) // 2):
        axis, (low, high) = input.dim() - 1 - place, pad[2 * place : 2 * place + 2]
        size = input.shape[axis]
        input = input.index_select(axis, torch.arange(-low, size + high, device=input.device) % size)
    return input


def _norm_pool(
    input: Tensor, norm_type: float | int, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Any:
    """Pooling by the 2-norm of whole windows, as such."""
    if float(norm_type) != 2 or ceil_mode:
        return None
    kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    step = kernel if stride is None else (stride,) * 2 if isinstance(stride, int) else stride
    places = [
        (torch.arange((size - width) // jump + 1)[:, None] * jump + torch.arange(width)).to(input.device)
        for size, width, jump in zip(input.shape[-2:], kernel, step, strict=True)
    ]
    rows, columns = places[0][:, None, :, None], places[1][None, :, None, :]
    return torch.linalg.vector_norm(input[..., rows, columns].flatten(-2), dim=-1)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root mean square normalisation, by operations without writes."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    normal = input * torch.rsqrt(input.pow(2).mean(axes, keepdim=True) + eps)
    return normal if weight is None else normal * weight


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of two vectors, by operations without writes."""
    first, second = (x / x.norm(dim=dim, keepdim=True).clamp_min(eps) for x in (x1, x2))
    return (first * second).sum(dim)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.pad: _circular, F.lp_pool2d: _norm_pool, F.rms_norm: _rms_norm, torch.rms_norm: _rms_norm,
    F.cosine_similarity: _cosine_similarity,
}  # fmt: skip


def _without_numbers(tensor: Tensor) -> bool:
    return torch._is_functional_tensor(tensor) or type(tensor) not in (Tensor, torch.nn.Parameter)


def capture(fn: Map, images: Tensor) -> fx.GraphModule:
    """The graph of a map for one image.

    Raises
    ------
    NoRule
        If the map cannot be captured, or the graph is not the map.
    """

    def guarded(image: Tensor) -> Tensor:
        with _NoExit():
            return fn(image)

    def traced(function: Map) -> fx.GraphModule:
        pure = torch.func.functionalize(function, remove="mutations_and_views")
        trace = make_fx(pure, decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)
        return trace(images[:1].clone())

    with torch.no_grad(), math_attention(), _into_compiled():
        try:
            graph = traced(guarded)
            if any(map(_writes, graph.graph.nodes)):  # below what is made pure, as in recurrent cells
                graph = traced(graph)
        except NoRule:
            raise
        except Exception as error:  # whatever a foreign map does without numbers
            raise NoRule(
                f"the map cannot be followed ({type(error).__name__}: {str(error)[:200]})"
            ) from error
    graph.graph.eliminate_dead_code()
    _compare(fn, graph, images)
    return graph


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _into_compiled() -> AbstractContextManager[object]:
    """Lets a trace pass what torch.compile has compiled, which then runs as it was written."""
    dynamo: Any = sys.modules.get("torch._dynamo")  # without it nothing is compiled
    return nullcontext() if dynamo is None else dynamo.config.patch(error_on_nested_fx_trace=False)


def _compare(fn: Map, graph: fx.GraphModule, images: Tensor) -> None:
    """Refuse a graph that is not the map: something came back as a constant."""
    generator = torch.Generator().manual_seed(0)
    other = torch.rand(images[:1].shape, generator=generator, dtype=torch.float64).to(images)
    for point in (images[:1], (images[:1] + other) / 2):
        with torch.no_grad(), math_attention():
            expected = fn(point.clone())
            try:
                found = graph(point.clone())
            except RuntimeError as error:  # of a layout that a functional graph does not keep
                raise NoRule(f"the map cannot be followed ({str(error)[:200]})") from error
        if not isinstance(found, Tensor) or found.shape != expected.shape or not found.is_floating_point():
            raise NoRule("the map does not give one tensor of floating-point numbers")
        scale = float(expected.abs().nan_to_num(0, 0, 0).max())
        if not float((found - expected).abs().nan_to_num(0, 0, 0).max()) <= 1e-3 * scale:
            raise NoRule(
                "the map is not what torch sees of it: numbers leave torch and come back as constants"
            )


def leaves(node: fx.Node) -> Iterator[Any]:
    """All arguments of a node, also those in lists and keywords."""
    yield from tree_iter((node.args, node.kwargs))


def with_values(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a node with other nodes replaced."""
    replace = lambda arg: value(arg) if isinstance(arg, fx.Node) else arg  # noqa: E731
    return tree_map(replace, node.args), tree_map(replace, node.kwargs)


def check_dtype(node: fx.Node, *, complex_too: bool = False) -> None:
    """Refuse numbers that depend on the images in another type than float32 and float64, however it was asked for."""
    types = [getattr(part.meta.get("val"), "dtype", torch.float64) for part in (node, *node.all_input_nodes)]
    if any(dtype.is_complex for dtype in types) and not complex_too:
        raise NoRule(f"{name_of(node)}: complex numbers have no rule")
    if types[0] not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise NoRule(
            f"{name_of(node)}: numbers in {types[0]} are a step function of the images, or have no rule"
        )


def name_of(node: fx.Node) -> str:
    """The operation's name, without overload and the suffix of pure views."""
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return name.removesuffix("_copy") if name != "_to_copy" else name
