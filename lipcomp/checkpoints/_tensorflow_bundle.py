"""TensorFlow's checkpoints, read without TensorFlow.

A checkpoint ``PREFIX`` is a sorted table ``PREFIX.index`` and shards ``PREFIX.data-00000-of-00001``. The table has
the layout of LevelDB's: data blocks of prefix-compressed keys, an index block over them, a footer of 48 bytes;
each block ends with a byte (0: not compressed, which TensorFlow always writes) and a masked CRC-32C. The value of
the empty key is a ``BundleHeaderProto``, of every other a ``BundleEntryProto``: type, shape, shard, offset, size,
checksum. A tensor is its bytes in the shard. No code is part of it; lengths and checksums are checked all the same.
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from google_crc32c import value as crc32c
from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TABLE_LIMIT = 256 << 20  # bytes of an index; those of real checkpoints are below one MiB

# TensorFlow's DataType -> numpy's. bfloat16 (14) is widened by hand.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "<u2", 19: "<f2"}


@dataclass(frozen=True)
class Entry:
    """Where a variable lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int | None


class Bundle:
    """An open checkpoint: ``entries`` by variable name, and :meth:`read`.

    Parameters
    ----------
    path
        The prefix, its ``.index``, one of its shards, or a folder with a ``checkpoint`` file.

    Raises
    ------
    CheckpointError
        If it is not complete, or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.prefix = find_prefix(path)
        self.what = f"checkpoint {str(self.prefix)!r}"
        index = self.prefix.with_name(self.prefix.name + ".index")
        if index.stat().st_size > TABLE_LIMIT:
            raise CheckpointError(
                f"{self.what} has an index of {index.stat().st_size} bytes; this is not a checkpoint"
            )
        try:
            table = dict(_table(index.read_bytes()))
            header = _fields(table.pop(b""))
            self.shards = int(_number(header, 1, 1))
            self.entries = {key.decode(): _entry(value) for key, value in table.items()}
        except (ValueError, IndexError, KeyError, struct.error, OverflowError) as error:
            raise CheckpointError(
                f"{self.what} has a damaged index ({error}); copy or download it again"
            ) from error
        if _number(header, 2, 0) != 0:
            raise CheckpointError(f"{self.what} was written on a big-endian machine, which is not supported")
        missing = [
            shard for number in range(min(self.shards, 1000)) if not (shard := self.shard(number)).is_file()
        ]
        if missing or not 1 <= self.shards <= 1000:
            raise CheckpointError(
                f"{self.what} has {self.shards} shards and {missing[0].name if missing else 'too many'} is not "
                "there; put the index and the shards into one folder"
            )

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")

    def read(self, name: str) -> Tensor:
        """A variable; floating-point ones as they are stored.

        Raises
        ------
        CheckpointError
            If its bytes are not there, or not those that were written.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.what}: {name} is of TensorFlow type {entry.dtype}, which holds no numbers"
            )
        dtype = np.dtype(DTYPES[entry.dtype])
        shard = self.shard(entry.shard)
        there = shard.stat().st_size if shard.is_file() else 0
        if math.prod(entry.shape) * dtype.itemsize != entry.size or entry.offset + entry.size > there:
            raise CheckpointError(
                f"{self.what}: {name} of shape {entry.shape} claims bytes {entry.offset} to "
                f"{entry.offset + entry.size} of {shard.name}, which has {there}; it is truncated or damaged"
            )
        with shard.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        if entry.checksum is not None and crc32c(data) != unmask(entry.checksum):
            raise CheckpointError(
                f"{self.what}: {name} does not have the checksum it was written with; it is damaged"
            )
        array = np.frombuffer(bytearray(data), dtype).reshape(entry.shape)
        if entry.dtype == 14:
            array = (array.astype("<u4") << 16).view("<f4")
        return torch.from_numpy(array)

    def sha256(self) -> str:
        """The hash of index and shards together."""
        digest = hashlib.sha256()
        for file in (
            self.prefix.with_name(self.prefix.name + ".index"),
            *map(self.shard, range(self.shards)),
        ):
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()


