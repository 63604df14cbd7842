"""Sources of pairs of images, and the lower bounds that a stream of pairs gives.

==============  ==============================================================================
source          the pair
==============  ==============================================================================
views           two augmented views of one image (the positive pairs of training)
corruptions     an image and its corruption
random          an image and itself moved by a radius in a random direction, kept in [0, 1]
neighbours      an image and its nearest neighbours in pixel space
all             every two images of a set: :mod:`lipcomp.bound.all_pairs`
search          an image and what ascent finds in a ball: :mod:`lipcomp.bound._search`
==============  ==============================================================================

A maximum is taken over pairs computed again in float64, as is a chord within reach of rounding; one that float64 loses
too comes from the Jacobian (:mod:`lipcomp.bound._rounding`). Other values are right to 0.1%.

A source is an iterator of batches of pairs; only chords, distances and indices are kept, so a stream may be long.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from lipcomp._arguments import estimator
from lipcomp.bound._lower import (
    QUANTILES,
    UNIT_TOLERANCE,
    bounds_from_chords,
    check_concentration,
    pair_values,
)
from lipcomp.bound._results import LowerBounds
from lipcomp.bound._rounding import RELATIVE, in_float64, proved_chords, unit
from lipcomp.jacobian._checks import check_images, check_map
from lipcomp.jacobian._precision import full_precision
from lipcomp.jacobian._products import Map, as_rows
from lipcomp.jacobian._spectral_norm import draw_seeds, normal

LEADERS = 8  # pairs of each ranking that are computed again in float64


@dataclass(frozen=True)
class PairBlock:
    """Some pairs: the images on both sides, their indices in the set, and mean directions already known."""

    first: Float[Tensor, "pairs ..."] = field(repr=False)
    second: Float[Tensor, "pairs ..."] = field(repr=False)
    indices: Int64[Tensor, "pairs 2"] = field(repr=False)
    first_mu: Float[Tensor, "pairs dim"] | None = field(default=None, repr=False)
    second_mu: Float[Tensor, "pairs dim"] | None = field(default=None, repr=False)


@estimator
def measure_pairs(
    fn: Map,
    blocks: Iterable[PairBlock | tuple[Tensor, Tensor]],
    *,
    concentration: float | None = None,
    quantiles: Sequence[float] = QUANTILES,
    normalised: bool = True,
    domain: tuple[float, float] | None = (0.0, 1.0),
    advance: Callable[[int], object] | None = None,
) -> LowerBounds:
    """The bounds (3.1) to (3.5) of a map to mean directions over a stream of pairs.

    Parameters
    ----------
    fn
        Pixels to unit mean directions, in evaluation mode.
    blocks
        The pairs: batches ``(first, second)`` of the images on both sides, numbered in their order; or
        :class:`PairBlock`, which says their indices.
    concentration
        kappa_e; None for the bound (3.5) only.
    quantiles
        Quantiles to report.
    normalised
        Whether the map gives unit mean directions. If not, only ‖h - h'‖ / Delta is meaningful, under the name
        "direction"; a concentration is refused.
    domain
        Range of valid pixels; None for inputs that are not pixels.
    advance
        Progress callback, called with the number of finished pairs.

    Raises
    ------
    ValueError
        If there is no pair, images leave the domain, or the map is in training mode, random, mixes images, or does
        not return mean directions.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import measure_pairs
    >>> encoder = lambda x: torch.nn.functional.normalize(x.flatten(1) - 0.5, dim=1)
    >>> images = torch.tensor([[0.9, 0.5], [0.5, 0.9]])
    >>> found = measure_pairs(encoder, [(images[:1], images[1:])])["direction"]
    >>> round(found.maximum, 3), found.witness.pair
    (2.5, (0, 0))
    """
    if not normalised and concentration is not None:
        raise ValueError("a concentration belongs to mean directions; leave it out, or normalise the map")
    found_chords, distances, indices = [], [], []
    reasons: dict[str, list[Tensor]] = {"non-finite output": [], "zero-norm embedding": []}
    jacobian, dim, eta, wide, leaders, done = 0, 0, 0.0, None, _Leaders(concentration), 0
    for given in blocks:
        if not isinstance(given, PairBlock) and (isinstance(given, Tensor) or len(given) != 2):
            raise ValueError(
                "blocks must be pairs of batches; for images a and their partners b pass [(a, b)], not (a, b)"
            )
        block = given if isinstance(given, PairBlock) else PairBlock(*given, _numbered(done, len(given[0])))
        check_images(block.first, domain)
        check_images(block.second, domain)
        if block.first.shape != block.second.shape:
            shapes = tuple(block.first.shape), tuple(block.second.shape)
            raise ValueError(f"the two sides of the pairs differ in shape: {shapes[0]} and {shapes[1]}")
        if not dim:
            dim, _, wide = check_map(fn, block.first)
            with full_precision():
                wide, eta = in_float64(fn, block.first, normalised, wide)
        with torch.no_grad(), full_precision():
            mu1, mu2 = (
                as_rows(fn(side.clone()), len(side)) if known is None else known
                for side, known in ((block.first, block.first_mu), (block.second, block.second_mu))
            )
        finite, none = _unusable(mu1, mu2, normalised)
        mu1, mu2 = (unit(mu) if normalised else mu.double() for mu in (mu1, mu2))
        chord = (mu1 - mu2).norm(dim=1)
        distance = (block.second.double() - block.first.double()).flatten(1).norm(dim=1)
        near = ((distance > 0) & (chord < eta / RELATIVE) & finite & ~none).nonzero().squeeze(1)
        if len(near):
            proved, lost = proved_chords(fn, wide, eta, block.first[near], block.second[near], normalised)
            chord[near] = proved.to(chord)
            jacobian += int(lost.sum())
        found_chords.append(chord.masked_fill(~finite | none, torch.nan).cpu())
        distances.append(distance.cpu())
        indices.append(block.indices.cpu())
        leaders.offer(found_chords[-1], distances[-1], dim, block, done)
        done += len(block.first)
        reasons["non-finite output"].append(~finite.cpu())
        reasons["zero-norm embedding"].append(none.cpu())
        if advance is not None:
            advance(len(block.first))
    if not found_chords:
        raise ValueError("there is no pair to measure; give at least two images")
    all_chords = torch.cat(found_chords)
    places = leaders.prove(wide, eta, normalised, all_chords)
    found = bounds_from_chords(
        all_chords,
        torch.cat(distances),
        dim,
        concentration,
        pairs=torch.cat(indices),
        quantiles=quantiles,
        reasons={reason: torch.cat(masks) for reason, masks in reasons.items()},
        jacobian=jacobian,
        candidates=places,
    )
    return found.with_images(leaders.images)


@dataclass
class _Leader:
    """A pair that leads: its place in the stream, and its images."""

    value: float
    place: int
    images: tuple[Tensor, Tensor]


class _Leaders:
    """The best few pairs so far of each bound, to be computed again in float64."""

    def __init__(self, concentration: float | None) -> None:
        self.kappa = None if concentration is None else check_concentration(concentration, 1)
        self.best: dict[str, list[_Leader]] = {}

    def offer(self, chord: Tensor, distance: Tensor, dim: int, block: PairBlock, start: int) -> None:
        """The next pairs of the stream, of which ``start`` have come before."""
        usable = ((distance > 0) & ~chord.isnan()).nonzero().squeeze(1)
        for name, values in pair_values(chord[usable], distance[usable], dim, self.kappa).items():
            if name in ("published", "supremum"):  # ranked as (3.5) is
                continue
            leading = self.best.setdefault(name, [])
            least = leading[-1].value if len(leading) == LEADERS else -math.inf
            top, order = values.topk(min(LEADERS, len(values)))
            for value, i in zip(top.tolist(), usable[order].tolist(), strict=True):
                if value > least:
                    pair = (block.first[i].detach().clone(), block.second[i].detach().clone())
                    leading.append(_Leader(value, start + i, pair))
            leading.sort(key=lambda leader: -leader.value)
            del leading[LEADERS:]

    def _each(self) -> dict[int, _Leader]:
        """Those that may lead when rounding is gone: within twice its reach of the first."""
        return {
            leader.place: leader
            for leading in self.best.values()
            for leader in leading
            if leader.value >= leading[0].value * (1 - 4 * RELATIVE)
        }

    def prove(self, wide: Map | None, eta: float, normalised: bool, chord: Tensor) -> Tensor:
        """Put the leaders' chords by the map in float64 in their places; returns these places."""
        each = self._each()
        places = torch.tensor(list(each), dtype=torch.int64)
        if wide is not None and each:
            first, second = (
                torch.stack([leader.images[side] for leader in each.values()]) for side in (0, 1)
            )
            chord[places] = proved_chords(wide, wide, eta, first, second, normalised)[0]
        return places

    def images(self, name: str, position: int) -> tuple[Tensor, Tensor] | None:
        """The pair's images, if it leads."""
        leader = self._each().get(position)
        return None if leader is None else (leader.images[0].cpu(), leader.images[1].cpu())


