"""Tables of a page: cells that show a text and sort by a number."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lipcomp.statistics._estimate import Estimate

COLUMNS = 8  # that fit side by side at 1,300 pixels


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number it sorts by; ``words`` to the left, ``whole`` on one line."""

    text: str
    sort: float | int | None = None
    words: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the report; on a narrow screen each row becomes a card, so that nothing is cut off."""

    name: str
    title: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]


def number(value: float | int | None, form: str = "{:.3g}") -> Cell:
    """A cell that holds a number, or a dash."""
    if value is None or not np.isfinite(value):
        return Cell("–")
    return Cell(form.format(value), float(value))


def interval(estimate: Estimate, form: str = "{:+.3g}") -> Cell:
    """A cell that holds an interval."""
    if estimate.interval is None:
        return Cell("–")
    return Cell(" to ".join(form.format(end) for end in estimate.interval), float(estimate.interval[0]))


def split(table: Table, keys: int = 1, columns: int = COLUMNS) -> list[Table]:
    """A wide table as several that fit, each with the first ``keys`` columns."""
    room = columns - keys
    starts = range(keys, len(table.head), room)
    if len(starts) < 2:
        return [table]

    def part(cells: list[Any], start: int) -> list[Any]:
        return [*cells[:keys], *cells[start : start + room]]

    return [
        replace(
            table,
            name=f"{table.name}-{i}" if i > 1 else table.name,
            title=table.title if i == 1 else f"{table.title} ({i})",
            caption=table.caption if i == 1 else "",
            head=part(table.head, start),
            rows=[part(row, start) for row in table.rows],
        )
        for i, start in enumerate(starts, 1)
    ]


ORIGIN = (
    *("command", "lipcomp", "commit", "python", "torch", "torchvision", "numpy", "scipy", "os"),
    *("device", "device_name", "precision", "threads", "batch_size", "seed", "time"),
)


def provenance_rows(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Command, versions, device and times that the records name; what belongs to one value stays in its record."""
    rows = []
    for name in ORIGIN:
        found = frame.get(f"provenance.{name}", pd.Series(dtype=object)).dropna()
        values = sorted({f"{v:g}" if isinstance(v, float) else str(v) for v in found})
        if values and name == "time":
            rows.append(("measured", f"{values[0]} to {values[-1]}"))
        elif values:
            more = f" and {len(values) - 6} more" if len(values) > 6 else ""
            rows.append((name, ", ".join(values[:6]) + more))
    if "subject.sha256" in frame:
        label = "subject.run" if "subject.run" in frame else "subject.checkpoint"
        if label in frame:
            hashes = frame.dropna(subset=[label, "subject.sha256"]).drop_duplicates(label)
            told = zip(hashes[label], hashes["subject.sha256"], strict=True)
            rows.append(("checkpoints", ", ".join(f"{run} {str(value)[:12]}" for run, value in told)))
    return rows
