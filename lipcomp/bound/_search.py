"""Search for the largest local constant in a ball: a lower bound of the constant over the ball (theory (4.5)).

A chord delta/Delta can never exceed the largest sigma_max on its segment, so ascend, and finish with sigma_max:

pair    two free points of the ball, their midpoint and a short secant of fixed length: ascends sigma_max itself, whose
        own gradient is nearly blind in a ReLU network (it flows only through the normalisation)
chord   the image itself and a free point of the ball: the best *witness pair* that contains the image

Both by projected ascent of log(delta/Delta) with normalised steps, from several starts: the first along the image's own
right singular vector, the others random. Balls are L2 or L-infinity, intersected with [0, 1]; every point that is
reported lies in it. What is returned is a lower bound, since sigma_max at a point of the ball is one; it is that of the
map in float64, if there is one, since an ascent likes to end where numbers tie. No secant is so
short that rounding reaches its chord, unless the ball itself is; the chord that is reported is that of its pair in
float64, or where that cannot be had and rounding reaches it, ‖J v‖ (:mod:`lipcomp.bound._rounding`).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp._arguments import estimator
from lipcomp._norms import PlainNorms
from lipcomp._results import ResultMixin
from lipcomp.bound._rounding import RELATIVE, in_float64, proved_chords
from lipcomp.jacobian import spectral_norm
from lipcomp.jacobian._batching import chosen_batch_size
from lipcomp.jacobian._checks import check_images, check_map
from lipcomp.jacobian._frozen import frozen
from lipcomp.jacobian._precision import power_of_two
from lipcomp.jacobian._products import Map, as_rows
from lipcomp.jacobian._spectral_norm import draw_seeds, normal

SECANT = 0.02  # of the ball's L2 radius: the length of a pair's secant
KINDS = ("pair", "chord")
ROUNDS = 50  # of bisection, in float64
RTOL = 1e-2  # of sigma: what is found is a lower bound, and exact to 1e-6 but for near-equal values


@dataclass(frozen=True)
class SearchResult(ResultMixin):
    """The result of a search in the ball around each image.

    Attributes
    ----------
    sigma
        The largest sigma_max found: a lower bound of the Lipschitz constant over the ball.
    sigma_at_image
        sigma_max at the image itself, for comparison.
    point
        Where ``sigma`` was found.
    chord_ratio
        The largest delta/Delta found: (3.5) of the pair ``first``, ``second``, computed in float64.
    first, second
        That pair.
    radius, norm, kind, starts, steps
        How it was searched.
    excluded
        How many images were left out, by reason; they have NaN.
    """

    picture: ClassVar[str] = "local_constants"
    constants: ClassVar[dict[str, str]] = {"sigma_at_image": "at the image", "sigma": "searched"}

    sigma: Float[Tensor, " n"]
    sigma_at_image: Float[Tensor, " n"]
    point: Float[Tensor, "n ..."]
    chord_ratio: Float[Tensor, " n"]
    first: Float[Tensor, "n ..."]
    second: Float[Tensor, "n ..."]
    radius: float
    norm: str
    kind: str
    starts: int
    steps: int
    excluded: dict[str, int]


@estimator
def search_ball(
    fn: Map,
    images: Float[Tensor, "n ..."],
    radius: float,
    *,
    norm: str = "l2",
    kind: str = "pair",
    starts: int = 3,
    steps: int = 30,
    batch_size: int | None = None,
    generator: Generator | None = None,
    advance: Callable[[int], object] | None = None,
) -> SearchResult:
    """Search the ball around every image for the largest local constant.

    Parameters
    ----------
    fn
        A map of images to mean directions (or any vectors), in evaluation mode.
    images
        Pixels in [0, 1].
    radius
        Radius of the ball: pixel L2, or the largest change of a pixel.
    norm
        Norm of the ball, "l2" or "linf". Ratios are per pixel L2 in both cases.
    kind
        "pair" or "chord", see above.
    starts, steps
        Ascents per image, and steps per ascent; a step costs about two forward and two backward passes.
    batch_size
        Images per batch; by default as many as fit in memory.
    generator
        Randomness of the starts (CPU); by default seeded with 0.
    advance
        Progress callback, called with the number of finished images.

    Raises
    ------
    ValueError
        If an argument is out of range, or the images or the map are not valid (see
        :func:`~lipcomp.jacobian.spectral_norm`).

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import search_ball
    >>> fn = lambda x: torch.nn.functional.normalize(x - 0.5 + 1e-3, dim=1)
    >>> found = search_ball(fn, torch.full((1, 3), 0.9), radius=0.3)
    >>> bool(found.sigma > found.sigma_at_image)
    True
    """
    if kind not in KINDS or norm not in ("l2", "linf"):
        raise ValueError(f'need kind "pair" or "chord" and norm "l2" or "linf", got {kind!r}, {norm!r}')
    if not 0 < radius < math.inf or starts < 1 or steps < 1:
        raise ValueError(
            f"radius, starts and steps must be positive and finite, got radius={radius}, starts={starts}, steps={steps}"
        )
    check_images(images)
    halves = check_map(fn, images).wide
    seeds = draw_seeds(len(images), generator)
    size = chosen_batch_size(batch_size, fn, images)
    widest = 1.0 if norm == "linf" else math.sqrt(images[0].numel())  # no wider ball holds more of [0, 1]
    wide, eta = in_float64(fn, images, False, halves)
    search = _Search(fn, wide, eta, min(radius, widest), norm, kind, starts, steps)
    parts = []
    for index in torch.arange(len(images)).split(size):
        parts.append(search.run(images[index], [seeds[i] for i in index.tolist()]))
        if advance is not None:
            advance(len(index))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    excluded = dict(search.excluded)
    return SearchResult(
        **columns, radius=radius, norm=norm, kind=kind, starts=starts, steps=steps, excluded=excluded
    )


@dataclass
class _Search:
    """How every batch is searched; ``wide`` is the map in float64, ``eta`` what rounding does to a chord."""

    fn: Map
    wide: Map | None
    eta: float
    radius: float
    norm: str
    kind: str
    starts: int
    steps: int
    excluded: Counter[str] = field(default_factory=Counter)

    def run(self, images: Tensor, seeds: list[int]) -> dict[str, Tensor]:
        """The columns of a result for one batch."""
        fn, radius, norm = self.fn, self.radius, self.norm
        here = spectral_norm(fn, images, rtol=RTOL, share=False, generator=seeds)
        self.excluded.update(here.excluded)
        assert here.right is not None
        shape = (-1, *[1] * (images.dim() - 1))
        pixels = images[0].numel()
        reach = radius if norm == "l2" else radius * pixels**0.5  # L2 radius of the ball
        needed = self.eta / RELATIVE / here.sigma.nan_to_num(0).clamp(min=1e-30)
        half = needed.clamp(min=SECANT * reach, max=2 * reach).view(shape) / 2
        places = here.right.flatten(1).nan_to_num(0).abs().argmax(1, keepdim=True)
        # it has none of its own
        sign = here.right.flatten(1).gather(1, places).nan_to_num(1).sign().view(shape)
        best = {
            "sigma": here.sigma.clone(),
            "sigma_at_image": here.sigma,
            "point": images.clone(),
            "chord_ratio": torch.zeros_like(here.sigma),
            "first": images.clone(),
            "second": images.clone(),
        }
        random = normal((2 * self.starts, *images.shape[1:]), seeds).to(images)
        for start in range(self.starts):
            direction, drift = random[:, 2 * start], random[:, 2 * start + 1]
            if start == 0:
                direction = sign * here.right.nan_to_num(0) + 1e-6 * direction
            direction = _normalised(direction, "l2")
            if self.kind == "pair":
                drift = _normalised(drift, "l2") * reach / 2 if start else torch.zeros_like(images)
                centre = project(images + drift, images, radius, norm)
                pair = _ascend_pair(fn, images, centre, direction, radius, norm, half, self.steps)
            else:
                far = project(images + 0.5 * reach * direction, images, radius, norm)
                pair = _ascend_chord(fn, images, far, radius, norm, self.steps)
            first, second = pair
            ratio = self._ratio(first, second).to(images)
            better = ratio > best["chord_ratio"]
            for name, value in (("chord_ratio", ratio), ("first", first), ("second", second)):
                best[name][better] = value[better]
            middle = project((first + second) / 2, images, radius, norm)  # halves are rounded too
            for point in [middle] if self.kind == "pair" else [middle, second]:
                found = spectral_norm(fn, point, rtol=RTOL, share=False, vectors=False, generator=seeds)
                sigma = found.sigma
                better = sigma > best["sigma"]
                best["sigma"][better], best["point"][better] = sigma[better], point[better]
        self._prove(best, images, seeds)
        return best

    def _prove(self, best: dict[str, Tensor], images: Tensor, seeds: list[int]) -> None:
        """Sigma at every point in float64, whose side of a tie may be another: an ascent ends at ties."""
        moved = (best["sigma"] > best["sigma_at_image"]).nonzero().squeeze(1)
        if self.wide is None or images.dtype == torch.float64 or not len(moved):
            return
        points, few = best["point"][moved].double(), [seeds[i] for i in moved.tolist()]
        sigma = spectral_norm(self.wide, points, rtol=RTOL, share=False, vectors=False, generator=few).sigma
        best["sigma"][moved] = sigma.to(images)
        lost = ~(best["sigma"] >= best["sigma_at_image"])
        best["sigma"][lost], best["point"][lost] = best["sigma_at_image"][lost], images[lost]

    def _ratio(self, first: Tensor, second: Tensor) -> Tensor:
        """What every pair proves, from its chord or, where rounding reaches that, ‖J v‖; 0 for a pair at distance 0."""
        chord, _ = proved_chords(self.fn, self.wide, self.eta, first, second, normalised=False)
        distance = (second.double() - first.double()).flatten(1).norm(dim=1).cpu()
        return torch.where(distance > 0, chord / distance, 0.0).nan_to_num(0, 0, 0)


def _ascend_pair(
    fn: Map,
    images: Tensor,
    centre: Tensor,
    direction: Tensor,
    radius: float,
    norm: str,
    half: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Ascend midpoint and direction of a secant of half its length on either side."""
    shape = (-1, *[1] * (images.dim() - 1))
    best = images.new_zeros(len(images))
    first, second = images.clone(), images.clone()
    for step in range(steps):
        one = project(centre - half * direction, images, radius, norm)
        two = project(centre + half * direction, images, radius, norm)
        ratio, gradient_one, gradient_two = _log_ratio(fn, one, two)
        better = ratio > best
        best = torch.where(better, ratio, best)
        first[better], second[better] = one[better], two[better]
        centre_gradient = gradient_one + gradient_two
        direction_gradient = gradient_two - gradient_one
        onto = (direction_gradient * direction).flatten(1).sum(1).view(shape)
        turn = _normalised(direction_gradient - onto * direction, "l2")
        size = 0.5 * (1 - step / steps)
        centre = project(centre + size * radius * _normalised(centre_gradient, norm), images, radius, norm)
        direction = _normalised(direction + size * turn, "l2")
    return first, second


