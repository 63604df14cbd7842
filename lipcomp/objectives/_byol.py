"""BYOL's regression of the slow target, and C-BYOL, its compressed twin.

BYOL (Grill et al. 2020): the online prediction q of one view regresses the target network's projection t of the
other, weight * |q/|q| - t/|t||^2, summed over the two directions, mean over the batch. ``weight`` is kappa_d / 2: the
regression is -log vMF(t; q, kappa_d) up to a constant.

C-BYOL (Lee et al. 2021) makes the prediction stochastic: the predictor's output is the mean direction of
e(z|x) = vMF(mu(x), kappa_e), a linear decoder maps z to what regresses the target, and beta times the residual
information against b(z|y) = vMF(head(target(y)), kappa_b) is added. The backward head is trained by this term alone;
the target network gets no gradient.

*Which view is y.* The official code scores z of view 1 under the b of the target's *same* view 1; the objective as
written has y the *other* view, which is also what the regression predicts. ``pairing`` offers both. ``same`` is the
default because every published C-BYOL number was trained with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    mean_directions,
    positive,
)
from lipcomp.objectives._residual import compress, pair_weights_of

Map = Callable[[Tensor], Tensor]


def regression(
    prediction: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Mean squared distance of the directions, 2 - 2 cos."""
    return 2 * half_chord_squared(mean_directions(prediction), mean_directions(target)).mean()


class Regression(Objective, family="byol"):
    """Objectives whose prediction of one view regresses the slow target's projection of the other."""

    weight: Number
    beta: Number
    pairing: str

    def __call__(
        self,
        online_1: Float[Tensor, "batch dim"],
        online_2: Float[Tensor, "batch_2 dim_2"],
        target_1: Float[Tensor, "target_batch target_dim"],
        target_2: Float[Tensor, "target_batch_2 target_dim_2"],
        *,
        decoder: Map | None = None,
        backward_head: Map | None = None,
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
        online_1, online_2
            The predictor's outputs h with mu = h/|h|, not normalised.
        target_1, target_2
            The target network's projections; treated as constants.
        decoder
            Map from z (BYOL: h) to a prediction of the target's projection, linear in C-BYOL; none for z itself.
        backward_head
            Map from the target's *normalised* projection to the mean direction of b(z|y); none for the projection
            itself. BYOL ignores it.
        generator, gather, rank, distances, kappa_e, draw
            See :mod:`lipcomp.objectives._objective`.
        """
        check_views(online_1, online_2, target_1, target_2)
        with full_precision(online_1):
            mu = mean_directions(online_1), mean_directions(online_2)
            targets = target_1.detach(), target_2.detach()
            z, kappas = draw_latents(self, mu, kappa_e, draw, generator)
            decode = decoder or _identity
            one, two = z if kappas else (online_1, online_2)
            byol = regression(decode(one), targets[1]) + regression(decode(two), targets[0])
            value = self.weight * byol
            metrics: dict[str, Tensor] = {}
            if kappas:
                b = backward(targets, backward_head or _identity, self.pairing)
                pairs = [(z[view], mu[view], kappas[view], b[view]) for view in (0, 1)]
                weights = pair_weights_of(self, distances, len(mu[0]), gather)
                compression, metrics = compress(self, pairs, weights)
                value = value + self.beta * compression.sum()
            return Loss(value, {**metrics, "byol": byol.detach() / 2, **direction_metrics(*mu)})


@checked
@dataclass(frozen=True)
class BYOL(Regression):
    """BYOL's regression.

    Parameters
    ----------
    weight
        kappa_d / 2, of each direction; 5 in the 300-epoch runs, 2 in the 1000-epoch ones.

    Raises
    ------
    ValueError
        If the weight is not positive and finite; when called, if the four embeddings do not have one shape.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.objectives import BYOL
    >>> h = torch.eye(8)
    >>> BYOL()(h, h, h, h).value  # predictions that equal their targets
    tensor(0.)
    """

    weight: Number = 5.0

    def __post_init__(self) -> None:
        positive(self, "weight")


@checked
@dataclass(frozen=True)
class CBYOL(Regression):
    """C-BYOL: BYOL's regression from a compressed latent.

    Parameters
    ----------
    kappa_e, kappa_b
        Concentrations of the forward and the backward encoder.
    beta
        Strength of the compression, >= 0.
    weight
        kappa_d / 2, as in :class:`BYOL`.
    pairing
        The view from which b(z|y) is computed: ``same`` (official code) or ``cross`` (the paper's equation).
    sampling, closed_form, pair_normalised, beta_schedule
        As in :class:`lipcomp.objectives.CSimCLR`.

    Raises
    ------
    ValueError
        If a concentration or the weight is not positive and finite, a concentration above 1e12, beta negative, or
        pairing or schedule unknown; when called, as :class:`BYOL`.

    Examples
    --------
    >>> from lipcomp.objectives import CBYOL
    >>> CBYOL(beta=0.1).to_dict()["beta"]
    0.1
    """

    kappa_e: Number = 16384.0
    kappa_b: Number = 10.0
    beta: Number = 1.0
    weight: Number = 5.0
    pairing: str = "same"
    sampling: bool = True
    closed_form: bool = False
    pair_normalised: bool = False
    beta_schedule: str = "constant"

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b weight beta")
        if self.pairing not in ("same", "cross"):
            raise ValueError(f"pairing must be same or cross, got {self.pairing!r}")


def backward(targets: tuple[Tensor, Tensor], head: Map, pairing: str) -> tuple[Tensor, Tensor]:
    """Mean directions of b(z|y) for both views' z."""
    # The official order: view 2 passes first, which the head's running statistics remember.
    b_2, b_1 = (
        mean_directions(head(mean_directions(target)), "backward_head's output")
        for target in reversed(targets)
    )
    return (b_1, b_2) if pairing == "same" else (b_2, b_1)


def _identity(x: Tensor) -> Tensor:
    return x
