"""One record and its line of JSON."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

SCHEMA = 2
# How a compressed file begins, and what unpacks it.
PACKED = {b"\x1f\x8b": "gunzip -k", b"\xfd7zXZ": "xz -dk", b"\x28\xb5\x2f\xfd": "zstd -d", b"PK": "unzip"}


class RecordWarning(UserWarning):
    """Something in a file of records was left out."""


class RecordError(ValueError):
    """A file of records that cannot be read or appended to; the message names the line."""


class SchemaError(RecordError):
    """A schema that this code does not know, or a compressed file: not damage, so it is never skipped."""


_KINDS: tuple[tuple[str, type], ...] = (
    ("unit", str),
    ("identity", str),
    ("subject", dict),
    ("settings", dict),
    ("provenance", dict),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One measured value (see the package's table).

    Parameters
    ----------
    quantity
        Dotted name.
    value
        A number, or None if it could not be estimated.
    unit
        "nats", "1/pixel L2"; "" for a ratio.
    n
        Number of images, pairs or models behind it.
    interval
        Its 95% interval.
    subject, settings, provenance
        What was measured, how, and by which code.
    identity
        Hash of everything that can change the value. If empty, it is derived from quantity, subject and settings.

    Raises
    ------
    ValueError
        If the quantity has no name, a number is not finite, or a field cannot be written as JSON.
    TypeError
        If the unit or identity is no text, or subject, settings or provenance no dictionary.

    Examples
    --------
    >>> from lipcomp.records import Record
    >>> Record("accuracy.clean", 0.97, n=1000, interval=(0.957, 0.98), subject={"run": "mine"}).value
    0.97
    """

    quantity: str
    value: float | None
    unit: str = ""
    n: int | None = None
    interval: tuple[float, float] | None = None
    subject: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.quantity or not isinstance(self.quantity, str):
            raise ValueError(f"quantity must be a name, got {self.quantity!r}")
        for name, kind in _KINDS:
            if not isinstance(getattr(self, name), kind):
                told = "a dictionary" if kind is dict else "text"
                raise TypeError(f"{name} of {self.quantity} must be {told}, got {getattr(self, name)!r}")
        if (value := self.value) is not None:
            if type(value) is not float:
                try:
                    if isinstance(value, str | bool):
                        raise TypeError
                    value = float(value)
                except (TypeError, ValueError):
                    raise ValueError(f"{self.quantity} must be a number, got {value!r}") from None
                object.__setattr__(self, "value", value)
            if not math.isfinite(value):
                raise ValueError(f"{self.quantity} must be finite, got {value}; None means not estimable")
        if self.n is not None and not (type(self.n) is int and self.n >= 0):
            if not isinstance(self.n, Integral) or self.n < 0:
                raise ValueError(f"n of {self.quantity} must be a whole number of at least 0, got {self.n!r}")
            object.__setattr__(self, "n", int(self.n))  # NumPy's
        if (interval := self.interval) is not None:
            try:
                low, high = interval
            except (TypeError, ValueError):
                raise ValueError(
                    f"interval of {self.quantity} must be two numbers, got {interval!r}"
                ) from None
            if not (type(interval) is tuple and type(low) is float and type(high) is float):
                low, high = float(low), float(high)
                object.__setattr__(self, "interval", (low, high))
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"interval of {self.quantity} must be finite and ordered, got {(low, high)}")
        if not self.identity:
            text = self._written([self.quantity, self.subject, self.settings], sort_keys=True)
            object.__setattr__(self, "identity", hashlib.sha256(text.encode()).hexdigest()[:32])

    def to_json(self) -> str:
        """One line of JSON, the fields in the order that :class:`LineParser` is fast at."""
        fields = {
            "schema": SCHEMA,
            "identity": self.identity,
            "quantity": self.quantity,
            "value": self.value,
            "unit": self.unit,
            "n": self.n,
            "interval": self.interval,
            "subject": self.subject,
            "settings": self.settings,
            "provenance": self.provenance,
        }
        return self._written(fields)

    def _written(self, fields: Any, **options: Any) -> str:
        try:
            return json.dumps(fields, allow_nan=False, **options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"record {self.quantity} cannot be written as JSON: {error}") from error


