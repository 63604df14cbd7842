"""Certified upper bounds of the Lipschitz constant on balls; no certificate where an operation is not known.

local      the Jacobian at the image, and what the units that are uncertain in the ball may add (theory (5.4), (5.5));
           as the radius goes to zero it is sigma_max. See :mod:`lipcomp.bound._local`, `_noise` and `_ellipsoids`
product    the product of the operations' norms, over all images or, with a normalisation, on the ball: (5.1), (5.2)
least      the smaller of the two, per image

The map is followed below Python (:mod:`lipcomp.bound._capture`): an operation without a rule ends in "no certificate",
with its name, never in a silent 1. `python -m benchmarks.certificates` measures how tight it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, fx

from lipcomp._arguments import estimator
from lipcomp._results import ResultMixin
from lipcomp.bound._capture import NoRule, capture
from lipcomp.bound._local import Ball, Track, direction_bound, interpret
from lipcomp.bound._product import Product
from lipcomp.bound._rules import PASSIVE, RULES
from lipcomp.jacobian._checks import check_images, check_map, check_pixels
from lipcomp.jacobian._precision import full_precision
from lipcomp.jacobian._products import Map

METHODS = ("least", "local", "product")
UNITS = 9000  # five to eight minutes per image on one core for a small CNN, in 4 GiB


@dataclass(frozen=True)
class Certificate(ResultMixin):
    """An upper bound of the Lipschitz constant over the ball around every image; infinite where there is none.

    Attributes
    ----------
    bound
        For every image, per pixel L2.
    radius
        L2 radius of the ball it holds on; infinite for one that holds everywhere.
    reason
        Why there is no certificate (for all, or for the infinite ones), empty if there is.
    layers
        Every layer of the product that had a factor, with it: for finding what makes the product large.
    methods
        For every image which method gave the bound: "local", "product", or "" for none.
    """

    picture: ClassVar[str] = "local_constants"
    constants: ClassVar[dict[str, str]] = {"bound": "certified"}

    bound: Float[Tensor, " n"]
    radius: float
    reason: str = ""
    layers: list[tuple[str, float]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@estimator
def certified_bound(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    radius: float = 0.0,
    method: str = "least",
    memory: float = 4.0,
    units: int = UNITS,
    advance: Callable[[int], object] | None = None,
) -> Certificate:
    """Certify an upper bound of the Lipschitz constant of ``fn`` around every image.

    Parameters
    ----------
    fn
        A map of images to vectors, in evaluation mode.
    images
        Pixels in [0, 1]; computed on their device, in float64. The bound of a normalised map depends on ‖h(x)‖ at each.
    radius
        L2 radius of the ball on which the bound holds; 0 bounds the local constant at the image.
    method
        "least", "local" or "product", see above.
    memory
        Memory in GiB that the local certificate may use; images that need more have none.
    units
        Largest number of uncertain units in the ball; the time of the local certificate grows with its cube.
    advance
        Progress callback, called with the number of finished images.

    Raises
    ------
    ValueError
        If the radius is negative, the method unknown, or images or map are not valid.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import certified_bound
    >>> matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
    >>> certified_bound(lambda x: x @ matrix, torch.full((2, 3), 0.5), radius=0.1).bound
    tensor([5.0000, 5.0000], dtype=torch.float64)
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and not negative, got {radius}")
    check_limits(memory, units)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_images(images, None)
    check_pixels(fn, images)
    check_map(fn, images)
    n = len(images)
    try:
        graph = capture(fn, images)
    except NoRule as missing:
        return Certificate(_infinite(n), radius, f"no certificate: {missing}", methods=[""] * n)
    product = Product(graph, radius)
    bounds, methods, reasons, everywhere = _infinite(n), [""] * n, [], True
    for i in range(n):
        for name in ("product", "local") if method == "least" else (method,):
            try:
                with torch.no_grad(), full_precision():
                    if name == "product":
                        value, global_ = product.bound(images[i : i + 1]), product.everywhere
                    else:
                        value, global_ = local_bound(graph, images[i : i + 1], radius, memory * 2**30, units)
            except NoRule as missing:
                reasons.append(f"{name}: {missing}")
                continue
            if math.isnan(value):
                reasons.append(f"{name}: the numbers are not finite")
            elif math.isinf(value):
                reasons.append(f"{name}: |h| may vanish in the ball of radius {radius:g} (5.1)")
            elif value < bounds[i]:
                bounds[i], methods[i] = value, name
                everywhere = global_ if i == 0 else everywhere and global_
        if advance is not None:
            advance(1)
    return Certificate(
        bounds,
        math.inf if everywhere and all(methods) else radius,
        _why(bounds, reasons),
        product.layers,
        methods,
    )


def _infinite(n: int) -> Tensor:
    return torch.full((n,), math.inf, dtype=torch.float64)


def _why(bounds: Tensor, reasons: list[str]) -> str:
    count = int(bounds.isinf().sum())
    if not count:
        return ""
    few = "" if count == len(bounds) else f" for {count} of {len(bounds)} images"
    return f"no certificate{few}: {'; '.join(dict.fromkeys(reasons))}"


def chord_pass(
    graph: fx.GraphModule, image: Float[Tensor, "1 ..."], radius: float, memory: float, units: int
) -> tuple[Track, Ball]:
    """How far all numbers move in the ball: the first pass."""
    ball = Ball(radius, image.numel(), memory, units, chord=True)
    return interpret(graph, image, ball, RULES, PASSIVE), ball


def check_limits(memory: float, units: int) -> None:
    """Refuse limits under which nothing local could ever be certified."""
    if not (memory > 0 and units >= 1):
        raise ValueError(f"memory must be positive and units at least 1, got {memory} and {units}")


def local_bound(
    graph: fx.GraphModule, image: Float[Tensor, "1 ..."], radius: float, memory: float, units: int
) -> tuple[float, bool]:
    """The local certificate of one image, and whether it holds everywhere (nothing was uncertain or could be)."""
    _, far = chord_pass(graph, image, radius, memory, units)
    ball = Ball(radius, image.numel(), memory, units, chord=False, reaches=far.reaches)
    del far
    track = interpret(graph, image, ball, RULES, PASSIVE)
    if track.direction_of is not None:
        return direction_bound(track.direction_of, ball), False
    return ball.norm(track.flat.mT), ball.asked == 0
