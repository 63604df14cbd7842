"""Bessel functions as the von Mises-Fisher density needs them: log I, the ratio A and its derivatives, log C.

With nu = d/2 - 1 (theory, section 1),

    A_d(kappa)     = I_{nu+1}(kappa) / I_nu(kappa)                                   mean resultant length
    log C_d(kappa) = nu log kappa - (d/2) log 2 pi - log I_nu(kappa)                 log normaliser
    F_d(kappa)     = log 0F1(; d/2; kappa^2 / 4) = log C_d(0) - log C_d(kappa)       growth from the uniform density

How: the order is raised to M = nu + n >= 24, where Olver's expansion holds to the last digit for every kappa >= 0
(:mod:`lipcomp.distributions._olver`), and brought back by n steps of recurrence. Every step is written so that it
subtracts nothing that cancels:

    r_nu      = kappa / (a + kappa r_{nu+1})                    a = 2 (nu + 1)       the ratio
    1 - r_nu  = (a - kappa (1 - r_{nu+1})) / (a + kappa r_{nu+1})                    its distance from 1
    r_nu'     = (r_nu / kappa)^2 (a - kappa^2 r_{nu+1}')                             its derivative
    F_nu      = F_{nu+1} + log(1 + kappa r_{nu+1} / a)                               all terms positive

From d = 50 on log C is summed in two words (:mod:`lipcomp.distributions._extended`), so that it is right in its last
digits where it crosses zero too.

The textbook forms A' = 1 - A^2 - (d - 1) A / kappa and log I lose every digit near kappa = 1e7 and underflow at
large d. n depends on d alone, so no loop looks at the data and nothing waits for the device.

Precision: the arithmetic is float64 whatever the argument's dtype (a batch has few concentrations), and the result
comes back in the argument's dtype. Gradients are the analytic derivatives; every function can be differentiated
twice, and lives under ``torch.func``.

>>> kappa = torch.tensor(1024.0, dtype=torch.float64)
>>> mean_resultant_length(128, kappa), log_normalizer(128, kappa)
(tensor(0.9399, dtype=torch.float64), tensor(-698.6185, dtype=torch.float64))
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lipcomp.distributions._extended import log_normalizer_lead, log_uniform_density
from lipcomp.distributions._olver import SMALLEST_ORDER, expansion

LARGEST_DIM = 1 << 20
LARGEST_CONCENTRATION = 1e12  # beyond 1e13 the products of the recurrence overflow in small dimensions


def log_normalizer(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log C_d(kappa), the log normaliser of the vMF density on S^(d-1) (1.1); the uniform density at 0 (1.6).

    Parameters
    ----------
    dim
        d >= 2, of the space around the sphere.
    concentration
        kappa, from 0 to 1e12.

    Raises
    ------
    ValueError
        If d < 2, or a concentration is negative, above 1e12 or not finite (on an accelerator such values are not
        looked at, since that would wait for the device; the result is then no number to use).

    Notes
    -----
    Relative error below 1e-14 in float64 for d = 2 ... 4096 and kappa = 0 ... 1e7; absolute where it crosses zero.
    """
    return _evaluate(_log_normalizer, dim, concentration)