def as_records(records: Any) -> list[Record]:
    """What users pass as records, as a list; ValueError names what is none."""
    found = list(records) if isinstance(records, Iterable) and not isinstance(records, str) else [records]
    if others := [each for each in found if not isinstance(each, Record)]:
        raise ValueError(
            f"records must be records of lipcomp, got {others[0]!r:.60}; read those of a file with read_records(path)"
        )
    return found


def _from_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had no identity, and two names for some things."""
    names = {"concentration": "kappa_e"}
    values = {"L2": "l2", "Linf": "linf"}

    def renamed(key: str, value: Any) -> tuple[str, Any]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        key = "kappa_e" if key == "kappa" and number else names.get(key, key)
        return key, values.get(value, value) if isinstance(value, str) else value

    parts = str(fields.get("quantity", "")).split(".")
    return fields | {
        "quantity": ".".join("median" if part == "q50" else part for part in parts),
        "settings": dict(renamed(key, value) for key, value in fields.get("settings", {}).items()),
        "subject": {names.get(key, key): value for key, value in fields.get("subject", {}).items()},
    }


# {old version: how its line becomes one of the next}
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}

_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class LineParser:
    """Lines of one file -> records.

    Most lines of a file share their subject or provenance, letter by letter, and those are most of the line: their
    text is looked up instead of parsed. A line of another order of fields, or one that nests the same names, does not
    come apart into valid JSON there, and is parsed whole.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.known: dict[str, dict[str, Any]] = {}

    def parse(self, line: bytes, number: int) -> Record:
        """One line; raises a :class:`RecordError` that names it."""
        try:
            fields = self._split(line) or json.loads(line)
            found = fields.pop("schema")
            if type(found) is not int:
                raise TypeError(f"schema {found!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == 1 and (how := next((how for b, how in PACKED.items() if line.startswith(b)), None)):
                raise SchemaError(f"{self.where}: compressed; unpack it first: {how} FILE") from error
            raise self._damaged(number, "not a record") from error
        try:
            if found != SCHEMA:
                fields = self._upgraded(fields, found, number)
            if fields.get("interval") is not None:
                fields["interval"] = tuple(fields["interval"])
            return Record(**fields)
        except SchemaError:
            raise
        except (TypeError, AttributeError) as error:
            # a field too many, one that is missing, or of another kind
            raise self._damaged(number, "not the fields of a record") from error
        except (ValueError, OverflowError) as error:
            raise self._damaged(number, str(error)) from error

    def _place(self, number: int) -> str:
        """Where a line is; one that is read from the end has no number."""
        return f"{self.where}, line {number}" if number > 0 else self.where

    def _damaged(self, number: int, reason: str) -> RecordError:
        return RecordError(
            f"{self._place(number)}: {reason}; rescue the others with: "
            "python -m lipcomp.records salvage FILE --out NEW (in Python, skip_damaged=True skips it)"
        )

    def _split(self, line: bytes) -> dict[str, Any] | None:
        head, _, rest = line.decode().strip().partition(', "subject": ')
        rest, _, provenance = rest.rpartition(', "provenance": ')
        subject, _, settings = rest.partition(', "settings": ')
        try:
            fields = _object(head + "}")
            fields["subject"] = self._nested(subject)
            fields["settings"] = _object(settings)  # differ in most lines
            fields["provenance"] = self._nested(provenance.removesuffix("}"))
        except (ValueError, RecursionError):
            return None
        return fields

    def _nested(self, text: str) -> dict[str, Any]:
        known = self.known.get(text)
        if known is None:
            known = _object(text)
            if "{" in text[1:] or "[" in text:
                return known  # a copy would share what is nested
            if len(self.known) >= 4096:
                self.known.clear()
            self.known[text] = known
        return known.copy()

    def _upgraded(self, fields: dict[str, Any], found: int, number: int) -> dict[str, Any]:
        while found in UPGRADES:
            fields, found = UPGRADES[found](fields), found + 1
        if found != SCHEMA:
            remedy = "upgrade lipcomp to read it" if found > SCHEMA else "measure it again"
            raise SchemaError(
                f"{self._place(number)}: schema {found!r}, this lipcomp reads 1 to {SCHEMA}; {remedy}"
            )
        return fields


def _object(text: str) -> dict[str, Any]:
    """The JSON object that is all of a text."""
    try:
        found, end = _scan(text, 0)
    except StopIteration:
        raise ValueError from None
    if end != len(text) or not isinstance(found, dict):
        raise ValueError
    return found
