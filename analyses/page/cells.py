"""Tables of a page: cells that show a text and sort by a number."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lipcomp.statistics import Estimate


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number it sorts by."""

    text: str
    sort: float | None = None
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    name: str
    title: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]


def number(value: float | None, form: str = "{:.3g}") -> Cell:
    """A cell that holds a number, or a dash."""
    if value is None or not np.isfinite(value):
        return Cell("–")
    return Cell(form.format(value), float(value))


def interval(estimate: Estimate, form: str = "{:+.3g}") -> Cell:
    """A cell that holds an interval."""
    if estimate.interval is None:
        return Cell("–")
    return Cell(" to ".join(form.format(end) for end in estimate.interval), float(estimate.interval[0]))


def provenance_rows(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Versions, device and times that the records name."""
    rows = []
    for column in sorted(str(c) for c in frame if str(c).startswith("provenance.")):
        values = sorted({str(v) for v in frame[column].dropna()})
        name = column.removeprefix("provenance.")
        if name == "time":
            rows.append(("measured", f"{values[0]} to {values[-1]}"))
        else:
            rows.append((name, ", ".join(values[:6])))
    if "subject.sha256" in frame:
        hashes = (
            frame.dropna(subset=["subject.run", "subject.sha256"])
            .drop_duplicates("subject.run")
            .set_index("subject.run")["subject.sha256"]
        )
        rows.append(("checkpoints", ", ".join(f"{run} {value[:12]}" for run, value in hashes.items())))
    return rows