def mean_resultant_length(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """A_d(kappa) = |E z| in [0, 1) (1.2). Raises as :func:`log_normalizer`."""
    return _evaluate(_ratio, dim, concentration)


def mean_resultant_deficit(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """1 - A_d(kappa), with every digit where A is close to 1. Raises as :func:`log_normalizer`."""
    return _evaluate(_deficit, dim, concentration)


def mean_resultant_slope(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """A_d'(kappa), which is also the variance of mu.z, in (0, 1/d]. Raises as :func:`log_normalizer`."""
    return _evaluate(_slope, dim, concentration)


def growth(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """F_d(kappa) = log C_d(0) - log C_d(kappa), accurate relative to itself down to kappa = 0."""
    return _evaluate(_growth, dim, concentration)


def scaled_log_normalizer(dim: int, concentration: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log C_d(kappa) + kappa, the log density at the mode: small where log C is about -kappa."""
    return _evaluate(_scaled_log_normalizer, dim, concentration)


def log_sphere_area(dim: int) -> float:
    """Log of the area of S^(d-1), which is -log C_d(0) (1.6)."""
    return -sum(log_uniform_density(check_dim(dim)))


def collapse(concentration: Tensor) -> Tensor:
    """One number where a tensor is one number, expanded: a batch then costs one evaluation."""
    if concentration.requires_grad or concentration.numel() < 2 or any(concentration.stride()):
        return concentration
    return concentration[(0,) * concentration.ndim]


def _evaluate(function: Callable[[int, Tensor], Tensor], dim: int, concentration: Tensor) -> Tensor:
    x = check_concentration(concentration)
    return function(check_dim(dim), collapse(x)).expand(x.shape)


# What users pass.


def check_dim(dim: int) -> int:
    """Raise an error unless ``dim`` is a valid dimension."""
    if int(dim) != dim or not 2 <= dim <= LARGEST_DIM:
        raise ValueError(f"dim must be an integer from 2 (a circle) to {LARGEST_DIM}, got {dim}")
    return int(dim)


def check_concentration(concentration: Tensor, name: str = "concentration") -> Tensor:
    """Refuse a concentration outside [0, 1e12], where looking costs no wait for a device."""
    if not concentration.is_floating_point():
        raise ValueError(f"{name} must be a floating point tensor, got {concentration.dtype}; use .float()")
    if concentration.device.type == "cpu" and not torch.compiler.is_compiling():
        try:
            fits = (concentration >= 0) & (concentration <= LARGEST_CONCENTRATION)
            wrong = not bool(fits.all())
        except RuntimeError:  # inside torch.func.vmap no value can be looked at
            return concentration
        if wrong:
            bad = concentration.detach()[~fits]
            raise ValueError(
                f"{name} must be finite and not negative, got {bad[0].item():g} ({bad.numel()} of "
                f"{concentration.numel()} values are not, or above {LARGEST_CONCENTRATION:g}); clamp it, or look where "
                f"it is computed"
            )
    return concentration


# The expansion and the recurrences; all arguments float64. They write in place where they may: at 100,000
# concentrations the time goes to fresh memory.


def _horner(coefficients: Sequence[float], p: Tensor) -> Tensor:
    total = torch.full_like(p, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total.mul_(p).add_(coefficient)
    return total


class _Debye:
    """z, s, p and the order's polynomials at the raised order M, and the a of each step down to nu."""

    def __init__(self, dim: int, x: Tensor) -> None:
        nu = dim / 2 - 1
        steps = max(0, math.ceil(SMALLEST_ORDER - nu))
        self.x, self.order = x, nu + steps
        self.down = [2 * (nu + j + 1) for j in reversed(range(steps))]
        self.polynomials = expansion(self.order)
        self.z = x / self.order
        self.s = torch.sqrt(1 + self.z * self.z)
        self.p = 1 / self.s

    def ratio(self) -> Tensor:
        """The ratio at the raised order."""
        q = _horner(self.polynomials.correction, self.p) * self.p * self.p
        return self.z * (1 / (1 + self.s) - q)

    def deficit(self) -> Tensor:
        """1 - r at the raised order."""
        q = _horner(self.polynomials.correction, self.p) * self.p * self.p
        return (1 + 1 / (self.s + self.z)) / (1 + self.s) + self.z * q

    def slope(self) -> Tensor:
        """Its derivative at the raised order."""
        p = self.p
        return (p / (1 + self.s) + p * p * _horner(self.polynomials.slope, p)) / self.order

    def curvature(self) -> Tensor:
        """Its second derivative at the raised order."""
        s, p = self.s, self.p
        rest = p**4 * _horner(self.polynomials.curvature, p)
        return self.z * (rest - (1 + 2 * s) * (p / (1 + s)) ** 2 * p) / self.order**2

    def logs(self) -> tuple[Tensor, Tensor]:
        """Return u = s - 1, and F at the raised order without its leading M (u - log(1 + u/2))."""
        u = self.z * self.z / (1 + self.s)
        return u, u * self.p * _horner(self.polynomials.tail, self.p) - 0.5 * torch.log1p(u)


def _ratios(at: _Debye) -> Tensor:
    r = at.ratio()
    for a in at.down:
        r = at.x / r.mul_(at.x).add_(a)
    return r


def _deficits(at: _Debye) -> Tensor:
    r, c = at.ratio(), at.deficit()
    for a in at.down:
        below = r.mul_(at.x).add_(a)
        r, c = at.x / below, c.mul_(at.x).sub_(a).neg_().div_(below)
    return c


def _slopes(at: _Debye) -> Tensor:
    x2, r, first = at.x * at.x, at.ratio(), at.slope()
    for a in at.down:
        q = r.mul_(at.x).add_(a).reciprocal_()
        r, first = at.x * q, first.mul_(x2).sub_(a).neg_().mul_(q).mul_(q)
    return first


def _curvatures(at: _Debye) -> Tensor:
    x, x2 = at.x, at.x * at.x
    r, first, second = at.ratio(), at.slope(), at.curvature()
    for a in at.down:
        q = 1 / (a + x * r)
        rest = a - x2 * first
        below = -2 * q * (r + x * first) * rest - (2 * x * first + x2 * second)
        r, first, second = x * q, q * q * rest, q * q * below
    return second


def _descent(at: _Debye) -> Tensor:
    """Log of the product of (1 + x r_{j+1} / a_j), the part of F that the steps add; relative to itself."""
    r = at.ratio()
    product = torch.zeros_like(r)  # the product less one; below 1e308 for 24 steps while x < 1e13
    for a in at.down:
        r.mul_(at.x)
        term = r / a
        product.addcmul_(product, term).add_(term)
        r = at.x / r.add_(a)
    return torch.log1p(product)


def _growths(dim: int, x: Tensor) -> Tensor:
    at = _Debye(dim, x)
    u, rest = at.logs()
    return at.order * (u - torch.log1p(0.5 * u)) + rest + _descent(at)


def _scaled(dim: int, x: Tensor) -> Tensor:
    at = _Debye(dim, x)
    u, rest = at.logs()
    # x - M u = M (z - s + 1) = M (1 - 1 / (s + z))
    lead = at.order * (1 - 1 / (at.s + at.z) + torch.log1p(0.5 * u))
    return lead - rest - _descent(at) - log_sphere_area(dim)


def _log_normalizers(dim: int, x: Tensor) -> Tensor:
    if dim < 50:  # no cancellation to speak of: log C(0) is below 25
        return -log_sphere_area(dim) - _growths(dim, x)
    at = _Debye(dim, x)
    return log_normalizer_lead(dim, at.order, x) - at.logs()[1]


# Differentiable. Each derivative is the next analytic one; differences of values would lose digits.


def _differentiable(
    value: Callable[[int, Tensor], Tensor], derivative: Callable[[int, Tensor], Tensor]
) -> Callable[[int, Tensor], Tensor]:
    """The function dim, kappa -> value(dim, kappa), in kappa's dtype, with its derivative in closed form."""

    class Analytic(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(dim: int, x: Tensor) -> Tensor:
            return value(dim, x.to(torch.float64)).to(x.dtype)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[int, Tensor], output: Tensor) -> None:
            ctx.dim = inputs[0]
            ctx.save_for_backward(inputs[1])
            ctx.save_for_forward(inputs[1])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
            return None, grad * derivative(ctx.dim, *ctx.saved_tensors)

        @staticmethod
        def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
            return tangent * derivative(ctx.dim, *ctx.saved_tensors)

    return Analytic.apply


def _no_third_derivative() -> Tensor:
    raise NotImplementedError("the third derivative of A_d(kappa) is not written; the first two are exact")


_curvature = _differentiable(
    lambda dim, x: _curvatures(_Debye(dim, x)),
    lambda dim, x: _no_third_derivative(),
)
_slope = _differentiable(lambda dim, x: _slopes(_Debye(dim, x)), _curvature)
_ratio = _differentiable(lambda dim, x: _ratios(_Debye(dim, x)), _slope)
_deficit = _differentiable(lambda dim, x: _deficits(_Debye(dim, x)), lambda dim, x: -_slope(dim, x))
_growth = _differentiable(_growths, _ratio)
_log_normalizer = _differentiable(_log_normalizers, lambda dim, x: -_ratio(dim, x))
_scaled_log_normalizer = _differentiable(_scaled, _deficit)
