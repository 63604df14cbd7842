"""Files of ``torch.save``: read as data; nothing of them is run.

Both layouts are known: the zip archive of torch 1.6 and later, and the row of pickles with raw storages behind of
before. The pickle becomes a description (:mod:`lipcomp.checkpoints._inert`), which is checked for what
``torch.load(weights_only=True)`` takes on trust: that the archive holds no compressed or overlapping members and none
with a bad checksum, that every storage has as many bytes as it claims, and that no tensor reaches beyond its storage.
The tensors are then built from the description. Settings of training frameworks beside the weights (Lightning's,
omegaconf's, which weights_only refuses) are left out; nothing of those frameworks is imported, installed or run.

Any other name is refused; there is no option to allow it.
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from lipcomp._messages import is_of_machine
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._inert import LONGEST, Claim, Kept, Made, Storage, read_inert

MEMBERS = 60_000  # entries of an archive; a tensor has one
DIRECTORY = 20_000_000  # bytes of their list, of which zipfile makes fifty times as much
DEEPEST = 40  # nested dictionaries
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip


KINDS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "an array of NumPy",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}

FOREIGN = {  # by their names, since they begin with nothing of their own
    ".onnx": "an ONNX file",
    ".msgpack": "a file of flax",
    ".tflite": "a TensorFlow Lite file",
    ".pb": "a part of TensorFlow's SavedModel",
    ".xml": "a description of OpenVINO's",
}

READ = "files of torch.save, safetensors, Hugging Face folders and TensorFlow checkpoints are read"


@dataclass(frozen=True)
class Described:
    """A checked file: its tree of descriptions, and how a storage's bytes are read."""

    tree: Any
    read: Callable[[str], bytes]


def read_torch(path: Path) -> Mapping[str, Any]:
    """The nested dictionary in a file of ``torch.save``; nothing of the file is run.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds code, or is not a dictionary.
    """
    what = f"checkpoint {str(path)!r}"
    with path.open("rb") as file, ExitStack() as opened:
        archive = file.read(4) == b"PK\x03\x04"
        size = path.stat().st_size
        described = _check_archive(file, size, what, opened) if archive else _check_legacy(path, file, what)
        parts = described.tree if isinstance(described.tree, list | tuple) else ()
        if not isinstance(described.tree, Mapping) and not any(isinstance(part, Mapping) for part in parts):
            kind = described.tree.name if isinstance(described.tree, Made) else type(described.tree).__name__
            kind = "tensor" if isinstance(described.tree, Claim) else kind
            raise CheckpointError(
                f"{what} holds a whole {kind}, not a dictionary of weights; save model.state_dict() instead"
            )
        return cast("dict[str, Any]", _build(described, what))


def _build(described: Described, what: str) -> Any:
    """The tree with its tensors; what is neither a tensor, a dictionary nor a plain value is left out."""
    storages: dict[str, Tensor] = {}
    built: dict[int, dict[str, Any]] = {}

    def tensor(claim: Claim) -> Tensor:
        storage, dtype = claim.storage, DTYPES[claim.storage.kind]
        if storage.key not in storages:
            data = bytearray(described.read(storage.key))
            storages[storage.key] = (
                torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            )
        return storages[storage.key].view(dtype).as_strided(claim.size, claim.stride, claim.offset)

    def below(node: Any, depth: int) -> Any:
        if isinstance(node, Kept):  # argparse's settings
            node = node.state
        if isinstance(node, Claim):
            return tensor(node)
        listed = isinstance(node, list | tuple) and any(
            isinstance(part, Claim | dict)
            or (isinstance(part, tuple) and any(isinstance(x, dict) for x in part))
            for part in node
        )
        if isinstance(node, dict) or listed:
            if depth > DEEPEST:
                raise CheckpointError(
                    f"{what} nests dictionaries more than {DEEPEST} deep; this is not a checkpoint"
                )
            if id(node) not in built:
                built[id(node)] = mine = {}
                mine.update(
                    {
                        str(key): below(value, depth + 1)
                        for key, value in (enumerate(node) if listed else node.items())
                        if isinstance(key, str | int)
                        and (isinstance(value, Kept) or not isinstance(value, Made | type | set | frozenset))
                    }
                )
            return built[id(node)]
        return node

    return below(described.tree, 0)


def read_tensor(data: bytes, what: str) -> Tensor:
    """The one tensor that the bytes of a file of ``torch.save`` hold.

    Raises
    ------
    CheckpointError
        If they hold anything else.
    """
    with ExitStack() as opened:
        described = _check_archive(io.BytesIO(data), len(data), what, opened)
        if not isinstance(described.tree, Claim):
            raise CheckpointError(f"{what} does not hold the tensor that its index names; it is damaged")
        return cast("Tensor", _build(described, what))


