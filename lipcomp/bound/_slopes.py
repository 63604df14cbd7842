"""Between which slopes an elementwise function stays on an interval (theory (5.6)).

The derivative of each function is monotone between its kinks and the points where its second derivative vanishes, so
its values there and at both ends are all that is needed. On an interval where the function is convex or concave, the
slopes of chords from the centre are extreme at the ends, which is about half the width.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.bound._capture import NoRule

THRESHOLD = 20.0  # of softplus, which jumps there; below rounding at PyTorch's default and beyond
FAR = 1e30  # beyond all kinks, and where softplus of any temperature has its last slope
STEP = 1e-9  # beyond both ends
BESIDE = 1e-14  # a kink, on both sides: past its rounding, and where the slope is still that at the kink


@dataclass(frozen=True)
class Shape:
    """Where a function's derivative jumps or turns, and where it is defined.

    ``turns`` are the points across which the function is neither convex nor concave; None for as many as it has kinks
    beyond one.
    """

    kinks: tuple[float, ...] = ()
    turns: tuple[float, ...] = ()
    above: float = -math.inf
    unbounded: bool = False  # whether the slope has no bound over the whole line
    period: float = 0.0  # if it has one; kinks and turns are then those from -1 to 2 periods


def shape_of(name: str, args: tuple[object, ...]) -> Shape | None:
    """The shape of an elementwise operation with these further arguments, None for an unknown one."""
    numbers = [float(a) for a in args if isinstance(a, int | float)]
    if name in ("relu", "leaky_relu", "abs", "_prelu_kernel", "prelu"):
        return Shape(kinks=(0.0,))
    if name in ("hardtanh", "clamp", "clamp_min", "clamp_max", "relu6"):
        limits = numbers if numbers or name != "hardtanh" else [-1.0, 1.0]
        return Shape(kinks=tuple(limits))
    if name in ("elu", "celu", "selu"):
        return Shape(kinks=(0.0,), turns=(0.0,))
    if name in ("hardswish", "hardsigmoid"):
        return Shape(kinks=(-3.0, 3.0), turns=(-3.0, 3.0))
    if name in ("sigmoid", "tanh", "erf", "erfc", "atan", "asinh"):
        return Shape(turns=(0.0,))
    if name == "sinh":
        return Shape(turns=(0.0,), unbounded=True)
    if name == "logit":  # with limits, where torch takes the slope inside
        return Shape(turns=(numbers[0], 0.5, 1 - numbers[0])) if 0 < numbers[0] < 0.5 else None
    if name == "softshrink":
        size = numbers[0] if numbers else 0.5
        return Shape(kinks=(-size, size), turns=(-size, size))
    if name == "threshold":
        return Shape(kinks=(numbers[0],)) if numbers[0] == numbers[1] else None  # else it jumps
    if name in ("sin", "cos"):
        first = 0.0 if name == "sin" else 0.5
        return Shape(turns=tuple((first + k) * math.pi for k in range(-3, 6)), period=2 * math.pi)
    if name in ("gelu", "silu", "mish"):
        return Shape(turns=_inflections(name, "tanh" in args))
    if name in ("softplus", "log_sigmoid_forward"):
        return None if len(numbers) > 1 and numbers[1] < THRESHOLD else Shape()
    if name in ("exp", "exp2", "expm1", "cosh"):
        return Shape(unbounded=True)
    if name in ("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal"):
        return Shape(above=0.0, unbounded=True)
    if name in ("log1p", "acosh"):
        return Shape(above=-1.0 if name == "log1p" else 1.0, unbounded=True)
    if name == "pow" and len(numbers) < 2:
        whole = bool(numbers) and numbers[0] >= 1 and numbers[0] == round(numbers[0])
        return Shape(turns=(0.0,), unbounded=True) if whole else Shape(above=0.0, unbounded=True)
    return None


@functools.cache
def _inflections(name: str, approximate: bool) -> tuple[float, ...]:
    """Where the second derivative changes sign, by bisection."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh" if approximate else "none"),
        "silu": torch.nn.functional.silu,
        "mish": torch.nn.functional.mish,
    }
    with torch.enable_grad():
        grid = torch.linspace(-30, 30, 6001, dtype=torch.float64).requires_grad_()
        slope, grid = _slope(functions[name], grid).detach(), grid.detach()
    falling = slope.diff().sign()
    places = (falling[1:] * falling[:-1] < 0).nonzero().squeeze(1)
    return tuple(_peak(functions[name], float(grid[i]), float(grid[i + 2])) for i in places.tolist())


