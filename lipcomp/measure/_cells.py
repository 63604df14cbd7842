"""Intermediate results, kept in files that are named by the hash of everything they depend on.

A cell holds small arrays of one block of images: predicted classes, singular values, features. Whatever changes, the
name changes, so nothing stale is read. Files are written atomically; a damaged one is computed again. Without a
folder, cells are kept in memory for as long as the engine runs.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcomp._atomic import atomic_file
from lipcomp._identity import digest
from lipcomp.measure._unit import Advance, nothing

BLOCK = 256  # images of a cell: a fixed number, so that the batch size changes no draw and no key
Arrays = dict[str, np.ndarray]


def blocks(n: int, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """The places 0 .. n - 1 in blocks of fixed size, numbered."""
    yield from enumerate(torch.arange(n).split(size or BLOCK))


@dataclass
class Cells:
    """Where intermediate results are kept."""

    folder: Path | None = None  # the folder, or None for memory only
    # (i, n): only every n-th block, from the i-th on, is computed; None computes all
    shard: tuple[int, int] | None = None
    _memory: dict[str, Arrays] = field(default_factory=dict, repr=False)

    def get(self, key: str, compute: Callable[[], Arrays], *, keep: bool = True) -> Arrays:
        """The arrays of a key, computed unless they are there."""
        found = self.find(key)
        if found is None:
            found = compute()
            if keep:
                self.put(key, found)
        return found

    def find(self, key: str) -> Arrays | None:
        """The arrays of a key, or None."""
        if key in self._memory:
            return self._memory[key]
        return None if self.folder is None else load_arrays(self.folder / f"{key}.npz")

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep arrays."""
        if self.folder is None:
            self._memory[key] = arrays
        else:
            save_arrays(self.folder / f"{key}.npz", arrays)

    def is_mine(self, block: int) -> bool:
        """Whether a block belongs to this shard."""
        return self.shard is None or block % self.shard[1] == self.shard[0]

    def by_blocks(
        self,
        key: tuple[Any, ...],
        n: int,
        compute: Callable[[Tensor], Arrays],
        advance: Advance = nothing,
        size: int | None = None,
    ) -> Arrays:
        """Arrays with one row per image, computed and kept block by block.

        Raises
        ------
        IncompleteError
            If this process computes a shard only, and blocks of other shards are not there.
        """
        parts, lacking = [], False
        for number, places in blocks(n, size):
            name = digest(*key, places)
            found = self.find(name)
            if found is None and self.is_mine(number):
                found = compute(places)
                self.put(name, found)
            if found is None:
                lacking = True
            else:
                parts.append(found)
            advance(len(places))
        if lacking:
            raise IncompleteError
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class IncompleteError(Exception):
    """A shard has done its blocks; the quantity needs those of the others as well."""


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file atomically; its checksums tell :func:`load_arrays` if the disk lost a part of it."""
    # not "wb": ext4 writes a file to the disk at once that was opened to be cut off
    with atomic_file(path, flush=False) as temporary, temporary.open("rb+") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Arrays | None:
    """The arrays of a file, or None if it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
    ):
        return None