def _check_archive(file: BinaryIO | io.BytesIO, size: int, what: str, opened: ExitStack) -> Described:
    """Check a zip archive of torch, which stays open for its storages."""
    try:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # as ZipFile finds it
        if end and end[zipfile._ECD_SIZE] > DIRECTORY:  # type: ignore[attr-defined]
            raise CheckpointError(f"{what} has too long a list of members; it is no torch archive")
        archive = opened.enter_context(zipfile.ZipFile(file))
        members = archive.infolist()
        names = [member.filename for member in members[:MEMBERS]]
        main = [member for member in members if member.filename.endswith("/data.pkl")]
        if any(name.endswith(("archive_format", "models/model.json")) for name in names):
            raise CheckpointError(
                f"{what} is a torch.export archive, which holds a program; save the weights alone: "
                f"torch.save(dict(torch.export.load(FILE).state_dict), ...)"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise CheckpointError(
                f"{what} is an archive of NumPy's arrays (.npz), which is not read; save them as tensors: "
                f"torch.save({{name: torch.from_numpy(array) for name, array in arrays.items()}}, ...)"
            )
        if len(set(names)) != len(names) or len(main) != 1:
            raise CheckpointError(
                f"{what} is a zip archive but not one of torch.save (it has {', '.join(names[:3])})"
            )
        root = main[0].filename.removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") for name in names) or f"{root}constants.pkl" in names:
            raise CheckpointError(
                f"{what} is a TorchScript archive, which holds code; save the weights alone: "
                f"torch.save(torch.jit.load(FILE).state_dict(), ...)"
            )
        if len(members) > MEMBERS or sum(member.file_size for member in members) > size:
            raise CheckpointError(
                f"{what} claims {len(members)} members, too many or larger than its own {size} bytes; it is no torch "
                f"archive"
            )
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise CheckpointError(
                f"{what} has compressed or encrypted members, which torch.save never writes"
            )
        if main[0].file_size > LONGEST:
            raise CheckpointError(
                f"{what} has a pickle of {main[0].file_size} bytes, as NumPy's arrays make it; save tensors"
            )
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big":
            raise CheckpointError(f"{what} was written on a big-endian machine; save it again on another")
        tree, storages, _ = read_inert(archive.read(main[0]), what)
        sizes = {member.filename: member.file_size for member in members}
        _check_storages(storages, sizes, f"{root}data/", what)
    except Exception as error:  # whatever a hostile archive makes of zipfile
        if isinstance(error, CheckpointError) or is_of_machine(error):
            raise
        raise CheckpointError(f"{what} is a damaged or truncated torch archive ({error})") from error

    def read(key: str) -> bytes:
        try:
            return archive.read(f"{root}data/{key}")
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:  # its checksum is wrong
            if is_of_machine(error):
                raise
            raise CheckpointError(
                f"{what} is damaged: storage {key!r} is not what was written ({error}); copy or download it again"
            ) from error

    return Described(tree, read)


def _check_storages(storages: Mapping[str, Storage], sizes: Mapping[str, int], root: str, what: str) -> None:
    for key, storage in storages.items():
        there = sizes.get(root + key)
        if there != storage.size:
            raise CheckpointError(
                f"{what} claims {storage.size} bytes for storage {key!r} and has {there or 'none'}; it is damaged or "
                f"truncated, copy or download it again"
            )


def _check_legacy(path: Path, file: BinaryIO, what: str) -> Described:
    """Check the layout before torch 1.6: magic, protocol, system, tree, storage keys, then the storages themselves."""
    file.seek(0, 2)
    total = file.tell()
    if total == 0:
        raise CheckpointError(f"{what} is empty")
    file.seek(0)
    position, storages, parts = 0, dict[str, Storage](), dict[str, Any]()
    for part in ("magic", "protocol", "system", "tree", "keys"):
        file.seek(position)
        try:
            told, found, length = read_inert(file.read(LONGEST), what)
        except CheckpointError as error:
            if part != "magic":
                raise
            kind = _guess(file, path.suffix.lower())
            file.seek(0)
            pickled = file.read(1) == b"\x80"  # of a protocol that torch writes
            other = not pickled and "asks for" not in str(error)
            told = f"{what} is of another kind; {READ}" if other else f"{error} ({READ})"
            raise CheckpointError(f"{what} is {kind}" if kind else told) from error
        if part == "magic" and told != LEGACY_MAGIC:
            raise CheckpointError(f"{what} is a plain pickle; {READ}")
        position, storages, parts[part] = position + length, storages | found, told
    places = {}
    order = parts["keys"] if isinstance(parts["keys"], list) else []
    for key in map(str, order):  # each behind its own count, eight bytes
        places[key] = position + 8
        position += 8 + (storages[key].size if key in storages else 0)
    if position > total or not storages.keys() <= places.keys():
        raise CheckpointError(
            f"{what} claims {position} bytes and has {total}; it is truncated or damaged, copy or download it again"
        )

    def read(key: str) -> bytes:
        with path.open("rb") as again:
            again.seek(places[key])
            return again.read(storages[key].size)

    return Described(parts["tree"], read)


def _guess(file: BinaryIO, suffix: str) -> str:
    """What a file that begins like none of ours may be; "" if nobody knows."""
    file.seek(0)
    start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run git lfs pull"
    what = next((what for magic, what in KINDS.items() if start.startswith(magic)), FOREIGN.get(suffix))
    if what and start[:1] != b"\x80":
        weights = "give the weights of the PyTorch network, torch.save(model.state_dict(), ...)"
        return f"{what}, which is not read; {'unpack it' if 'archive' in what else weights}"
    if start.lstrip()[:1] == b"<":
        return "a web page, not a checkpoint: the download went wrong"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it, and give the file or folder within (torch before 0.1.10 saved such archives)"
    if start.lstrip()[:1] in (b"{", b"["):
        return "a JSON file, not weights: give the folder in which it lies"
    return ""
