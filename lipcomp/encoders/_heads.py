"""Heads: the layers between a backbone's features and the parameters of a latent.

=====================  ==========================================================================
projector              Linear, BN, ReLU, Linear: features -> the embedding that is normalised to mu
predictor              the same shape, BYOL's q: online projection -> prediction of the target's
stochastic predictor   C-BYOL's q: predictor -> mu, z ~ vMF(mu, kappa_e), then a linear decoder
=====================  ==========================================================================

The shapes are the official code's: no bias before a batch norm, neither bias nor batch norm on the last layer.
"""

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


def mean_direction(embedding: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Mu = h / |h|, of norm one where |h|^2 can be held. A zero vector stays zero: the measuring code counts it out."""
    return F.normalize(embedding, dim=-1, eps=1e-150 if embedding.dtype == torch.float64 else 1e-18)
