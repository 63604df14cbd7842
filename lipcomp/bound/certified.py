"""Certified upper bounds of the Lipschitz constant, layer by layer; no certificate where a layer is not known.

One forward pass of a few images runs with every tensor that depends on them carrying an upper bound of its Lipschitz
constant in the images (L2 to L2). Each operation has a rule:

===============================================  ==========================================================
operation                                        factor
===============================================  ==========================================================
convolution, linear (with a batch norm folded)   its certified norm: :mod:`lipcomp.bound.layer_norms` (5.2)
ReLU, leaky ReLU, tanh, sorting, ...             1 (sigmoid 1/4, GELU 1.129, SiLU 1.1)
average; max pooling, padding by repetition      the exact norm; √(how often a number counts)
sum of two branches, concatenation               L + L', √(L² + L'²)
scaling and shifting by constants                the largest |scale|; 1
normalisation h / |h|                            (5.1) U / (‖h(x)‖ - U radius), on a ball, else none
===============================================  ==========================================================

An operation without a rule ends in "no certificate", with its name, never in a silent 1. Attention and layer norm have
no global constant, so a transformer has no certificate. The product over layers is far above the truth for deep
networks (2e7 times for a ResNet-18 was measured); it is tight for shallow and for 1-Lipschitz ones.

>>> import torch
>>> from lipcomp.bound import certified_bound
>>> certified_bound(torch.nn.Linear(3, 3, bias=False).requires_grad_(False).eval(), torch.rand(2, 3)).bound.shape
torch.Size([2])
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.bound.layer_rules import PROPERTIES, RULES
from lipcomp.bound.tracer import NoRule, Tracer
from lipcomp.jacobian.checks import check_images, check_map
from lipcomp.jacobian.products import Map


@dataclass(frozen=True)
class Certificate:
    """An upper bound of the Lipschitz constant over the ball around every image; infinite where there is none.

    Attributes
    ----------
    bound
        For every image, per pixel L2.
    radius
        L2 radius of the ball it holds on; infinite for a map without normalisation.
    reason
        Why there is no certificate (for all, or for the infinite ones), empty if there is.
    layers
        Every layer that had a factor, with it: for finding what makes the product large.
    """

    bound: Float[Tensor, " n"]
    radius: float
    reason: str = ""
    layers: list[tuple[str, float]] = field(default_factory=list, repr=False)


def certified_bound(fn: Map, images: Float[Tensor, "n ..."], radius: float = 0.0) -> Certificate:
    """Certify an upper bound of the Lipschitz constant of ``fn`` around every image.

    Parameters
    ----------
    fn
        A map of images to vectors, in evaluation mode.
    images
        Pixels; the bound of a normalised map depends on ‖h(x)‖ at each of them.
    radius
        L2 radius of the ball that the bound of a normalised map holds on; 0 bounds the local constant at the image.
        A map without normalisation is bounded everywhere.

    Raises
    ------
    ValueError
        If the radius is negative, or images or map are not fit.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and not negative, got {radius}")
    check_images(images, None)
    check_map(fn, images)
    n = len(images)
    tracer = Tracer(n, radius, RULES, PROPERTIES)
    tracked = tracer.start(images)
    try:
        with torch.no_grad(), tracer:
            output = fn(tracked)
        bound = tracer.bound_of(output)
    except NoRule as missing:
        infinite = torch.full((n,), math.inf, dtype=torch.float64)
        return Certificate(infinite, radius, f"no certificate: {missing}", tracer.layers)
    reason = ""
    if bool(bound.isinf().any()):
        count = int(bound.isinf().sum())
        reason = (
            f"no certificate for {count} of {n} images: |h| may vanish in the ball of radius {radius:g} (5.1)"
        )
    return Certificate(bound, radius if tracer.normalised else math.inf, reason, tracer.layers)
