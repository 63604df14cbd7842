"""Correlation across models: plain, with controls partialled out, over units that may be groups.

With X, Y ranks (Spearman) or values (Pearson) and Q an orthonormal basis of [1, controls], the partial
correlation is the correlation of the residuals (I - QQ') X and (I - QQ') Y; without controls it is the plain
one. Kendall's tau-b counts concordant minus discordant pairs over the geometric mean of the untied ones.

- **p-value**: permutation of y, or of y's residuals with the control fitted again (Freedman and Lane 1983):
  exact without controls; uniform in our simulations with them.
- **interval**: BCa over the units, from 25 of them on. Below that Fisher's z with the variance of the
  coefficient (Bonett and Wright 2000 for Spearman, Fieller 1957 for Kendall), which covers where the
  bootstrap does not.
- **groups**: three seeds of one method are no three independent models. With ``groups`` whole groups are
  drawn and whole groups change places, and Fisher's interval takes the number of groups for n: wide, and
  never too short.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from lipcomp._arguments import checked
from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    group_codes,
    is_constant,
    scaled,
    vector,
)
from lipcomp.statistics._resampling import Arranged, Weighted, bootstrap_interval, free, whole

Method = Literal["spearman", "kendall", "pearson"]
BCA_FROM = 25  # units; from the coverage table
KENDALL_LIMIT = 3000  # observations; its cost grows with their square
NAMES = {"spearman": "Spearman correlation", "kendall": "Kendall's tau-b", "pearson": "Pearson correlation"}


@checked
def correlation(
    x: Values,
    y: Values,
    *,
    method: Method = "spearman",
    groups: Values | None = None,
    level: float = 0.95,
    interval: Literal["auto", "bca", "fisher"] = "auto",
    resamples: int = 9999,
    rng: np.random.Generator | int = 0,
) -> Estimate:
    """Correlation of two measurements of the same models (or images).

    Parameters
    ----------
    x, y
        One value of each per model.
    method
        "spearman", "kendall" (tau-b) or "pearson".
    groups
        What is independent, one label per observation: the method if seeds repeat it, the image if models share it.
        None: every observation.
    level
        Nominal coverage of the interval.
    interval
        "auto" (see the module), "bca" or "fisher".
    resamples
        Number of bootstrap draws, and of permutations if there are more.
    rng
        Random generator, or its seed.

    Returns
    -------
    Estimate
        Without value, but with the reason, for fewer than three observations or a constant argument.

    Raises
    ------
    ValueError
        If the arguments differ in length, hold values that are not finite, or the method is unknown.

    Examples
    --------
    >>> from lipcomp.statistics import correlation
    >>> result = correlation([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    >>> round(result.value, 3), round(result.p_value, 3)
    (0.829, 0.058)
    """
    return _correlate(x, y, [], method, groups, level, interval, resamples, rng)


def partial_correlation(
    x: Values,
    y: Values,
    control: Values | Sequence[Values],
    *,
    method: Literal["spearman", "pearson"] = "spearman",
    groups: Values | None = None,
    level: float = 0.95,
    interval: Literal["auto", "bca", "fisher"] = "auto",
    resamples: int = 9999,
    rng: np.random.Generator | int = 0,
) -> Estimate:
    """Correlation of x and y that is left when the control is partialled out of both.

    A control that is measured with error is not held fixed: what it misses is left in x and y alike, and passes for a
    relation between them (in 75% of null studies, where the error is 0.3 of the control's spread). For a control such
    as an accuracy on some hundred images, do not read the result as "at equal control".

    Parameters
    ----------
    x, y
        One value of each per model.
    control
        One value per model (clean accuracy), or several such sequences.
    method, groups, level, interval, resamples, rng
        As in :func:`correlation`; Kendall has no permutation test with controls and is not offered.

    Raises
    ------
    ValueError
        As :func:`correlation`.
    """
    if method not in ("spearman", "pearson"):
        raise ValueError(f'method must be "spearman" or "pearson" with a control, got {method!r}')
    several = np.ndim(next(iter(control))) > 0 if len(control) else False
    controls = list(control) if several else [control]
    return _correlate(x, y, controls, method, groups, level, interval, resamples, rng)


def _correlate(
    x: Values,
    y: Values,
    controls: Sequence[Values],
    method: Method,
    groups: Values | None,
    level: float,
    interval: str,
    resamples: int,
    rng: np.random.Generator | int,
) -> Estimate:
    check_level(level)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if interval not in ("auto", "bca", "fisher"):
        raise ValueError(f'interval must be "auto", "bca" or "fisher", got {interval!r}')
    check_order(x=x, y=y, groups=groups)
    for control in controls:
        check_order(x=x, control=control)
    first = vector("x", x)
    n = first.size
    columns = [first, vector("y", y, n), *(vector("control", control, n) for control in controls)]
    columns = [scaled(column) for column in columns]
    codes, units = (np.arange(n), n) if groups is None else group_codes("groups", groups, n)
    name = f"partial {NAMES[method]}" if controls else NAMES[method]
    reason = _not_estimable(columns, method, units, groups is not None)
    if reason:
        return Estimate(name, None, None, None, n, NAMES[method], level, note=reason)
    generator = np.random.default_rng(rng)
    weighted, arranged = (
        _kendall(columns[0], columns[1]) if method == "kendall" else _residual(columns, method == "spearman")
    )
    value = float(np.clip(weighted(np.ones((1, n)))[0], -1, 1))
    limit = resamples
    if method == "kendall":
        limit = max(min(resamples, 999), min(resamples, int(2e9 / n**2)))
    moves = free(n, limit) if groups is None else whole(codes, limit)
    p_value: float | None
    p_value, smallest = moves.p_value(arranged, generator)
    notes = []
    if moves.total == 1:
        p_value, smallest = None, None  # type: ignore[assignment]
        notes.append("no two groups have the same size, so no permutation of whole groups is possible")
    elif smallest > 1 - level:
        notes.append(
            f"{units} {'groups' if groups is not None else 'observations'} cannot give p below {smallest:.2g}"
        )
    kind = ("bca" if units >= BCA_FROM else "fisher") if interval == "auto" else interval
    if kind == "bca":
        ends, why = bootstrap_interval(
            weighted, codes, units, level=level, resamples=resamples, rng=generator
        )
    else:
        ends = fisher_interval(value, units - len(controls), method, level)
        why = f"Fisher's z needs more than {units} units and a coefficient inside (-1, 1)"
    if ends is None:
        notes.append(f"no interval: {why}")
    over = f" of whole groups ({units})" if groups is not None else ""
    fitted = " of residuals, control fitted again," if controls else ""
    label = f"BCa over {units} units, {resamples} draws" if kind == "bca" else f"Fisher's z at n = {units}"
    text = f"{name}; interval {label}; permutation test{over}{fitted} over {moves.describe()} arrangements"
    return Estimate(name, value, ends, p_value, n, text, level, smallest, "; ".join(notes))


def _not_estimable(columns: list[Float[np.ndarray, " n"]], method: str, units: int, grouped: bool) -> str:
    n, controls = columns[0].size, len(columns) - 2
    if n < 3 + controls:
        return f"{n} observations are too few, {3 + controls} are needed"
    if grouped and units < 3:
        return f"{units} groups are too few, 3 are needed"
    for name, column in zip(["x", "y", *["control"] * controls], columns, strict=True):
        if is_constant(column):
            return f"{name} is constant"
    if method == "kendall" and n > KENDALL_LIMIT:
        return f"Kendall compares every pair, too many at {n} observations; take Spearman"
    if controls:
        ranks = [scipy.stats.rankdata(c) if method == "spearman" else c for c in columns]
        basis = _basis(ranks[2:])
        for name, column in zip(("x", "y"), ranks, strict=False):
            centred = column - column.mean()
            if np.linalg.norm(column - basis @ (basis.T @ column)) <= 1e-9 * np.linalg.norm(centred):
                return f"the control determines {name}"
    return ""


def fisher_interval(r: float, n: int, method: str, level: float) -> tuple[float, float] | None:
    """Interval by Fisher's z at n independent units; None where n is too small for it."""
    free_units = n - (4 if method == "kendall" else 3)
    if free_units < 1 or abs(r) >= 1:
        return None
    half = scipy.stats.norm.ppf((1 + level) / 2) * math.sqrt(fisher_variance(r, method) / free_units)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def fisher_variance(r: float, method: str) -> float:
    """Variance of Fisher's z of one coefficient, times the units beyond its degrees of freedom."""
    return {"pearson": 1.0, "spearman": 1 + r**2 / 2, "kendall": 0.437}[method]


def _basis(controls: list[Float[np.ndarray, " n"]]) -> Float[np.ndarray, "n k"]:
    """Orthonormal basis of [1, controls]; collinear controls add nothing."""
    n = controls[0].size if controls else 0
    stacked = np.column_stack([np.ones(n), *(c - c.mean() for c in controls)])
    left, sizes, _ = np.linalg.svd(stacked / np.linalg.norm(stacked, axis=0), full_matrices=False)
    return left[:, sizes > 1e-9 * sizes[0]]


def _residual(columns: list[Float[np.ndarray, " n"]], ranked: bool) -> tuple[Weighted, Arranged]:
    """(Partial) correlation of columns 0, 1 given the others: on weights, on arrangements of column 1."""
    take = [_midranks(column) if ranked else _constant_rows(column) for column in columns]
    scales = [np.abs(column).max() if not ranked else column.size for column in columns]

    def weighted(w: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        total = w.sum(1, keepdims=True)

        def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.einsum("dn,dn,dn->d", w, a, b)

        rows = [values(w) for values in take]
        rows = [row - (w * row).sum(1, keepdims=True) / total for row in rows]
        bad = np.zeros(w.shape[0], dtype=bool)
        for i in range(len(rows) - 1, 1, -1):  # Gram-Schmidt: take each control out of everything before it
            size = inner(rows[i], rows[i])
            flat = size <= (1e-10 * scales[i]) ** 2 * total[:, 0]
            size = np.where(flat, 1.0, size)
            for j in range(i):
                rows[j] = rows[j] - np.where(flat, 0.0, inner(rows[j], rows[i]) / size)[:, None] * rows[i]
        sizes = [inner(rows[k], rows[k]) for k in (0, 1)]
        for size, scale in zip(sizes, scales, strict=False):
            bad |= size <= (1e-10 * scale) ** 2 * total[:, 0]
        product = np.where(bad, 1.0, np.sqrt(sizes[0]) * np.sqrt(sizes[1]))
        return np.where(bad, np.nan, inner(rows[0], rows[1]) / product)

    fixed = [scipy.stats.rankdata(column) if ranked else column for column in columns]
    basis = _basis(fixed[2:]) if len(fixed) > 2 else np.full((fixed[0].size, 1), fixed[0].size ** -0.5)
    x, y = (
        column - basis @ (basis.T @ column)
        for column in (fixed[0] - fixed[0].mean(), fixed[1] - fixed[1].mean())
    )
    x = x / np.linalg.norm(x)
    y = y / np.linalg.norm(y)

    def arranged(order: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        moved = y[order]
        moved = moved - (moved @ basis) @ basis.T
        size = np.linalg.norm(moved, axis=1)
        return (moved @ x) / np.where(size <= 1e-10, np.inf, size)

    return weighted, arranged


def _constant_rows(column: Float[np.ndarray, " n"]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: np.broadcast_to(column, w.shape)


def _midranks(column: Float[np.ndarray, " n"]) -> Callable[[np.ndarray], np.ndarray]:
    """Mid-ranks of a column in each draw, from the weights alone."""
    order = np.argsort(column, kind="stable")
    first = np.r_[True, np.diff(column[order]) != 0]
    starts = np.flatnonzero(first)
    codes = np.empty(column.size, dtype=np.int64)
    codes[order] = np.cumsum(first) - 1

    def ranks(w: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws n"]:
        tied = np.add.reduceat(w[:, order], starts, axis=1)
        return (np.cumsum(tied, axis=1) - tied / 2 + 0.5)[:, codes]

    return ranks


def _kendall(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[Weighted, Arranged]:
    """tau-b on weights and on arrangements of y; every pair is compared."""
    sx, sy = (np.sign(column[:, None] - column[None]) for column in (x, y))
    both, ax, ay = sx * sy, np.abs(sx), np.abs(sy)

    def quadratic(w: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return np.einsum("dn,dn->d", w @ matrix, w)

    def weighted(w: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        size = np.sqrt(quadratic(w, ax) * quadratic(w, ay))
        return np.where(size > 0, quadratic(w, both) / np.where(size > 0, size, 1.0), np.nan)

    size = math.sqrt(ax.sum() * ay.sum())

    def arranged(order: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        return np.array([np.vdot(sx, sy[np.ix_(row, row)]) for row in order]) / size

    return weighted, arranged
