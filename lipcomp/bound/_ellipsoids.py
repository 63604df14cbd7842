"""What pixels and uncertain units can do together over a ball: ellipsoids, and the norms that they prove.

Along a direction x the uncertain units add w with w_i = e_i (B_i x + M_i w), |e_i| <= r_i, or |w_i| <= tau_i ‖x‖
(theory (5.4)). For any weights l >= 0 all of this at ‖x‖ <= 1 lies in the ellipsoid

    ‖x‖^2 + sum_i l_i (w_i^2 - r_i^2 (B_i x + M_i w)^2 - tau_i^2 ‖x‖^2) = (x, w)T Q (x, w) <= 1.

Q is positive definite if a Cholesky factorisation finds it so, and then a matrix H of columns has norm at most
√λ_max(H Q^-1 HT) over the ball, and a single row h at most √(h Q^-1 hT). This is a semidefinite relaxation on the
uncertain units alone; every l gives a bound. At the best l, w_i^2 = r_i^2 z_i^2 + tau_i^2 ‖x‖^2 at the furthest
point for every i: steps l_i <- l_i √(w_i^2 / (r_i^2 z_i^2 + tau_i^2 ‖x‖^2)) come within a percent in three or four.

Rows that see the same pixels, such as the channels of a convolution at one place, share an ellipsoid of the units that
reach them: small, and far tighter than one for all rows.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.bound._noise import Noise, pieces

SLACK = 1e-8  # of every weight: far above what rounding does to a factorisation and to what is solved with it
OUT = 1 + 1e-7  # outward: what is multiplied after the factorisation
STEPS = 4  # of the weights
ROUGH = 3  # the first steps for a matrix, by its rows one by one
TRIES = 40  # to find weights that prove anything
AHEAD = 3.0  # where little of a unit is seen itself, but much of the units that it feeds
ALONE = 10.0  # the same for a single row, in which what is seen of a unit may cancel
EIGENVECTORS = 8
SHARES = (  # of the limit
    1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.995,
)  # fmt: skip
ROUNDS, POINTS = 4, 9  # of finer grids, to 1/256 of the distance of two shares: the bound is flat there
SKETCH = 128  # rows whose furthest points move the weights
WORK = 4e12  # multiplications for the rows of one tensor, about two minutes; above it rows share one ellipsoid, or none


@dataclass(frozen=True)
class Units:
    """All uncertain units of a ball: rows r_i (B_i, M_i), and tau.

    ``places`` are the operations that they come from, as slices.
    """

    feeds: Float[Tensor, "units columns"]
    tau: Float[Tensor, " units"]
    places: list[slice]
    pixels: int

    @staticmethod
    def of(noises: list[Noise], pixels: int) -> "Units":
        """The units of these operations."""
        count, like = sum(len(noise) for noise in noises), noises[0].largest
        feeds, tau, places = like.new_zeros(count, pixels + count), like.new_zeros(count), []
        for noise in noises:
            own = slice(noise.start - pixels, noise.start - pixels + len(noise))
            places.append(own)
            if noise.rows is None or noise.halfwidth is None:
                tau[own] = noise.largest
            else:
                feeds[own, : noise.rows.shape[1]] = noise.rows * noise.halfwidth[:, None]
        return Units(feeds, tau, places, pixels)

    def reaching(self, seen: Tensor) -> Tensor:
        """Which units are seen or feed one that is."""
        found = seen.new_zeros(len(self.tau))
        found[: len(seen)] = seen
        for own in reversed(self.places):
            rows = self.feeds[own, self.pixels :][found[own], : own.start]
            found[: own.start] |= (rows != 0).any(0)
        return found


def norm_bound(rows: Float[Tensor, "outputs columns"], units: Units) -> float:
    """Bound of the norm of a matrix of columns over the ball; infinite if nothing was proved."""
    # of a feature map: fewer rows of the same norm, turned so that they are alike
    if rows.shape[0] > rows.shape[1]:
        generator = torch.Generator().manual_seed(0)
        turn = torch.randn(2 * rows.shape[1:], generator=generator, dtype=rows.dtype).to(rows)
        rows = torch.linalg.qr(turn).Q @ torch.linalg.qr(rows, mode="r").R
    everything = torch.ones(len(units.tau), dtype=torch.bool, device=rows.device)
    squares, _ = _Ellipsoid(rows.mT, units, everything, whole=True).descend(None, ROUGH + 5)
    return math.sqrt(float(squares)) * OUT


def row_bounds(
    columns: Float[Tensor, "columns outputs"],
    units: Units,
    known: Float[Tensor, " outputs"],
    memory: float = math.inf,
) -> Float[Tensor, " outputs"]:
    """The lesser of ``known`` and the norm bound of every output's row over the ball, where it takes so many bytes."""
    pixels = units.pixels
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 2**48, (pixels,), generator=generator).to(columns.device)
    keys = torch.cat(
        [
            ((columns[:pixels, some] != 0) * weights[:, None]).sum(0)
            for some in pieces(columns.shape[1], pixels)
        ]
    )
    _, inverse = torch.unique(keys, return_inverse=True)
    groups = inverse.argsort(stable=True).split(torch.bincount(inverse).tolist())
    seen = [units.reaching((columns[pixels:, outputs] != 0).any(1)) for outputs in groups]
    if sum(_work(pixels, reach, outputs) for reach, outputs in zip(seen, groups, strict=True)) > WORK:
        groups = (torch.arange(columns.shape[1], device=columns.device),)
        seen = [torch.stack(seen).any(0)]
        if _work(pixels, seen[0], groups[0]) > WORK:
            return known
    best, log = known.clone(), torch.full_like(units.tau, math.nan)
    for outputs, reach in zip(groups, seen, strict=True):
        if bool(reach.any()) and _bytes(pixels, reach, outputs) <= memory:
            ellipsoid = _Ellipsoid(columns[:, outputs], units, reach)
            squares, log[reach] = ellipsoid.descend(log[reach], STEPS)
            best[outputs] = torch.fmin(best[outputs], squares.sqrt() * OUT)
    return best


