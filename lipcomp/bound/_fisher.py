"""The Fisher information of e(z|x) in the pixels: F = kappa A Jᵀ J (theory (4.2)), from the Jacobian's norms.

    trace F = kappa A ‖J‖_F²        largest eigenvalue = kappa A sigma_max²        (concentration the same for all x)

in nats per squared pixel L2. Its square root along a direction is what the second-moment bound (3.3) tends to as a pair
closes in, and half its value times Delta² the divergence KL of a close pair (4.3).
"""

from jaxtyping import Float
from torch import Tensor

from lipcomp.bound._lower import check_concentration
from lipcomp.distributions._bessel import mean_resultant_length


def fisher_trace(
    frobenius_squared: Float[Tensor, " n"], dim: int, concentration: float
) -> Float[Tensor, " n"]:
    """Trace of F at every image, from ‖J‖_F²; a standard error goes through the same factor.

    Raises
    ------
    ValueError
        If the concentration is not positive, or above 1e12.
    """
    kappa = check_concentration(concentration, 1)
    return float(kappa * mean_resultant_length(dim, kappa)) * frobenius_squared
