"""Lower bounds of the Lipschitz constant of log e(z|x) in x, and of the mean direction, from pairs of images.

A pair at distance Delta = ‖x - x'‖ (L2 over raw pixels in [0, 1]) whose mean directions are a chord
delta = ‖mu - mu'‖ apart proves, with kappa the concentration, A = A_d(kappa) and KL = kappa A delta² / 2 (1.5):

==============  =======================  ============================  =========================================
name            formula                  unit                          what it bounds
==============  =======================  ============================  =========================================
published       (3.1) √KL / Delta        √nats per pixel L2            the log density (Lee et al. 2021)
mean            (3.2) KL / Delta         nats per pixel L2             the log density, averaged over z ~ e(.|x)
second_moment   (3.3) √E[r²] / Delta     nats per pixel L2             the log density at a *typical z*
supremum        (3.4) kappa delta/Delta  nats per pixel L2             the log density at the *worst z*
direction       (3.5) delta / Delta      1 / pixel L2                  the mean direction mu itself; no kappa
==============  =======================  ============================  =========================================

E[r²] = 2 KL + (A_{d+2}/A_d) KL². Always (3.1) <= (3.3)/√2 and (3.2) <= (3.3) <= (3.4). Models are compared by
``direction``, or at one common kappa; a comparison of the others across different kappa compares hyperparameters.

Everything is computed in float64 from chords, never from 1 - mu.mu'. A pair at distance zero proves nothing and is
counted, not divided by. From mean directions alone a chord is known up to their rounding (3.8), which is taken off;
:func:`lipcomp.bound.measure_pairs`, which has the map, takes float64, or the Jacobian (4.3), where that matters and for
the pair that attains a bound.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp._arguments import estimator
from lipcomp.bound._results import Bound, LowerBounds, Witness
from lipcomp.bound._rounding import ASSUMED, unit
from lipcomp.distributions._bessel import LARGEST_CONCENTRATION, mean_resultant_length

QUANTILES = (0.5, 0.9, 0.99)
UNIT_TOLERANCE = 1e-3


@estimator
def lower_bounds(
    mu1: Float[Tensor, "pairs dim"],
    mu2: Float[Tensor, "pairs dim"],
    distance: Float[Tensor, " pairs"],
    *,
    concentration: float | Float[Tensor, " pairs"] | None = None,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    rounding: float | None = None,
) -> LowerBounds:
    """The bounds (3.1) to (3.5) from the mean directions of pairs and their input distances.

    Parameters
    ----------
    mu1, mu2
        Unit mean directions of the two images of every pair, float32 or float64; made unit again in float64.
    distance
        Delta, L2 over all raw pixels.
    concentration
        kappa_e > 0, one for all or one per pair; None for a model without one, which gives only (3.5).
    pairs
        Image indices of every pair; by default (i, i).
    quantiles
        Quantiles of each bound to report.
    rounding
        Largest error of a mean direction; it is subtracted from every chord, so that the values stay lower bounds. By
        default 1e-6 for float32, as seen in networks of ordinary depth, and 1e-14 for float64.

    Raises
    ------
    ValueError
        If shapes differ, a mean direction is not of unit length, or a distance or concentration is out of range.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import lower_bounds
    >>> mu, other = torch.eye(3)[:2], torch.eye(3)[[1, 1]]
    >>> result = lower_bounds(mu, other, torch.tensor([2.0, 0.0]), concentration=10.0)
    >>> round(result["direction"].maximum, 4), result["direction"].witness.pair, result.excluded["zero distance"]
    (0.7071, (0, 0), 1)
    """
    if mu1.dim() != 2 or mu1.shape != mu2.shape or distance.shape != mu1.shape[:1]:
        raise ValueError(
            f"mu1 and mu2 must be (pairs, dim) and distance (pairs,); got {tuple(mu1.shape)}, {tuple(mu2.shape)}, "
            f"{tuple(distance.shape)}"
        )
    if pairs is not None and pairs.shape != (len(mu1), 2):
        raise ValueError(
            f"pairs must name two images for each pair, shape ({len(mu1)}, 2); got {tuple(pairs.shape)}"
        )
    check_precision(mu1)
    check_precision(mu2)
    first, second = mu1.detach().double(), mu2.detach().double()
    eta = max(ASSUMED[mu1.dtype], ASSUMED[mu2.dtype]) if rounding is None else rounding
    finite = first.isfinite().all(1) & second.isfinite().all(1)
    norms = torch.stack([first.norm(dim=1), second.norm(dim=1)], 1).nan_to_num(1, 1, 1)
    none = (norms < UNIT_TOLERANCE).any(1)
    wrong = ((norms - 1).abs() > UNIT_TOLERANCE).any(1) & ~none & finite
    if bool(wrong.any()):
        worst = int(wrong.nonzero()[0])
        raise ValueError(
            f"mu1 and mu2 must be unit mean directions; pair {worst} has norms "
            f"{norms[worst, 0]:.4g} and {norms[worst, 1]:.4g}. Normalise the embeddings h to h / |h| first"
        )
    chord = (unit(first) - unit(second)).norm(dim=1)
    return bounds_from_chords(
        (chord - eta).clamp(min=0).masked_fill(none | ~finite, math.nan),
        distance,
        mu1.shape[1],
        concentration,
        pairs=pairs,
        quantiles=quantiles,
        reasons={
            "non-finite output": ~finite,
            "zero-norm embedding": none & finite,
        },
    )


def bounds_from_chords(
    chord: Float[Tensor, " pairs"],
    distance: Float[Tensor, " pairs"],
    dim: int,
    concentration: float | Float[Tensor, " pairs"] | None = None,
    *,
    pairs: Int64[Tensor, "pairs 2"] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    reasons: dict[str, Tensor] | None = None,
    jacobian: int = 0,
    candidates: Int64[Tensor, " some"] | None = None,
) -> LowerBounds:
    """The bounds from chords and distances; a pair where one of them is NaN is left out, for one of ``reasons``.

    Parameters
    ----------
    chord, distance
        delta and Delta of every pair.
    dim
        d, the dimension of the mean directions.
    concentration, pairs, quantiles
        As in :func:`lower_bounds`.
    reasons
        Masks that say why pairs are left out.
    jacobian
        How many of the chords came from the Jacobian, for the report.
    candidates
        Places of the pairs that a maximum may be taken from, such as those known in float64; by default all.

    Raises
    ------
    ValueError
        If a distance is negative or the concentration is not positive.
    """
    if any(not 0 <= q <= 1 for q in quantiles):
        raise ValueError(f"quantiles must lie in [0, 1], got {list(quantiles)}")
    chord, distance = chord.detach().double().cpu(), distance.detach().double().cpu()
    if bool((distance < 0).any()) or bool((distance == math.inf).any()):
        raise ValueError(
            f"distance must be finite and not negative, got {float(distance.min())} to {float(distance.max())}"
        )
    pairs = torch.arange(len(chord)).unsqueeze(1).expand(-1, 2) if pairs is None else pairs.cpu()
    excluded = {reason: int(mask.sum()) for reason, mask in (reasons or {}).items()}
    zero = (distance == 0) & ~chord.isnan()
    excluded["zero distance"] = int(zero.sum())
    usable = ~(chord.isnan() | distance.isnan() | zero)
    unexplained = int((~usable).sum()) - sum(excluded.values())
    if unexplained > 0:
        excluded["not a number"] = unexplained
    left = usable.nonzero().squeeze(1)
    kappa = None if concentration is None else check_concentration(concentration, len(chord))
    of_pairs = kappa if kappa is None or len(kappa) == 1 else kappa[left]
    among = torch.ones(len(left), dtype=torch.bool)
    if candidates is not None:
        among = torch.isin(left, candidates.cpu())
    formulas = pair_values(chord[left], distance[left], dim, of_pairs)
    bounds = {}
    for name, found in formulas.items():
        values = torch.full_like(chord, math.nan)
        values[left] = found
        witness, maximum = None, math.nan
        if bool(among.any()):
            best = int(left[found.where(among, -1.0).argmax()])
            maximum = float(values[best])
            pair = (int(pairs[best, 0]), int(pairs[best, 1]))
            witness = Witness(pair, float(distance[best]), float(chord[best]), best)
        at = {q: _quantile(found, q) for q in quantiles}
        bounds[name] = Bound(name, maximum, witness, at, len(left), values)
    shared = float(kappa[0]) if kappa is not None and len(kappa) == 1 else None
    return LowerBounds(bounds, pairs, distance, chord, excluded, jacobian, shared, dim)


def pair_values(
    chord: Float[Tensor, " pairs"],
    distance: Float[Tensor, " pairs"],
    dim: int,
    concentration: Float[Tensor, " #pairs"] | None,
) -> dict[str, Float[Tensor, " pairs"]]:
    """(3.1) to (3.5) of every pair, by name; only (3.5) without a concentration (one for all, or one per pair)."""
    ratio = chord / distance
    if concentration is None:
        return {"direction": ratio}
    length, longer = (mean_resultant_length(d, concentration) for d in (dim, dim + 2))
    divergence = concentration * length * chord.square() / 2  # (1.5)
    # E[r²] = KL (2 + (A_{d+2}/A_d) KL): a product, so that small divergences keep their digits.
    moment = divergence * (2 + longer / length * divergence)
    return {
        "published": (concentration * length / 2).sqrt() * ratio,
        "mean": divergence / distance,
        "second_moment": moment.sqrt() / distance,
        "supremum": concentration * ratio,
        "direction": ratio,
    }


def check_precision(mu: Tensor) -> None:
    """Refuse mean directions in half precision.

    Raises
    ------
    ValueError
        If they are neither float32 nor float64.
    """
    if mu.dtype not in ASSUMED:
        raise ValueError(
            f"mean directions must be float32 or float64, got {mu.dtype}, whose rounding is as large as the chords of "
            f"close images; run the encoder in float32"
        )


def check_concentration(concentration: float | Tensor, n: int) -> Float[Tensor, " one_or_n"]:
    """Concentrations as a float64 vector of one, or of one per pair.

    Raises
    ------
    ValueError
        If the count is neither, or one of them is not positive and at most 1e12.
    """
    kappa = torch.as_tensor(concentration, dtype=torch.float64).detach().cpu().reshape(-1)
    if len(kappa) not in (1, n):
        raise ValueError(f"concentration must be one number or one per pair ({n}), got {len(kappa)}")
    fits = (kappa > 0) & (kappa <= LARGEST_CONCENTRATION)
    if not bool(fits.all()):
        raise ValueError(
            f"concentration must be positive and at most {LARGEST_CONCENTRATION:g}, got {float(kappa[~fits][0]):g}"
        )
    return kappa


def _quantile(values: Tensor, q: float) -> float:
    """The quantile by the nearest rank; torch.quantile refuses more than 2^24 values."""
    if not len(values):
        return math.nan
    rank = min(len(values), max(1, math.ceil(q * len(values))))
    return float(values.kthvalue(rank).values)


def fisher_trace(
    frobenius_squared: Float[Tensor, " n"], dim: int, concentration: float
) -> Float[Tensor, " n"]:
    """Trace of the Fisher information of e(z|x) in the pixels at every image, kappa A ‖J‖_F² (theory (4.2)).

    In nats per squared pixel L2. The square root of F = kappa A Jᵀ J along a direction is what (3.3) tends to as a pair
    closes in, and half its value times Delta² the KL of a close pair (4.3).

    Raises
    ------
    ValueError
        If the concentration is not positive, or above 1e12.
    """
    kappa = check_concentration(concentration, 1)
    return float(kappa * mean_resultant_length(dim, kappa)) * frobenius_squared
