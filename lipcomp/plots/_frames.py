"""Records as the rows of a picture: a short name per subject, and only the quantities that are drawn."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from lipcomp.checkpoints._native import GENERIC_NAMES
from lipcomp.records import Record, to_frame


def rows_of(records: Iterable[Record] | pd.DataFrame, *quantities: str) -> pd.DataFrame:
    """The rows of these quantities, with a column ``name`` for the subject; of equal ones the last.

    Raises
    ------
    ValueError
        If there is none.
    """
    frame = records if isinstance(records, pd.DataFrame) else to_frame(records)
    if "quantity" not in frame:
        raise ValueError("records must be records, or the data frame that to_frame makes of them")
    chosen = frame[frame["quantity"].isin(quantities) & frame["value"].notna()]
    if chosen.empty:
        there = ", ".join(sorted(frame["quantity"].unique())[:12]) or "none"
        raise ValueError(f"no record of {' or '.join(quantities)}; the quantities here are: {there}")
    return chosen.assign(name=labels(frame)).drop_duplicates("identity", keep="last")


def labels(frame: pd.DataFrame) -> pd.Series:
    """A short name per subject, with its hash where two share the name."""
    nothing = pd.Series(index=frame.index, dtype=object)
    run = frame.get("subject.run", nothing)
    path = frame.get("subject.checkpoint", nothing).map(lambda p: _short(str(p)) if pd.notna(p) else p)
    other = frame.get("subject.name", nothing)
    label = run.where(run.notna(), path).where(lambda s: s.notna(), other).where(lambda s: s.notna(), "all")
    label = label.astype(str)
    digest = frame.get("subject.sha256", nothing).map(lambda h: str(h)[:6] if pd.notna(h) else "")
    shared = digest.groupby(label).transform("nunique") > 1
    return label.where(~shared | (digest == ""), label + " " + digest)


def _short(path: str) -> str:
    """As :attr:`lipcomp.checkpoints.Checkpoint.label`: the folder's name where every file is called the same."""
    place = Path(path)
    return place.parent.name if place.stem in GENERIC_NAMES and place.parent.name else place.stem
