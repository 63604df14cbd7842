"""What a pass over all pairs has gathered, and what of it is proved (see :mod:`lipcomp.bound.all_pairs`).

The pass nominates in float32, from differences of squares; what is reported is computed again in float64, from the
differences of the nominated pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcomp.bound._lower import check_concentration, pair_values
from lipcomp.bound._results import Bound, LowerBounds, Witness
from lipcomp.bound._rounding import ASSUMED, RELATIVE, SAMPLE, chords, in_float64, unit
from lipcomp.bound._sketch import Histogram, Leaders
from lipcomp.distributions._bessel import mean_resultant_length
from lipcomp.jacobian._checks import check_map
from lipcomp.jacobian._products import Map, as_rows

OTHER = 1e-2  # of an output's norm: a difference that no precision explains
PROVED = 8  # of the nominated pairs, the best of which are computed again by the map in float64


@dataclass
class Gathered:
    """What a pass over the pairs gathers."""

    best: Tensor  # (n,) the largest delta²/Delta² of every image so far
    partner: Tensor  # (n,) with which
    leaders: dict[str, Leaders]
    histograms: dict[str, Histogram]
    unit: float = 1.0  # of the chords that rank and are counted, so that no square under- or overflows
    zero: int = 0
    unread: int = 0  # pairs with an image that is not finite
    close: list[tuple[int, int]] = field(default_factory=list)  # within reach of rounding
    close_chords: list[float] = field(default_factory=list)
    jacobian: int = 0  # how many of them came from the Jacobian


@dataclass(frozen=True)
class Proof:
    """What proves a chord: the map, the same in float64, and how far a mean direction is off without them."""

    fn: Map | None
    wide: Map | None
    eta: float
    normalised: bool

    @classmethod
    def of(
        cls, fn: Map | None, load: Callable[[Tensor], Tensor], mu: Tensor, kept: Tensor, normalised: bool
    ) -> "Proof":
        """Eta from a few images, or assumed."""
        if fn is None or not len(kept):
            size = 1.0 if normalised or not len(kept) else float(mu[kept].double().norm(dim=1).max())
            return cls(None, None, ASSUMED[mu.dtype] * size, normalised)
        few = load(kept[:SAMPLE])
        wide = check_map(fn, few).wide
        some = kept[[0, len(kept) // 2, -1]]
        with torch.no_grad():
            own = as_rows(fn(load(some).clone()), len(some)).to(mu)
        if own.shape[1:] != mu.shape[1:] or bool(
            ((own - mu[some]).norm(dim=1) > OTHER * mu[some].norm(dim=1)).any()
        ):
            raise ValueError(
                "mu are not the outputs of fn at these images; give both in the same order: mu = fn(images)"
            )
        return cls(fn, *in_float64(fn, few, normalised, wide), normalised)

    def chord(self, mu: Tensor, other: Tensor) -> Tensor:
        """Of given mean directions, in float64."""
        one, two = (unit(side) if self.normalised else side.double() for side in (mu, other))
        return (one - two).norm(dim=1)

    def lost(self, chord: Tensor) -> Tensor:
        """Which chords rounding reaches, where there is a map to prove them by."""
        return (
            chord < self.eta / RELATIVE if self.fn is not None else torch.zeros_like(chord, dtype=torch.bool)
        )

    def proved(self, chord: Tensor) -> Tensor:
        """What is left of chords of given mean directions."""
        return (chord - self.eta).clamp(min=0)


# Which ranking and which constant (squared) give a bound's quantiles.
RANKED_BY = {
    "published": "direction",
    "mean": "mean",
    "second_moment": "second_moment",
    "supremum": "direction",
    "direction": "direction",
}


def report(
    progress: Gathered,
    mu: Tensor,
    load: Callable[[Tensor], Tensor],
    kept: Tensor,
    dim: int,
    concentration: float | None,
    quantiles: Sequence[float],
    reasons: dict[str, int],
    proof: Proof,
) -> LowerBounds:
    """The bounds of everything that was gathered."""
    kappa = None if concentration is None else check_concentration(concentration, 1)

    def values(pairs: Tensor, wide: Map | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        distance, chord = _exact(load, mu, pairs, proof, wide)
        return distance, chord, pair_values(chord, distance, dim, kappa)

    close_pairs = torch.tensor(progress.close, dtype=torch.int64).reshape(-1, 2)
    extra_distance = _exact(load, mu, close_pairs, proof, None)[0]
    extra_chord = torch.tensor(progress.close_chords, dtype=torch.float64)
    extra = pair_values(extra_chord, extra_distance, dim, kappa)
    n = progress.histograms["direction"].total
    each = torch.stack([kept, progress.partner[kept]], 1)
    each = each[each[:, 0] != each[:, 1]]
    distance, chord, of_images = values(each)
    bounds = {}
    names = ["direction"] if kappa is None else list(RANKED_BY)
    for name in names:
        leaders = progress.leaders[RANKED_BY[name]].pairs()
        if proof.wide is not None:
            leaders = leaders[values(leaders)[2][name].argsort(descending=True)[:PROVED]]
        d, c, found = values(leaders, proof.wide)
        d, c = torch.cat([d, extra_distance]), torch.cat([c, extra_chord])
        v = torch.cat([found[name], extra[name]])
        pairs = torch.cat([leaders, close_pairs])
        witness, maximum = None, 0.0 if n else math.nan  # zero: no pair's mean directions differ
        if len(v):
            best = int(v.argmax())
            pair = (int(pairs[best, 0]), int(pairs[best, 1]))
            first, second = load(pairs[best]).cpu()
            maximum = float(v[best])
            witness = Witness(pair, float(d[best]), float(c[best]), images=(first, second))
        scale = _scale(name, dim, kappa)
        histogram = progress.histograms[RANKED_BY[name]]
        at = {  # a bin's middle may lie above all that is proved
            q: min(progress.unit * scale * math.sqrt(histogram.quantile(q)), maximum) if n else math.nan
            for q in quantiles
        }
        bounds[name] = Bound(name, maximum, witness, at, n + len(extra_chord), of_images[name])
    excluded = {**reasons, "zero distance": progress.zero}
    shared_kappa = None if kappa is None else float(kappa)
    return LowerBounds(bounds, each, distance, chord, excluded, progress.jacobian, shared_kappa, dim)


def _scale(name: str, dim: int, kappa: Tensor | None) -> float:
    """What the root of the ranked quantity is multiplied by."""
    if kappa is None or name == "direction":
        return 1.0
    half = float(kappa * mean_resultant_length(dim, kappa)) / 2
    return {
        "published": math.sqrt(half),
        "supremum": float(kappa),
        "mean": half,
        "second_moment": math.sqrt(half),
    }[name]


def _exact(
    load: Callable[[Tensor], Tensor], mu: Tensor, pairs: Tensor, proof: Proof, wide: Map | None
) -> tuple[Tensor, Tensor]:
    """Distances and chords of listed pairs, from their differences: by the map in float64, or what is proved of mu."""
    distances, chord = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    for part in pairs.split(64) if len(pairs) else ():
        i, j = part.unbind(1)
        first, second = load(i), load(j)
        distances.append((second.double() - first.double()).flatten(1).norm(dim=1).cpu())
        if wide is not None:
            chord.append(chords(wide, first, second, proof.normalised))
        else:
            chord.append(proof.proved(proof.chord(mu[i], mu[j]).cpu()))
    return torch.cat(distances), torch.cat(chord)
