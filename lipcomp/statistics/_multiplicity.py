"""Many tests at once: sixteen corruptions give one p-value below 0.05 by chance alone more often than not.

Holm (1979) bounds the chance of any false finding, under any dependence: with p sorted upwards the k-th of m
becomes max_{j <= k} (m - j + 1) p_j. Benjamini and Hochberg (1995) bound the expected share of false findings
among the findings, for independent or positively dependent tests: min_{j >= k} m p_j / j.

A test without a p-value can make no false finding, so it does not count in m, as in R's ``p.adjust``. A family that was
planned larger than what was tested is named by ``tests``: those that are missing then count as p = 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats

from lipcomp._arguments import checked
from lipcomp._results import ResultMixin


@dataclass(frozen=True)
class Adjusted(ResultMixin):
    """P-values of a family of tests, adjusted for its size.

    Parameters
    ----------
    names
        The tests, in the order given.
    p_values, adjusted
        Before and after; None where a test was not estimable.
    rejected
        Whether the adjusted p-value is at most ``alpha``.
    tests
        Size of the family.
    method
        In words.
    alpha
        The level that ``rejected`` refers to.
    """

    names: tuple[str, ...]
    p_values: tuple[float | None, ...]
    adjusted: tuple[float | None, ...]
    rejected: tuple[bool, ...]
    tests: int
    method: str
    alpha: float = 0.05

    def columns(self) -> dict[str, np.ndarray]:
        """A row per test."""
        values = {"p_value": self.p_values, "adjusted": self.adjusted}
        floats = {name: np.array(column, dtype=float) for name, column in values.items()}
        return {"name": np.array(self.names), **floats, "rejected": np.array(self.rejected)}


@checked
def adjust(
    p_values: Sequence[float | None] | Mapping[str, float | None] | np.ndarray | pd.Series,
    *,
    method: Literal["holm", "bh"] = "holm",
    alpha: float = 0.05,
    tests: int | None = None,
) -> Adjusted:
    """Adjust the p-values of a family of tests.

    Parameters
    ----------
    p_values
        One per test, in [0, 1], or None or NaN if it is not estimable; a mapping or the index of a series names them.
    method
        "holm" (any false finding) or "bh" (share of false findings).
    alpha
        Level for ``rejected``.
    tests
        Size of the family, if it was planned larger; None: as many as have a p-value.

    Raises
    ------
    ValueError
        If a p-value is not in [0, 1], the family smaller than what was tested, or the method unknown.

    Examples
    --------
    >>> adjust({"fog": 0.01, "snow": 0.04, "frost": 0.03, "jpeg": None}).adjusted
    (0.03, 0.06, 0.06, None)
    """
    if method not in ("holm", "bh"):
        raise ValueError(f'method must be "holm" or "bh", got {method!r}')
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    named = isinstance(p_values, Mapping | pd.Series)
    given = list(p_values.items() if named else enumerate(p_values))  # type: ignore[union-attr]
    names, values = tuple(str(name) for name, _ in given), [_number(*each) for each in given]
    known = [i for i, value in enumerate(values) if value is not None]
    size = len(known) if tests is None else tests
    if size < len(known):
        raise ValueError(f"tests must be at least {len(known)}, the number of p-values, got {tests}")
    p = np.array([*(values[i] for i in known), *[1.0] * (size - len(known))], dtype=np.float64)
    changed = p
    if p.size:
        changed = _holm(p) if method == "holm" else scipy.stats.false_discovery_control(p)
    adjusted: list[float | None] = [None] * len(values)
    for i, q in zip(known, changed, strict=False):  # without those that are missing
        adjusted[i] = float(q)
    words = {"holm": "Holm, family-wise error", "bh": "Benjamini-Hochberg, false discovery rate"}[method]
    return Adjusted(
        names=names,
        p_values=tuple(values),
        adjusted=tuple(adjusted),
        rejected=tuple(q is not None and q <= alpha for q in adjusted),
        tests=size,
        method=f"{words} over {size} test{'s' if size != 1 else ''}",
        alpha=alpha,
    )


def _number(name: object, value: Any) -> float | None:
    """A p-value, None where it is missing."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if not (0 <= number <= 1 or math.isnan(number)):
        raise ValueError(
            f"p_values must lie in [0, 1], got {value!r} for {name}; None or NaN means not estimable"
        )
    return None if math.isnan(number) else number


def _holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    stepped = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out