def _peak(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    sign = 1.0
    for _ in range(60):  # bisection of the slope's own slope, by central differences of an exact derivative
        middle = (low + high) / 2
        ends = torch.tensor([low, middle - 1e-5, middle + 1e-5], dtype=torch.float64)
        values = _slope(function, ends)
        sign = float((_slope(function, torch.tensor([low, low + 1e-5], dtype=torch.float64)).diff()).sign())
        low, high = (middle, high) if float(values[2] - values[1]) * sign > 0 else (low, middle)
    return (low + high) / 2


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(point).sum(), point)
    return slope


def slopes(
    function: Callable[[Tensor], Tensor],
    shape: Shape,
    centre: Float[Tensor, "..."],
    reach: Float[Tensor, "..."],
    *,
    chord: bool,
    tangent: bool = False,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Least and largest slope over [centre - reach, centre + reach]: of tangents, or of chords from the centre.

    Where reach is rounding alone (``tangent``), both are the slope at the centre unless a kink lies there.
    """
    margin = STEP * (1 + centre.abs())
    low, high = centre - reach - margin, centre + reach + margin
    if bool((low <= shape.above).any()):
        raise NoRule(f"an operation may leave its domain (numbers above {shape.above:g}) in the ball")
    ends = [_slope(function, low), _slope(function, high)]
    least, largest = torch.minimum(*ends), torch.maximum(*ends)
    crossed = torch.zeros_like(centre)
    for point in sorted({*shape.kinks, *shape.turns}):
        inside = (low <= point) & (point <= high)
        crossed += inside * (1.0 if point in shape.kinks and point not in shape.turns else 2.0)
        steps = (-BESIDE, 0.0, BESIDE) if point in shape.kinks else (0.0,)
        for step in steps:
            there = _slope(function, torch.full_like(centre, point + step * (1 + abs(point))))
            least = torch.where(inside, torch.minimum(least, there), least)
            largest = torch.where(inside, torch.maximum(largest, there), largest)
    if chord:
        middle = function(centre)
        length = reach + margin
        down, up = (middle - function(low)) / length, (function(high) - middle) / length
        noise = 1e-14 * (middle.abs() + length) / length  # rounding of the two differences
        between = (torch.minimum(down, up) - noise, torch.maximum(down, up) + noise)
        bent = crossed < 1.5
        least = torch.where(bent, torch.maximum(least, between[0]), least)
        largest = torch.where(bent, torch.minimum(largest, between[1]), largest)
    if tangent:
        beside = [(low <= kink) & (kink <= high) for kink in shape.kinks]
        smooth = ~torch.stack(beside).any(0) if beside else torch.ones_like(centre, dtype=torch.bool)
        at = _slope(function, centre)
        least, largest = (at.where(smooth, end) for end in (least, largest))
    if not bool((least.isfinite() & largest.isfinite()).all()):
        raise NoRule("an operation has no finite slope in the ball")
    return least, torch.maximum(least, largest)


def largest_slope(function: Callable[[Tensor], Tensor], shape: Shape, like: Tensor) -> float:
    """The largest |slope| over the whole line."""
    if shape.unbounded:
        raise NoRule("has no bounded slope over all numbers: it has a bound on a ball only")
    far = torch.full_like(like, max([FAR, *(10 * abs(k) for k in shape.kinks if math.isfinite(k))]))
    least, largest = slopes(function, shape, torch.zeros_like(like), far, chord=False)
    return float(torch.maximum(least.abs(), largest.abs()).max())
