"""Operations without a rule of their own, as what they are made of: what a capture puts in their place.

Each is written by operations that have a rule (:mod:`lipcomp.bound._rules`), so that it needs no bound of its own. A
function that returns NotImplemented leaves the operation as it is: refused by its name, if it has no rule.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What a capture puts in the place of an operation."""
    known = [
        aten.native_layer_norm, aten.glu, aten.addcmul, aten.addcdiv, aten.lerp, aten.rsub,
        aten._scaled_dot_product_flash_attention_for_cpu, aten._upsample_nearest_exact1d,
        aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d,
    ]  # fmt: skip
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions(known))
    table[aten.native_batch_norm.default] = _batch_norm
    table[aten.native_group_norm.default] = _group_norm
    table[aten.rrelu_with_noise.default] = _rrelu
    table[aten.topk.default] = _topk
    table[aten.kthvalue.default] = lambda x, k, dim=-1, keepdim=False: _kth(x, k, dim, keepdim)
    table[aten.median.dim] = lambda x, dim, keepdim=False: _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim)
    table[aten.median.default] = lambda x: _kth(x.flatten(), (x.numel() + 1) // 2, 0, keepdim=False)[0]
    table[aten._log_softmax.default] = lambda x, dim, half: x - x.logsumexp(dim, keepdim=True)
    table[aten.logaddexp.default] = lambda x, y: torch.stack(torch.broadcast_tensors(x, y)).logsumexp(0)
    table[aten.logcumsumexp.default] = lambda x, dim: _scan(torch.logaddexp, x, dim)
    table[aten.addmv.default] = lambda bias, x, y, *, beta=1, alpha=1: beta * bias + alpha * (x @ y)
    table[aten.addr.default] = lambda bias, x, y, *, beta=1, alpha=1: beta * bias + alpha * x[:, None] * y
    table[aten.addbmm.default] = lambda bias, x, y, *, beta=1, alpha=1: beta * bias + alpha * (x @ y).sum(0)
    table[aten.unsafe_split.Tensor] = torch.split  # of recurrent cells
    table[aten.var.correction] = _variance
    table[aten.std.correction] = lambda *a, **k: _variance(*a, **k).sqrt()
    table[aten.var_mean.correction] = _with_mean(_variance)
    table[aten.std_mean.correction] = _with_mean(lambda *a, **k: _variance(*a, **k).sqrt())
    table[aten.linalg_vector_norm.default] = _vector_norm
    for overload in ("Scalar", "ScalarOpt_dim"):
        table[getattr(aten.norm, overload)] = lambda x, p=2, dim=None, keepdim=False: (
            torch.linalg.vector_norm(x, 2 if p is None else p, dim, keepdim)
        )
    table[aten._cdist_forward.default] = lambda x, y, p, mode: torch.linalg.vector_norm(
        x.unsqueeze(-2) - y.unsqueeze(-3), p, -1
    )
    table[aten._euclidean_dist.default] = lambda x, y: (x.unsqueeze(-2) - y.unsqueeze(-3)).norm(dim=-1)
    table[aten.hypot.default] = lambda x, y: torch.stack(torch.broadcast_tensors(x, y)).norm(dim=0)
    table[aten._trilinear.default] = _trilinear
    table[aten.prod.dim_int] = _product
    table[aten.prod.default] = lambda x, dtype=None: _product(x.flatten(), 0, dtype=dtype)
    table[aten.cumprod.default] = lambda x, dim, dtype=None: (
        NotImplemented if dtype else _scan(torch.mul, x, dim)
    )
    for cumulative, larger in ((aten.cummax, torch.maximum), (aten.cummin, torch.minimum)):
        table[cumulative.default] = functools.partial(_extremes, larger)
    table[aten.aminmax.default] = lambda x, dim=None, keepdim=False: tuple(
        extreme(x, [] if dim is None else dim, keepdim) for extreme in (torch.amin, torch.amax)
    )
    table[aten.clamp.Tensor] = _clamp
    table[aten.clamp_min.Tensor], table[aten.clamp_max.Tensor] = torch.maximum, torch.minimum
    table[aten.fmax.default], table[aten.fmin.default] = torch.maximum, torch.minimum  # but for NaN
    table[aten.fill.Scalar] = torch.full_like
    table[aten.fill.Tensor] = lambda x, value: value.to(x.dtype).expand(x.shape)
    table[aten.zero.default] = torch.zeros_like
    table[aten.nan_to_num.default] = _to_finite
    table[aten.abs.default] = lambda x: (
        torch.view_as_real(x).norm(dim=-1) if x.is_complex() else NotImplemented
    )
    table[aten.logit.default] = lambda x, eps=None: NotImplemented if eps else x.log() - (1 - x).log()
    table[aten.pow.Scalar] = lambda base, x: (x * math.log(base)).exp() if base > 0 else NotImplemented
    table[aten.rot90.default] = _rotated
    table[aten.linalg_cross.default] = lambda x, y, *, dim=-1: (
        x.roll(-1, dim) * y.roll(1, dim) - x.roll(1, dim) * y.roll(-1, dim)
    )
    table[aten.scatter_reduce.two] = lambda x, dim, index, source, reduce, *, include_self=True: (
        x.scatter_add(dim, index, source) if reduce == "sum" and include_self else NotImplemented
    )
    return table


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not sorted:
        return NotImplemented
    values, places = x.sort(dim, descending=largest)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


def _kth(x: Tensor, k: int, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    values, places = (part.narrow(dim, k - 1, 1) for part in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _axes(x: Tensor, dim: Any) -> list[int]:
    return list(range(x.dim())) if dim in (None, []) else [dim] if isinstance(dim, int) else list(dim)


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(
        x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
    ) -> tuple[Tensor, Tensor]:
        mean = x.mean(_axes(x, dim), keepdim=keepdim)
        return spread(x, dim, correction=correction, keepdim=keepdim), mean

    return both


def _vector_norm(
    x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """The 2-norm has a rule of its own."""
    if order == 2 or order < 1 or dtype is not None:
        return NotImplemented
    size, axes = x.abs(), _axes(x, dim)
    if math.isinf(order):
        return size.amax(axes, keepdim)
    total = (size if order == 1 else size.pow(order)).sum(axes, keepdim)
    return total if order == 1 else total.pow(1 / order)


def _trilinear(
    first: Tensor,
    weight: Tensor,
    other: Tensor,
    one: Any,
    two: Any,
    three: Any,
    sums: Any,
    unroll_dim: int = 1,
) -> Tensor:
    """A product of three with the axes ``one``, ``two``, ``three`` put in, summed; what the third lacks at once."""
    for axis in range(first.dim() + len(one)):
        first, weight, other = (
            x.unsqueeze(axis) if axis in axes else x
            for x, axes in ((first, one), (weight, two), (other, three))
        )
    early = [axis for axis in sums if axis in three]
    found = first * weight
    found = (found.sum(early, keepdim=True) if early else found) * other
    return found.sum(sums) if sums else found


def _product(x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The product along an axis, halves times halves."""
    if dtype is not None or not x.shape[dim]:
        return NotImplemented
    while (size := x.shape[dim]) > 1:
        half = size // 2
        both = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([both, x.narrow(dim, 2 * half, size % 2)], dim) if size % 2 else both
    return x if keepdim else x.squeeze(dim)


def _scan(join: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
    """What joins each number with all before it, along an axis."""
    if not x.dim():
        return x.clone()
    step, size = 1, x.shape[dim]
    while step < size:
        later = join(x.narrow(dim, step, size - step), x.narrow(dim, 0, size - step))
        x, step = torch.cat([x.narrow(dim, 0, step), later], dim), 2 * step
    return x.clone()


def _extremes(larger: Callable[[Tensor, Tensor], Tensor], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest or smallest so far, and its place, which is refused where it is used."""
    values = _scan(larger, x, dim)
    places = torch.arange(x.shape[dim] if x.dim() else 1, device=x.device)
    places = places.view([-1 if axis == dim % max(x.dim(), 1) else 1 for axis in range(x.dim())])
    return values, _scan(torch.maximum, torch.where(x == values, places, 0), dim)


def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _to_finite(x: Tensor, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Tensor:
    """Of numbers that stay finite it is none but a limit."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def _rotated(x: Tensor, k: int = 1, dims: Any = (0, 1)) -> Tensor:
    turn = k % 4
    x = x if turn % 2 == 0 else x.transpose(*dims)
    flips = {0: [], 1: [dims[0]], 2: list(dims), 3: [dims[1]]}[turn]
    return x.flip(flips) if flips else x.clone()


def _variance(x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    axes = _axes(x, dim)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    squares = (x - x.mean(axes, keepdim=True)).square()
    return squares.sum(axes, keepdim=keepdim) / max(count - (1 if correction is None else correction), 0)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """Statistics of the one image itself (instance norm) become visible; stored ones stay."""
    if not training:
        return NotImplemented
    out, mean, scale = _standardised(x, [0, *range(2, x.dim())], eps)
    return _scaled(out, weight, bias), mean.flatten(), scale.flatten()


def _group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, channels: int, pixels: int, groups: int, eps: float
) -> Any:
    out, mean, scale = _standardised(x.reshape(n, groups, -1), [2], eps)
    return _scaled(out.view(x.shape), weight, bias), mean.squeeze(2), scale.squeeze(2)


def _standardised(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    return centred * scale, mean, scale


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Times a weight of each channel, plus a bias."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _rrelu(x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *more: Any) -> Any:
    """Its mean slope; ``more`` begins with training."""
    return NotImplemented if more[:1] == (True,) else torch.nn.functional.leaky_relu(x, (lower + upper) / 2)