def _work(pixels: int, reach: Tensor, outputs: Tensor) -> float:
    size = pixels + int(reach.sum())
    return STEPS * size**2 * (size + 2.0 * len(outputs))


def _bytes(pixels: int, reach: Tensor, outputs: Tensor) -> float:
    """The quadratic form three times and its rows four times, at the worst moment."""
    size = pixels + int(reach.sum())
    return 8 * size * (3.0 * size + 4.0 * len(outputs))


class _Ellipsoid:
    """The ellipsoid of some units, for some rows: of each, or of all together (``whole``)."""

    def __init__(
        self, columns: Float[Tensor, "columns outputs"], units: Units, reach: Tensor, whole: bool = False
    ) -> None:
        chosen, pixels = reach.nonzero().squeeze(1), units.pixels
        feeds = units.feeds if len(chosen) == len(reach) else units.feeds[chosen]
        lit = (columns[:pixels] != 0).any(1) | (feeds[:, :pixels] != 0).any(0)
        lit[0] = True  # one pixel at least, so that the sum of l_i tau_i^2 stays below 1
        lit = lit.nonzero().squeeze(1)
        places = torch.cat([lit, pixels + chosen])
        missing = pixels + len(reach) - len(columns)
        columns = torch.cat([columns, columns.new_zeros(missing, columns.shape[1])])
        self.whole = whole
        self.rows, self.feeds, self.pixels = _turned(
            columns[places], feeds if len(places) == feeds.shape[1] else feeds[:, places], len(lit)
        )
        self.tau = units.tau[chosen]
        ends = torch.stack([reach[: own.stop].sum() for own in units.places]).tolist()
        self.places = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]
        self.depth = torch.cat([torch.full_like(self.tau[own], k + 1) for k, own in enumerate(self.places)])

    def start(self) -> Tensor:
        """About the weight that every unit alone would have; at least ``AHEAD`` times what later units take off it."""
        ahead = AHEAD if self.rows.shape[1] > 1 else ALONE
        n, size = self.pixels, self.rows[: self.pixels].square().sum()
        gain, came = self.rows[n:].square().sum(1), self.feeds.square().sum(1) + self.tau**2
        weight = (gain / (size * came).clamp(min=1e-300)).clamp(1e-20, 1e20).sqrt()
        taken = torch.zeros_like(weight)
        for own in reversed(self.places):
            weight[own] = torch.maximum(weight[own], ahead * taken[own])
            taken[: own.start] += weight[own] @ self.feeds[own, n : n + own.start].square()
        return weight.log()

    def descend(self, log: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
        """Squared bounds, of each row the least over a few steps, and the best log weights."""
        start = self.start()
        log = start if log is None else torch.where(log.isfinite(), log, start)
        best = torch.full_like(self.rows[0, : 1 if self.whole else None], math.inf)
        kept, step, share, value, taken = log, torch.zeros_like(log), 1.0, math.inf, 0
        for _ in range(TRIES):
            each = not self.whole or taken < ROUGH
            found = self.evaluate(log, each=each)
            if found is None:  # where earlier units weigh enough more than later ones it is always possible
                share = 0.5 * share
                log = log - 0.5 * self.depth if math.isinf(value) else kept + share * step
                continue
            squares, scale, change = found
            best = torch.fmin(best, squares)  # what is not a number proves nothing
            mean = float(_means(squares[None])[0])
            if mean < value:
                share = min(1.0, 1.3 * share) if taken else 1.0
                value, kept, step = mean, log + scale, change.clamp(-1.5, 1.5) * (1.0 if each else 0.5)
            else:
                share = 0.5 * share
            taken += 1
            if taken == steps:
                break
            log = kept + share * step
        return best, kept

    def evaluate(self, log: Tensor, *, each: bool) -> tuple[Tensor, float, Tensor] | None:
        """Squared bounds at the best multiple of the weights; its logarithm; the next step of the log weights.

        With the weights times c, Q = (I - c K0, -c C; -c CT, c W), and the units are eliminated once for all c.
        None where W is not positive definite.
        """
        weight, n = log.exp(), self.pixels
        form = self.feeds.new_zeros(n + len(weight), n + len(weight))
        for own in self.places:  # a unit is fed by earlier ones alone
            width = n + own.start
            rows = self.feeds[own, :width] * weight[own, None].sqrt()
            form[:width, :width].addmm_(rows.mT, rows)
        around, cross, middle = form[:n, :n], form[n:, :n], -form[n:, n:]
        middle.diagonal().add_(weight * (1 - SLACK))
        factor, info = torch.linalg.cholesky_ex(middle)
        if int(info):
            return None
        half = torch.linalg.solve_triangular(factor, torch.cat([cross, self.rows[n:]], 1), upper=False)
        inner, outer = half[:, :n], _Outer(half[:, n:])
        around = around + inner.mT @ inner
        around.diagonal().add_((weight * self.tau**2).sum())
        values, vectors = torch.linalg.eigh(around)
        top = max(float(values[-1]) * (1 + SLACK), 1e-30)
        if not math.isfinite(top):
            return None
        turned = vectors.mT @ (self.rows[:n] + inner.mT @ outer.rows)
        form_of = functools.partial(self._squares, top=top, values=values, turned=turned, outer=outer)
        shares = torch.tensor(SHARES, dtype=values.dtype, device=values.device)
        # many eigenvalues: the share that is best row by row
        rough = self.whole and outer.rows.shape[1] > SKETCH
        of = functools.partial(form_of, whole=self.whole and not rough)
        share, found = _best_share(shares, of, 0 if rough else ROUNDS)
        if rough:
            found = form_of(share[None], whole=True)
        squares = found.amin(0)
        c, left = _multiple(share, top, values)
        ends = self._ends(c, left, turned, outer, each)
        x = vectors @ ((turned @ ends) / left[:, None])
        w = torch.linalg.solve_triangular(factor.mT, inner @ x + outer.rows @ ends / c, upper=True)
        point = torch.cat([x, w])
        furthest = ((self.rows.mT @ point) * ends).sum()  # ‖x‖^2 at the best weights
        came = (self.feeds @ point).square().sum(1) + self.tau**2 * furthest
        went = w.square().sum(1)
        floor = 1e-12 * went.max() + 1e-300
        return squares, math.log(c), 0.5 * ((went + floor) / (came + floor)).log()

    def _squares(
        self, shares: Tensor, *, top: float, values: Tensor, turned: Tensor, outer: "_Outer", whole: bool
    ) -> Tensor:
        """With the weights at each share of their limit: h Q^-1 hT of every row h, or λ_max(H Q^-1 HT)."""
        c, left = _multiple(shares, top, values)
        if not whole:
            return left.reciprocal() @ turned.square() + outer.squares / c[:, None]
        grams = (turned.mT / left[:, None]) @ turned + outer.gram / c[:, None, None]
        return torch.linalg.eigvalsh(grams)[:, -1:].clamp(min=0)

    def _ends(self, c: Tensor, left: Tensor, turned: Tensor, outer: "_Outer", each: bool) -> Tensor:
        """Combinations of rows whose furthest points move the weights."""
        if not each:
            values, vectors = torch.linalg.eigh(turned.mT @ (turned / left[:, None]) + outer.gram / c)
            share = torch.softmax((values - values[-1]) / (0.05 * values[-1].abs() + 1e-300), 0)
            return (vectors * share.sqrt())[:, -EIGENVECTORS:]
        found = (turned.square() / left[:, None]).sum(0) + outer.squares / c
        scales = found.clamp(min=1e-300).rsqrt()
        if len(scales) <= SKETCH:
            return torch.diag(scales)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(scales), SKETCH, generator=generator, dtype=scales.dtype)
        return scales[:, None] * drawn.to(scales)


