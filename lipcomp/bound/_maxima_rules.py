"""How maxima, hard and smooth, and sorting change a tensor's Jacobian over a ball.

A maximum is a tree of max(a, b) = b + relu(a - b); a sorted number may have the row of any that can take its place.
Softmax and logsumexp have their derivative at the image; what it may change by as rows of bounded norm.
"""

from typing import Any

import torch
from torch import Tensor, fx

from lipcomp.bound._capture import name_of
from lipcomp.bound._decompositions import aten
from lipcomp.bound._local import Ball, Rule, Track
from lipcomp.bound._local_rules import at_image, only, scale, sloped


def _larger(ball: Ball, a: Track, b: Track) -> Track:
    """max(a, b) = b + relu(a - b)."""
    gap = ball.affine([a, b], a.value - b.value, lambda x, y: x - y)
    above = sloped(ball, gap, torch.relu, "relu", ())
    return ball.affine([b, above], torch.maximum(a.value, b.value), lambda y, r: y + r)


def _tree(ball: Ball, track: Track, axis: int) -> Track:
    """The maximum along an axis, which goes."""
    size = track.value.shape[axis]

    axis %= track.value.dim()

    def part(whole: Track, start: int, stop: int) -> Track:
        cut = (slice(None),) * axis + (slice(start, stop),)
        return Track(whole.value[cut], whole.columns[(slice(None), *cut)])

    while size > 1:
        half = size // 2
        both = _larger(ball, part(track, 0, half), part(track, half, 2 * half))
        if size % 2:
            rest = part(track, size - 1, size)
            value = torch.cat([both.value, rest.value], axis)
            both = ball.affine([both, rest], value, lambda x, y: torch.cat([x, y], axis))
        track, size = both, half + size % 2
    return ball.affine([track], track.value.squeeze(axis), lambda x: x.squeeze(axis))


def maximum(sign: float) -> Rule:
    """The larger or smaller of two tensors, or of the numbers along axes."""

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, *rest = args
        name = name_of(node)
        if name in ("maximum", "minimum") or (
            name in ("max", "min") and rest and not isinstance(rest[0], int)
        ):
            value = torch.maximum(*at_image([first, rest[0]]))
            a, b = (
                t if isinstance(t, Track) else Track(t.expand(value.shape), value.new_zeros(1, *value.shape))
                for t in (first, rest[0])
            )
            a, b = (scale(ball, t, sign * torch.ones_like(value)) for t in (a, b))
            return scale(ball, _larger(ball, a, b), sign)
        axes = rest[0] if rest else kwargs.get("dim")
        keep = rest[1] if len(rest) > 1 else kwargs.get("keepdim", False)
        only(rest)
        axes = list(range(first.value.dim())) if axes is None or axes == [] else axes
        axes = [axis % first.value.dim() for axis in ([axes] if isinstance(axes, int) else axes)]
        out = scale(ball, first, sign)
        for axis in sorted(axes, reverse=True):
            out = _tree(ball, out, axis)
        for axis in sorted(axes) if keep else ():
            out = ball.affine([out], out.value.unsqueeze(axis), lambda x, axis=axis: x.unsqueeze(axis))
        out = scale(ball, out, sign)
        return (out, None) if name in ("max", "min") and len(args) > 1 else out

    return rule


