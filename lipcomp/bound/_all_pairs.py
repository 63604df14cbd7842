"""Every two images of a set: n (n - 1)/2 pairs in blocks, at the speed of the matrix product.

For a block of rows i and columns j one product each gives all squared distances and all squared chords,

    Delta² = |x_i|² + |x_j|² - 2 x_i.x_j,        delta² = |mu_i|² + |mu_j|² - 2 mu_i.mu_j,

with x and mu centred first, which changes no difference and saves digits. The subtraction loses digits where the
two are close, so that (a) every pair nearer than 3% of the larger norm is computed again from its difference, in
float64, and there zero distances are counted out and chords within reach of rounding proved by the map (3.8); (b) the
block only *nominates*: the ``CANDIDATES`` best pairs of every bound, and the best partner of every image, are computed
again from their differences, the former by the map in float64 (:mod:`lipcomp.bound._rounding`), so that what is
reported is proved by its pair. Without the map, rounding is taken off the chords. Quantiles come from a histogram of
256 bins per octave of the squared value (0.2% wide in the value), filled with every pair.

In memory at any time: five blocks of images, four blocks of numbers, a few numbers per image; nothing of size n².

Which pair is best differs between the bounds, since (3.2) and (3.3) grow faster than delta: each has its own.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp._arguments import estimator
from lipcomp.bound._gathered import Gathered, Proof, report
from lipcomp.bound._lower import QUANTILES, check_concentration, check_precision
from lipcomp.bound._results import LowerBounds
from lipcomp.bound._rounding import proved_chords
from lipcomp.bound._sketch import Histogram, Leaders
from lipcomp.distributions._bessel import mean_resultant_length
from lipcomp.jacobian._precision import power_of_two
from lipcomp.jacobian._products import Map

CANDIDATES = 64
NEAR = 1e-3  # squared, of the larger squared norm
BLOCK_BYTES = 128 << 20
LARGEST_BLOCK = 1024
ROWS_AT_A_TIME = 4  # blocks of rows that one block of columns is read for

Images = Float[Tensor, "n ..."] | Callable[[Int64[Tensor, " batch"]], Float[Tensor, "batch ..."]]


@estimator
def all_pairs(
    mu: Float[Tensor, "n dim"],
    images: Images,
    *,
    concentration: float | None = None,
    fn: Map | None = None,
    normalised: bool = True,
    domain: tuple[float, float] | None = (0.0, 1.0),
    quantiles: Sequence[float] = QUANTILES,
    block_size: int | None = None,
    advance: Callable[[int], object] | None = None,
) -> LowerBounds:
    """The bounds (3.1) to (3.5) over all pairs of a set, in bounded memory.

    Parameters
    ----------
    mu
        Unit mean directions of all images, float32 or float64.
    images
        The images, or a function from indices to a batch; with a function, only blocks are in memory.
    concentration
        kappa_e; None for the bound (3.5) only.
    fn
        The map, for close pairs and for those that are reported, which are computed again in float64 (or where rounding
        reaches that by its Jacobian); without it 1e-6 (for float32) is taken off every chord that is reported.
    normalised
        Whether ``mu`` are unit vectors; if not, only ‖h - h'‖ / Delta is meaningful, as "direction".
    domain
        Range of valid pixels; None for inputs that are not pixels.
    quantiles
        Quantiles to report.
    block_size
        Images per block; by default 1,024 or as many as fit in 128 MiB.
    advance
        Progress callback, called with the number of finished pairs.

    Returns
    -------
    LowerBounds
        ``maximum``, ``witness``, ``quantiles`` and ``n`` of every bound are over all pairs; ``pairs``, ``distance``,
        ``chord`` and ``values`` hold one pair per image: the image and the partner with the largest (3.5). Where no
        pair's mean directions differ, the maximum is 0 and there is no witness.

    Raises
    ------
    ValueError
        If there are fewer than two images, counts differ, images leave the domain, or mean directions are not of unit
        length or not those of ``fn``.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import all_pairs
    >>> images = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.0, 1.0]])
    >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> found = all_pairs(mu, images)["direction"]
    >>> round(found.maximum, 3), found.witness.pair
    (2.357, (0, 1))
    """
    if not normalised and concentration is not None:
        raise ValueError(
            "a concentration belongs to mean directions; leave it out, or normalise the embeddings"
        )
    mu = mu.detach()
    if mu.dim() != 2:
        raise ValueError(f"mu must be (n, dim), a row for each image; got {tuple(mu.shape)}")
    check_precision(mu)
    n, dim = mu.shape
    load = _loader(images, n, domain)
    usable, reasons = _usable(mu, normalised)
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if n < 2:
        raise ValueError(f"all pairs need at least two images, got {n}")
    kept = usable.nonzero().squeeze(1).cpu()
    proof = Proof.of(fn, load, mu, kept, normalised)
    first = load(torch.arange(1))
    pixels = first.numel()
    size = block_size or block_length(pixels + dim)
    formulas = _formulas(dim, concentration)
    progress = Gathered(
        torch.zeros(n, dtype=torch.float32),
        torch.arange(n),
        {name: Leaders(CANDIDATES) for name in formulas},
        {name: Histogram() for name in formulas},
        1.0 if normalised or not len(kept) else float(power_of_two(mu[kept].abs().max())),
    )
    centre = (
        load(kept[:: max(1, len(kept) // size)]).flatten(1).float().nan_to_num(0, 0, 0).mean(0)
        if len(kept)
        else first.flatten()
    )
    blocks = kept.split(size) if len(kept) else ()
    scaled = mu / progress.unit
    middle = scaled[kept].float().mean(0)
    for top in range(0, len(blocks), ROWS_AT_A_TIME):
        lefts = [_Side(load, mu, scaled, rows, centre, middle) for rows in blocks[top : top + ROWS_AT_A_TIME]]
        for column in range(top, len(blocks)):
            place = column - top
            right = (
                lefts[place]
                if place < len(lefts)
                else _Side(load, mu, scaled, blocks[column], centre, middle)
            )
            for left in lefts[: place + 1]:
                _block(left, right, left is right, formulas, progress, proof)
                if advance is not None:
                    m = len(left.indices)
                    advance(m * (m - 1) // 2 if left is right else m * len(right.indices))
    reasons["non-finite image"] = progress.unread
    return report(progress, mu, load, kept, dim, concentration, quantiles, reasons, proof)


def block_length(numbers: int) -> int:
    """Images per block, each of that many numbers."""
    return max(16, min(LARGEST_BLOCK, BLOCK_BYTES // (2 * 4 * numbers)))


class _Side:
    """One block of images and mean directions, centred, ready for the products on either side."""

    def __init__(
        self,
        load: Callable[[Tensor], Tensor],
        mu: Tensor,
        scaled: Tensor,
        indices: Tensor,
        centre: Tensor,
        middle: Tensor,
    ) -> None:
        self.indices, self.images = indices, load(indices)
        self.mu = mu[indices]
        self.bad = ~self.images.flatten(1).isfinite().all(1)
        self.pixels, self.centred_mu = (
            self.images.flatten(1).float() - centre,
            scaled[indices].float() - middle,
        )
        self.pixels[self.bad] = 0
        self.norm, self.mu_norm = (torch.linalg.vecdot(x, x) for x in (self.pixels, self.centred_mu))


def _squared_distances(left: Tensor, right: Tensor, left_norm: Tensor, right_norm: Tensor) -> Tensor:
    """|x|² + |y|² - 2 x.y, a product and one pass."""
    return torch.addmm(right_norm, left, right.T, alpha=-2).add_(left_norm[:, None])


def _block(
    left: _Side,
    right: _Side,
    diagonal: bool,
    formulas: dict[str, Callable[[Tensor, Tensor], Tensor]],
    progress: Gathered,
    proof: Proof,
) -> None:
    distance = _squared_distances(left.pixels, right.pixels, left.norm, right.norm)
    chord = _squared_distances(left.centred_mu, right.centred_mu, left.mu_norm, right.mu_norm).clamp_(min=0)
    if diagonal:
        distance.masked_fill_(torch.ones_like(distance, dtype=torch.bool).tril_(), math.inf)
    dropped = len(left.indices) * (len(left.indices) + 1) // 2 if diagonal else 0
    if bool(left.bad.any()) or bool(right.bad.any()):
        bad = (left.bad[:, None] | right.bad[None]) & distance.isfinite()
        distance.masked_fill_(bad, math.inf)
        progress.unread += int(bad.sum())
        dropped += int(bad.sum())
    near = NEAR * max(float(left.norm.max()), float(right.norm.max()))
    if float(distance.amin()) <= near:
        dropped += _patch(left, right, distance, chord, (distance <= near).nonzero(), progress, proof)
    ratio = torch.div(chord, distance, out=distance)
    _best(progress, ratio, left.indices, right.indices)
    for name, formula in formulas.items():
        value = formula(ratio, chord)
        progress.leaders[name].offer(value, left.indices, right.indices)
        progress.histograms[name].add(value, dropped)


def _patch(
    left: _Side,
    right: _Side,
    distance: Tensor,
    chord: Tensor,
    where: Tensor,
    progress: Gathered,
    proof: Proof,
) -> int:
    """Compute near pairs again; returns how many have left the block: duplicates, and chords lost in rounding."""
    dropped = 0
    for part in where.split(1024):
        i, j = part.cpu().unbind(1)
        step = (right.images[j].double() - left.images[i].double()).flatten(1)
        exact, apart = step.norm(dim=1), proof.chord(left.mu[i], right.mu[j])
        lost = proof.lost(apart)
        away = (exact == 0) | lost
        apart = apart if proof.fn is not None else proof.proved(apart)
        distance[i, j] = exact.square().to(distance).masked_fill(away, math.inf)
        chord[i, j] = (apart / progress.unit).square().to(chord)
        dropped += int(away.sum())
        progress.zero += int((exact == 0).sum())
        close = (lost & (exact > 0)).nonzero().squeeze(1).cpu()
        if proof.fn is not None and len(close):
            progress.close += zip(
                left.indices[i[close]].tolist(), right.indices[j[close]].tolist(), strict=True
            )
            sides = left.images[i[close]], right.images[j[close]]
            found, steep = proved_chords(proof.fn, proof.wide, proof.eta, *sides, proof.normalised)
            progress.close_chords += found.tolist()
            progress.jacobian += int(steep.sum())
    return dropped


def _best(progress: Gathered, ratio: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Keep every image's best partner. Places are looked up only where there is something better."""
    for dim, own, other in ((1, rows, columns), (0, columns, rows)):
        largest = ratio.amax(dim).cpu()
        better = (largest > progress.best[own]).nonzero().squeeze(1)
        if len(better):
            among = ratio[better] if dim == 1 else ratio[:, better].T
            progress.best[own[better]] = largest[better]
            progress.partner[own[better]] = other[among.argmax(1).cpu()]