def _turned(rows: Tensor, feeds: Tensor, pixels: int) -> tuple[Tensor, Tensor, int]:
    """The same in coordinates of what is seen of the pixels, where these are fewer; the rest of them does nothing."""
    seen = torch.cat([feeds[:, :pixels], rows[:pixels].mT])
    if len(seen) >= pixels:
        return rows, feeds, pixels
    seen = torch.linalg.qr(seen.mT, mode="r").R.mT
    rows = torch.cat([seen[len(feeds) :].mT, rows[pixels:]])
    return rows, torch.cat([seen[: len(feeds)], feeds[:, pixels:]], 1), len(seen)


class _Outer:
    """What the units add to rows, and what is made of it once."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @functools.cached_property
    def squares(self) -> Tensor:
        """The squared norm of every row."""
        return self.rows.square().sum(0)

    @functools.cached_property
    def gram(self) -> Tensor:
        """All products of rows."""
        return self.rows.mT @ self.rows


def _multiple(share: Tensor, top: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """A multiple of the weights as a share of its limit, and what it leaves of every eigenvalue."""
    c = share / top
    return c, 1 - c[..., None] * (values + SLACK * top)


def _best_share(shares: Tensor, squares: Callable[[Tensor], Tensor], rounds: int) -> tuple[Tensor, Tensor]:
    """The share with the least squares in the geometric mean, and the squares at all that were tried.

    First some shares, then in so many rounds a finer grid of their log odds between the neighbours of the best one.
    """
    kept, odds, best = [], shares.logit(), shares[0]
    for _ in range(rounds + 1):
        kept.append(squares(odds.sigmoid()))
        at = int(_means(kept[-1]).argmin())
        best = odds[at]
        low, high = odds[max(at - 1, 0)], odds[min(at + 1, len(odds) - 1)]
        odds = low + (high - low) * torch.linspace(0, 1, POINTS, dtype=odds.dtype, device=odds.device)
    return best.sigmoid(), torch.cat(kept)


def _means(squares: Tensor) -> Tensor:
    """The logarithm's mean of every line; infinite for one that is no number."""
    return squares.clamp(min=1e-300).log().mean(1).nan_to_num(nan=math.inf)
