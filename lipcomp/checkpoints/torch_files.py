"""Files of ``torch.save``: checked as data first, then read by ``torch.load(weights_only=True)``.

Both layouts are known: the zip archive of torch 1.6 and later, and the row of pickles with raw storages behind of
before. The check (:mod:`lipcomp.checkpoints.inert`) makes sure of what ``weights_only`` takes on trust: that the
archive holds no compressed or overlapping members, that every storage has as many bytes as it claims, and that no
tensor reaches beyond its storage.

Names of training frameworks that a file holds beside the weights (Lightning's and omegaconf's settings) are given
to torch as empty classes of ours, so that nothing of those frameworks is imported, installed or run. Any other
name is refused; there is no option to allow it.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.inert import HARMLESS, LONGEST, PARAMETERS, PLAIN, TENSORS, Storage, read_inert

MEMBERS = 200_000  # entries of an archive; a tensor has one
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Inert(dict[Any, Any]):
    """What stands for an object of a framework: it takes whatever it is given, and does nothing."""

    def __new__(cls, *given: Any, **named: Any) -> "Inert":
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, item: Any) -> None:
        """Ignore an item, as of a list."""

    def extend(self, items: Any) -> None:
        """Ignore items, as of a list."""


def read_torch(path: Path) -> Mapping[str, Any]:
    """The nested dictionary in a file of ``torch.save``; nothing of the file is run.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds code, or is not a dictionary.
    """
    what = f"checkpoint {str(path)!r}"
    with path.open("rb") as file:
        names = _check_archive(path, what) if file.read(4) == b"PK\x03\x04" else _check_legacy(file, what)
    foreign = [
        name
        for name in sorted(names)
        if HARMLESS.fullmatch(name) and name not in PLAIN | TENSORS | PARAMETERS
    ]
    stand_ins: list[Any] = [_stand_in(name) for name in foreign]
    try:
        with torch.serialization.safe_globals(stand_ins):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file makes of it
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{what} is refused by torch.load(weights_only=True): {first} Save the weights alone where the file was "
            f"written (torch.save(model.state_dict(), ...)), or as safetensors"
        ) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{what} holds a {type(tree).__name__}, not a dictionary of weights; save model.state_dict() instead"
        )
    return tree


def _stand_in(name: str) -> type[Inert]:
    module, _, short = name.rpartition(".")
    return type(short, (Inert,), {"__module__": module, "__qualname__": short})


def _check_archive(path: Path, what: str) -> set[str]:
    """Check a zip archive of torch; returns the names that its pickle asks for."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MEMBERS or sum(member.file_size for member in members) > size:
                raise CheckpointError(
                    f"{what} claims {len(members)} members of more bytes than its own {size}; it is no torch archive"
                )
            if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
                raise CheckpointError(
                    f"{what} has compressed or encrypted members, which torch.save never writes"
                )
            names = [member.filename for member in members]
            main = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(set(names)) != len(names) or len(main) != 1:
                raise CheckpointError(
                    f"{what} is a zip archive but not one of torch.save (it has {', '.join(names[:3])})"
                )
            root = main[0].filename.removesuffix("data.pkl")
            if any(name.startswith(f"{root}code/") for name in names) or f"{root}constants.pkl" in names:
                raise CheckpointError(
                    f"{what} is a TorchScript archive, which holds code; save the weights alone: "
                    f"torch.save(module.state_dict(), ...)"
                )
            if main[0].file_size > LONGEST:
                raise CheckpointError(
                    f"{what} has a pickle of {main[0].file_size} bytes; that is no checkpoint"
                )
            _, asked, storages, _ = read_inert(archive.read(main[0]), what)
            sizes = {member.filename: member.file_size for member in members}
            _check_storages(storages, lambda key: sizes.get(f"{root}data/{key}"), what)
            return asked
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        struct.error,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{what} is a damaged or truncated torch archive ({error})") from error


def _check_storages(storages: Mapping[str, Storage], size_of: Any, what: str) -> None:
    for key, storage in storages.items():
        claimed, there = storage.count * storage.item_size, size_of(key)
        if there != claimed:
            raise CheckpointError(
                f"{what} claims {claimed} bytes for storage {key!r} and has {there or 'none'}; it is damaged or "
                f"truncated, copy or download it again"
            )


def _check_legacy(file: BinaryIO, what: str) -> set[str]:
    """Check the layout before torch 1.6: magic, protocol, system, tree, storage keys, then the storages themselves."""
    file.seek(0, 2)
    total = file.tell()
    if total == 0:
        raise CheckpointError(f"{what} is empty")
    file.seek(0)
    position, names, storages = 0, set[str](), dict[str, Storage]()
    for part in ("magic", "protocol", "system", "tree", "keys"):
        file.seek(position)
        try:
            told, asked, found, length = read_inert(file.read(LONGEST), what)
        except CheckpointError as error:
            if part != "magic":
                raise
            raise CheckpointError(f"{error} ({_guess(file)})") from error
        if part == "magic" and told != LEGACY_MAGIC:
            raise CheckpointError(f"{what} is a plain pickle; {_guess(file)}")
        position, names, storages = position + length, names | asked, storages | found
    for storage in storages.values():  # each behind its own count, eight bytes
        position += 8 + storage.count * storage.item_size
    if position > total:
        raise CheckpointError(
            f"{what} claims {position} bytes and has {total}; it is truncated or damaged, copy or download it again"
        )
    return names


def _guess(file: BinaryIO) -> str:
    """What a file that begins like none of ours may be."""
    file.seek(0)
    start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "it is a web page, not a checkpoint: the download went wrong"
    if start.startswith(b"\x89HDF"):
        return "it is an HDF5 file; only TensorFlow's own checkpoints are read"
    return "files of torch.save, safetensors, Hugging Face folders and TensorFlow checkpoints are read"
