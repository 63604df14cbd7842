"""Supervised CEB with vMF class encoders, so that a supervised pair can be studied by the same tools.

Y is the label. Each class has a mean direction m_y (a learned row of ``class_directions``):

    e(z|x) = vMF(mu(x), kappa_e),    b(z|y) = vMF(m_y, kappa_b),

    loss = beta E[log e(z|x) - log b(z|y)] - E[log softmax_y b(z|y)].

The second term is the classifier that the class encoders make: since they share kappa_b it is the cosine softmax at
inverse temperature kappa_b, and its negative is H(Y) less a lower bound of I(Y;Z) (Fischer 2020, section 2.3, there
with a free-standing classifier). :class:`CosineClassifier` is the uncompressed twin: z = mu(x), beta = 0.

>>> classes = ClassEncoder(10, 64)
>>> loss = SupervisedCEB(beta=0.1)(torch.randn(32, 64), torch.randint(10, (32,)), classes.directions)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lipcomp._arguments import checked
from lipcomp.objectives._objective import (
    Draw,
    Gather,
    Loss,
    Number,
    Objective,
    draw_latents,
    full_precision,
    inverse_temperature,
    mean_directions,
    positive,
)
from lipcomp.objectives._residual import compress


class ClassEncoder(nn.Module):
    """The mean directions m_y of b(z|y), one per class, uniform on the sphere at first; normalised where they are used.

    Parameters
    ----------
    classes, dim
        Number of classes, and d.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        if classes < 2 or dim < 2:
            raise ValueError(f"need at least 2 classes and 2 dimensions, got {classes} and {dim}")
        self.directions = nn.Parameter(F.normalize(torch.randn(classes, dim), dim=1))

    def forward(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """m_y of each label."""
        return F.normalize(self.directions, dim=1)[labels]


class Classification(Objective, family="supervised"):
    """Objectives of labels and class directions."""

    beta: Number

    def __call__(
        self,
        embedding: Float[Tensor, "batch dim"],
        labels: Int[Tensor, " labels"],
        class_directions: Float[Tensor, "classes class_dim"],
        *,
        generator: Generator | None = None,
        gather: Gather | None = None,
        rank: int = 0,
        distances: Float[Tensor, " pairs"] | None = None,
        kappa_e: Shaped[Tensor, "..."] | None = None,
        draw: Draw | None = None,
    ) -> Loss:
        """The loss of one batch.

        Parameters
        ----------
        embedding
            Not normalised.
        labels
            Class of each example.
        class_directions
            m_y, not necessarily normalised.
        generator, kappa_e, draw
            See :mod:`lipcomp.objectives._objective`.
        gather, rank, distances
            Unused: the classes are on every replica, and there is no second view.
        """
        check_classes(embedding, labels, class_directions)
        with full_precision(embedding):
            mu, classes = mean_directions(embedding), mean_directions(class_directions, "class_directions")
            (z,), kappas = draw_latents(self, (mu,), None if kappa_e is None else (kappa_e,), draw, generator)
            value = entropy = F.cross_entropy(inverse_temperature(self) * z @ classes.T, labels)
            metrics: dict[str, Tensor] = {}
            if kappas:
                pairs = [(z, mu, kappas[0], classes[labels])]
                compression, metrics = compress(self, pairs, None)
                value = entropy + self.beta * compression.sum()
            return Loss(value, {**metrics, **_classifier_metrics(entropy, z, classes, labels)})


@checked
@dataclass(frozen=True)
class SupervisedCEB(Classification):
    """The conditional entropy bottleneck against class encoders.

    Parameters
    ----------
    kappa_e, kappa_b
        Concentrations of the forward encoder and of the class encoders.
    beta
        Strength of the compression, >= 0.
    sampling, closed_form, beta_schedule
        As in :class:`lipcomp.objectives.CSimCLR`.
    """

    kappa_e: Number = 1024.0
    kappa_b: Number = 10.0
    beta: Number = 1.0
    sampling: bool = True
    closed_form: bool = False
    beta_schedule: str = "constant"

    def __post_init__(self) -> None:
        positive(self, "kappa_e kappa_b beta")


@checked
@dataclass(frozen=True)
class CosineClassifier(Classification):
    """The uncompressed twin of :class:`SupervisedCEB`: a cosine softmax on the mean direction.

    Parameters
    ----------
    temperature
        1/kappa_b.
    """

    temperature: Number = 0.1

    def __post_init__(self) -> None:
        positive(self, "temperature")


def check_classes(embedding: Tensor, labels: Tensor, class_directions: Tensor) -> None:
    """Refuse class directions of another dimension, and labels that are not one per example."""
    if labels.shape != embedding.shape[:1]:
        raise ValueError(f"labels must have shape ({embedding.shape[0]},), got {tuple(labels.shape)}")
    if class_directions.ndim != 2 or class_directions.shape[1:] != embedding.shape[1:]:
        raise ValueError(
            f"class_directions must have shape (classes, d), got {tuple(class_directions.shape)} "
            f"and embeddings {tuple(embedding.shape)}"
        )


@torch.no_grad()
def _classifier_metrics(entropy: Tensor, z: Tensor, classes: Tensor, labels: Tensor) -> dict[str, Tensor]:
    right = (z @ classes.T).argmax(1) == labels
    return {
        "i_yz": math.log(len(classes)) - entropy.detach(),
        "accuracy": right.to(z.dtype).mean(),
        "alignment": (z * classes[labels]).sum(1).mean(),
    }
