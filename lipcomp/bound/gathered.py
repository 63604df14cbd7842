"""What a pass over all pairs has gathered, and what of it is proved (see :mod:`lipcomp.bound.all_pairs`).

The pass nominates in float32, from differences of squares; what is reported is computed again in float64, from the
differences of the nominated pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcomp.bound.lower import TINY, check_concentration, pair_values
from lipcomp.bound.results import Bound, LowerBounds, Witness
from lipcomp.bound.sketch import Histogram, Leaders
from lipcomp.distributions import mean_resultant_length


@dataclass
class Gathered:
    """What a pass over the pairs gathers."""

    best: Tensor  # (n,) the largest delta²/Delta² of every image so far
    partner: Tensor  # (n,) with which
    leaders: dict[str, Leaders]
    histograms: dict[str, Histogram]
    zero: int = 0
    tiny: list[tuple[int, int]] = field(default_factory=list)
    tiny_chords: list[float] = field(default_factory=list)


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
    measured: bool,
) -> LowerBounds:
    """The bounds of everything that was gathered; ``measured``: tiny distances went to the Jacobian."""
    kappa = None if concentration is None else check_concentration(concentration, 1)

    def values(pairs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        distance, chord = _exact(load, mu, pairs)
        return (
            distance,
            chord,
            pair_values(chord, distance, dim, kappa),
        )

    tiny_pairs = torch.tensor(progress.tiny, dtype=torch.int64).reshape(-1, 2)
    extra: dict[str, Tensor] = {}
    extra_distance = extra_chord = torch.zeros(0, dtype=torch.float64)
    if measured and len(tiny_pairs):
        extra_distance = _exact(load, mu, tiny_pairs)[0]
        extra_chord = torch.tensor(progress.tiny_chords, dtype=torch.float64)
        extra = pair_values(extra_chord, extra_distance, dim, kappa)
    n = progress.histograms["direction"].total
    each = torch.stack([kept, progress.partner[kept]], 1)
    each = each[each[:, 0] != each[:, 1]]
    distance, chord, of_images = values(each)
    bounds = {}
    names = ["direction"] if kappa is None else list(RANKED_BY)
    for name in names:
        leaders = progress.leaders[RANKED_BY[name]].pairs()
        d, c, found = values(leaders)
        d, c, v = torch.cat([d, extra_distance]), torch.cat([c, extra_chord]), found[name]
        pairs = torch.cat([leaders, tiny_pairs]) if extra else leaders
        v = torch.cat([v, extra[name]]) if extra else v
        witness, maximum = None, math.nan
        if len(v):
            best = int(v.argmax())
            pair = (int(pairs[best, 0]), int(pairs[best, 1]))
            first, second = load(pairs[best]).cpu()
            maximum = float(v[best])
            witness = Witness(pair, float(d[best]), float(c[best]), images=(first, second))
        scale = _scale(name, dim, kappa)
        histogram = progress.histograms[RANKED_BY[name]]
        at = {q: scale * math.sqrt(histogram.quantile(q)) if n else math.nan for q in quantiles}
        bounds[name] = Bound(name, maximum, witness, at, n + len(extra_chord), of_images[name])
    excluded = {**reasons, "zero distance": progress.zero}
    if not measured:
        excluded[f"distance below {TINY:g}"] = len(tiny_pairs)
    shared_kappa = None if kappa is None else float(kappa)
    return LowerBounds(bounds, each, distance, chord, excluded, len(extra_chord), shared_kappa, dim)


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


def _exact(load: Callable[[Tensor], Tensor], mu: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and chords of listed pairs in float64, from their differences."""
    distances, chords = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    for part in pairs.split(512):
        i, j = part.unbind(1)
        step = (load(j).double() - load(i).double()).flatten(1)
        distances.append(step.norm(dim=1).cpu())
        chords.append((mu[j].double() - mu[i].double()).norm(dim=1).cpu())
    return torch.cat(distances), torch.cat(chords)
