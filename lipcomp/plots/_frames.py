"""Records as the rows of a picture: a short name per subject, and only the quantities that are drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from lipcomp.checkpoints._native import label_of
from lipcomp.records import Record, to_frame

# Settings that a newer measurement of the same may have otherwise.
UNTOLD = ("method", "note", "classes", "floor")


def rows_of(
    records: Iterable[Record] | pd.DataFrame,
    *quantities: str,
    drawn: Sequence[str] = (),
    alike: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The rows of these quantities, with a column ``name`` for the subject; of equal ones the last.

    Parameters
    ----------
    records, quantities
        Records, and the quantities to take.
    drawn
        Settings whose values a picture tells apart.
    alike
        Settings that must be one for each subject; all that are not drawn if not given.

    Raises
    ------
    ValueError
        If there is none, or a subject has several values that differ in a setting that is not drawn.
    """
    frame = records if isinstance(records, pd.DataFrame) else to_frame(records)
    if "quantity" not in frame:
        raise ValueError("records must be records, or the data frame that to_frame makes of them")
    chosen = frame[frame["quantity"].isin(quantities) & frame["value"].notna()]
    if chosen.empty:
        there = ", ".join(sorted(frame["quantity"].unique())[:12]) or "none"
        raise ValueError(f"no record of {' or '.join(quantities)}; the quantities here are: {there}")
    rows = chosen.assign(name=labels(frame)).drop_duplicates("identity", keep="last")
    keys = [
        rows["name"],
        rows["quantity"],
        *(rows[c].map(str) for c in map("settings.{}".format, drawn) if c in rows),
    ]
    for column in (str(c) for c in rows if str(c).startswith("settings.")):
        setting = column.removeprefix("settings.")
        if setting not in (*UNTOLD, *drawn) and (alike is None or setting in alike):
            differ = rows[column].map(str).groupby(keys).transform("nunique") > 1
            if differ.any():
                one = rows[differ].iloc[0]
                values = ", ".join(
                    dict.fromkeys(rows[differ & (rows["name"] == one["name"])][column].map(str))
                )
                raise ValueError(
                    f"records hold several values of {one['quantity']} of {one['name']}, of {setting} {values}; draw "
                    f"those of one: frame = lipcomp.to_frame(records), frame[frame[{column!r}] == {one[column]!r}]"
                )
    return rows if alike is not None else rows[~pd.concat(keys, axis=1).duplicated(keep="last")]


def labels(frame: pd.DataFrame) -> pd.Series:
    """A short name per subject, with its hash where two share the name: the file's, and the network's where one file
    holds several, or is read in several ways; the whole path where there is no hash.
    """
    nothing = pd.Series(index=frame.index, dtype=object)
    run = frame.get("subject.run", nothing)
    whole = frame.get("subject.checkpoint", nothing)
    path = whole.map(lambda p: _short(str(p)) if pd.notna(p) else p)
    other = frame.get("subject.name", nothing)
    label = run.where(run.notna(), path).where(lambda s: s.notna(), other).where(lambda s: s.notna(), "all")
    label = label.astype(str)
    unknown = (
        run.isna()
        & frame.get("subject.sha256", nothing).isna()
        & frame.get("subject.encoder", nothing).isna()
    )
    shared = whole.where(unknown).groupby(label).transform("nunique") > 1
    label = label.where(~shared | ~unknown | whole.isna(), whole.astype(str))
    for column in ("subject.sha256", "subject.encoder"):
        digest = frame.get(column, nothing).map(lambda h: str(h)[:6] if pd.notna(h) else None)
        shared = digest.groupby(label).transform("nunique") > 1
        label = label.where(~shared | digest.isna(), label + " " + digest.fillna(""))
    return label


def _short(path: str) -> str:
    """As :attr:`lipcomp.checkpoints.Checkpoint.label`: the folder's name where every file is called the same."""
    return label_of(Path(path))
