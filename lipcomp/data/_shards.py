"""Shards of WebDataset as a dataset of (image, label): tar files whose items are read where they lie.

    shards/train-000000.tar      0001.jpg 0001.cls 0002.jpg 0002.cls ...

Files that follow each other and share their name up to its first dot are one sample. It needs one picture (jpg, png
and so on, or npy); its label is in ``cls`` (a number or a word) or, by a usual key such as "label", in ``json``. The
tar files are listed once, which reads their headers alone. So any item can be read at any time, in any order: ranks,
workers and resumed runs take what they would take of a folder, however many samples each shard holds.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from lipcomp._identity import digest
from lipcomp._identity_files import hash_files
from lipcomp._messages import is_of_machine
from lipcomp.data._items import LABELS, planes_of
from lipcomp.data._labels import shorten
from lipcomp.data._layout import canonical
from lipcomp.data._listing import SUFFIXES, UNPACK, is_visible, visible_folders
from lipcomp.data._pictures import decode

_PARTS = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_PICTURES = {suffix.removeprefix(".") for suffix in SUFFIXES} | {"npy"}


@dataclass(frozen=True)
class Shards:
    """Samples of some tar files, in the order of the files."""

    files: tuple[Path, ...]  # the tar files
    name: str = "shards"  # what records call them
    # (name, number of the file, first byte, bytes) of each picture
    samples: list[tuple[str, int, int, int]] = field(default_factory=list, repr=False)
    # its label: a number or word, or None
    targets: list[int | str | None] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)  # what was left out

    def __post_init__(self) -> None:
        for number, file in enumerate(self.files):
            try:
                self._list(number, file)
            except (tarfile.TarError, EOFError) as error:
                raise ValueError(
                    f"shard {str(file)!r} is cut off, damaged or compressed ({error}); get it again, or unpack it once "
                    f"(.tar.gz to .tar)"
                ) from error
        for (name, *_), label in zip(self.samples, self.targets, strict=True):
            if (label is None) != (self.targets[0] is None):
                raise ValueError(
                    f"sample {name} of {self.name} has {'no' if label is None else 'a'} label (cls, or json)"
                )
            if label is None and name.count("/") > 1:
                raise ValueError(
                    f"sample {name} of {self.name} has no label (cls, or json), but a folder; {UNPACK}"
                )

    def _list(self, number: int, file: Path) -> None:
        with tarfile.open(file, "r:") as tar, file.open("rb") as data:
            key, parts = "", dict[str, tarfile.TarInfo]()
            for member in tar:
                name = member.name.removeprefix("./")  # as tar writes what lies in "."
                found = _PARTS.fullmatch(name)
                if not member.isfile() or found is None or not all(map(is_visible, name.split("/"))):
                    continue
                if found[1] != key and parts:
                    self._add(number, file, key, parts, data)
                    parts = {}
                key, kind = found[1], found[2].lower()
                if kind in parts:
                    raise ValueError(
                        f"shard {str(file)!r} holds {key}.{kind} twice in one sample; write it again"
                    )
                parts[kind] = member
            if parts:
                self._add(number, file, key, parts, data)
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE).strip(b"\0") or data.tell() != tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it has no end")

    def _add(self, number: int, file: Path, key: str, parts: dict[str, tarfile.TarInfo], data: Any) -> None:
        pictures = [kind for kind in parts if kind.rpartition(".")[2] in _PICTURES]
        if len(pictures) != 1:
            raise ValueError(
                f"sample {key!r} of shard {str(file)!r} holds {', '.join(parts)}: each sample needs one picture "
                f"(jpg, png, npy ...); name a function that returns the images as a dataset: FILE.py:FUNCTION"
            )
        member = parts[pictures[0]]
        name = f"{file.name}/{member.name.removeprefix('./')}"
        self.samples.append((name, number, member.offset_data, member.size))
        self.targets.append(_label(parts, data, f"sample {key!r} of shard {str(file)!r}"))

    def __len__(self) -> int:
        """Count of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int | str | None]:
        """(picture, label) of a sample."""
        name, number, offset, size = self.samples[index]
        with self.files[number].open("rb") as file:
            file.seek(offset)
            data = io.BytesIO(file.read(size))
        if name.lower().endswith(".npy"):
            return np.load(data, allow_pickle=False), self.targets[index]
        return decode(data, name), self.targets[index]

    def leave_out_unreadable(self, advance: Callable[[], object]) -> None:
        """Drop the samples whose picture cannot be read, and note them; ``advance()`` is called for each that is read.

        Raises
        ------
        ValueError
            If that leaves none.
        """

        def is_good(index: int) -> bool:
            try:
                planes_of(self[index][0])
            except (ValueError, EOFError) as error:
                if is_of_machine(error):
                    raise
                return False
            finally:
                advance()
            return True

        with ThreadPoolExecutor() as pool:
            good = list(pool.map(is_good, range(len(self))))
        broken = [sample[0] for sample, kept in zip(self.samples, good, strict=True) if not kept]
        if broken:
            said = f"of the {len(self)} pictures of {self.name} can be read"
            if len(broken) == len(self):
                raise ValueError(f"none {said}: {shorten(broken)}")
            self.notes.append(f"all but {len(broken)} {said}; left out: {shorten(broken)}")
            self.samples[:] = compress(self.samples, good)
            self.targets[:] = compress(self.targets, good)

    def content_hash(self) -> str:
        """A hash of the files' bytes, in order, wherever they lie, and of what was left out."""
        left = [sample[1:] for sample in self.samples] if self.notes else ()
        return digest("shards", hash_files(self.files), *left)


def _label(parts: dict[str, tarfile.TarInfo], data: Any, name: str) -> int | str | None:
    """What the cls or json file of a sample says."""
    kind = next((kind for kind in ("cls", "json") if kind in parts), None)
    if kind is None:
        return None
    data.seek(parts[kind].offset_data)
    try:
        text = data.read(parts[kind].size).decode().strip()
        told = json.loads(text) if kind == "json" else text
    except ValueError as error:
        raise ValueError(f"{name}: {kind} cannot be read ({error}); write the shard again") from error
    if kind == "json":
        keys = [key for key in LABELS if key in told] if isinstance(told, dict) else []
        if len(keys) > 1:
            raise ValueError(
                f"{name}: json has several labels ({', '.join(keys)}); leave one, or write a cls file"
            )
        told = told[keys[0]] if keys else None
    if isinstance(told, str) and re.fullmatch(r"[+-]?[0-9]+", told):
        return int(told)
    return None if told == "" else told


def find_shards(place: Path) -> dict[str, tuple[Path, ...]]:
    """The tar files of each split: a folder's, by its folders' or the files' names; "" where nothing names a split.

    None are found beside pictures, or beside folders of them.
    """
    if place.is_file() and place.suffix == ".tar":
        return {"": (place,)}
    found: dict[str, list[Path]] = {}
    folders = [f for f in visible_folders(place) if canonical(f.name)] if place.is_dir() else []
    for folder in folders or [place]:
        shards = sorted(file for file in folder.glob("*.tar") if is_visible(file.name) and file.is_file())
        if shards and any(_holds_pictures(each) for each in (folder, *visible_folders(folder))):
            return {}
        for file in shards:
            words = [folder.name] if folders else re.split(r"[-_.\d]+", file.name)
            found.setdefault(next(filter(None, map(canonical, words)), ""), []).append(file)
    return {split: tuple(files) for split, files in found.items()}


def _holds_pictures(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES for file in folder.iterdir() if is_visible(file.name))
