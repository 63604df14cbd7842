"""A folder of torch.distributed.checkpoint: ``.metadata`` names the parts of each tensor and where their bytes lie.

``.metadata`` is a pickle of torch's own dataclasses, which torch's reader runs. Here it is described with inert
stand-ins (:mod:`lipcomp.checkpoints._inert`); the parts are files of ``torch.save`` within the ``.distcp`` files, read
as such. No process group is needed, and any number of ranks may have written.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._inert import LONGEST, Kept, read_inert
from lipcomp.checkpoints._torch_files import read_tensor

INDEX = ".metadata"
MODULE = "torch.distributed.checkpoint."
DEEPEST = 20  # nested dictionaries


class _Metadata(Kept):
    """All of it."""


class _Tensor(Kept):
    """A tensor's size."""


class _Place(Kept):
    """Which part of which tensor."""


class _Bytes(Kept):
    """Where a part's bytes lie."""


class _Size(Kept):
    def __new__(cls, sides: Any = (), *given: Any) -> Any:
        """The sides."""
        return tuple(sides) if isinstance(sides, tuple) else ()


NAMES: dict[str, type] = {
    f"{MODULE}metadata.Metadata": _Metadata,
    f"{MODULE}metadata.TensorStorageMetadata": _Tensor,
    f"{MODULE}metadata.MetadataIndex": _Place,
    f"{MODULE}filesystem._StorageInfo": _Bytes,
    "torch.Size": _Size,
}


def read_distributed(folder: Path) -> tuple[dict[str, Any], str]:
    """The nested dictionary that was saved, tensors only, and a hash of the files.

    Raises
    ------
    CheckpointError
        If the folder is damaged or incomplete, or asks for anything but tensors and settings.
    """
    what = f"checkpoint {str(folder)!r}"
    with (folder / INDEX).open("rb") as index:
        told, _, _ = read_inert(index.read(LONGEST + 1), f"{what}: its {INDEX}", NAMES)
    told = told.state if isinstance(told, _Metadata) else {}
    sizes, places, paths = (told.get(key) for key in ("state_dict_metadata", "storage_data", "planner_data"))
    if not isinstance(sizes, dict) or not isinstance(places, dict):
        raise CheckpointError(f"{what} has a {INDEX} that describes no tensors; it is damaged")
    files = sorted(file for file in folder.iterdir() if file.is_file())
    most = sum(file.stat().st_size for file in files)
    whole: dict[str, Tensor] = {}
    filled: dict[str, Tensor] = {}  # which numbers of a tensor are there
    taken: dict[Any, str] = {}
    telling: dict[Any, set[str]] = {}  # the tensors in a file of which no other part is alike by chance
    for place, info in places.items():
        name = str(place.state.get("fqn")) if isinstance(place, _Place) else ""
        if not isinstance(info, _Bytes) or not isinstance(sizes.get(name), _Tensor):
            continue  # a number or a setting
        size, start = sizes[name].state.get("size"), place.state.get("offset") or ()
        where = (info.state.get("relative_path"), info.state.get("offset"))
        part = read_tensor(_bytes(folder, info.state, what), f"{what}, {name}")
        if taken.setdefault(where, name) != name:
            raise CheckpointError(
                f"{what} has one part for {taken[where]} and {name}; its {INDEX} is damaged"
            )
        _check_part(part, size, start, f"{what}: {name}")
        if (
            part.ndim > 1
            and part.is_floating_point()
            and part.numel()
            and not part.eq(part.flatten()[0]).all()
        ):
            telling.setdefault(where[0], set()).add(name)
        if name not in whole:
            most -= math.prod(size) * part.element_size()
            if most < 0:
                raise CheckpointError(
                    f"{what} claims more than its files hold, {name} of size {size}; it is damaged or made to harm"
                )
            whole[name] = part if part.shape == size else torch.zeros(size, dtype=part.dtype)
            filled[name] = torch.zeros(size, dtype=torch.bool)
        corner = tuple(slice(begin, begin + side) for begin, side in zip(start, part.shape, strict=True))
        if filled[name][corner].any():
            raise CheckpointError(f"{what} has parts of {name} that overlap; its {INDEX} is damaged")
        filled[name][corner] = True
        if whole[name] is not part:
            whole[name][corner] = part
    for name, kept in sizes.items():
        if isinstance(kept, _Tensor) and not (name in filled and filled[name].all()):
            raise CheckpointError(
                f"{what} has not all parts of {name}; copy the files of every rank, and {INDEX}"
            )
    digest, known = hashlib.sha256(), dict[bytes, str]()
    for file in files:
        with file.open("rb") as handle:
            mine = hashlib.file_digest(handle, "sha256").digest()
        other = known.setdefault(mine, file.name)
        if other != file.name and telling.get(other, set()) & telling.get(file.name, set()):
            raise CheckpointError(
                f"{what} has the same bytes in {other} and {file.name}, the files of two ranks; copy them again"
            )
        digest.update(mine)
    return _nested(whole, paths if isinstance(paths, dict) else {}), digest.hexdigest()


def _bytes(folder: Path, info: Mapping[str, Any], what: str) -> bytes:
    """The bytes of a part, within one of the folder's files."""
    name, begin, length = (info.get(key) for key in ("relative_path", "offset", "length"))
    if info.get("transform_descriptors"):
        raise CheckpointError(f"{what} is compressed; save it without a transform")
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise CheckpointError(f"{what} lacks its file {name!r}; copy the files of every rank")
    there = (folder / name).stat().st_size
    if type(begin) is not int or type(length) is not int or not 0 <= begin <= begin + length <= there:
        raise CheckpointError(f"{what} names bytes beyond its file {name}; it is truncated or damaged")
    with (folder / name).open("rb") as file:
        file.seek(begin)
        return file.read(length)


def _check_part(part: Tensor, size: Any, start: Any, what: str) -> None:
    """Refuse a part that lies outside its tensor."""
    numbers = (*size, *start) if isinstance(size, tuple) and isinstance(start, tuple) else (None,)
    good = (
        all(type(number) is int and number >= 0 for number in numbers)
        and len(start) == len(size) == part.ndim
    )
    if not good or any(begin + side > end for begin, side, end in zip(start, part.shape, size, strict=True)):
        raise CheckpointError(f"{what} has a part outside of it; it is damaged or made to harm")


def _nested(tensors: Mapping[str, Tensor], paths: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionaries as they were before torch made their keys one."""
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        path = paths.get(name)
        *outer, last = map(str, path if isinstance(path, tuple) and 0 < len(path) < DEEPEST else (name,))
        node: Any = tree
        for part in outer:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if isinstance(node, dict):
            node[last] = value
        else:  # a tensor stands where a dictionary is needed
            tree[name] = value
    return tree
