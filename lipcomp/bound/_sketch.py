"""What is kept of a stream of values too long to hold: a histogram for quantiles, and the leading few.

The histogram's bins are the leading 16 bits of a positive float32: its exponent and 8 bits of the mantissa, 256 bins
per octave, so that a quantile is known to 0.4% of itself and its rank exactly, whatever the range. Filling it is one
shift and one count.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

SHIFT = 15  # 8 bits of the mantissa remain
BINS = 1 << 16


class Histogram:
    """Counts of non-negative float32 values, on a scale of constant relative width."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Float[Tensor, "..."], zeros_left_out: int = 0) -> None:
        """Count values; so many of the zeros among them are no values."""
        bins = torch.bitwise_right_shift(values.contiguous().view(torch.int32), SHIFT).flatten()
        self.counts += torch.bincount(bins, minlength=BINS).cpu()
        self.counts[0] -= zeros_left_out

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """The value at rank q: the middle of its bin."""
        rank = min(self.total, max(1, math.ceil(q * self.total)))
        place = int(torch.searchsorted(self.counts.cumsum(0), rank))
        edges = (
            torch.tensor([place, place + 1], dtype=torch.int32).bitwise_left_shift(SHIFT).view(torch.float32)
        )
        return float(edges.double().mean()) if place else 0.0


class Leaders:
    """The pairs with the largest values so far."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.values = torch.zeros(0, dtype=torch.float32)
        self.found = torch.zeros((0, 2), dtype=torch.int64)

    def offer(
        self,
        values: Float[Tensor, "rows columns"],
        rows: Int64[Tensor, " rows"],
        columns: Int64[Tensor, " columns"],
    ) -> None:
        """Take what leads from a block of values; only rows that hold something better are sorted."""
        threshold = float(self.values[-1]) if len(self.values) == self.count else 0.0
        better = (values.amax(1) > threshold).nonzero().squeeze(1)
        if not len(better):
            return
        among = values[better]
        top, place = among.flatten().topk(min(self.count, among.numel()))
        place = place[top > threshold]
        width = among.shape[1]
        i, j = (
            rows[better[place.div(width, rounding_mode="floor")].cpu()],
            columns[place.remainder(width).cpu()],
        )
        self.values = torch.cat([self.values, top[top > threshold].cpu()])
        self.found = torch.cat([self.found, torch.stack([i, j], 1)])
        order = self.values.argsort(descending=True)[: self.count]
        self.values, self.found = self.values[order], self.found[order]

    def pairs(self) -> Int64[Tensor, "pairs 2"]:
        """The leading pairs, best first."""
        return self.found