def _unusable(mu1: Tensor, mu2: Tensor, normalised: bool) -> tuple[Tensor, Tensor]:
    """Which pairs are finite, and which of them have a side without direction."""
    finite = mu1.isfinite().all(1) & mu2.isfinite().all(1)
    if not normalised:
        return finite, torch.zeros_like(finite)
    norms = torch.stack([mu1.norm(dim=1), mu2.norm(dim=1)], 1)
    none = (norms < UNIT_TOLERANCE).any(1) & finite
    wrong = ((norms - 1).abs() > UNIT_TOLERANCE).any(1) & finite & ~none
    if bool(wrong.any()):
        found = norms[wrong][0].tolist()
        raise ValueError(
            f"fn must return unit mean directions, got norms {found[0]:.4g} and {found[1]:.4g}; divide the embedding "
            f"by its norm (an encoder of lipcomp does), or measure a map that is not normalised by its Jacobian"
        )
    return finite, none


def view_pairs(
    batches: Iterable[Float[Tensor, "batch ..."]],
    views: Callable[[Tensor, Generator], tuple[Tensor, Tensor]],
    generator: Generator,
) -> Iterator[PairBlock]:
    """Two augmented views of every image: any callable of a batch and a generator."""
    start = 0
    for images in batches:
        first, second = views(images, generator)
        yield PairBlock(first, second, _numbered(start, len(images)))
        start += len(images)


