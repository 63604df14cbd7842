"""Lower bounds (3.1) to (3.5) of a set of pairs, each with the pair that attains it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp._results import ResultMixin

LABELS = {
    "published": "published (3.1)",
    "mean": "mean (3.2)",
    "second_moment": "second moment, typical z (3.3)",
    "supremum": "supremum, worst z (3.4)",
    "direction": "mean direction (3.5)",
}
UNITS = {
    "published": "sqrt(nats)/pixel L2",
    "mean": "nats/pixel L2",
    "second_moment": "nats/pixel L2",
    "supremum": "nats/pixel L2",
    "direction": "1/pixel L2",
}


@dataclass(frozen=True)
class Witness:
    """The pair that attains a bound: indices, input distance, chord of the mean directions, and the images.

    ``images`` are there wherever pixels were (:func:`measure_pairs`, :func:`all_pairs`, the searched pairs), and None
    where only mean directions and distances were given. ``position`` is the pair's place among those given.
    """

    pair: tuple[int, int]
    distance: float
    chord: float
    position: int | None = None
    images: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Bound(ResultMixin):
    """One lower bound over a set of pairs."""

    name: str
    maximum: float
    witness: Witness | None
    quantiles: dict[float, float]
    n: int
    values: Float[Tensor, " pairs"] | None = None

    @property
    def label(self) -> str:
        """Name and formula, for tables."""
        return LABELS[self.name]

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return UNITS[self.name]


@dataclass(frozen=True)
class LowerBounds(ResultMixin):
    """The bounds (3.1) to (3.5) of a set of pairs; without a concentration only (3.5).

    Attributes
    ----------
    bounds
        By name; ``result["direction"]`` is short for ``result.bounds["direction"]``.
    pairs
        The image indices of every pair.
    distance, chord
        Delta and delta of every pair. A pair that was left out has NaN in every bound's ``values``.
    excluded
        How many pairs were left out, by reason.
    jacobian
        How many chords were lost in rounding, in float64 too if the map has such a version: measured by the Jacobian.
    concentration
        kappa, or None.
    dim
        d.
    """

    picture: ClassVar[str] = "bounds_against_distance"

    bounds: dict[str, Bound]
    pairs: Int64[Tensor, "pairs 2"]
    distance: Float[Tensor, " pairs"]
    chord: Float[Tensor, " pairs"]
    excluded: dict[str, int]
    jacobian: int
    concentration: float | None
    dim: int

    def __getitem__(self, name: str) -> Bound:
        if name not in self.bounds:
            reason = (
                " (it needs a concentration)" if name in LABELS else f"; there are {', '.join(self.bounds)}"
            )
            raise KeyError(f"no bound {name!r}{reason}")
        return self.bounds[name]

    def settings(self) -> dict[str, Any]:
        """The bounds first."""
        return {name: bound.maximum for name, bound in self.bounds.items()} | super().settings()

    def to_frame(self) -> pd.DataFrame:
        """A data frame with a row per bound: its maximum, the pair that attains it, and quantiles."""
        return pd.DataFrame([
            {"bound": bound.name, "maximum": bound.maximum, "unit": bound.unit, "n": bound.n}
            | ({} if bound.witness is None else {
                "first": bound.witness.pair[0], "second": bound.witness.pair[1],
                "distance": bound.witness.distance, "chord": bound.witness.chord,
            })
            | {f"q{100 * q:g}": value for q, value in bound.quantiles.items()}
            for bound in self.bounds.values()
        ])  # fmt: skip

    def with_images(self, images: Callable[[str, int], tuple[Tensor, Tensor] | None]) -> "LowerBounds":
        """The same, the witnesses with their images: of the bound of that name, whose pair has that position."""
        bounds = {}
        for name, bound in self.bounds.items():
            witness = bound.witness
            if witness is not None and witness.position is not None:
                witness = replace(witness, images=images(name, witness.position))
            bounds[name] = replace(bound, witness=witness)
        return replace(self, bounds=bounds)

    def per_image(self, name: str = "direction", n: int | None = None) -> Float[Tensor, " images"]:
        """The largest value among the pairs that an image takes part in; NaN where there is none."""
        values = self[name].values
        assert values is not None
        count = int(self.pairs.max()) + 1 if n is None else n
        best = torch.full((count,), -math.inf, dtype=torch.float64)
        usable = ~values.isnan()
        for side in (0, 1):
            best.scatter_reduce_(0, self.pairs[usable, side], values[usable], "amax")
        return best.masked_fill(best == -math.inf, math.nan)
