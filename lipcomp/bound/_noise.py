"""Jacobians over a ball as a centre and what uncertain slopes may add: the algebra of the local certificate.

Over the ball the Jacobian of every tensor is J + sum_k G_k T_k (theory (5.4)): J and the G_k are known columns, T_k
stacks one row for every uncertain unit of an operation. A unit's row is e z' with |e| <= r and z' the true derivative
of its input, or merely a row of norm at most tau. Bounds of ‖T_k‖, also of T_k with its rows scaled to norm one, bound
the rows of every later tensor; the lesser one counts. :mod:`lipcomp.bound._ellipsoids` has tighter ones.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

UP = 1 + 1e-9  # outward: far above float64 rounding of the sums here
PIECE = 2**21  # numbers that are worked on at a time
COPIES = 9  # times as many are in use then, by a convolution in float64


def pieces(count: int, each: int) -> list[slice]:
    """So many things of ``each`` numbers in parts of bounded memory."""
    size = max(1, PIECE // max(each, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def norm_above(matrix: Float[Tensor, "a b"]) -> float:
    """The spectral norm or a little more: a power iteration's guess that a Cholesky factorisation proves."""
    if min(matrix.shape) == 0:
        return 0.0
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return gram_norm_above(gram)


def gram_norm_above(gram: Float[Tensor, "a a"]) -> float:
    """The root of the largest eigenvalue of a Gram matrix or a little more."""
    size = len(gram)
    if size <= 300:
        return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0)) * UP + _tiny(gram)
    vector = torch.ones(size, dtype=gram.dtype, device=gram.device)
    vector += torch.arange(size, device=gram.device) % 7 * 0.1
    largest = 0.0
    for _ in range(50):
        vector = gram @ vector
        largest = float(vector.norm())
        if largest == 0:
            break
        vector = vector / largest
    trace = float(gram.trace())
    for factor in (1.001, 1.01, 1.1, 1.5):
        level = largest * factor
        if level == 0 or level >= trace:
            break
        shifted = -gram
        shifted.diagonal().add_(level * (1 - 1e-9))
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return math.sqrt(level) * UP
    return math.sqrt(max(trace, 0.0)) * UP


def _tiny(gram: Tensor) -> float:
    return 1e-8 * math.sqrt(max(float(gram.diagonal().max()), 0.0)) * 1e-2


@dataclass
class Noise:
    """The uncertain units of one operation: one row of T each."""

    before: "list[Noise]"
    start: int  # of its columns
    pixels: int
    largest: Float[Tensor, " units"]  # norm bound of each row of T
    rows: Float[Tensor, "units columns"] | None = None  # of the inputs, in the columns before it
    halfwidth: Float[Tensor, " units"] | None = None

    def __len__(self) -> int:
        return len(self.largest)

    @cached_property
    def _parts(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """What the pixels and what earlier noise adds to ‖T‖, and to ‖T‖ with its rows divided by their bounds."""
        if self.rows is None or self.halfwidth is None:
            return None
        plain = self.rows * self.halfwidth[:, None]
        scaled = plain / self.largest[:, None]
        return _block_parts(plain, self.before, self.pixels), _block_parts(scaled, self.before, self.pixels)

    @cached_property
    def whole(self) -> float:
        """Bound of ‖T‖."""
        frobenius = float(self.largest.norm()) * UP
        return frobenius if self._parts is None else min(frobenius, sum(self._parts[0]))

    @cached_property
    def scaled(self) -> float:
        """Bound of ‖T‖ with its rows divided by their norm bounds."""
        frobenius = math.sqrt(len(self)) * UP
        return frobenius if self._parts is None else min(frobenius, sum(self._parts[1]))


def block_norm(rows: Float[Tensor, "outputs columns"], noises: list[Noise], pixels: int) -> float:
    """(5.4) ‖J‖ + sum_k ‖G_k‖ ‖T_k‖."""
    return sum(_block_parts(rows, noises, pixels)) * UP


def _block_parts(rows: Tensor, noises: list[Noise], pixels: int) -> tuple[float, float]:
    total = 0.0
    for noise in noises:
        part = rows[:, noise.start : noise.start + len(noise)]
        if part.shape[1] == 0:
            break
        if bool(part.any()):
            total += min(norm_above(part) * noise.whole, norm_above(part * noise.largest) * noise.scaled)
    return norm_above(rows[:, :pixels]), total * UP


def row_norms(
    columns: Float[Tensor, "columns outputs"], noises: list[Noise], pixels: int
) -> Float[Tensor, " outputs"]:
    """Norm bound of every output's row over the ball."""
    some = [_row_norms(columns[:, part], noises, pixels) for part in pieces(columns.shape[1], len(columns))]
    return torch.cat(some) if some else columns.new_zeros(0)


def _row_norms(columns: Tensor, noises: list[Noise], pixels: int) -> Tensor:
    total = columns[:pixels].square().sum(0).sqrt()
    for noise in noises:
        part = columns[noise.start : noise.start + len(noise)]
        if part.shape[0] == 0:
            break
        absolute = part.abs()
        touched = absolute.amax(0) > 0
        if not bool(touched.any()):
            continue
        weighted = absolute[:, touched] * noise.largest[:, None]
        plain, scaled = part[:, touched].square().sum(0).sqrt(), weighted.square().sum(0).sqrt()
        best = torch.minimum(torch.minimum(plain * noise.whole, scaled * noise.scaled), weighted.sum(0))
        total[touched] += best
    return total * UP
