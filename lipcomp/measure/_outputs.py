"""Further output files: a table of per-image values, and pictures of the pairs that attain the bounds."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import save_image

from lipcomp._atomic import atomic_file, check_writable
from lipcomp._claims import claim

if TYPE_CHECKING:
    from lipcomp.measure._bench import Bench
    from lipcomp.measure._unit import Unit


@runtime_checkable
class Table(Protocol):
    """A keeper of per-image values."""

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""

    def has(self, bench: "Bench", unit: "Unit") -> bool:
        """Whether the values of a unit are there (or are not kept)."""

    def add(self, bench: "Bench", unit: "Unit", columns: Mapping[str, np.ndarray]) -> None:
        """Keep a unit's values."""


@dataclass
class ImageTable:
    """A file of per-image values, .csv or .parquet: one row per image of a unit, columns joined by name."""

    path: Path

    def check(self) -> None:
        """Refuse a file that is neither .csv nor .parquet, or needs a package that is not installed."""
        check_writable(self.path, "table")
        if self.path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"table must end in .csv or .parquet, got {str(self.path)!r}")
        if self.path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise ImportError(f"table {str(self.path)!r} needs pyarrow; install it, or give a .csv file")
        self.read()

    def read(self) -> pd.DataFrame:
        """What is there."""
        if not self.path.exists():
            return pd.DataFrame()
        try:
            if self.path.suffix == ".parquet":
                frame = pd.read_parquet(self.path)
            else:  # the rows are written again with new ones: a name such as NA stays what it is
                frame = pd.read_csv(self.path, keep_default_na=False, na_values=[""])
        except (ValueError, OSError) as error:
            raise ValueError(
                f"table {str(self.path)!r} exists and is not a table of lipcomp ({error}); give another path"
            ) from error
        if not {"checkpoint", "unit", "image"} <= {*frame}:
            raise ValueError(
                f"table {str(self.path)!r} exists and is not a table of lipcomp; give another path"
            )
        return frame

    def has(self, bench: "Bench", unit: "Unit") -> bool:
        """Whether the rows of a unit are there."""
        frame = self.read()
        return bool(len(frame)) and bool((frame["unit"] == unit.identity).any())

    def add(self, bench: "Bench", unit: "Unit", columns: Mapping[str, np.ndarray]) -> None:
        """Add a unit's rows, in the place of those that an interrupted run left; the file is written atomically."""
        n = len(next(iter(columns.values())))
        ids = bench.indices[:n].tolist()
        names = getattr(bench.images, "file_of", None)
        told: dict[str, Any] = {
            **({} if bench.source.name is None else {"run": bench.source.name}),
            "checkpoint": str(bench.checkpoint.path),
            "unit": unit.identity,
            **{
                k: v
                for k, v in unit.settings.items()
                if k in ("pairs", "layer", "corruption", "severity", "radius")
            },
        }
        rows = {name: [value] * n for name, value in told.items()} | {"image": ids}
        if names is not None:
            rows["file"] = [str(names(i)) for i in ids]
        fresh = pd.DataFrame(rows | {name: list(values) for name, values in columns.items()})
        with claim(self.path, wait=600.0) as mine:  # several processes may add to one table
            if not mine:
                raise TimeoutError(f"table {str(self.path)!r} is held by another process; run the same again")
            frame = self.read()
            if len(frame) and len(others := frame[frame["unit"] != unit.identity]):
                fresh = pd.concat([others, fresh], ignore_index=True)
            with atomic_file(self.path) as temporary:
                if self.path.suffix == ".parquet":
                    fresh.to_parquet(temporary)
                else:
                    fresh.to_csv(temporary, index=False)


def witness_path(folder: Path, bench: "Bench", unit: "Unit", bound: str = "direction") -> Path:
    """Where the picture of a bound's pair lies."""
    stem = re.sub(r"[^\w.-]+", "_", f"{bench.label} {unit.label} {bound} {unit.identity[:8]}")
    return folder / f"{stem}.png"


def save_witness(
    folder: Path, bench: "Bench", unit: "Unit", witnesses: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """A picture for each bound's pair."""
    for name, (first, second) in witnesses.items():
        draw_pair(witness_path(folder, bench, unit, name), first, second)


def draw_pair(
    path: Path, first: Float[Tensor, "channels height width"], second: Float[Tensor, "channels height width"]
) -> None:
    """The two images and their difference as one PNG, side by side; the file is written atomically.

    The difference is stretched, grey where there is none, so that a small step can be seen. Of images that are neither
    grey nor coloured the mean over the channels is drawn.
    """
    difference = second - first
    largest = float(difference.abs().max())
    stretched = difference / (2 * largest) + 0.5 if largest > 0 else torch.full_like(difference, 0.5)
    panels = [
        part if len(part) in (1, 3) else part.mean(0, keepdim=True) for part in (first, second, stretched)
    ]
    with atomic_file(path) as temporary:
        save_image([p.float().clamp(0, 1) for p in panels], temporary, format="png", padding=1, pad_value=0.5)
