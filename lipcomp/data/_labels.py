"""Labels from a table: your own CSV file, or ``metadata.csv`` / ``metadata.jsonl`` as in Hugging Face's imagefolder.

One row per image: a column with its file, a column with its label, and if wanted a column ``split``. The file is a
path relative to the table, to the data folder or to the split's folder, or a name that only one image has (with or
without its suffix).
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lipcomp.data._listing import METADATA, TINY_IMAGENET, normal

READ = (".csv", ".tsv", ".txt", ".jsonl", ".json")
_FILES = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_path",
    "path",
    "filepath",
    "image_name",
    "image_id",
    "id",
)
_LABELS = ("label", "labels", "class", "class_name", "category", "target")
_NAMED = 5


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    file: str
    label: str
    split: str | None
    others: tuple[str, ...] = ()  # what further columns of files say


@dataclass(frozen=True)
class Table:
    """A read table; if it has no column of labels, ``rows`` is empty and ``splits`` has rows with a split alone."""

    path: Path
    rows: tuple[Row, ...] = field(repr=False)
    splits: tuple[Row, ...] = field(default=(), repr=False)


def find_metadata(folder: Path) -> Path | None:
    """The metadata file beside a folder's images, if there is one."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{str(folder)!r} has {found[0].name} and {found[1].name}; remove one, or name it with labels="
        )
    return found[0] if found else None


