"""A folder of the corpus: built with its truth beside it, then read by lipcomp and compared."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lipcomp.data import Preprocessing, load_set

HEIGHT, WIDTH = 6, 7
AS_STORED = Preprocessing()


@dataclass
class Exact:
    """These images, with these class names (None: no labels) in this order of classes."""

    images: dict[str, str | None]
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    note: str = ""
    channels: int = 3
    tolerance: float = 1e-6


@dataclass
class Refused:
    """An error whose message matches, at loading or at the first batch."""

    match: str
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)
    channels: int = 3


class Folder:
    """A folder being built, with the pixels that were written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pixels: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def put(self, *names: str) -> None:
        """Colour images of random pixels."""
        for name in names:
            array = self.rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            self.save(name, Image.fromarray(array), array / 255)

    def save(self, name: str, image: Image.Image, truth: np.ndarray | None = None, **options: Any) -> None:
        """An image with its true pixels, in [0, 1]."""
        path = self.make(name)
        image.save(path, **options)
        if truth is not None:
            self.pixels[name] = truth

    def make(self, name: str, content: bytes | str | None = None) -> Path:
        """A file of any content."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def table(self, name: str, rows: list[tuple[Any, ...]], **options: Any) -> str:
        """A CSV file, the first row its head; returns its path."""
        with self.make(name).open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
            csv.writer(file, **options).writerows(rows)
        return str(self.root / name)

    def lines(self, name: str, rows: list[dict[str, Any]]) -> str:
        """A file of JSON lines; returns its path."""
        return str(self.make(name, "\n".join(map(json.dumps, rows))))


Checks = Iterator[Exact | Refused]
CASES: dict[str, Callable[[Folder], Checks]] = {}


def case(build: Callable[[Folder], Checks]) -> Callable[[Folder], Checks]:
    CASES[build.__name__] = build
    return build


def check(folder: Folder, expected: Exact | Refused) -> str | None:
    """What is wrong, or None."""
    options: dict[str, Any] = {
        "image_shape": (expected.channels, HEIGHT, WIDTH),
        "preprocessing": AS_STORED,
        **expected.options,
    }
    try:
        images = load_set(str(folder.root), expected.split, **options)
        pixels = images.batch(torch.arange(len(images))).permute(0, 2, 3, 1).numpy()
    except (ValueError, FileNotFoundError) as error:
        if isinstance(expected, Exact):
            return f"refused: {error}"
        return None if re.search(expected.match, str(error)) else f"refused for another reason: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    names = {
        images.file_of(i): images.classes[k] if k >= 0 else None for i, k in enumerate(images.labels.tolist())
    }
    if isinstance(expected, Refused):
        return f"accepted: {names}"
    if names != expected.images:
        return f"labels {names}, should be {expected.images}"
    if expected.classes is not None and images.classes != expected.classes:
        return f"classes {images.classes}, should be {expected.classes}"
    if expected.note not in " ".join(images.notes):
        return f"notes {images.notes} do not tell {expected.note!r}"
    for i in range(len(images)):
        truth = folder.pixels[images.file_of(i)]
        truth = truth[..., None] if truth.ndim == 2 else truth
        error = np.abs(pixels[i] - truth).max()
        if not error <= expected.tolerance:
            return f"pixels of {images.file_of(i)} off by {error * 255:.1f} levels"
    return None


def run(name: str, root: Path) -> list[str]:
    """Build one folder and check all that is expected of it; the failures."""
    root.mkdir(parents=True)
    folder = Folder(root)
    found = (check(folder, expected) for expected in CASES[name](folder))
    return [failure for failure in found if failure]