def find_prefix(path: Path) -> Path:
    """The prefix of a checkpoint, given in any of the ways people give it."""
    if path.is_dir():
        try:
            text = (path / "checkpoint").read_text(errors="replace")[:4096]
        except OSError:
            text = ""
        match = re.search(r'^model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
        found = sorted(path.glob("*.index"))
        if match:
            path = path / Path(match[1]).name
        elif len(found) == 1:
            path = found[0]
        else:
            raise CheckpointError(
                f"folder {str(path)!r} holds {len(found)} TensorFlow checkpoints; name one of them by its .index"
            )
    name = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name)
    prefix = path.with_name(name)
    if not prefix.with_name(name + ".index").is_file():
        raise CheckpointError(
            f"TensorFlow checkpoint {str(prefix)!r} has no .index; both .index and .data- are needed"
        )
    return prefix


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of the table."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("the footer is not that of a table")
    _, _, place = _handle(data, len(data) - FOOTER)
    offset, size, _ = _handle(data, place)
    for _, value in _block(data, offset, size):
        start, length, _ = _handle(value, 0)
        yield from _block(data, start, length)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a block, its keys made whole."""
    if offset + size + 5 > len(data):
        raise ValueError("a block reaches beyond the file")
    kind, checksum = struct.unpack("<BI", data[offset + size : offset + size + 5])
    if kind != 0:
        raise ValueError(f"a block is compressed (kind {kind}), which TensorFlow does not write")
    if crc32c(data[offset : offset + size + 1]) != unmask(checksum):
        raise ValueError("a block does not have its checksum")
    restarts = struct.unpack("<I", data[offset + size - 4 : offset + size])[0]
    place, end, key = offset, offset + size - 4 - 4 * restarts, b""
    if end < offset:
        raise ValueError("a block has more restarts than bytes")
    while place < end:
        shared, place = _varint(data, place)
        fresh, place = _varint(data, place)
        length, place = _varint(data, place)
        if shared > len(key) or place + fresh + length > end:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + data[place : place + fresh]
        yield key, data[place + fresh : place + fresh + length]
        place += fresh + length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has no end")


def _handle(data: bytes, place: int) -> tuple[int, int, int]:
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return offset, size, place


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """The fields of a protocol buffer message, by number."""
    fields: dict[int, list[int | bytes]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value: int | bytes
        match tag & 7:
            case 0:
                value, place = _varint(message, place)
            case 2:
                length, place = _varint(message, place)
                if place + length > len(message):
                    raise ValueError("a field reaches beyond its message")
                value, place = message[place : place + length], place + length
            case 5:
                value, place = struct.unpack("<I", message[place : place + 4])[0], place + 4
            case 1:
                value, place = struct.unpack("<Q", message[place : place + 8])[0], place + 8
            case other:
                raise ValueError(f"a field has the unknown wire type {other}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Mapping[int, list[int | bytes]], field: int, default: int) -> int:
    value = fields.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} is not a number")  # noqa: TRY004
    return value


def _entry(message: bytes) -> Entry:
    fields = _fields(message)
    shape: list[int] = []
    for value in fields.get(2, []):
        for dimension in _fields(value).get(2, []) if isinstance(value, bytes) else []:
            size = _number(_fields(dimension), 1, 0) if isinstance(dimension, bytes) else -1
            if not 0 <= size < 1 << 40:
                raise ValueError(f"a dimension is {size}")
            shape.append(size)
    checksum = _number(fields, 6, 0) if 6 in fields else None
    return Entry(
        _number(fields, 1, 0),
        tuple(shape),
        _number(fields, 3, 0),
        _number(fields, 4, 0),
        _number(fields, 5, 0),
        checksum,
    )


def unmask(masked: int) -> int:
    """TensorFlow stores checksums rotated and shifted, so that a checksum of checksums stays meaningful."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
