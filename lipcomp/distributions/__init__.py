"""Latent distributions: von Mises-Fisher densities on the sphere, stable and differentiable."""

from lipcomp.distributions._von_mises_fisher import VonMisesFisher

__all__ = [
    "VonMisesFisher",
]