def read_table(path: Path, label_column: str | None = None, *, required: bool = True) -> Table:
    """Read a table of labels: a .csv (or .tsv, with any of , ; and tab) or a .jsonl file.

    Labels are by default in the one column of a usual name (label, class, category, target ...); a table without
    labels is an error if they are required, and so is one that does not say which column is which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"table of labels {str(path)!r} does not exist; check labels=")
    if path.suffix.lower() not in READ:
        raise ValueError(
            f"table of labels {str(path)!r} is none of {', '.join(READ)}; save it as one of these"
        )
    lines = _read_json(path) if path.suffix.lower() in (".jsonl", ".json") else _read_csv(path)
    if not lines:
        raise ValueError(f"table of labels {str(path)!r} has no row")
    columns = list(dict.fromkeys(name for line in lines for name in line))
    file = _column(path, columns, _FILES, None, "files")
    label = _column(path, columns, _LABELS, label_column, "labels")
    split = next((name for name in columns if name.lower() == "split"), None)
    more = [name for name in columns if name.lower() in _FILES and name not in (file, label)]
    if file is None or label is None:
        if not required:
            known = lines if file is not None and split is not None else []
            cell = lambda line, name: str(line.get(name) or "").strip()  # noqa: E731
            return Table(path, (), tuple(Row(cell(r, file), "of its folder", cell(r, split)) for r in known))
        raise ValueError(
            f"table {str(path)!r} has no column of {'files' if file is None else 'labels'} "
            f"({', '.join(_FILES if file is None else _LABELS)}), only: {', '.join(columns)}; rename one"
            + ("" if file is None else ", or name it with label_column=")
        )
    rows = []
    for number, line in enumerate(lines, 1):
        value = line.get(label)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, list | dict | float):
            raise ValueError(  # noqa: TRY004 (the type is the file's)
                f"row {number} of {str(path)!r} has the label {value!r}; one class per image is needed"
            )
        told = str(line[split]).strip() if split and line.get(split) else None
        text = "" if value is None else str(value).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"row {number} of {str(path)!r} has the label {text!r}, half of a letter, which no record can hold; "
                f"write the whole letter"
            )
        others = tuple(str(line[name]).strip() for name in more if line.get(name))
        rows.append(Row(str(line.get(file) or "").strip(), normal(text), told, others))
    return Table(path, tuple(rows))


def _read_text(path: Path) -> str:
    """UTF-8 without a mark; line ends as they are, since a quoted cell may hold one."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"table of labels {str(path)!r} is not UTF-8 text ({error}); save it as UTF-8"
        ) from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    text = _read_text(path)
    if path.name == TINY_IMAGENET:
        text = "file_name\tlabel\tx0\ty0\tx1\ty1\n" + text
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = [
            line
            for line in csv.reader(
                io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
            )
            if any(line)
        ]
    except csv.Error as error:
        raise ValueError(f"table of labels {str(path)!r} is damaged ({error})") from error
    names = [name.strip() for name in lines[0]] if lines else []
    if len(set(filter(None, names))) < len([*filter(None, names)]):
        raise ValueError(
            f"table of labels {str(path)!r} has two columns with the same name: {', '.join(names)}"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(names):
            raise ValueError(f"row {number} of {str(path)!r} has {len(line)} cells, its head {len(names)}")
    return [dict(zip(names, line, strict=True)) for line in lines[1:]]


def _read_json(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(_read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of {str(path)!r} is not valid JSON ({error}); one object per line"
            ) from error
        if not isinstance(line, dict):
            raise ValueError(f"line {number} of {str(path)!r} must be one JSON object")  # noqa: TRY004
        lines.append(line)
    return lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand there once; json takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands there twice: {', '.join(key for key, _ in pairs)}")
    return found


def _column(
    path: Path, columns: list[str], usual: Sequence[str], wanted: str | None, what: str
) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"table {str(path)!r} has no column {wanted!r}, only: {', '.join(columns)}")
        return wanted
    found = [name for name in columns if name.lower() in usual]
    if what == "files":
        return min(found, key=lambda name: usual.index(name.lower()), default=None)
    if len(found) > 1:
        raise ValueError(
            f"table {str(path)!r} has several columns of labels ({', '.join(found)}); name one with label_column="
        )
    return found[0] if found else None


def match_rows(
    table: Table, rows: Sequence[Row], images: Sequence[Path], bases: Sequence[Collection[Path]]
) -> dict[Path, str]:
    """The label of each image that a row names.

    Parameters
    ----------
    rows
        Those of the table to use.
    images
        Every image that they may mean.
    bases
        Folders that their paths may be relative to, before bare names: groups, tried in this order, those of a group
        alike.

    Raises
    ------
    ValueError
        If a row names no image, one of several, or one that another row gives another label; or has no label.
    """
    places = _by_key(images, lambda image: os.path.normpath(image.absolute()))
    names = _by_key(images, lambda image: image.name), _by_key(images, lambda image: image.stem)

    def images_of(file: str, lookups: Sequence[Mapping[str, list[Path]]]) -> list[Path]:
        key = normal(PurePosixPath(file.replace("\\", "/")).as_posix())
        meant = ({normal(os.path.normpath(base.absolute() / key)) for base in group} for group in bases)
        there = ([image for place in group for image in places.get(place, ())] for group in meant)
        return next(filter(None, there), None) or next(
            (lookup[key] for lookup in lookups if key in lookup), []
        )

    found: dict[Path, str] = {}
    missing: list[str] = []
    several: list[str] = []
    for row in rows:
        matches = images_of(row.file, names)
        other = next((file for file in row.others if images_of(file, names[:1]) not in ([], matches)), None)
        if other is not None:  # a number that is another image's stem is no file
            raise ValueError(
                f"a row of {str(table.path)!r} names two images, {row.file!r} and {other!r}; rename or remove one of "
                f"its columns of files"
            )
        if len(matches) != 1:
            (several if matches else missing).append(row.file)
            continue
        if not row.label:
            raise ValueError(
                f"{str(table.path)!r} gives {row.file!r} no label; fill it in, or remove the row"
            )
        if found.setdefault(matches[0], row.label) != row.label:
            raise ValueError(
                f"{str(table.path)!r} gives {row.file!r} two labels, {found[matches[0]]!r} and {row.label!r}; one "
                f"class per image is needed"
            )
    if missing:
        kinds = sorted({Path(file).suffix for file in missing if _is_there(file, bases)})
        remedy = "paths are relative to the table or to the data folder"
        if kinds:
            remedy = f"files with the ending {', '.join(kinds)} are not read, save them as PNG"
        raise ValueError(
            f"{len(missing)} of {len(rows)} rows of {str(table.path)!r} name no image of the folder: "
            f"{shorten(missing)}; {remedy}"
        )
    if several:
        raise ValueError(
            f"{len(several)} rows of {str(table.path)!r} fit several images: {shorten(several)}; give their paths "
            f"relative to the table"
        )
    return found


def _is_there(file: str, bases: Sequence[Collection[Path]]) -> bool:
    return any(os.path.isfile(base / file) for group in bases for base in group)  # noqa: PTH113 (takes any name)


def _by_key(images: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for image in images:
        found.setdefault(normal(key(image)), []).append(image)
    return found


def shorten(names: Sequence[object]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(str(name) for name in names[:_NAMED]) + more


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names in the order of their indices: whole numbers by size, anything else as ``sorted`` gives it."""
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
