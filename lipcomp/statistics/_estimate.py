"""The result of a statistic: value, interval, p-value, n, and the method in words.

Two kinds of bad input are kept apart. What cannot be meant (NaN, lengths that differ, no data) raises a
``ValueError`` that names the argument. What is well formed but says nothing (two models, a constant column)
returns an :class:`Estimate` whose missing parts are None and whose ``note`` says why: a table over sixteen
corruptions goes on when one of them cannot be estimated, and a reader sees that it was not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped

from lipcomp._results import ResultMixin
from lipcomp.records import Record

Values = Sequence[Any] | np.ndarray | pd.Series | torch.Tensor


@dataclass(frozen=True)
class Estimate(ResultMixin):
    """One estimated number with its uncertainty.

    Parameters
    ----------
    name
        What was estimated, in words: "mean difference", "Spearman correlation".
    value
        The estimate; None where the data do not determine it.
    interval
        Confidence interval at ``level``; None where it is not estimable.
    p_value
        Two-sided, of no effect; None where it is not estimable.
    n
        Observations: pairs, models or images.
    method
        How interval and p-value were computed, for the methods paragraph of a report.
    level
        Nominal coverage of the interval.
    smallest_p
        The smallest p-value that this n (or this number of resamples) could have given; a p-value is read
        against it: three seeds cannot go below 0.25.
    note
        Why something is missing, or what limits the reading; empty if nothing does.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    n: int
    method: str
    level: float = 0.95
    smallest_p: float | None = None
    note: str = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name}: not estimable, {self.note} (n = {self.n})"
        words = [f"{self.name} {self.value:.3g}"]
        if self.interval is not None:
            words.append(f"{self.level:.0%} interval [{self.interval[0]:.3g}, {self.interval[1]:.3g}]")
        if self.p_value is not None:
            words.append(f"p = {self.p_value:.2g}")
        words.append(f"n = {self.n}")
        return ", ".join(words) + (f" ({self.note})" if self.note else "")

    def to_records(
        self,
        quantity: str,
        *,
        unit: str = "",
        subject: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """As records: the quantity, and ``quantity.p_value`` beside it; the method is a setting of both."""
        how = {"method": self.method, "level": self.level, "note": self.note, **(settings or {})}
        shared: dict[str, Any] = {
            "n": self.n,
            "subject": dict(subject or {}),
            "provenance": dict(provenance or {}),
        }
        tested = {**how, "smallest_p": self.smallest_p}
        return [
            Record(quantity, self.value, unit, interval=self.interval, settings=how, **shared),
            Record(f"{quantity}.p_value", self.p_value, "", settings=tested, **shared),
        ]


def vector(name: str, values: Values, length: int | None = None) -> Float[np.ndarray, " n"]:
    """``values`` as one dimension of finite float64, or a ValueError that names the argument."""
    try:
        array = _plain(values)
        if array.dtype.kind in "cMm":
            raise TypeError(f"of type {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must hold numbers, got {values!r:.80} ({error}); drop missing values"
        ) from error
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have one dimension and at least one value, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        raise ValueError(
            f"{name} must be finite, got {array[bad[0]]} at position {bad[0]} ({bad.size} of "
            f"{array.size} are not finite); drop those rows from every argument, or repeat the measurement"
        )
    if length is not None and array.size != length:
        raise ValueError(
            f"{name} must have {length} values, one for each observation, got {array.size}; align the "
            f"arguments by the model or image that each value belongs to"
        )
    return array


def _plain(values: Values) -> Shaped[np.ndarray, "..."]:
    """As an array of its own type; what is masked is NaN."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.float64), np.nan)
    return np.asarray(values)


def rounding(*several: Values) -> float:
    """What is rounding alone in a difference of such values, relative to the largest: 1e-13, in float32 5e-7.

    In 16 bits, which hold results but are not computed with, it is one unit in the last place: 1e-3, in bfloat16 8e-3.
    """
    bfloat16 = any(isinstance(v, torch.Tensor) and v.dtype == torch.bfloat16 for v in several)
    kinds = [np.finfo(t) for t in (_plain(v).dtype for v in several) if t.kind == "f"]
    units = [float(kind.eps) * (1 if kind.bits == 16 else 4) for kind in kinds]
    return max([1e-13, *units, torch.finfo(torch.bfloat16).eps * bfloat16])


def check_order(**named: object) -> None:
    """Refuse series that hold the same labels in another order: values are taken by their position.

    Raises
    ------
    ValueError
        Naming the two.
    """
    series = [(name, value.index) for name, value in named.items() if isinstance(value, pd.Series)]
    for name, index in series[1:]:
        first, other = series[0]
        if not index.equals(other) and index.is_unique and set(index) == set(other):
            raise ValueError(
                f"{first} and {name} hold the same labels in another order, and values are taken by their position; "
                f"align them ({name}.reindex({first}.index)), or give {name}.to_numpy()"
            )


def own_unit(*arrays: Float[np.ndarray, "..."]) -> int:
    """The exponent e for which values / 2^e are near 1: squares of such values neither over- nor underflow.

    0 where nothing needs it, so that ordinary values keep every bit.
    """
    largest = max(float(np.nanmax(np.abs(array))) for array in arrays)
    return 0 if largest == 0 or 1e-100 < largest < 1e100 else int(np.frexp(largest)[1])


def in_unit(value: float, exponent: int) -> float:
    """A value in units of 2^e as it is.

    Raises
    ------
    ValueError
        If no float64 holds it.
    """
    with np.errstate(over="ignore"):
        found = float(np.ldexp(value, exponent))
    if not math.isfinite(found):
        raise ValueError("values are so large that no float64 holds the result; divide them by a constant")
    return found


def group_codes(name: str, groups: Values, length: int) -> tuple[Int[np.ndarray, " n"], int]:
    """Group labels of any kind as codes 0..G-1, and G."""
    array = np.asarray(groups)
    if array.ndim != 1 or array.size != length:
        raise ValueError(
            f"{name} must hold one label for each of {length} observations, got shape {array.shape}"
        )
    if pd.isna(array).any():
        raise ValueError(f"{name} has labels that are missing; give each observation a group, or drop it")
    labels, codes = np.unique(array.astype(str) if array.dtype.kind == "O" else array, return_inverse=True)
    return codes.reshape(-1), labels.size


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}")


def is_constant(values: Float[np.ndarray, " n"]) -> bool:
    """Whether all values agree up to rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The values in a unit in which their squares are numbers."""
    return np.ldexp(values, -own_unit(values))