@estimator
def random_pairs(
    batches: Iterable[Float[Tensor, "batch ..."]],
    radius: float,
    *,
    generator: Generator | None = None,
    directions: int = 1,
    first_mu: Float[Tensor, "n dim"] | None = None,
) -> Iterator[PairBlock]:
    """Pairs of each image and a copy moved by ``radius`` (L2) in a random direction, then clipped to [0, 1].

    Clipping shortens the step; the remaining distance is used.

    Parameters
    ----------
    batches
        Batches of images, such as those of :func:`lipcomp.data.batches`.
    radius
        Length of the step, pixel L2.
    generator
        Randomness (CPU); by default seeded with 0.
    directions
        Number of steps per image.
    first_mu
        Mean directions of the images, if known; saves a pass.

    Raises
    ------
    ValueError
        If the radius or the number of directions is not positive, or a batch is none; when the first pair is asked for.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import random_pairs
    >>> images = torch.full((4, 1, 8, 8), 0.5)
    >>> pairs = next(random_pairs([images], radius=0.1))
    >>> (pairs.second - pairs.first).flatten(1).norm(dim=1)
    tensor([0.1000, 0.1000, 0.1000, 0.1000])
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    if isinstance(batches, Tensor):
        raise ValueError("batches must be batches of images; for one batch pass [images], not images")  # noqa: TRY004
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = 0
    for images in batches:
        check_images(images, None)
        known = None if first_mu is None else first_mu[start : start + len(images)]
        for _ in range(directions):
            step = normal(tuple(images.shape[1:]), draw_seeds(len(images), generator)).to(images)
            step = step * (radius / step.flatten(1).norm(dim=1)).view(-1, *[1] * (images.dim() - 1))
            yield PairBlock(images, (images + step).clamp(0, 1), _numbered(start, len(images)), known)
        start += len(images)


def _numbered(start: int, n: int) -> Tensor:
    return torch.arange(start, start + n).unsqueeze(1).expand(-1, 2)
