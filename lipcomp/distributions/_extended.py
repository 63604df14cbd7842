"""Log C_d where it crosses zero: the same value, with its large parts summed in two words.

At d = 4096 log C falls from 11,222 at kappa = 0 through zero near kappa = 16,000, a difference of numbers whose
rounding alone is 1e-12. With M the raised order of :mod:`lipcomp.distributions._bessel`, S = sqrt(M^2 + kappa^2) and
N = M + S,

    log C_d(kappa) = K + M log N - (S - M) - (what is small),        K = log C_d(0) - M log 2M,

and K, M log N and S are kept to about 1e-18 of themselves: K comes from decimal arithmetic; S gets the correction of
one Newton step with an exact residual; log N = e log 2 + log c + log1p((m - c)/c), where N = m 2^e, c is m rounded to
six bits, and the table's logarithms have a leading word short enough that M times it is exact.
"""

import functools
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import torch
from torch import Tensor

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
_BERNOULLI = ((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510), (43867, 798))
_GRAIN = 1 << 26  # leading words are multiples of 2^-26


def split(value: Decimal) -> tuple[float, float]:
    """A leading word that is a multiple of 2^-26, and the rest."""
    lead = (value * _GRAIN).to_integral_value(ROUND_HALF_EVEN) / _GRAIN
    return float(lead), float(value - lead)


def _log_gamma(x: Decimal) -> Decimal:
    """Log Gamma(x), x > 0, to 30 digits: Stirling's series beyond 100."""
    product = Decimal(1)
    while x < 100:
        product *= x
        x += 1
    series = sum(
        (Decimal(b) / c / (2 * k * (2 * k - 1)) / x ** (2 * k - 1) for k, (b, c) in enumerate(_BERNOULLI, 1)),
        Decimal(0),
    )
    return (x - Decimal("0.5")) * x.ln() - x + (2 * _PI).ln() / 2 + series - product.ln()


@functools.lru_cache(maxsize=1024)
def log_uniform_density(dim: int) -> tuple[float, float]:
    """Return log C_d(0) = log Gamma(d/2) - log 2 - (d/2) log pi (1.6), in two words."""
    with localcontext(prec=50):
        half = Decimal(dim) / 2
        return split(_log_gamma(half) - Decimal(2).ln() - half * _PI.ln())


@functools.lru_cache(maxsize=1024)
def _constant(dim: int, order: float) -> tuple[float, float]:
    """K, in two words."""
    with localcontext(prec=50):
        half = Decimal(dim) / 2
        uniform = _log_gamma(half) - Decimal(2).ln() - half * _PI.ln()
        return split(uniform - Decimal(order) * (2 * Decimal(order)).ln())


@functools.cache
def _table() -> tuple[list[float], list[float], float, float]:
    """Return log(c/64) for c = 32 ... 64 in two words each, and log 2."""
    with localcontext(prec=50):
        words = [split((Decimal(c) / 64).ln()) for c in range(32, 65)]
        return [word[0] for word in words], [word[1] for word in words], *split(Decimal(2).ln())


@functools.lru_cache(maxsize=16)
def _table_on(device: torch.device) -> tuple[Tensor, Tensor]:
    lead, rest, _, _ = _table()
    return tuple(torch.tensor(words, dtype=torch.float64, device=device) for words in (lead, rest))  # type: ignore[return-value]


def _two_sum(a: Tensor | float, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def log_normalizer_lead(dim: int, order: float, x: Tensor) -> Tensor:
    """K + M log N - (S - M) in float64, with an absolute error near 1e-14 where the three cancel."""
    m2 = order * order
    s = torch.sqrt(m2 + x * x)
    # S's own rounding: (M^2 + x^2 - S^2) / 2S, the squares split so that their leading parts are exact
    xh, sh = x.float().double(), s.float().double()
    xl, sl = x - xh, s - sh
    squares, left = _two_sum(m2, xh * xh)
    residual = (squares - sh * sh) + 2 * xh * xl - 2 * sh * sl + xl * xl - sl * sl + left
    s_rest = residual / (2 * s)

    n, n_rest = _two_sum(order, s)
    mantissa, exponent = torch.frexp(n)
    index = torch.round(mantissa * 64)
    c = index / 64
    low = (n_rest + s_rest) * (mantissa / n)  # times 2^-e
    lead, rest = (words[(index - 32).int()] for words in _table_on(x.device))
    _, _, two, two_rest = _table()
    power = exponent.to(torch.float64)
    log_lead = power * two + lead
    log_rest = torch.log1p(((mantissa - c) + low) / c) + (power * two_rest + rest)

    k, k_rest = _constant(dim, order)
    total, left = _two_sum(k + order + order * log_lead, -s)
    return total + (left - s_rest + (k_rest + order * log_rest))
