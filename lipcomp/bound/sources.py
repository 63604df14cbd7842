"""Every source of pairs by its name, on one map and one set of images: what the command measures.

:data:`MEASURES` maps a name to a function of a :class:`Subject`, the source's own settings, and a progress callback.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from lipcomp.bound.all_pairs import all_pairs
from lipcomp.bound.lower import bounds_from_chords
from lipcomp.bound.neighbours import nearest_neighbours
from lipcomp.bound.pairs import indexed_pairs, measure_pairs, paired, random_pairs, view_pairs
from lipcomp.bound.results import LowerBounds
from lipcomp.bound.sandwich import measure_sandwich
from lipcomp.bound.search import SearchResult, search_ball
from lipcomp.jacobian.batching import LARGEST, fitting_batch_size, forward_batch_size
from lipcomp.jacobian.checks import check_map
from lipcomp.jacobian.products import Map

Advance = Callable[[int], object]


@dataclass
class Subject:
    """A map, the images it is measured on, and what makes pairs of them; clean embeddings are computed once.

    Parameters
    ----------
    fn
        Pixels to mean directions, or to embeddings.
    load
        Images by their place, 0 to ``n`` - 1, on the map's device.
    n
        How many there are.
    concentration
        kappa_e, or None: then (3.5) only.
    normalised
        Whether ``fn`` gives mean directions.
    views
        Two augmented views of a batch.
    corrupted
        Images by their place, corrupted as the settings say.
    seed
        Of every draw.
    batch_size
        Images at a time; by default what fits.
    """

    fn: Map
    load: Callable[[Int64[Tensor, " places"]], Tensor]
    n: int
    concentration: float | None
    normalised: bool
    views: Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
    corrupted: Callable[[Tensor, dict[str, Any]], Tensor]
    seed: int = 0
    batch_size: int | None = None

    @cached_property
    def size(self) -> int:
        """Images at a time, for passes without derivatives."""
        return self.batch_size or forward_batch_size(self.fn, self.load(torch.arange(1)))

    def places(self) -> Iterator[Tensor]:
        """The places of every batch, in order."""
        yield from torch.arange(self.n).split(self.size)

    def batches(self) -> Iterator[Tensor]:
        """All images, in order."""
        yield from (self.load(places) for places in self.places())

    @cached_property
    def embeddings(self) -> Float[Tensor, "n dim"]:
        """Outputs at all clean images."""
        check_map(self.fn, self.load(torch.arange(min(3, self.n))))
        with torch.no_grad():
            return torch.cat([self.fn(batch).flatten(1) for batch in self.batches()])

    def generator(self) -> Generator:
        """The randomness of one source."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Measured:
    """What a source gave: the bounds of its pairs, numbers beside them (name, value, unit), a line on an image."""

    bounds: LowerBounds | None
    numbers: list[tuple[str, float | None, str]] = field(default_factory=list)
    place: int | None = None
    line: str = ""


def _stream(blocks: Callable[[Subject, dict[str, Any]], Iterator[Any]]) -> "Measure":
    """A source that is a stream of pairs."""

    def measure(subject: Subject, how: dict[str, Any], advance: Advance) -> Measured:
        return Measured(
            measure_pairs(
                subject.fn,
                blocks(subject, how),
                subject.concentration,
                normalised=subject.normalised,
                advance=advance,
            )
        )

    return measure


def _views(subject: Subject, how: dict[str, Any]) -> Iterator[Any]:
    return view_pairs(subject.batches(), subject.views, subject.generator())


def _corruptions(subject: Subject, how: dict[str, Any]) -> Iterator[Any]:
    made = (subject.corrupted(places, how) for places in subject.places())
    return paired(subject.batches(), made, subject.embeddings)


def _random(subject: Subject, how: dict[str, Any]) -> Iterator[Any]:
    return random_pairs(subject.batches(), how["radius"], subject.generator(), first_mu=subject.embeddings)


def _neighbours(subject: Subject, how: dict[str, Any]) -> Iterator[Any]:
    near = nearest_neighbours(subject.load, subject.n, how["neighbours"])
    pairs = torch.stack([torch.arange(subject.n).repeat_interleave(near.shape[1]), near.flatten()], 1)
    return indexed_pairs(subject.load, pairs, subject.size, subject.embeddings)


