"""Latent distributions: von Mises-Fisher densities on the sphere, stable and differentiable."""

from lipcomp.distributions._bessel import (
    log_bessel_i,
    log_normalizer,
    log_sphere_area,
    mean_resultant_deficit,
    mean_resultant_length,
    mean_resultant_slope,
)
from lipcomp.distributions._divergence import (
    constant_floor,
    divergence_floor,
    divergence_from_uniform,
    half_chord_squared,
    vmf_divergence,
)
from lipcomp.distributions._von_mises_fisher import HypersphericalUniform, VonMisesFisher
