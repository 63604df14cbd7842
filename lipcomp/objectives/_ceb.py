"""The conditional entropy bottleneck for two views: C-SimCLR, and vMF noise at beta = 0.

    minimise beta I(X;Z|Y) - I(Y;Z)                                                                       (2.1)

with e(z|x) = vMF(mu(x), kappa_e), b(z|y) = vMF(mu(y), kappa_b), y the other view; the residual information bounds
I(X;Z|Y) from above (:mod:`lipcomp.objectives._residual`), InfoNCE bounds I(Y;Z) from below
(:mod:`lipcomp.objectives._nt_xent`). Lee et al., Compressive Visual Representations, NeurIPS 2021.

At the sampled residual, with z = w mu(x) + sqrt(1 - w^2) v, log e(z|x) is constant in mu(x), so

    gradient(beta) = gradient of NT-Xent at z, its positive pair weighted 1 + beta.

C-SimCLR is therefore SimCLR + vMF noise + a stronger positive, and a study needs both controls:
:class:`NoisySimCLR` has the noise alone, :class:`lipcomp.objectives.WeightedSimCLR` the weight alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from lipcomp.distributions import VonMisesFisher
from lipcomp.objectives._nt_xent import contrast
from lipcomp.objectives._objective import (
    Family,
    Gather,
    Loss,
    Number,
    Objective,
    check_rows,
    check_views,
    direction_metrics,
    full_precision,
    mean_directions,
    positive,
)
from lipcomp.objectives._residual import (
    Concentration,
    closed_excess,
    pair_weights,
    residual_floor,
    sampled_residual,
)

Draw = Callable[[VonMisesFisher], Tensor]


@dataclass(frozen=True)
class CSimCLR(Objective):
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
    family: ClassVar[Family] = "simclr"

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b beta")

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
        generator
            Source of the draws of z.
        gather, rank, distances
            See :mod:`lipcomp.objectives._objective`.
        kappa_e
            Concentrations of each example in both views, from a concentration head; instead of the constant.
        draw
            How z is drawn from e(z|x), called for view 1, then for view 2; the default is ``rsample``.
        """
        check_views(embedding_1, embedding_2)
        with full_precision(embedding_1):
            mu = mean_directions(embedding_1), mean_directions(embedding_2)
            kappas: tuple[Concentration, Concentration] = kappa_e or (self.kappa_e, self.kappa_e)
            z = draw_latents(mu, kappas, sampling=self.sampling, draw=draw, generator=generator)
            bounds, _ = contrast(self, z, mu, self.kappa_b, gather, rank)
            sides = ((0, 1), (1, 0))[: len(bounds)]
            pairs = [(z[x], mu[x], kappas[x], mu[y]) for x, y in sides]
            weights = pair_weights_of(self, distances, len(mu[0]), gather)
            compression, metrics = compress(pairs, self.kappa_b, self.closed_form, weights)
            i_yz = torch.stack([bound.mean() for bound in bounds])
            beta = getattr(self, "beta", 0.0)  # NoisySimCLR has none
            value = beta * compression.sum() - i_yz.sum() if beta else -i_yz.sum()
            return Loss(value, {**metrics, "i_yz": i_yz.detach().mean(), **direction_metrics(*mu)})


@dataclass(frozen=True)
class NoisySimCLR(Objective):
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
    family: ClassVar[Family] = "simclr"
    sampling: ClassVar[bool] = True
    closed_form: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b")

    __call__ = CSimCLR.__call__


def draw_latents(
    mu: tuple[Tensor, Tensor],
    kappas: tuple[Concentration, Concentration],
    *,
    sampling: bool,
    draw: Draw | None,
    generator: Generator | None,
) -> tuple[Tensor, Tensor]:
    """Latents of both views: drawn from e(z|x), or the mean direction."""
    for view, (direction, kappa) in enumerate(zip(mu, kappas, strict=True), 1):
        if isinstance(kappa, Tensor):
            check_rows(kappa, len(direction), f"kappa_e of view {view}")
    if not sampling:
        return mu
    one, two = (
        VonMisesFisher(direction, kappa, validate_args=False)
        for direction, kappa in zip(mu, kappas, strict=True)
    )
    if draw is not None:
        return draw(one), draw(two)
    return one.rsample(generator=generator), two.rsample(generator=generator)


def pair_weights_of(
    objective: Objective, distances: Tensor | None, rows: int, gather: Gather | None
) -> Float[Tensor, " batch"] | None:
    """The weights that ``pair_normalised`` asks for; None without it."""
    if not objective.needs_distances:
        return None
    if distances is None:
        raise ValueError(
            "distances must be given with pair_normalised=True: the pixel L2 distance of the two views of each image, "
            "shape (batch,)"
        )
    check_rows(distances, rows, "distances")
    return pair_weights(distances, gather)


def compress(
    pairs: list[tuple[Tensor, Tensor, Concentration, Tensor]],
    kappa_b: float,
    closed_form: bool,
    weights: Tensor | None,
) -> tuple[Float[Tensor, " directions"], dict[str, Tensor]]:
    """The (weighted) residual information of each direction, and its log without the weights.

    ``pairs`` holds (z, mu_e, kappa_e, mu_b) of each direction.
    """
    residuals, excess = [], []
    for z, mu_e, kappa_e, mu_b in pairs:
        floor = residual_floor(mu_e.shape[1], kappa_e, kappa_b)
        if closed_form:
            above = closed_excess(mu_e, kappa_e, mu_b, kappa_b)
            residuals.append(floor + above)
        else:
            residuals.append(sampled_residual(z, mu_e, kappa_e, mu_b, kappa_b))
            above = residuals[-1].detach() - floor
        excess.append(above.detach().mean())
    metrics = {
        "residual_information": torch.stack([residual.detach().mean() for residual in residuals]).mean(),
        "excess_residual": torch.stack(excess).mean().detach(),
    }
    if weights is not None:
        residuals = [weights * residual for residual in residuals]
    return torch.stack([residual.mean() for residual in residuals]), metrics
