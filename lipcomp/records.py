"""Records: one measured value each, with what was measured, how, and by what code; JSON lines on disk.

A line is one :class:`Record`:

==========  ====================================================================================
quantity    dotted name of the quantity: ``sigma_max.mean``, ``accuracy.corruption``
value       a number, or null where it could not be estimated (``settings`` then says why)
unit        "nats", "1/pixel L2", "" for a ratio
n           how many images, pairs or models it rests on
interval    lower and upper end of its 95% interval, or null
subject     what was measured: checkpoint, its hash, recipe, objective, beta, seed
settings    how: data, layer, pair source, corruption, severity, tolerance
provenance  versions, device, precision, time
schema      version of this layout; this code reads 1
==========  ====================================================================================

A file only grows. Each append is one write, flushed to disk; a line torn by a crash is left out when the file
is read, reported, and cut off by the next append. Figures and reports are drawn from records alone.

>>> from lipcomp.records import Record, append_records, read_records, to_frame
>>> append_records("study.jsonl", [Record("accuracy.clean", 0.97, n=1000)])  # doctest: +SKIP
>>> to_frame(read_records("study.jsonl"))  # doctest: +SKIP
"""

import fcntl
import functools
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

SCHEMA = 1

# {old version: how its line becomes one of the next}. Empty while there is one schema.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class RecordWarning(UserWarning):
    """Something in a file of records was left out."""


class RecordError(ValueError):
    """A file of records that cannot be read; the message names the line."""


@dataclass(frozen=True)
class Record:
    """One measured value (see the module's table).

    Raises
    ------
    ValueError
        If the quantity has no name, a number is not finite, or a field cannot be written as JSON.
    """

    quantity: str
    value: float | None
    unit: str = ""
    n: int | None = None
    interval: tuple[float, float] | None = None
    subject: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.quantity or not isinstance(self.quantity, str):
            raise ValueError(f"quantity must be a name, got {self.quantity!r}")
        if self.value is not None:
            object.__setattr__(self, "value", float(self.value))
            if not math.isfinite(self.value):
                raise ValueError(
                    f"{self.quantity} must be finite, got {self.value}; None means not estimable"
                )
        if self.interval is not None:
            low, high = (float(end) for end in self.interval)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"interval of {self.quantity} must be finite and ordered, got {(low, high)}")
            object.__setattr__(self, "interval", (low, high))

    def identity(self) -> str:
        """What was measured and how, as text: two records of one identity should have one value."""
        return json.dumps([self.quantity, self.subject, self.settings], sort_keys=True)

    def to_json(self) -> str:
        """One line of JSON."""
        try:
            return json.dumps({"schema": SCHEMA, **asdict(self)}, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ValueError(f"record {self.quantity} cannot be written as JSON: {error}") from error


def append_records(path: Path | str, records: Iterable[Record]) -> None:
    """Add records to a file, whole or not at all, flushed to disk; several processes may append to one file.

    Raises
    ------
    ValueError
        If a record cannot be written as JSON; the file is then untouched.
    OSError
        If the file cannot be written.
    """
    text = "".join(record.to_json() + "\n" for record in records).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = _whole_length(path)
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
    return 0


def read_records(paths: Path | str | Sequence[Path | str]) -> list[Record]:
    """Read one file of records, or several in order.

    Raises
    ------
    RecordError
        If a file is missing, or a line other than a torn last one cannot be read, or is of a schema this code
        does not know. A torn last line is left out with a :class:`RecordWarning`.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    return [record for path in paths for record in _read_file(Path(path))]


def _read_file(path: Path) -> list[Record]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"records {str(path)!r} cannot be read ({error.strerror}); give the path of a .jsonl file"
        ) from error
    *lines, last = text.split(b"\n")
    if last.strip():
        warnings.warn(
            f"{path}: line {len(lines) + 1} was torn by a crash and is left out ({len(last)} bytes)",
            RecordWarning,
            stacklevel=3,
        )
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: bytes, path: Path, number: int) -> Record:
    where = f"records {str(path)!r}, line {number}"
    try:
        fields = json.loads(line)
        found = fields.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{where}: not a record ({error!r}); remove the line or restore the file"
        ) from error
    while found in UPGRADES:
        fields, found = UPGRADES[found](fields), found + 1
    if found != SCHEMA:
        remedy = (
            "upgrade lipcomp to read it" if isinstance(found, int) and found > SCHEMA else "measure it again"
        )
        raise RecordError(f"{where}: schema {found!r}, this lipcomp reads {SCHEMA}; {remedy}")
    try:
        if fields.get("interval") is not None:
            fields["interval"] = tuple(fields["interval"])
        return Record(**fields)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{where}: {error}") from error


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """A data frame, a row a record; nested fields become columns such as ``subject.seed``."""
    rows = []
    for record in records:
        row = asdict(record)
        low, high = row.pop("interval") or (None, None)
        rows.append({**row, "low": low, "high": high})
    if not rows:
        return pd.DataFrame(columns=["quantity", "value", "unit", "n", "low", "high"])
    frame = pd.json_normalize(rows, max_level=1)
    for name in ("value", "low", "high"):
        frame[name] = pd.to_numeric(frame[name])
    return frame


def merge_records(
    paths: Sequence[Path | str], out: Path | str, *, on_conflict: Literal["error", "first", "last"] = "error"
) -> int:
    """Merge files of records (two studies) into a new one; returns how many records it holds.

    What was measured twice with the same value is kept once.

    Parameters
    ----------
    paths
        The files to merge, in order.
    out
        The new file.
    on_conflict
        What to do with two records of one identity (quantity, subject, settings) whose values differ:
        refuse, or keep the first or the last.

    Raises
    ------
    ValueError
        If two records disagree and ``on_conflict`` is "error", or ``out`` exists already.
    """
    if on_conflict not in ("error", "first", "last"):
        raise ValueError(f'on_conflict must be "error", "first" or "last", got {on_conflict!r}')
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; give the path of a new file")
    merged: dict[str, Record] = {}
    for record in read_records(paths):
        known = merged.setdefault(record.identity(), record)
        if known.value != record.value:
            if on_conflict == "error":
                raise ValueError(
                    f"{record.quantity} of {record.subject} was measured as {known.value} and as "
                    f'{record.value}; decide with on_conflict="first" or "last"'
                )
            if on_conflict == "last":
                merged[record.identity()] = record
    append_records(out, merged.values())
    return len(merged)


def provenance(
    device: torch.device | str | None = None,
    precision: str = "float32",
    seed: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """By what code, on what and when: versions, commit, device, precision, seed, UTC time."""
    base = {
        **_versions(),
        "device": str(device or "cpu"),
        "precision": precision,
        "seed": seed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    return {name: value for name, value in base.items() if value is not None}


@functools.cache
def _versions() -> dict[str, str | None]:
    try:
        own = version("lipcomp")
    except PackageNotFoundError:
        own = "uninstalled"
    return {
        "lipcomp": own,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """The commit of the clone this module runs from, with "+" if the clone has changes; None elsewhere."""
    clone = Path(__file__).resolve().parents[1]
    if not (clone / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(clone)]
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
