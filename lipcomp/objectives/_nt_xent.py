"""SimCLR: the InfoNCE lower bound of I(Y;Z), and the control that carries C-SimCLR's extra pull without its noise.

    I(Y;Z) >= log K + E[log softmax_k b(z|y_k)],    b(z|y) = vMF(z; mu(y), kappa_b)                       (2.3)

The normaliser of b cancels in the softmax, so a logit is kappa_b z.mu(y_k): one matrix product for the batch.
Candidates are the K mean directions of the other view; with the double batch also the K - 1 others of the same
view, 2K - 1 in all, which is then the constant under the logarithm.

SimCLR (Chen et al. 2020) is this at z = mu(x) and temperature 1/kappa_b (2.5). Its loss here is, as in the official
code of C-SimCLR, the sum of the two directions, each a mean over the batch: twice the usual mean over 2K rows.

:class:`WeightedSimCLR` gives the positive pair the weight 1 + beta. With the sampled residual term C-SimCLR's
gradient is exactly this (at its noisy z): what compression adds beyond vMF noise is a stronger pull on the positive.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lipcomp.distributions._divergence import half_chord_squared
from lipcomp.objectives._objective import (
    Family,
    Gather,
    Loss,
    Number,
    Objective,
    check_views,
    direction_metrics,
    full_precision,
    mean_directions,
    positive,
)


def info_nce(
    query: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "all dim"],
    own: Float[Tensor, "all dim"] | None,
    concentration: Number,
    first: int = 0,
) -> Float[Tensor, " batch"]:
    """Each query's InfoNCE lower bound in nats, log K + log softmax of its positive (2.3).

    Parameters
    ----------
    query
        z, drawn from e(z|x) or mu(x).
    candidates
        Mean directions of the other view; the positive of query i is row ``first + i``.
    own
        Mean directions of the query's own view for the double batch (row ``first + i`` is left out); None without.
    concentration
        kappa_b, the inverse temperature.
    first
        Where this replica's rows begin among the candidates.

    Raises
    ------
    ValueError
        If there is no other example to contrast with.
    """
    rows, count = query.shape[0], candidates.shape[0]
    if count < 2:
        raise ValueError(
            "a contrastive loss needs at least two examples in the batch (over all replicas), got one: there is "
            "nothing to contrast with. Use a larger batch"
        )
    if not 0 <= first <= count - rows:
        raise ValueError(
            f"rows {first} to {first + rows} are not among the {count} gathered candidates; rank does not fit gather"
        )
    scaled = concentration * query
    logits = scaled @ candidates.T
    positives = logits.diagonal(first)[:rows]
    total = logits.logsumexp(1)
    if own is not None:
        others = scaled @ own.T
        others = others.diagonal_scatter(others.new_full((rows,), -math.inf), first)
        total, count = torch.logaddexp(total, others.logsumexp(1)), 2 * count - 1
    return math.log(count) + positives - total


def contrast(
    objective: Any,
    z: tuple[Tensor, Tensor],
    mu: tuple[Tensor, Tensor],
    concentration: Number,
    gather: Gather | None,
    rank: int,
) -> tuple[list[Float[Tensor, " batch"]], float]:
    """The bound of each example, for one direction or both, and the most it can be, log K or log(2K - 1)."""
    every = mu if gather is None else (gather(mu[0]), gather(mu[1]))
    first = rank * mu[0].shape[0] if gather is not None else 0
    directions = ((0, 1), (1, 0)) if objective.bidirectional else ((0, 1),)
    double = objective.double_batch
    bounds = [
        info_nce(z[x], every[y], every[x] if double else None, concentration, first) for x, y in directions
    ]
    return bounds, math.log(2 * len(every[0]) - 1 if double else len(every[0]))


@dataclass(frozen=True)
class SimCLR(Objective):
    """SimCLR's NT-Xent loss, summed over the directions.

    Parameters
    ----------
    temperature
        1/kappa_b.
    bidirectional
        Add the losses of view 1 against view 2 and of view 2 against view 1.
    double_batch
        Take negatives from both views.

    Examples
    --------
    >>> loss = SimCLR(temperature=0.1)(torch.randn(8, 64), torch.randn(8, 64))
    >>> sorted(loss.metrics)
    ['alignment', 'i_yz', 'mean_resultant']
    """

    temperature: Number = 0.1
    bidirectional: bool = True
    double_batch: bool = True
    family: ClassVar[Family] = "simclr"

    def __post_init__(self) -> None:
        positive(self, "temperature")

    def __call__(
        self,
        embedding_1: Float[Tensor, "batch dim"],
        embedding_2: Float[Tensor, "batch_2 dim_2"],
        *,
        generator: Generator | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        distances: Float[Tensor, " pairs"] | None = None,
    ) -> Loss:
        """The loss of one batch of view pairs. ``generator`` is ignored: nothing is drawn."""
        check_views(embedding_1, embedding_2)
        with full_precision(embedding_1):
            mu = mean_directions(embedding_1), mean_directions(embedding_2)
            bounds, most = contrast(self, mu, mu, 1 / self.temperature, gather, rank)
            value = sum(most - bound.mean() for bound in bounds)
            if beta := getattr(self, "beta", 0.0):
                value = value + len(bounds) * beta / self.temperature * half_chord_squared(*mu).mean()
            assert isinstance(value, Tensor)
            i_yz = torch.stack(bounds).detach().mean()
            return Loss(value, {"i_yz": i_yz, **direction_metrics(*mu)})


@dataclass(frozen=True)
class WeightedSimCLR(Objective):
    """SimCLR whose positive pair weighs 1 + beta: C-SimCLR's gradient at z = mu, the control without noise.

    loss = NT-Xent + (beta / temperature) (1 - mu_x.mu_y), summed over the directions.

    Parameters
    ----------
    beta
        Extra weight of the positive pair, >= 0.
    temperature, bidirectional, double_batch
        As in :class:`SimCLR`.
    beta_schedule
        Schedule of beta over training, see :meth:`at`.
    """

    beta: Number = 1.0
    temperature: Number = 0.1
    bidirectional: bool = True
    double_batch: bool = True
    beta_schedule: str = "constant"
    family: ClassVar[Family] = "simclr"

    def __post_init__(self) -> None:
        positive(self, "temperature beta")

    __call__ = SimCLR.__call__
