"""How each operation changes a tensor's Jacobian over a ball (theory (5.6)), by its name below Python.

linear        the operation itself on every column
elementwise   the middle of the slopes on the columns, half their difference as noise
products      the product rule; how far each factor moves as noise
norms         the derivative of |h| at the image; what it may change by as rows of bounded norm

Every rule uses all its tracked arguments or refuses.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from lipcomp.bound._capture import NoRule, name_of
from lipcomp.bound._local import Ball, Rule, Track, exact
from lipcomp.bound._slopes import shape_of, slopes

aten = torch.ops.aten
ROUNDING = 1e-9  # relative, of slopes and directions at a point: above what float64 makes of them


def tracks_in(*values: Any) -> list[Track]:
    """The tracked tensors among arguments, also in lists."""
    return [
        part
        for value in values
        for part in (
            tracks_in(*value) if isinstance(value, list | tuple) else [value] * isinstance(value, Track)
        )
    ]


def at_image(value: Any) -> Any:
    """A tensor's value at the image."""
    if isinstance(value, list | tuple):
        return type(value)(at_image(part) for part in value)
    return value.value if isinstance(value, Track) else value


def only(*others: Any) -> None:
    """Refuse tracked arguments where constants are needed."""
    if tracks_in(*others):
        raise NoRule("has no rule for arguments that depend on the images there")


def linear(function: Callable[..., Tensor]) -> Rule:
    """An operation that is affine in its first argument, with the others constant."""

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (first, *rest), kwargs = (
            args,
            {k: v for k, v in kwargs.items() if k not in ("dtype", "memory_format")},
        )
        rest = [None if isinstance(value, torch.dtype) else value for value in rest]
        only(rest, *kwargs.values())
        if not isinstance(first, Track):
            raise NoRule("has no rule for a first argument that is constant")
        run = functools.partial(_apply, function, rest, kwargs)
        return _parts(ball, [first], run(first.value), run)

    return rule


def _apply(function: Callable[..., Any], rest: list[Any], kwargs: dict[str, Any], first: Tensor) -> Any:
    return function(first, *rest, **kwargs)


def _parts(ball: Ball, tracks: list[Track], value: Any, run: Callable[..., Any]) -> Any:
    """One track, or one for each of several results."""
    if isinstance(value, Tensor):
        return ball.affine(tracks, value, run)
    return [
        ball.affine(tracks, part, lambda *columns, place=place: run(*columns)[place])
        for place, part in enumerate(value)
    ]


def joined(function: Callable[..., Tensor]) -> Rule:
    """An operation that is linear in all its tensors together, but for masks and places."""

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
        if "reduce" in kwargs:
            raise NoRule("has no rule for other ways to combine numbers than to take the place of one")
        tracks = list({id(track): track for track in tracks_in(args, *kwargs.values())}.values())
        value = function(*at_image(args), **{k: at_image(v) for k, v in kwargs.items()})

        def run(*columns: Tensor) -> Tensor:
            place = {id(track): column for track, column in zip(tracks, columns, strict=True)}

            def fill(argument: Any) -> Any:
                if isinstance(argument, Track):
                    return place[id(argument)]
                if isinstance(argument, list | tuple):
                    return type(argument)(fill(part) for part in argument)
                return argument

            return function(*fill(args), **{k: fill(v) for k, v in kwargs.items()})

        return ball.affine(tracks, value, run)

    return rule


def add(sign: float) -> Rule:
    """A sum or a difference, with ``alpha``."""

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
        first, second, *more = args
        alpha = kwargs.get("alpha", more[0] if more else 1)
        only(alpha)
        if first is second:
            return scale(ball, first, 1 + sign * alpha)
        terms = [(first, 1.0), (second, sign * alpha)]
        value = at_image(first) + sign * alpha * at_image(second)
        tracks = tracks_in(first, second)
        weights = [weight for term, weight in terms if isinstance(term, Track)]
        shape = value.shape

        def run(*columns: Tensor) -> Tensor:
            parts = [weight * column for weight, column in zip(weights, columns, strict=True)]
            return sum(parts[1:], parts[0]).expand(shape)

        return ball.affine(tracks, value, run)

    return rule


