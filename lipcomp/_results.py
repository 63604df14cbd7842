"""What every result offers: a short ``repr``, ``summary()``, ``to_frame()``, and a ``plot()`` where there is one.

A result is a frozen dataclass. Its fields of one dimension are columns, a row per image (or pair); numbers and words
are settings; anything larger is left to who asks for it.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class ResultMixin:
    """The mixin of every result.

    ``picture`` names the function of :mod:`lipcomp.plots` that draws it, ``constants`` the columns that it draws.
    """

    picture: ClassVar[str] = ""
    constants: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # dataclass() keeps what it finds in the class

    def columns(self) -> dict[str, np.ndarray]:
        """What there is one of per image."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        found = {
            name: np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            for name, value in values.items()
            if isinstance(value, Tensor | np.ndarray)
            or (isinstance(value, list) and isinstance((*value, 0)[0], str))
        }
        found = {name: column for name, column in found.items() if column.ndim == 1}
        return {
            name: column for name, column in found.items() if len(column) == len(next(iter(found.values())))
        }

    def settings(self) -> dict[str, Any]:
        """Numbers and words that hold for all, those that say nothing left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        kinds = (str, int, float, tuple, dict)
        kept = {k: v for k, v in values.items() if isinstance(v, kinds) and v not in ("", (), {})}
        return {k: _numbers(v) if isinstance(v, dict) else v for k, v in kept.items() if _numbers(v) != {}}

    def _told(self) -> dict[str, str]:
        """What repr and summary say: a text per column and setting."""
        columns = {k: _spread(v) for k, v in self.columns().items() if v.dtype.kind in "bif"}
        return columns | {k: _text(v) for k, v in self.settings().items()}

    def __repr__(self) -> str:
        rows = [f"n={len(column)}" for column in list(self.columns().values())[:1]]
        return f"{type(self).__name__}({', '.join([*rows, *(f'{k}={v}' for k, v in self._told().items())])})"

    def summary(self) -> str:
        """A line per column (median and range, or how many) and setting."""
        rows = [f"{len(column)} rows" for column in list(self.columns().values())[:1]]
        told = self._told()
        width = max((len(name) for name in told), default=0)
        lines = [f"{name:<{width}}  {text}" for name, text in told.items()]
        return "\n".join([" of ".join([type(self).__name__, *rows]), *lines])

    def to_frame(self) -> "pd.DataFrame":
        """A data frame with a row per image (or pair); one row if there is but one number."""
        import pandas as pd

        columns = self.columns()
        return pd.DataFrame(columns) if columns else pd.DataFrame([self.settings()])

    def plot(self, **options: Any) -> "Axes":
        """Draw it with :mod:`lipcomp.plots`; options go to that function.

        Raises
        ------
        TypeError
            If there is nothing to see in such a result.
        """
        if not self.picture:
            raise TypeError(
                f"there is no picture of {type(self).__name__}; summary() and to_frame() tell it all"
            )
        axes: Axes = getattr(importlib.import_module("lipcomp.plots"), self.picture)(self, **options)
        return axes


def _numbers(value: Any) -> Any:
    """Of a dictionary, what is not zero and not nested."""
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if isinstance(v, int | float) and v}


def _spread(column: np.ndarray) -> str:
    if column.dtype.kind == "b":
        return f"{int(column.sum())} of {len(column)}"
    known = column[~np.isnan(column)] if column.dtype.kind == "f" else column
    if not len(known):
        return "none"
    low, middle, high = (_text(f(known)) for f in (np.min, np.median, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return f"({', '.join(_text(v) for v in value)})"
    if value is None:
        return "none"
    if isinstance(value, int | str | np.integer):
        return str(value)
    return f"{float(value):.4g}"
