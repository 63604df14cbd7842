"""The local Lipschitz constant of any map from images to vectors: sigma_max of its Jacobian, and related norms."""

from lipcomp.jacobian._frobenius import frobenius_norm
from lipcomp.jacobian._products import Linearisation
from lipcomp.jacobian._spectral_norm import spectral_norm

__all__ = [
    "Linearisation",
    "frobenius_norm",
    "spectral_norm",
]
