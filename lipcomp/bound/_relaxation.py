"""The largest norm of a Jacobian over all uncertain slopes: a semidefinite relaxation on the uncertain units alone.

Over the ball the Jacobian is y = J x + G w with w_i = e_i (B_i x + M_i w), |e_i| <= r_i, for units that have a source,
and w_i = t_i x, |t_i| <= tau_i, for the others (theory (5.4)). For any positive weights l, with |e| <= r,

    0 <= sum_i l_i (r_i^2 (B_i x + M_i w)^2 - w_i^2),     respectively     0 <= sum_i l_i (tau_i^2 ‖x‖^2 - w_i^2),

so ‖y‖^2 <= gamma^2 ‖x‖^2 as soon as gamma^2 ‖x‖^2 - ‖J x + G w‖^2 - (those sums) is a nonnegative form. w is
eliminated by a Cholesky factorisation, which proves that this is possible; gamma^2 is then the largest eigenvalue of a
form in x. Its derivative in l_i is r_i^2 z_i^2 - w_i^2 at the eigenvector, and a dozen steps in log l come within some
percent of the best. Every l gives a bound; the block form of (5.4) is where the descent starts.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.bound._noise import Noise, norm_above

SLACK = 1e-8  # of every weight: far above what rounding does to a factorisation
EIGENVECTORS = 8


def relaxed_norm(
    rows: Float[Tensor, "outputs columns"], noises: list[Noise], pixels: int, steps: int = 12
) -> float:
    """Bound of the norm of a matrix of columns over the ball."""
    jacobian = rows[:, :pixels]
    if not noises:
        return norm_above(jacobian)
    system = _System(rows, noises, pixels)
    log = system.start()
    best, step = math.inf, 0.3
    kept, mean, square, taken = log.clone(), torch.zeros_like(log), torch.zeros_like(log), 0
    for _ in range(steps + 12):
        if taken >= steps:
            break
        found = system.evaluate(log)
        if found is None:
            if math.isinf(best):  # earlier units weigh more: always possible in the end
                log = log + 0.5 * system.depth
            else:
                log, step = kept + 0.3 * (log - kept), step / 2
            continue
        value, gradient = found
        if value < best:
            best, kept = value, log.clone()
        taken += 1
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        ahead = mean / (1 - 0.8**taken)
        size = (square / (1 - 0.95**taken)).sqrt() + 1e-4 / len(log)
        log = log - step * (1 - (taken - 1) / steps) * (ahead / size).clamp(-3, 3)
    return math.sqrt(best) * (1 + 1e-9)


class _System:
    """The matrices of one relaxation."""

    def __init__(self, rows: Tensor, noises: list[Noise], pixels: int) -> None:
        units = sum(len(noise) for noise in noises)
        new = rows.new_zeros
        self.jacobian = rows[:, :pixels]
        gains = rows[:, pixels:]
        self.gains = torch.cat([gains, new(len(rows), units - gains.shape[1])], 1)
        self.pixels, self.noises = pixels, noises
        self.inputs, self.earlier = new(units, pixels), new(units, units)
        self.halfwidth, self.tau = new(units), new(units)
        self.depth = new(units)
        for place, noise in enumerate(noises):
            own = slice(noise.start - pixels, noise.start - pixels + len(noise))
            self.depth[own] = len(noises) - place
            if noise.rows is None or noise.halfwidth is None:
                self.tau[own] = noise.largest
                continue
            self.inputs[own] = noise.rows[:, :pixels]
            self.earlier[own, : noise.rows.shape[1] - pixels] = noise.rows[:, pixels:]
            self.halfwidth[own] = noise.halfwidth
        self.out_gram = self.gains.mT @ self.gains
        self.cross = self.gains.mT @ self.jacobian
        self.square = self.jacobian.mT @ self.jacobian

    def start(self) -> Tensor:
        """Log weights from the block form: gain towards the output times the total, over what comes in."""
        scaled = self.earlier * self.halfwidth[:, None]
        own = [slice(n.start - self.pixels, n.start - self.pixels + len(n)) for n in self.noises]
        gain = [_near(self.gains[:, units]) for units in own]
        for k in reversed(range(len(own))):
            gain[k] += sum(_near(scaled[own[j], own[k]]) * gain[j] for j in range(k + 1, len(own)))
        came = [
            max(
                _near(self.inputs[units] * self.halfwidth[units, None]), float(self.tau[units].norm()), 1e-300
            )
            for units in own
        ]
        total = _near(self.jacobian) + sum(g * c for g, c in zip(gain, came, strict=True))
        log = torch.zeros(len(self.tau), dtype=self.tau.dtype, device=self.tau.device)
        for units, g, c in zip(own, gain, came, strict=True):
            log[units] = math.log(max(g * total / c, 1e-200))
        return log

    def evaluate(self, log: Tensor) -> tuple[float, Tensor] | None:
        """gamma^2 and its gradient in the log weights; None where the weights prove nothing."""
        weight = log.exp()
        into = weight * self.halfwidth**2
        middle = -self.out_gram
        for noise in self.noises:  # a unit is fed by earlier ones alone
            start = noise.start - self.pixels
            own, width = slice(start, start + len(noise)), (noise.rows is not None) * start
            rows = self.earlier[own, :width] * into[own, None].sqrt()
            middle[:width, :width].addmm_(rows.mT, rows, alpha=-1)
        middle.diagonal().add_(weight * (1 - SLACK))
        factor, info = torch.linalg.cholesky_ex(middle)
        if int(info):
            return None
        mixed = self.earlier.mT @ (self.inputs * into[:, None]) + self.cross
        half = torch.linalg.solve_triangular(factor, mixed, upper=False)
        form = self.square + self.inputs.mT @ (self.inputs * into[:, None]) + half.mT @ half
        form.diagonal().add_((weight * self.tau**2).sum())
        values, vectors = torch.linalg.eigh(form)
        top = float(values[-1])
        if not math.isfinite(top) or top <= 0:
            return None if not math.isfinite(top) else (0.0, torch.zeros_like(log))
        share = torch.softmax((values[-EIGENVECTORS:] - top) / (0.02 * top), 0)
        x = vectors[:, -EIGENVECTORS:]
        w = torch.linalg.solve_triangular(factor.mT, half @ x, upper=True)
        z = self.inputs @ x + self.earlier @ w
        change = (self.halfwidth**2)[:, None] * z * z + (self.tau**2)[:, None] - w * w
        return top, (change * share).sum(1) * weight / top


def _near(matrix: Tensor) -> float:
    """About the spectral norm: where a descent starts proves nothing."""
    if min(matrix.shape) == 0:
        return 0.0
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(10):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm().clamp(min=1e-300)
    return float((matrix @ vector).norm())
