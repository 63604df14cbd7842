"""The local Lipschitz constant of any map from images to vectors: sigma_max of its Jacobian, and related norms."""

from lipcomp.jacobian._dense import jacobian
from lipcomp.jacobian._frobenius import FrobeniusNorm, frobenius_norm
from lipcomp.jacobian._mean_value import MeanValueCheck, mean_value_check
from lipcomp.jacobian._products import Linearisation
from lipcomp.jacobian._spectral_norm import SpectralNorm, spectral_norm