def _formulas(dim: int, concentration: float | None) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What ranks the pairs: squared bounds up to a constant, from delta²/Delta² and delta²."""
    if concentration is None:
        return {"direction": lambda ratio, chord: ratio}
    kappa = check_concentration(concentration, 1)
    length, longer = (float(mean_resultant_length(d, kappa)) for d in (dim, dim + 2))
    half = float(kappa) * length / 2
    # (3.3)² = KL (2 + c KL) / Delta² with KL = half delta²
    return {
        "direction": lambda ratio, chord: ratio,
        "mean": lambda ratio, chord: ratio * chord,
        "second_moment": lambda ratio, chord: ratio * (chord * (half * longer / length) + 2),
    }


def _loader(images: Images, n: int, domain: tuple[float, float] | None) -> Callable[[Tensor], Tensor]:
    if isinstance(images, Tensor) and len(images) != n:
        raise ValueError(f"mu and images must be of the same images; got {n} and {len(images)}")

    def load(indices: Tensor) -> Tensor:
        batch = images[indices] if isinstance(images, Tensor) else images(indices)
        if not batch.is_floating_point():
            raise ValueError(f"images must be floats, got {batch.dtype}; divide bytes by 255")
        finite = batch.detach().nan_to_num(*domain[:1] * 3) if domain else batch.detach()[:0]
        if domain and finite.numel() and not (domain[0] <= finite.min() and finite.max() <= domain[1]):
            raise ValueError(
                f"images must be pixels in [{domain[0]:g}, {domain[1]:g}], got values from {float(finite.min()):.4g} "
                f"to {float(finite.max()):.4g}; divide bytes by 255, undo the normalisation, which would change the "
                f"distances, or give domain=None for other inputs"
            )
        return batch.detach()

    return load


def _usable(mu: Tensor, normalised: bool) -> tuple[Tensor, dict[str, int]]:
    """Images whose mean direction can be measured; and how many *pairs* the others take with them, by reason."""
    finite, norm = mu.isfinite().all(1), mu.norm(dim=1)
    none = (norm < 1e-3) & finite & normalised
    wrong = finite & ~none & ((norm - 1).abs() > 1e-3) & normalised
    if bool(wrong.any()):
        raise ValueError(
            f"mu must hold unit mean directions; row {int(wrong.nonzero()[0])} has norm {float(norm[wrong][0]):.4g}. "
            f"Normalise the embeddings h to h / |h| first"
        )
    n, bad, empty = len(mu), int((~finite).sum()), int(none.sum())
    with_bad = n * (n - 1) // 2 - (n - bad) * (n - bad - 1) // 2
    with_empty = (n - bad) * (n - bad - 1) // 2 - (n - bad - empty) * (n - bad - empty - 1) // 2
    return finite & ~none, {"non-finite output": with_bad, "zero-norm embedding": with_empty}
