"""How much y changes with x where blocks are held fixed: a slope with Student's interval, perfect laws included.

y = b x + block effects + noise, by least squares. With blocks (seed, method) the slope compares runs of one seed and
one method's run with its usual value: what seeds or methods have in common is taken out of both. Unlike a
coefficient of correlation it says how much, in the unit of y, and has an interval where the law is exact.

Examples
--------
>>> block_slope([1, 2, 3, 4], [2.0, 4.0, 6.0, 8.0]).interval
(2.0, 2.0)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    group_codes,
    in_unit,
    is_constant,
    own_unit,
    scaled,
    vector,
)


@dataclass(frozen=True)
class Slope(Estimate):
    """A slope, its standard error (None where there is none), and the error's degrees of freedom."""

    error: float | None = None
    freedom: float = 0.0


def block_slope(x: Values, y: Values, blocks: Sequence[Values] = (), *, level: float = 0.95) -> Slope:
    """Slope of y on x with an intercept for every level of every block.

    Parameters
    ----------
    x, y
        One value an observation.
    blocks
        Labels that are held fixed, each one an observation.
    level
        Nominal coverage of the interval.

    Returns
    -------
    Slope
        Without value where x does not vary inside the blocks, without interval where no degree of freedom is left.

    Raises
    ------
    ValueError
        If lengths differ or values are not finite.
    """
    check_level(level)
    check_order(x=x, y=y)
    first = vector("x", x)
    second = vector("y", y, first.size)
    n, power = first.size, own_unit(second) - own_unit(first)
    first, second = scaled(first), scaled(second)
    columns = [np.ones((n, 1))]
    for block in blocks:
        codes, count = group_codes("blocks", block, n)
        columns.append(np.eye(count)[codes])
    design = np.hstack(columns)
    left, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    method = f"least squares, {basis.shape[1]} intercepts; Student's interval"
    a, b = (column - basis @ (basis.T @ column) for column in (first, second))
    norm = float(a @ a)
    if is_constant(first) or norm <= 1e-20 * float(((first - first.mean()) ** 2).sum()):
        return Slope("slope", None, None, None, n, method, level, note="x does not vary inside the blocks")
    value = float(a @ b) / norm
    freedom = n - basis.shape[1] - 1
    if freedom < 1:
        return Slope(
            "slope", in_unit(value, power), None, None, n, method, level, note="no degree of freedom is left"
        )
    residual = b - value * a
    scale = float(np.abs(second).max())
    error = math.sqrt(float(residual @ residual) / freedom / norm)
    if error * math.sqrt(norm) <= 1e-12 * scale:
        error = 0.0
    (low, high), p_value = student(value, error, freedom, level)
    value, low, high, error = (in_unit(each, power) for each in (value, low, high, error))
    method += f", {freedom} degrees of freedom"
    return Slope("slope", value, (low, high), p_value, n, method, level, error=error, freedom=float(freedom))


def student(
    value: float, error: float, freedom: float | int, level: float
) -> tuple[tuple[float, float], float]:
    """Student's interval of a value with a standard error, and the two-sided p-value of no effect."""
    half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * error
    p_value = float(2 * scipy.stats.t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return (value - half, value + half), p_value
