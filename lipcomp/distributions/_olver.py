"""The coefficients of Olver's uniform expansion of log I_nu, exact and collapsed to one polynomial per order.

With s = sqrt(1 + z^2), p = 1/s and eta = s + log(z / (1 + s)), uniformly in z >= 0 (DLMF 10.41.3),

    I_nu(nu z) ~ exp(nu eta) / sqrt(2 pi nu s) * sum_k U_k(p) / nu^k.

Everything here works with the *logarithm* of the sum, D(p) = log sum_k U_k(p) / nu^k = sum_k D_k(p) / nu^k: the ratio
of two orders then needs the derivative D' alone, and no quotient of two series. The polynomials are made with
rational arithmetic, so the only rounding is the last one, of each coefficient to float64. How many terms an order
needs is decided here too: 11 at order 24, 4 at order 2000.

References
----------
.. [1] F. W. J. Olver, Asymptotics and Special Functions, section 10.7; DLMF 10.41.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction

Polynomial = list[Fraction]  # coefficients of p^0, p^1, ...

SMALLEST_ORDER = 24  # the expansion is used from here on; smaller orders are reached by recurrence
MOST_TERMS = 16


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    product = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        if x:
            for j, y in enumerate(b):
                if y:
                    product[i + j] += x * y
    return product


def _derivative(a: Polynomial) -> Polynomial:
    return [j * x for j, x in enumerate(a)][1:] or [Fraction(0)]


def _add(a: Polynomial, b: Polynomial) -> Polynomial:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    return [x + (shorter[j] if j < len(shorter) else 0) for j, x in enumerate(longer)]


@functools.cache
def debye_polynomials() -> tuple[Polynomial, ...]:
    """U_0 ... U_16 (DLMF 10.41.9): U_{k+1} = p^2 (1 - p^2) U_k' / 2 + int_0^p (1 - 5 t^2) U_k(t) dt / 8."""
    half, eighth = Fraction(1, 2), Fraction(1, 8)
    found: list[Polynomial] = [[Fraction(1)]]
    for _ in range(MOST_TERMS):
        u = found[-1]
        first = _multiply([Fraction(0), Fraction(0), half, Fraction(0), -half], _derivative(u))
        weighted = _multiply([eighth, Fraction(0), -5 * eighth], u)
        integral = [Fraction(0)] + [x / (j + 1) for j, x in enumerate(weighted)]
        found.append(_add(first, integral))
    return tuple(found)


@functools.cache
def log_polynomials() -> tuple[Polynomial, ...]:
    """D_1 ... D_16 of the logarithm of the sum: k D_k = k U_k - sum_{0<j<k} j D_j U_{k-j}."""
    u = debye_polynomials()
    found: list[Polynomial] = []
    for k in range(1, MOST_TERMS + 1):
        total = [k * x for x in u[k]]
        for j in range(1, k):
            total = _add(total, [-j * x for x in _multiply(found[j - 1], u[k - j])])
        found.append([x / k for x in total])
    return tuple(found)


@functools.cache
def _magnitudes() -> tuple[float, ...]:
    """The largest |D_k'| on [0, 1], which decides how many terms an order needs."""
    grid = [i / 64 for i in range(65)]
    return tuple(
        max(abs(sum(float(x) * p**j for j, x in enumerate(first))) for p in grid)
        for first in map(_derivative, log_polynomials())
    )


@dataclass(frozen=True)
class Expansion:
    """The polynomials in p of one order, highest coefficient first, ready for Horner's rule."""

    order: float  # nu >= 24
    tail: tuple[float, ...]  # T with D(p) - D(1) = (1 - p) T(p)
    correction: tuple[float, ...]  # Q with I_{nu+1}/I_nu = z / (1 + s) - (z / s) p Q(p)
    slope: tuple[float, ...]  # S with nu d/dx of that ratio = 1 / (s (1 + s)) + p^2 S(p)
    curvature: tuple[float, ...]  # C with nu^2 d^2/dx^2 of it = z (-(1 + 2 s) / (s^3 (1 + s)^2) + p^4 C(p))


@functools.lru_cache(maxsize=1024)
def expansion(order: float) -> Expansion:
    """The collapsed expansion of one order (an integer or half an odd integer, at least 24)."""
    nu = Fraction(order)
    enough = (k for k, size in enumerate(_magnitudes(), 1) if size / order ** (k + 1) < 1e-17)
    terms = next(enough, MOST_TERMS)
    d: Polynomial = [Fraction(0)]
    for k, term in enumerate(log_polynomials()[:terms], 1):
        d = _add(d, [x / nu**k for x in term])

    tail: Polynomial = [Fraction(0)] * (len(d) - 1)
    above = Fraction(0)
    for j in range(len(d) - 1, 0, -1):  # (p^j - 1) / (1 - p) = -(1 + p + ... + p^(j-1))
        above += d[j]
        tail[j - 1] = -above
    # p/(2 nu) + p^2 D'/nu, over p
    correction = [1 / (2 * nu), *(x / nu for x in _derivative(d))]
    whole = [Fraction(0), *correction]  # Q p as a polynomial
    slope = _add(
        [Fraction(0)] * 3 + [-x for x in whole],
        _multiply([Fraction(x) for x in (0, 0, 1, 0, -1)], _derivative(whole)),
    )
    curvature = [-x for x in _derivative(slope)]
    return Expansion(
        order,
        *(
            tuple(float(x) for x in reversed(polynomial))
            for polynomial in (tail, correction, slope[2:], curvature[1:])
        ),
    )