def _ascend_chord(
    fn: Map, images: Tensor, far: Tensor, radius: float, norm: str, steps: int
) -> tuple[Tensor, Tensor]:
    """Ascend the free end of a chord that starts at the image."""
    best = images.new_zeros(len(images))
    second = images.clone()
    for step in range(steps):
        ratio, _, gradient = _log_ratio(fn, images, far)
        better = ratio > best
        best = torch.where(better, ratio, best)
        second[better] = far[better]
        size = 0.5 * (1 - step / steps)
        far = project(far + size * radius * _normalised(gradient, norm), images, radius, norm)
    return images.clone(), second


def _log_ratio(fn: Map, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """delta/Delta of every pair, and the gradient of its logarithm in both points."""
    both = torch.cat([one, two]).detach().requires_grad_()
    with torch.enable_grad(), frozen():
        mu = as_rows(fn(both * 1), len(both))  # a copy: fn may write into what it gets
        a, b = mu.chunk(2)
        x, y = both.flatten(1).chunk(2)
        delta, delta_usable = _log_norm(b - a)
        distance, distance_usable = _log_norm(y - x)
        usable, log = delta_usable & distance_usable, delta - distance
        with PlainNorms():
            (gradient,) = torch.autograd.grad(
                log[usable].sum(), both, allow_unused=True, materialize_grads=True
            )
    ratio = torch.where(usable, log.exp(), 0).detach()
    first, second = gradient.nan_to_num(0).chunk(2)
    return ratio, first, second


def _log_norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Log of every norm, whatever its size; and whether it has one."""
    largest = vectors.detach().abs().amax(1, keepdim=True)
    usable = ((largest > 0) & largest.isfinite()).squeeze(1)
    scale = power_of_two(largest)  # no square under- or overflows
    squared = (vectors / scale).square().sum(1)
    return 0.5 * squared.where(usable, torch.ones_like(squared)).log() + scale.squeeze(1).log(), usable


def _normalised(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of unit size in a norm."""
    if norm == "linf":
        return gradient.sign()
    length = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
    return gradient / length.clamp(min=torch.finfo(gradient.dtype).tiny)


def project(
    points: Float[Tensor, "n ..."], centres: Float[Tensor, "n ..."], radius: float, norm: str
) -> Float[Tensor, "n ..."]:
    """The nearest points of {x in [0, 1]: ‖x - centre‖ <= radius}, for centres in [0, 1].

    For L-infinity a clamp. For L2 the nearest point is clamp(centre + s (point - centre)) for some s in [0, 1]: the
    step scaled and clamped, s found by bisection.
    """
    if norm == "linf":
        low, high = centres - radius, centres + radius
        low = torch.where(centres.double() - low.double() > radius, low.nextafter(centres), low)
        high = torch.where(high.double() - centres.double() > radius, high.nextafter(centres), high)
        return torch.minimum(torch.maximum(points, low), high).clamp(0, 1)
    shape = (-1, *[1] * (points.dim() - 1))
    step = points - centres
    clamped = points.clamp(0, 1)
    outside = (clamped - centres).flatten(1).norm(dim=1) > radius
    if not bool(outside.any()):
        return clamped
    low, high = torch.zeros(len(points), device=points.device), torch.ones(len(points), device=points.device)
    low, high = low.to(points), high.to(points)
    for _ in range(ROUNDS if points.dtype == torch.float64 else 24):
        middle = (low + high) / 2
        length = ((centres + middle.view(shape) * step).clamp(0, 1) - centres).flatten(1).norm(dim=1)
        low = torch.where(length <= radius, middle, low)
        high = torch.where(length <= radius, high, middle)
    inside = (centres + low.view(shape) * step).clamp(0, 1)
    return torch.where(outside.view(shape), inside, clamped)
