"""The reference: Bessel functions at 60 digits by backward recurrence alone, from far above the order."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
from mpmath import mpf


@dataclass(frozen=True)
class Exact:
    """log C_d, F = log C_d(0) - log C_d, A and A', A'' of one (d, kappa), in 60 digits."""

    log_c: mpf
    growth: mpf
    ratio: mpf
    slope: mpf
    curvature: mpf


@functools.cache
def exact(d: int, kappa: float) -> Exact:
    """Ratios r_j = I_{j+1}/I_j by r_j = x/(2(j+1) + x r_{j+1}) from an order so high that the start does not matter.

    I_nu is then I_0 (mpmath) or I_{1/2} = sqrt(2/(pi x)) sinh x, times the ratios between.
    """
    with mpmath.workdps(60):
        half = mpf(d) / 2
        uniform = mpmath.loggamma(half) - mpmath.log(2) - half * mpmath.log(mpmath.pi)
        if kappa == 0:
            return Exact(uniform, mpf(0), mpf(0), mpf(1) / d, mpf(0))
        x, nu = mpf(kappa), half - 1
        top, contraction = float(nu), 0.0
        while contraction < 160:  # every step multiplies an error by r^2
            contraction += 2 * math.log((top + 1 + math.hypot(top + 1, kappa)) / kappa)
            top += 1
        order = nu + int(top - float(nu))
        r = x / (order + 1 + mpmath.sqrt((order + 1) ** 2 + x * x))
        log_product, product, ratio = mpf(0), mpf(1), r
        while order > 0.75:
            order -= 1
            r = x / (2 * (order + 1) + x * r)
            if order == nu:
                ratio = r
            if order < nu:
                product *= r
                if product < 1e-300:
                    log_product, product = log_product + mpmath.log(product), mpf(1)
        if order == 0:
            lowest = mpmath.log(mpmath.besseli(0, x))
        else:
            lowest = x + mpmath.log((1 - mpmath.exp(-2 * x)) / mpmath.sqrt(2 * mpmath.pi * x))
        log_i = lowest + log_product + mpmath.log(product)
        log_c = nu * mpmath.log(x) - half * mpmath.log(2 * mpmath.pi) - log_i
        slope = 1 - ratio * ratio - (d - 1) * ratio / x
        curvature = -2 * ratio * slope - (d - 1) * (slope / x - ratio / x**2)
        return Exact(log_c, uniform - log_c, ratio, slope, curvature)


@pytest.fixture
def sixty_digits() -> Callable[[int, float], Exact]:
    return exact
