"""Records as a table."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lipcomp.records._record import Record, as_records

if TYPE_CHECKING:
    import pandas as pd


def to_frame(records: Iterable[Record]) -> "pd.DataFrame":
    """A data frame, one row per record; nested fields become columns such as ``subject.seed``.

    Parameters
    ----------
    records
        Any iterable of records.

    Raises
    ------
    ValueError
        If something else than records is given.

    Examples
    --------
    >>> from lipcomp.records import Record, to_frame
    >>> frame = to_frame([Record("accuracy.clean", 0.97, n=1000, subject={"seed": 3})])
    >>> print(frame[["quantity", "value", "subject.seed"]])
             quantity  value  subject.seed
    0  accuracy.clean   0.97             3
    """
    import pandas as pd

    records = as_records(records)
    names = ("quantity", "value", "unit", "n", "identity")
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in names}
    columns["low"] = [record.interval and record.interval[0] for record in records]
    columns["high"] = [record.interval and record.interval[1] for record in records]
    frame = pd.DataFrame(columns)
    for name in ("value", "low", "high"):
        frame[name] = pd.to_numeric(frame[name])
    nested = [
        _distinct([getattr(record, name) for record in records]).add_prefix(f"{name}.")
        for name in ("subject", "settings", "provenance")
    ]
    return pd.concat([frame, *nested], axis=1) if records else frame


def _distinct(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """A row per dictionary. Most equal another: columns are made of the distinct ones, rows are taken from those."""
    import pandas as pd

    places: dict[Any, int] = {}
    distinct: list[dict[str, Any]] = []
    taken: list[int] = []
    for row in rows:
        values = tuple(row.values())
        key: Any = (tuple(row), values, tuple(map(type, values)))  # 1 == True, but is another value
        try:
            place = places.setdefault(key, len(distinct))
        except TypeError:  # a list within
            place = len(distinct)
        if place == len(distinct):
            distinct.append(row)
        taken.append(place)
    return pd.DataFrame(distinct).take(taken).reset_index(drop=True)
