"""Lower <= searched <= certified (theory (5.3)), measured on one ball around every image: an order that cannot break.

lower      (3.5) of the image and itself moved to the ball's surface in a random direction
searched   the largest sigma_max that pair ascent finds in the ball
certified  the least of the local certificate and the product of norms on the same ball (5.4), (5.1)

A map to mean directions has a certificate only where ‖h‖ cannot vanish, so the ball is by default half the largest on
which the product of norms has one for every image. :func:`sandwich_curve` gives the three against the radius.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp.bound._certified import Certificate, certified_bound
from lipcomp.bound._pairs import measure_pairs, random_pairs
from lipcomp.bound._search import search_ball
from lipcomp.jacobian._products import Map


@dataclass(frozen=True)
class Sandwich:
    """The three estimates of every image on its ball of ``radius``, pixel L2; infinite where none is certified."""

    lower: Float[Tensor, " n"] = field(repr=False)
    searched: Float[Tensor, " n"] = field(repr=False)
    certified: Float[Tensor, " n"] = field(repr=False)
    radius: float
    certificate: Certificate = field(repr=False)

    @property
    def worst(self) -> int:
        """The image with the largest searched constant."""
        return int(self.searched.nan_to_num(0).argmax())

    @property
    def in_order(self) -> bool:
        """Whether lower <= searched <= certified for every image, to 0.1%."""
        known = ~(self.lower.isnan() | self.searched.isnan())
        lower, searched, certified = self.lower[known], self.searched[known], self.certified[known]
        return bool((lower <= searched * 1.001).all() and (searched <= certified * 1.001).all())

    @property
    def gap_decades(self) -> float:
        """The median over images of log10(certified / searched)."""
        gap = self.certified.log10() - self.searched.log10()
        known = gap[gap.isfinite()]
        return float(known.median()) if len(known) else math.inf

    def line(self, image: int | None = None) -> str:
        """The order at one image, the worst by default, as a line."""
        i = self.worst if image is None else image
        return sandwich(float(self.lower[i]), float(self.searched[i]), float(self.certified[i]))


def sandwich(lower: float, searched: float, certified: float) -> str:
    """Lower <= searched <= certified as one line, with the gap in decades; it says so if the order is broken."""
    ordered = lower <= searched * 1.001 and searched <= certified * 1.001
    gap = math.log10(certified / searched) if searched > 0 and math.isfinite(certified) else math.inf
    end = f"{certified:.4g}" if math.isfinite(certified) else "no certificate"
    line = f"lower {lower:.4g} <= searched {searched:.4g} <= certified {end}"
    line += f"  (gap {gap:.1f} decades)" if math.isfinite(gap) else ""
    return line if ordered else f"OUT OF ORDER, an estimate is wrong: {line}"


def measure_sandwich(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    radius: float | None = None,
    normalised: bool = True,
    method: str = "least",
    starts: int = 1,
    steps: int = 30,
    batch_size: int | None = None,
    generator: Generator | None = None,
    advance: Callable[[int], object] | None = None,
) -> Sandwich:
    """Bound the constant over a ball from below, by search and from above.

    Parameters
    ----------
    fn, images, batch_size, advance
        As for :func:`~lipcomp.bound.search_ball`.
    radius
        L2 radius; by default half the largest on which the product of norms certifies every image, or 0.5 for a map
        without normalisation and for one without such a certificate.
    normalised
        Whether ``fn`` gives mean directions.
    method
        Of the certificate: "least", "local" or "product", see :func:`~lipcomp.bound.certified_bound`.
    starts, steps
        Of the search.
    generator
        Randomness (CPU); by default seeded with 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if radius is None:
        local = certified_bound(fn, images, method="product")
        finite = local.bound[local.bound.isfinite()]
        radius = 0.5 / float(finite.max()) if len(finite) and not math.isinf(local.radius) else 0.5
    certificate = certified_bound(fn, images, radius, method=method)
    size = batch_size or len(images)
    moved = random_pairs(images.split(size), radius, generator)
    lower = measure_pairs(fn, moved, normalised=normalised)["direction"].values
    assert lower is not None
    found = search_ball(
        fn,
        images,
        radius,
        starts=starts,
        steps=steps,
        batch_size=batch_size,
        generator=generator,
        advance=advance,
    )
    return Sandwich(lower, found.sigma.double().cpu(), certificate.bound, radius, certificate)


def sandwich_curve(
    fn: Map,
    images: Float[Tensor, "n ..."],
    radii: Sequence[float],
    *,
    advance: Callable[[int], object] | None = None,
    **settings: Any,
) -> dict[str, Float[Tensor, "radii n"]]:
    """Lower, searched and certified constant of every image at every radius, ready to draw.

    What is found in a ball holds in every larger one, so lower and searched never fall with the radius.

    Parameters
    ----------
    fn, images, settings
        As for :func:`measure_sandwich`.
    radii
        L2 radii, ascending.
    advance
        Called with the count of images done, at every radius.
    """
    found = [measure_sandwich(fn, images, radius=radius, advance=advance, **settings) for radius in radii]
    curves = {
        name: torch.stack([getattr(one, name).double().cpu() for one in found])
        for name in ("lower", "searched", "certified")
    }
    for name in ("lower", "searched"):
        curves[name] = curves[name].nan_to_num(0).cummax(0).values
    return curves
