"""Heads: the layers between a backbone's features and the parameters of a latent.

=====================  ==========================================================================
projector              Linear, BN, ReLU, Linear: features -> the embedding that is normalised to mu
predictor              the same shape, BYOL's q: online projection -> prediction of the target's
stochastic predictor   C-BYOL's q: predictor -> mu, z ~ vMF(mu, kappa_e), then a linear decoder
concentration head     features -> kappa(x), bounded
=====================  ==========================================================================

The shapes are the official code's: no bias before a batch norm, neither bias nor batch norm on the last layer.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLPHead(nn.Sequential):
    """Linear (no bias), BatchNorm, ReLU, Linear (no bias): projector and predictor alike."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, hidden_features, bias=False),
            nn.BatchNorm1d(hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, out_features, bias=False),
        )
        self.out_features = out_features


class LatentDecoder(nn.Linear):
    """The linear map that C-BYOL puts after its latent: z in S^(d-1) -> a prediction of the target's embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, bias=False)


class ConcentrationHead(nn.Module):
    """A concentration kappa(x) for every image, bounded on both sides.

    log kappa = log lo + (log hi - log lo) sigmoid(w . features + b): smooth, positive, never beyond the bounds, so
    that neither log C_d(kappa) nor the sampler can leave its domain whatever the features do. It starts at
    ``initial`` for every image, since w = 0.

    Parameters
    ----------
    in_features
        Width of the features.
    minimum, maximum
        Bounds of the concentration, 0 < minimum < maximum.
    initial
        Where it starts, between the bounds; their geometric mean when not given.

    Raises
    ------
    ValueError
        If the bounds are not ordered or ``initial`` is not between them.
    """

    def __init__(
        self, in_features: int, minimum: float = 1.0, maximum: float = 1e5, initial: float | None = None
    ) -> None:
        super().__init__()
        if not 0 < minimum < maximum < math.inf:
            raise ValueError(
                f"need 0 < minimum < maximum, both finite; got minimum={minimum}, maximum={maximum}"
            )
        start = math.sqrt(minimum * maximum) if initial is None else initial
        if not minimum < start < maximum:
            raise ValueError(f"initial must lie strictly between {minimum} and {maximum}, got {initial}")
        self.low, self.high = math.log(minimum), math.log(maximum)
        self.linear = nn.Linear(in_features, 1)
        share = (math.log(start) - self.low) / (self.high - self.low)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log(share / (1 - share)))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """The concentration of every image."""
        share = torch.sigmoid(self.linear(features).squeeze(-1).float())
        return torch.exp(self.low + (self.high - self.low) * share)


def mean_direction(embedding: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Mu = h / |h|, of norm one however small h is. A zero vector stays zero: the measuring code counts it out."""
    return F.normalize(embedding, dim=-1, eps=1e-30 if embedding.dtype == torch.float64 else 1e-18)