def scale(ball: Ball, track: Track, factor: Any) -> Track:
    """A tracked tensor times constants."""
    value = track.value * factor
    return ball.affine([track], value, lambda column: (column * factor).expand(value.shape))


def multiply(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A product."""
    first, second = args[:2]
    if isinstance(first, Track) and isinstance(second, Track):
        return _product(ball, first, second)
    return scale(ball, first, second) if isinstance(first, Track) else scale(ball, second, first)


def _product(ball: Ball, first: Track, second: Track) -> Track:
    if first is second:
        return sloped(ball, first, torch.square, "pow", (2.0,))
    value = first.value * second.value
    share = 0.5 if ball.chord else 1.0  # a change of the product has da db once, half of it counted with each
    moved = [ball.reach(first) * share, ball.reach(second) * share]
    a, b = first.value, second.value
    track = ball.affine([first, second], value, lambda da, db: (da * b + a * db).expand(value.shape))
    wide = [scale(ball, part, torch.ones_like(value)) for part in (first, second)]
    return ball.uncertain(track, [(wide[1], moved[0]), (wide[0], moved[1])], smooth=True)


def divide(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A quotient; h / |h| is known as such."""
    first, second = args[:2]
    if kwargs.get("rounding_mode") is not None:
        raise NoRule("rounds")
    if not isinstance(second, Track):
        is_complex = isinstance(second, Tensor) and second.is_complex()
        return scale(
            ball, first, 1 / (second if is_complex else torch.as_tensor(second, dtype=torch.float64))
        )
    if isinstance(first, Track) and _is_own_norm(second, first):
        return _direction(ball, first, second)
    inverse = sloped(ball, second, torch.reciprocal, "reciprocal", ())
    return _product(ball, first, inverse) if isinstance(first, Track) else scale(ball, inverse, first)


def _is_own_norm(norm: Track, h: Track) -> bool:
    """Whether a norm is that of h, and meets the vectors of h that it is of: without its axes it may meet others."""
    if norm.norm_of is None or norm.norm_of[0] is not h:
        return False
    _, axes, keep = norm.norm_of
    return keep or norm.value.numel() == 1 or sorted(axes) == list(range(len(axes)))


def _turned(ball: Ball, track: Track, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of vectors along axes: length, least length in the ball, bound of ‖J‖, how far the direction turns at most.

    ‖mu' - mu‖ <= 2 ‖h' - h‖ / (‖h‖ + ‖h'‖); at h = 0 the derivative of the norm is taken as 0, which is off by 1.
    """
    length = torch.linalg.vector_norm(track.value, dim=axes, keepdim=True)
    if length.numel() == 1:
        numbers = torch.linalg.vector_norm(ball.rows(track, tight=False), dim=axes, keepdim=True)
        left, tangent = ball.turn(track)
        turn = torch.where(length > 0, torch.full_like(length, min(tangent, 2.0)), 1.0)
        return length, torch.full_like(length, max(left, 0.0)), numbers, turn
    numbers = torch.linalg.vector_norm(ball.rows(track), dim=axes, keepdim=True)
    moved = torch.linalg.vector_norm(ball.reach(track), dim=axes, keepdim=True)
    least = (length - moved).clamp(min=0)
    turn = torch.where(length > 0, (2 * moved / (length + least)).clamp(max=2.0), 1.0)
    if not ball.radius:  # what turned is rounding
        turn = turn.masked_fill(turn <= ROUNDING, 0)
    return length, least, numbers, turn


def vector_norm(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """The Euclidean norm along axes."""
    track, order, axes, keep = (*args, *[2, None, False][len(args) - 1 :])[:4]
    if not isinstance(track, Track) or float(order) != 2:
        raise NoRule("has no rule for norms of an order below 1")
    axes = tuple(
        axis % track.value.dim() for axis in (axes if axes is not None else range(track.value.dim()))
    )
    length, _, numbers, turn = _turned(ball, track, axes)
    mu = track.value / length.clamp(min=1e-300)
    value = length if keep else length.squeeze(axes)
    out = ball.affine([track], value, lambda column: (mu * column).sum(axes, keepdim=keep))
    tau = turn * numbers
    out = ball.uncertain(out, tau=tau if keep else tau.squeeze(axes))
    out.norm_of = (track, axes, keep)
    return out


def _direction(ball: Ball, track: Track, norm: Track) -> Track:
    assert norm.norm_of is not None
    _, axes, _ = norm.norm_of
    length, least, numbers, turn = _turned(ball, track, axes)
    if bool((least <= 0).any()):
        raise NoRule("|h| may vanish in the ball")
    mu = track.value / length
    out = ball.affine(
        [track], mu, lambda column: (column - mu * (mu * column).sum(axes, keepdim=True)) / length
    )
    change = (turn / least + (1 / least - 1 / length)) * numbers
    out = ball.uncertain(out, tau=change.expand(mu.shape), smooth=True)
    if length.numel() == 1:
        out.direction_of = track
    return out


def clamp_low(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A lower limit; of a norm, one that it never reaches."""
    track, low = args[0], args[1]
    if isinstance(track, Track) and track.norm_of is not None and isinstance(low, int | float):
        least = _turned(ball, track.norm_of[0], track.norm_of[1])[1]
        if track.value.numel() > 1:
            least = torch.maximum(least.reshape(track.value.shape), track.value - ball.reach(track))
        if bool((least <= low).any()):
            raise NoRule("|h| may vanish in the ball")
        return track
    return elementwise(ball, node, args, kwargs)


def expanded(function: Callable[..., Tensor]) -> Rule:
    """A repetition or another view; of a norm with its axes kept it stays that norm."""
    base = linear(function)

    def rule(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
        out = base(ball, node, args, kwargs)
        source = args[0]
        if source.norm_of is not None and name_of(node) == "expand":
            h, axes, keep = source.norm_of
            if keep and tuple(out.value.shape) == tuple(h.value.shape):
                out.norm_of = source.norm_of
        elif source.norm_of is not None and name_of(node) == "unsqueeze":
            h, axes, keep = source.norm_of
            if not keep and len(axes) == 1 and args[1] % h.value.dim() == axes[0]:
                out.norm_of = (h, axes, True)
        same = out.value.numel() == source.value.numel()
        if (
            source.direction_of is not None
            and same
            and torch.equal(out.value.flatten(), source.value.flatten())
        ):
            out.direction_of = source.direction_of
        return out

    return rule


def elementwise(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of each number."""
    track, *rest = args
    only(rest, *kwargs.values())
    if not isinstance(track, Track):
        raise NoRule("has no rule for a first argument that is constant")
    name = name_of(node)
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh") and any(isinstance(r, Tensor) for r in rest):
        raise NoRule("has no rule for limits that are tensors")
    numbers = tuple(r for r in (*rest, *kwargs.values()) if isinstance(r, int | float | str))

    def function(z: Tensor) -> Tensor:
        result = node.target(z, *rest, **kwargs)  # type: ignore[operator]
        return result if isinstance(result, Tensor) else result[0]

    if name == "pow" and not numbers:  # of exponents in a tensor, which may repeat the numbers
        track = scale(ball, track, torch.ones_like(function(track.value)))
    out = sloped(ball, track, function, name, numbers)
    return out if name != "log_sigmoid_forward" else (out, None)


def sloped(
    ball: Ball, track: Track, function: Callable[[Tensor], Tensor], name: str, numbers: tuple[object, ...]
) -> Track:
    """An elementwise function of known shape: the middle of its slopes, and half their difference as noise."""
    shape = shape_of(name, numbers)
    if shape is None:
        raise NoRule("has no rule for these arguments")
    centre, reach = track.value, ball.reach(track)
    if shape.period:  # the same slopes a whole number of periods away; two periods hold all
        centre, reach = centre.remainder(shape.period), reach.clamp(max=shape.period)
    least, largest = slopes(function, shape, centre, reach, chord=ball.chord, tangent=not ball.radius)
    middle, half = (least + largest) / 2, (largest - least) / 2
    half = half.masked_fill(half <= 1e-12 * middle.abs(), 0)
    out = ball.affine([track], function(track.value), lambda column: column * middle)
    return ball.uncertain(out, [(track, half)])


def matmul(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A matrix product, by constants or of two tracked tensors; ``addmm`` and ``baddbmm`` with what they add."""
    name = name_of(node)
    bias = args[0] if name in ("addmm", "baddbmm") else None
    first, second = args[-2:] if bias is None else args[1:3]
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    only(beta, alpha)
    value = alpha * (at_image(first) @ at_image(second))
    if isinstance(first, Track) and isinstance(second, Track):
        out = _bilinear(ball, first, second, alpha)
    elif isinstance(first, Track):
        out = ball.affine([first], value, lambda column: alpha * (column @ second))
    elif isinstance(second, Track):
        out = ball.affine([second], value, lambda column: alpha * (first @ column))
    else:  # only the bias is tracked
        assert isinstance(bias, Track)
        total = value + beta * bias.value
        return ball.affine([bias], total, lambda column: (beta * column).expand(total.shape))
    if bias is None:
        return out
    total = value + beta * at_image(bias)
    if not isinstance(bias, Track):
        return Track(total, out.columns)
    return ball.affine([out, bias], total, lambda a, b: a + beta * b)


def _bilinear(ball: Ball, first: Track, second: Track, alpha: float | int) -> Track:
    a, b = first.value, second.value
    out = ball.affine([first, second], alpha * (a @ b), lambda da, db: alpha * (da @ b + a @ db))
    moved = ball.reach(first), ball.reach(second)
    tau = moved[0] @ ball.rows(second) + ball.rows(first) @ moved[1]
    return ball.uncertain(out, tau=abs(alpha) * (0.5 if ball.chord else 1.0) * tau, smooth=True)


def convolution(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A convolution by a constant kernel, transposed or not."""
    track, weight, bias, *how = args
    only(weight, bias, how, *kwargs.values())
    how = how[:6]
    value = aten.convolution(track.value, weight, bias, *how)
    return ball.affine([track], value, lambda column: aten.convolution(column, weight, None, *how))


def batch_norm(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A batch norm with stored statistics."""
    if name_of(node) == "_native_batch_norm_legit_no_training":
        args = (*args[:5], False, *args[5:])
    track, weight, bias, mean, var, training, _, eps = args
    only(weight, bias, mean, var)
    if training or mean is None or var is None:
        raise NoRule("is in training mode; call .eval()")
    shape = [1, -1, *[1] * (track.value.dim() - 2)]
    factor = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    value = (track.value - mean.view(shape)) * factor.view(shape)
    value = value if bias is None else value + bias.view(shape)
    return ball.affine([track], value, lambda column: column * factor.view(shape)), None, None


def cast(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A change of floating-point type is no change (:func:`~lipcomp.bound._capture.check_dtype`)."""
    track, is_complex = args[0], node.meta["val"].is_complex()
    if track.value.is_complex() == is_complex:
        return track
    if not is_complex:
        raise NoRule("drops the imaginary part; take .real")
    return ball.affine([track], track.value.to(torch.complex128), lambda column: column)


def copied(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track | Tensor:
    """The second tensor in the shape of the first, whose place it takes."""
    shape, source = args[0].value.shape if isinstance(args[0], Track) else args[0].shape, args[1]
    if not isinstance(source, Track):
        return exact(source.expand(shape))
    source = cast(ball, node, (source,), {})
    return ball.affine([source], source.value.expand(shape), lambda column: column.expand(shape))


def sum_or_mean(ball: Ball, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Track:
    """A sum or an average over axes or over all numbers."""
    function = torch.mean if name_of(node) == "mean" else torch.sum
    kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    if len(args) == 1 or args[1] in (None, []):
        axes = list(range(args[0].value.dim()))
        args = (args[0], axes, *args[2:])
    return linear(function)(ball, node, args, kwargs)
