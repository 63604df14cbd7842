"""The local Lipschitz constant of any map from images to vectors: sigma_max of its Jacobian, and its kin."""

from lipcomp.jacobian.dense import jacobian
from lipcomp.jacobian.frobenius import FrobeniusNorm, frobenius_norm
from lipcomp.jacobian.mean_value import MeanValueCheck, mean_value_check
from lipcomp.jacobian.products import Linearisation
from lipcomp.jacobian.spectral_norm import SpectralNorm, spectral_norm
