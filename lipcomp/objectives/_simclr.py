"""SimCLR and C-SimCLR, its compressed twin, and the two controls between them.

    minimise beta I(X;Z|Y) - I(Y;Z)                                                                       (2.1)

with e(z|x) = vMF(mu(x), kappa_e), b(z|y) = vMF(mu(y), kappa_b), y the other view. The residual information bounds
I(X;Z|Y) from above (:mod:`lipcomp.objectives._residual`), InfoNCE bounds I(Y;Z) from below. Lee et al., Compressive
Visual Representations, NeurIPS 2021.

    I(Y;Z) >= log K + E[log softmax_k b(z|y_k)]                                                           (2.3)

The normaliser of b cancels in the softmax, so a logit is kappa_b z.mu(y_k): one matrix product for the batch.
Candidates are the K mean directions of the other view; with the double batch also the K - 1 others of the same
view, 2K - 1 in all, which is then the constant under the logarithm.

SimCLR (Chen et al. 2020) is this at beta = 0, z = mu(x) and temperature 1/kappa_b (2.5). Its loss here is, as in the
official code of C-SimCLR, the sum of the two directions, each a mean over the batch: twice the usual mean over 2K rows.

At the sampled residual, with z = w mu(x) + sqrt(1 - w^2) v, log e(z|x) is constant in mu(x), so

    gradient(beta) = gradient of NT-Xent at z, its positive pair weighted 1 + beta.

C-SimCLR is therefore SimCLR + vMF noise + a stronger positive, and a study needs both controls:
:class:`NoisySimCLR` has the noise alone, :class:`WeightedSimCLR` the weight alone.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from lipcomp._arguments import checked
from lipcomp.distributions._divergence import half_chord_squared
from lipcomp.objectives._objective import (
    Draw,
    Gather,
    Loss,
    Number,
    Objective,
    check_views,
    direction_metrics,
    draw_latents,
    full_precision,
    inverse_temperature,
    mean_directions,
    positive,
)
from lipcomp.objectives._residual import compress, pair_weights_of


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


class Contrastive(Objective, family="simclr"):
    """Objectives of two views with an InfoNCE bound."""

    bidirectional: bool
    double_batch: bool

    def __call__(
        self,
        embedding_1: Float[Tensor, "batch dim"],
        embedding_2: Float[Tensor, "batch_2 dim_2"],
        *,
        generator: Generator | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        distances: Float[Tensor, " pairs"] | None = None,
        kappa_e: tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."]] | None = None,
        draw: Draw | None = None,
    ) -> Loss:
        """The loss of one batch of view pairs.

        Parameters
        ----------
        embedding_1, embedding_2
            The two views' embeddings, not normalised.
        generator, gather, rank, distances, kappa_e, draw
            See :mod:`lipcomp.objectives._objective`.
        """
        check_views(embedding_1, embedding_2)
        with full_precision(embedding_1):
            mu = mean_directions(embedding_1), mean_directions(embedding_2)
            z, kappas = draw_latents(self, mu, kappa_e, draw, generator)
            every = mu if gather is None else (gather(mu[0]), gather(mu[1]))
            first = rank * mu[0].shape[0] if gather is not None else 0
            sides = ((0, 1), (1, 0)) if self.bidirectional else ((0, 1),)
            bounds = [
                info_nce(
                    z[x], every[y], every[x] if self.double_batch else None, inverse_temperature(self), first
                )
                for x, y in sides
            ]
            i_yz = torch.stack([bound.mean() for bound in bounds])
            metrics: dict[str, Tensor] = {}
            beta = getattr(self, "beta", 0.0)
            if kappas:
                pairs = [(z[x], mu[x], kappas[x], mu[y]) for x, y in sides]
                weights = pair_weights_of(self, distances, len(mu[0]), gather)
                compression, metrics = compress(self, pairs, weights)
                value = beta * compression.sum() - i_yz.sum() if beta else -i_yz.sum()
            else:
                most = math.log(2 * len(every[0]) - 1 if self.double_batch else len(every[0]))
                value = (most - i_yz).sum()
                if beta:
                    value = (
                        value
                        + len(bounds) * beta * inverse_temperature(self) * half_chord_squared(*mu).mean()
                    )
            return Loss(value, {**metrics, "i_yz": i_yz.detach().mean(), **direction_metrics(*mu)})


@checked
@dataclass(frozen=True)
class SimCLR(Contrastive):
    """SimCLR's NT-Xent loss, summed over the directions.

    Parameters
    ----------
    temperature
        1/kappa_b.
    bidirectional
        Add the losses of view 1 against view 2 and of view 2 against view 1.
    double_batch
        Take negatives from both views.

    Raises
    ------
    ValueError
        If the temperature is not positive and finite; when called, if the two embeddings do not have one shape.

    Examples
    --------
    >>> loss = SimCLR(temperature=0.1)(torch.randn(8, 64), torch.randn(8, 64))
    >>> sorted(loss.metrics)
    ['alignment', 'i_yz', 'mean_resultant']
    """

    temperature: Number = 0.1
    bidirectional: bool = True
    double_batch: bool = True

    def __post_init__(self) -> None:
        positive(self, "temperature")


@checked
@dataclass(frozen=True)
class WeightedSimCLR(Contrastive):
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

    def __post_init__(self) -> None:
        positive(self, "temperature beta")


@checked
@dataclass(frozen=True)
class CSimCLR(Contrastive):
    """C-SimCLR: beta times the residual information, less the InfoNCE bound, summed over the directions.

    Parameters
    ----------
    kappa_e, kappa_b
        Concentrations of the forward and the backward encoder; 1/kappa_b is the temperature.
    beta
        Strength of the compression, >= 0.
    bidirectional, double_batch
        As in :class:`lipcomp.objectives.SimCLR`.
    sampling
        Draw z from e(z|x); if False, z is the mean direction, which inflates the sampled residual.
    closed_form
        Use the expectation of the residual over z instead of its value at z.
    pair_normalised
        Weight the residual of each pair by 1/Delta^2, with mean one; calls then need ``distances``.
    beta_schedule
        Schedule of beta over training, see :meth:`at`.

    Raises
    ------
    ValueError
        If a concentration is not positive and finite, or above 1e12, beta negative, or the schedule unknown; when
        called, as :class:`SimCLR`, and if ``pair_normalised`` has no ``distances``.

    Examples
    --------
    >>> objective = CSimCLR(kappa_e=1024.0, kappa_b=10.0, beta=1.0)
    >>> loss = objective(torch.randn(8, 64), torch.randn(8, 64))
    >>> sorted(loss.metrics)
    ['alignment', 'excess_residual', 'i_yz', 'mean_resultant', 'residual_information']
    """

    kappa_e: Number = 1024.0
    kappa_b: Number = 10.0
    beta: Number = 1.0
    bidirectional: bool = True
    double_batch: bool = True
    sampling: bool = True
    closed_form: bool = False
    pair_normalised: bool = False
    beta_schedule: str = "constant"

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b beta")


@checked
@dataclass(frozen=True)
class NoisySimCLR(Contrastive):
    """SimCLR with C-SimCLR's vMF noise and no compression: C-SimCLR at beta = 0, the control of the noise.

    Parameters
    ----------
    kappa_e, kappa_b, bidirectional, double_batch
        As in :class:`CSimCLR`.
    """

    kappa_e: Number = 1024.0
    kappa_b: Number = 10.0
    bidirectional: bool = True
    double_batch: bool = True
    sampling: ClassVar[bool] = True
    closed_form: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b")