def _shares(ball: Ball, track: Track, axes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax p along axes, how far every p can move in the ball, and norm bounds of the rows."""
    z, moved, rows = track.value, ball.reach(track), ball.rows(track)
    p = (z - z.amax(axes, keepdim=True)).exp()
    p = p / p.sum(axes, keepdim=True)

    def at(sign: float) -> Tensor:  # every number with itself moved one way and all others the other
        own, others = z + sign * moved, z - sign * moved
        top = torch.maximum(own, others).amax(axes, keepdim=True)
        rest = (others - top).exp().sum(axes, keepdim=True) - (others - top).exp()
        return (own - top).exp() / ((own - top).exp() + rest.clamp(min=0))

    return p, torch.maximum(at(1.0) - p, p - at(-1.0)).clamp(min=0) * (1 + 1e-9) + 1e-15, rows


def softmax(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """diag(p) - p pT at the image; what it changes by from how far every p moves."""
    track, axis = args[:2]
    only(args[1:])
    p, change, rows = _shares(ball, track, axis)
    if name_of(node) == "_safe_softmax":  # 0 where a mask hides everything
        p, change = (
            part.masked_fill((track.value == -torch.inf).all(axis, keepdim=True), 0) for part in (p, change)
        )
    out = ball.affine([track], p, lambda column: p * (column - (p * column).sum(axis, keepdim=True)))
    mean = (p * rows).sum(axis, keepdim=True)
    tau = change * (rows + mean) + (p + change) * (change * rows).sum(axis, keepdim=True)
    return ball.uncertain(out, tau=tau, smooth=True)


def logsumexp(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """The softmax p at the image times the rows; what p changes by, times their norms, as noise.

    The derivative is p'T J', and ‖(p' - p)T J'‖ <= sum_i |p'_i - p_i| ‖row i of J'‖: for tangents with p' at the point,
    for chords with its mean on the segment, which the box of the reaches holds.
    """
    track, axes, keep = (*args, False)[:3]
    keep = kwargs.get("keepdim", keep)
    p, change, rows = _shares(ball, track, axes)
    value = track.value.logsumexp(axes, keepdim=keep)
    out = ball.affine([track], value, lambda column: (p * column).sum(axes, keepdim=keep))
    return ball.uncertain(out, tau=(change * rows).sum(axes, keepdim=keep), smooth=True)


def sort(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sorting along an axis: a place whose number may come from elsewhere in the ball may have any of those rows."""
    track, *rest = args
    only(rest, *kwargs.values())
    numbers = [
        value
        for value in rest
        if value is not None and not (node.target is aten.sort.stable and value is rest[0])
    ]
    axis = kwargs.get("dim", next((v for v in numbers if not isinstance(v, bool)), -1))
    value, order = node.target(track.value, *rest, **kwargs)  # type: ignore[operator]
    out = ball.affine([track], value, lambda column: column.gather(axis, order))
    rows = ball.rows(track).movedim(axis, -1)
    moved, z = ball.reach(track).movedim(axis, -1), track.value.movedim(axis, -1)
    # between them the k-th smallest stays
    low, high = (z - moved).sort(-1).values, (z + moved).sort(-1).values
    if not bool((value.movedim(axis, -1).diff(dim=-1) >= 0).all()):
        low, high = low.flip(-1), high.flip(-1)
    ball.check(z.numel() * z.shape[-1])
    own = order.movedim(axis, -1)[..., None] == torch.arange(z.shape[-1], device=z.device)
    may = (
        ((z - moved)[..., None, :] <= high[..., None]) & ((z + moved)[..., None, :] >= low[..., None]) & ~own
    )
    other = torch.where(may, rows[..., None, :], 0).amax(-1)
    mine = rows.gather(-1, order.movedim(axis, -1))
    tau = torch.where(may.any(-1), mine + other, 0).movedim(-1, axis)
    return ball.uncertain(out, tau=tau), None


def max_pool(dims: int, *, adaptive: bool = False) -> Rule:
    """The maximum of every window: windows gathered, then a tree of maxima."""

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        track, *how = args
        out_value = node.target(track.value, *how, **kwargs)  # type: ignore[operator]
        out_value = out_value[0] if isinstance(out_value, tuple) else out_value
        sizes, outputs = tuple(track.value.shape[-dims:]), tuple(out_value.shape[-dims:])
        places = windows(sizes, None if adaptive else how, outputs)
        places = places.to(track.value.device)
        flat = (-1,) if dims else ()

        def gather(column: Tensor) -> Tensor:
            return column.reshape(*column.shape[: column.dim() - dims], *flat)[..., places]

        gathered = ball.affine([track], gather(track.value), gather)
        out = _tree(ball, gathered, -1)
        shape = out_value.shape
        return ball.affine([out], out_value, lambda x: x.reshape(shape)), None

    return rule


def windows(sizes: tuple[int, ...], how: list[Any] | None, outputs: tuple[int, ...]) -> Tensor:
    """Which input numbers lie in the window of every output; a place outside repeats one inside.

    ``how`` are kernel, stride, padding and dilation; None for windows that share the places out (adaptive pooling).
    """

    def axis(value: Any, place: int, default: Any) -> int:
        value = default if value in (None, []) else value
        return value if isinstance(value, int) else value[place if len(value) > 1 else 0]

    kernel, stride, padding, dilation = ((how or []) + [None] * 4)[:4]
    lines = []
    for place, (size, count) in enumerate(zip(sizes, outputs, strict=True)):
        rank = torch.arange(count)[:, None]
        if how is None:
            starts, stops = rank * size // count, -(-(rank + 1) * size // count)
            where = starts + torch.arange(int((stops - starts).max()))
            inside = where < stops
        else:
            width = axis(kernel, place, 1)
            step, pad = axis(stride, place, width), axis(padding, place, 0)
            where = rank * step - pad + axis(dilation, place, 1) * torch.arange(width)
            inside = (where >= 0) & (where < size)
        first = where.gather(1, inside.long().argmax(1, keepdim=True))
        lines.append((torch.where(inside, where, first), size))
    total = torch.zeros(1, 1, dtype=torch.long)
    for line, size in lines:
        total = (total[:, None, :, None] * size + line[None, :, None, :]).flatten(2).flatten(0, 1)
    return total
