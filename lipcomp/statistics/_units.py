"""One condition against another over independent units: what a method changes, with seeds as the unit.

Runs of one seed share weights, data order and augmentation, and all betas of a seed share their control; so whatever
a seed holds is averaged first, and the seed counts once. With y_us the value of condition s in unit u, the effect is

    e = mean over u of (y_ut - y_uc),   Var e = 2 sigma^2 / n + v

where n counts the units that hold both. sigma^2 comes from the additive layout y_us = a_u + b_s + noise, fitted over
all conditions in ``pool``: three methods over five seeds leave 8 degrees of freedom where their two differences leave
4, at no more compute. Where the differences themselves spread more, their own variance stands, since one method may
be noisier than the others: with a method of three times the noise a 97.5% interval then covers 96.5%
(``python -m benchmarks.coverage``). Without ``pool`` it is Student's paired interval. ``shared`` is the variance v
that all units have in common and that more units do not reduce (the test images are the same for all seeds): see
:func:`shared_image_variance`. Degrees of freedom are Satterthwaite's (1946).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped

from lipcomp._arguments import checked
from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    in_unit,
    own_unit,
    rounding,
    vector,
)
from lipcomp.statistics._slopes import student


@dataclass(frozen=True)
class Contrast(Estimate):
    """A difference between two conditions over units (n counts units).

    Parameters
    ----------
    error
        Standard error of the value; None where it is not estimable.
    freedom
        Its degrees of freedom.
    spread
        Standard deviation of one unit's difference.
    shared
        The part of error^2 that more units would not reduce.
    units
        The units that hold both conditions, in order.
    differences
        Their differences.
    """

    error: float | None = None
    freedom: float = 0.0
    spread: float | None = None
    shared: float = 0.0
    units: tuple[str, ...] = ()
    differences: tuple[float, ...] = ()


@checked
def contrast(
    values: Values,
    unit: Values,
    condition: Values,
    treated: object,
    control: object,
    *,
    pool: Sequence[object] = (),
    shared: float = 0.0,
    shared_freedom: float = math.inf,
    level: float = 0.95,
) -> Contrast:
    """Mean difference treated - control over units, with Student's interval.

    Parameters
    ----------
    values
        One per run; several runs of one unit and condition are averaged.
    unit, condition
        What is independent (the seed), and what was done (the method), one per run.
    treated, control
        The two conditions compared.
    pool
        Conditions whose noise is pooled; empty: only that of the differences.
    shared
        Variance of the value that all units share.
    shared_freedom
        Degrees of freedom of ``shared``.
    level
        Nominal coverage of the interval.

    Returns
    -------
    Contrast
        Without value if no unit has both conditions; without interval and p-value if only one has, or where nothing
        varies: few counts often have equal differences by chance.

    Raises
    ------
    ValueError
        If lengths differ, values are not finite, a label is missing, the conditions are the same, or ``shared`` is
        negative.

    Examples
    --------
    >>> from lipcomp.statistics import contrast
    >>> effect = contrast([1.0, 2.0, 3.1, 0.0, 1.1, 2.0], [0, 1, 2, 0, 1, 2], list("tttccc"), "t", "c")
    >>> round(effect.value, 3), effect.n, effect.freedom
    (1.0, 3, 2.0)
    """
    check_level(level)
    if not 0 <= shared < math.inf:
        raise ValueError(f"shared must be a variance, at least 0 and finite, got {shared}")
    treated, control = _label("treated", treated), _label("control", control)
    if treated == control:
        raise ValueError(f"treated and control must be two conditions, got {treated!r} twice")
    check_order(values=values, unit=unit, condition=condition)
    table, units, conditions, power = _table(values, unit, condition)
    shared_here = float(np.ldexp(shared, -2 * power))
    name = f"{treated} minus {control}"

    def column(which: str) -> Float[np.ndarray, " units"]:
        return table[:, conditions.index(which)] if which in conditions else np.full(len(units), np.nan)

    difference = column(treated) - column(control)
    both = np.isfinite(difference)
    held = tuple(u for u, keep in zip(units, both, strict=True) if keep)
    difference = difference[both]
    n = difference.size
    if n == 0:
        absent = [f"no run of {which!r}" for which in (treated, control) if which not in conditions]
        return Contrast(name, None, None, None, 0, "", level, note=", ".join(["no unit holds both", *absent]))
    tiny = rounding(values) * float(np.nanmax(np.abs(table)))
    difference = np.where(np.abs(difference) <= tiny, 0.0, difference)
    value = float(difference.mean())
    own = float(difference.var(ddof=1)) if n > 1 else 0.0
    spread, freedom, how = (own if n > 1 else math.nan), float(n - 1), "Student's interval"
    pooled = {_label("pool", each) for each in pool}
    members = [c for c in conditions if c in pooled]
    if treated in members and control in members and len(members) > 2:
        residual, left = _residual_variance(table[:, [conditions.index(c) for c in members]])
        if left > n - 1:
            spread, freedom = max(own, 2 * residual), float(left)
            how = f"Student's interval, spread pooled over {len(members)} methods, or their own if that is larger"
    value_here = in_unit(value, power)
    deviation = in_unit(math.sqrt(spread), power) if math.isfinite(spread) else None
    rest = (deviation, shared, held, tuple(in_unit(d, power) for d in difference))
    if n < 2 or freedom < 1:
        note = f"no spread can be seen with n = {n}, so no interval"
        return Contrast(name, value_here, None, None, n, how, level, None, note, None, 0.0, *rest)
    between = spread / n
    if spread <= tiny**2:
        between = 0.0
    total = between + shared_here
    if shared_here > 0 and total > 0:
        freedom = total**2 / (between**2 / freedom + shared_here**2 / shared_freedom)
    error = math.sqrt(total)
    method = f"mean over {n} units; {how}, {freedom:.3g} degrees of freedom"
    if error == 0:
        note = "the differences do not vary: neither interval nor p-value is estimable"
        return Contrast(name, value_here, None, None, n, method, level, None, note, 0.0, freedom, *rest)
    (low, high), p_value = student(value, error, freedom, level)
    ends = (in_unit(low, power), in_unit(high, power))
    return Contrast(
        name, value_here, ends, p_value, n, method, level, None, "", in_unit(error, power), freedom, *rest
    )


def _table(
    values: Values, unit: Values, condition: Values
) -> tuple[Float[np.ndarray, "units conditions"], list[str], list[str], int]:
    """Means by unit and condition in units of 2^e, NaN where there is no run; their labels; e."""
    if not len(values):
        return np.zeros((0, 0)), [], [], 0
    column = vector("values", values)
    power = own_unit(column)
    column = np.ldexp(column, -power)
    for name, labels in (("unit", unit), ("condition", condition)):
        if len(labels) != column.size:
            raise ValueError(
                f"{name} must hold one label for each of {column.size} values, got {len(labels)}"
            )
    own, kinds = [_label("unit", u) for u in unit], [_label("condition", c) for c in condition]
    units, conditions = list(dict.fromkeys(own)), list(dict.fromkeys(kinds))
    rows, columns = np.array([units.index(u) for u in own]), np.array([conditions.index(c) for c in kinds])
    count, total = np.zeros((2, len(units), len(conditions)))
    np.add.at(count, (rows, columns), 1)
    np.add.at(total, (rows, columns), column)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), units, conditions, power


def _label(name: str, label: Any) -> str:
    """A label as text: 1 and 1.0 are one, and what is missing is none."""
    if isinstance(label, torch.Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if np.ndim(label) == 0 and pd.isna(label):
        raise ValueError(f"{name} has a label that is missing ({label!r}); name it, or drop the run")
    whole = isinstance(label, float | np.floating) and float(label).is_integer()
    return f"{label:.0f}" if whole else str(label)


def _residual_variance(table: Float[np.ndarray, "units conditions"]) -> tuple[float, int]:
    """Variance of the noise in the additive layout of a table with holes, and its degrees of freedom."""
    rows, columns = np.nonzero(np.isfinite(table))
    held, unit = np.unique(rows, return_inverse=True)

    def inside(values: Float[np.ndarray, "runs k"]) -> Float[np.ndarray, "runs k"]:
        """Less the mean of the unit."""
        sums = np.zeros((held.size, values.shape[1]))
        np.add.at(sums, unit, values)
        return values - (sums / np.bincount(unit)[:, None])[unit]

    y, design = inside(table[rows, columns][:, None]), inside(np.eye(table.shape[1])[columns])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    left = rows.size - held.size - int(rank)
    if left < 1:
        return math.nan, 0
    return float(((y - design @ solution) ** 2).sum() / left), left


def shared_image_variance(
    difference: Shaped[np.ndarray, "units images"],
) -> tuple[float, float]:
    """The variance of a mean difference that comes from the test images, which all units share.

    With d_ui the difference of one image in one unit, d = m + U_u + I_i + noise; the variance of the grand mean is
    that of the unit means over their number, plus sigma_I^2 over the number of images: the latter is returned,
    by the mean squares of the two-way layout, with its degrees of freedom. It is at least zero.

    Parameters
    ----------
    difference
        Values of treated minus control; for a probe's hits the mean over corruptions of -1, 0, 1.
    """
    units, images = difference.shape
    if images < 2:
        return 0.0, math.inf
    by_image = difference.mean(0)
    columns = float(by_image.var(ddof=1))  # sigma_I^2 + sigma_e^2 / units
    if units == 1:
        return columns / images, float(images - 1)
    residual = difference - by_image - difference.mean(1, keepdims=True) + difference.mean()
    noise = float((residual**2).sum()) / ((units - 1) * (images - 1))
    return max(0.0, columns - noise / units) / images, float(images - 1)