def _all(subject: Subject, how: dict[str, Any], advance: Advance) -> Measured:
    return Measured(
        all_pairs(
            subject.embeddings,
            subject.load,
            subject.concentration,
            fn=subject.fn,
            normalised=subject.normalised,
            advance=advance,
        )
    )


def _search(subject: Subject, how: dict[str, Any], advance: Advance) -> Measured:
    """Batch by batch: kept are numbers, and the images of the best pair."""
    few = subject.load(torch.arange(min(LARGEST, subject.n)))
    size = subject.batch_size or fitting_batch_size(subject.fn, few)
    generator = subject.generator()
    chords, distances, sigmas, at_images = [], [], [], []
    best: tuple[float, tuple[Tensor, Tensor] | None] = (-math.inf, None)
    for places in torch.arange(subject.n).split(size):
        found = search_ball(
            subject.fn,
            subject.load(places),
            how["radius"],
            norm=how["norm"],
            kind=how["search"],
            starts=how["starts"],
            steps=how["steps"],
            batch_size=size,
            generator=generator,
            advance=advance,
        )
        chord, distance = _chords(found)
        chords.append(chord)
        distances.append(distance)
        sigmas.append(found.sigma.cpu().double())
        at_images.append(found.sigma_at_image.cpu().double())
        ratio = (chord / distance).nan_to_num(-math.inf)
        i = int(ratio.argmax())
        if float(ratio[i]) > best[0]:
            best = (float(ratio[i]), (found.first[i].cpu(), found.second[i].cpu()))
    dim = subject.embeddings.shape[1]
    bounds = bounds_from_chords(torch.cat(chords), torch.cat(distances), dim, subject.concentration)
    ranked = {"published", "supremum", "direction"}  # by the ratio, as ``best`` is
    bounds = bounds.with_images(lambda name, _: best[1] if name in ranked else None)
    numbers: list[tuple[str, float | None, str]] = []
    for name, sigma in (("sigma_in_ball", torch.cat(sigmas)), ("sigma_at_image", torch.cat(at_images))):
        known = sigma[~sigma.isnan()]
        for what, value in (("max", known.max), ("mean", known.mean)):
            numbers.append((f"bound.{name}.{what}", float(value()) if len(known) else None, "1/pixel L2"))
    return Measured(bounds, numbers)


def _chords(found: SearchResult) -> tuple[Tensor, Tensor]:
    distance = (found.second.double() - found.first.double()).flatten(1).norm(dim=1)
    chord = (found.chord_ratio.double() * distance).masked_fill(found.sigma_at_image.isnan(), torch.nan)
    return chord.cpu(), distance.cpu()


def _certified(subject: Subject, how: dict[str, Any], advance: Advance) -> Measured:
    """The sandwich (5.3) on balls that the certificate allows."""
    found = measure_sandwich(
        subject.fn,
        subject.load(torch.arange(subject.n)),
        normalised=subject.normalised,
        steps=how["steps"],
        batch_size=subject.batch_size,
        generator=subject.generator(),
        advance=advance,
    )
    i, gap = found.worst, found.gap_decades
    certified = float(found.certified[i])
    numbers = [
        ("bound.sandwich.lower", float(found.lower[i]), "1/pixel L2"),
        ("bound.sandwich.searched", float(found.searched[i]), "1/pixel L2"),
        ("bound.sandwich.certified", certified if math.isfinite(certified) else None, "1/pixel L2"),
        ("bound.sandwich.radius", found.radius, "pixel L2"),
        ("bound.sandwich.gap_decades", gap if math.isfinite(gap) else None, "decades"),
    ]
    line = f"radius {found.radius:.3g}: {found.line()} {found.certificate.reason}".rstrip()
    return Measured(None, numbers, i, line)


Measure = Callable[[Subject, dict[str, Any], Advance], Measured]
MEASURES: dict[str, Measure] = {
    "views": _stream(_views),
    "corruptions": _stream(_corruptions),
    "random": _stream(_random),
    "neighbours": _stream(_neighbours),
    "all": _all,
    "search": _search,
    "certified": _certified,
}
