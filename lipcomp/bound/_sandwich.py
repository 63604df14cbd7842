"""Lower <= searched <= certified (theory (5.3)), measured on one ball around every image: an order that cannot break.

lower      (3.5) of the image and itself moved to the ball's surface in a random direction
local      sigma_max of the Jacobian at the image itself
searched   the largest sigma_max that pair ascent finds in the ball
certified  the least of the local certificate and the product of norms on the same ball (5.4), (5.1)

A map to mean directions has a certificate only where ‖h‖ cannot vanish, so the ball is by default half the largest on
which the product of norms has one for every image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp._arguments import estimator
from lipcomp._results import ResultMixin
from lipcomp.bound._certified import Certificate, certified_bound
from lipcomp.bound._pairs import measure_pairs, random_pairs
from lipcomp.bound._search import search_ball
from lipcomp.jacobian._checks import check_images, check_map
from lipcomp.jacobian._products import Map


@dataclass(frozen=True)
class Sandwich(ResultMixin):
    """The estimates of every image on its ball of ``radius``, pixel L2; infinite where none is certified.

    Attributes
    ----------
    lower, local, searched, certified
        Of every image, see above.
    radius
        L2 radius of the balls.
    certificate
        The upper bound with its reasons.
    """

    picture: ClassVar[str] = "local_constants"
    constants: ClassVar[dict[str, str]] = {n: n for n in ("lower", "local", "searched", "certified")}

    lower: Float[Tensor, " n"]
    local: Float[Tensor, " n"]
    searched: Float[Tensor, " n"]
    certified: Float[Tensor, " n"]
    radius: float
    certificate: Certificate

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

    def settings(self) -> dict[str, Any]:
        """With the gap, and why there is no certificate."""
        why = {"reason": self.certificate.reason} if self.certificate.reason else {}
        return super().settings() | {"gap_decades": self.gap_decades} | why

    def line(self, image: int | None = None) -> str:
        """The order at one image, the worst by default, as a line."""
        i = self.worst if image is None else image
        return sandwich(float(self.lower[i]), float(self.searched[i]), float(self.certified[i]))


def sandwich(lower: float, searched: float, certified: float) -> str:
    """Lower <= searched <= certified as one line, with the gap in decades; it says so if the order is broken."""
    ordered = not (lower > searched * 1.001 or searched > certified * 1.001)  # NaN is not known
    gap = math.log10(certified / searched) if searched > 0 and math.isfinite(certified) else math.inf
    end = f"{certified:.4g}" if math.isfinite(certified) else "no certificate"
    below, found = ("unknown" if math.isnan(value) else f"{value:.4g}" for value in (lower, searched))
    line = f"lower {below} <= searched {found} <= certified {end}"
    line += f"  (gap {gap:.1f} decades)" if math.isfinite(gap) else ""
    return line if ordered else f"OUT OF ORDER, an estimate is wrong: {line}"


@estimator
def lipschitz(
    encoder: Map | Any,
    images: Float[Tensor, "n ..."],
    *,
    radius: float | None = None,
    normalised: bool | None = None,
    method: str = "least",
    starts: int = 1,
    steps: int = 30,
    batch_size: int | None = None,
    generator: Generator | None = None,
    advance: Callable[[int], object] | None = None,
) -> Sandwich:
    """Bound the Lipschitz constant over a ball around every image: from below, by search, and from above.

    Parameters
    ----------
    encoder
        A map of images to vectors, in evaluation mode: an encoder, the checkpoint that :func:`lipcomp.load_encoder`
        gives, or any callable of a batch.
    images
        Pixels in [0, 1].
    radius
        L2 radius; by default half the largest on which the product of norms certifies every image, or 0.5 for a map
        without normalisation and for one without such a certificate.
    normalised
        Whether the map gives mean directions (unit vectors); by default, if it does at the images.
    method
        Method of the certificate: "least", "local" or "product", see :func:`~lipcomp.bound.certified_bound`.
    starts, steps
        Starts and steps of the search, see :func:`~lipcomp.bound.search_ball`.
    batch_size
        Images per batch; by default as many as fit in memory.
    generator
        Randomness (CPU); by default seeded with 0.
    advance
        Progress callback, called with the number of finished images.

    Returns
    -------
    Sandwich
        ``lower``, ``local``, ``searched`` and ``certified`` of every image, ``gap_decades`` between the last two.

    Raises
    ------
    TypeError
        If the encoder is not callable.
    ValueError
        If images or map are not valid (see :func:`~lipcomp.jacobian.spectral_norm`).

    Examples
    --------
    >>> import torch, lipcomp
    >>> matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
    >>> found = lipcomp.lipschitz(lambda x: x @ matrix, torch.full((4, 3), 0.5), radius=0.1)
    >>> found.line()
    'lower 2.008 <= searched 5 <= certified 5  (gap 0.0 decades)'
    """
    fn = getattr(encoder, "encoder", None) if not callable(encoder) else encoder
    if not callable(fn):
        raise TypeError(
            f"encoder must be a map of images to vectors (a module, a loaded checkpoint, any callable), got "
            f"{type(encoder).__name__}; lipcomp.load_encoder(path) gives one from a file"
        )
    check_images(images)
    normalised = check_map(fn, images).directions if normalised is None else normalised
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if radius is None:
        wide = certified_bound(fn, images, method="product")
        finite = wide.bound[wide.bound.isfinite()]
        radius = 0.5 / float(finite.max()) if len(finite) and not math.isinf(wide.radius) else 0.5
    certificate = certified_bound(fn, images, radius=radius, method=method)
    moved = random_pairs(images.split(batch_size or len(images)), radius, generator=generator)
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
    local, searched = (values.double().cpu() for values in (found.sigma_at_image, found.sigma))
    return Sandwich(lower, local, searched, certificate.bound, radius, certificate)
