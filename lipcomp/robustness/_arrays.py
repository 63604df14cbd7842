"""What sets on disk share: mapped arrays, labels that fit, class folders, counts that agree."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp.data._folders import FolderImages
from lipcomp.data._listing import SUFFIXES, list_images


@dataclass(frozen=True)
class MappedImages:
    """Images in a memory-mapped array (n, height, width, channels) of bytes; only what a batch asks for is read."""

    name: str
    pixels: np.ndarray = field(repr=False)
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        height, width, channels = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        """Count of images."""
        return len(self.labels)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]."""
        chosen = torch.from_numpy(np.ascontiguousarray(self.pixels[indices.numpy()]))
        return chosen.permute(0, 3, 1, 2).float().div_(255)

    def content_hash(self) -> str:
        """SHA-256 over pixels, labels and class names in order, 32 hex digits."""
        digest = hashlib.sha256(repr((self.pixels.shape, self.classes)).encode())
        for start in range(0, len(self.pixels), 1024):
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1024]).data)
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:32]


def read_array(path: Path) -> np.ndarray:
    """Map an array of numbers; a missing or half downloaded file is named."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(path)!r} is missing; download the whole set again") from error
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); it is damaged or half downloaded, download it again"
        ) from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{str(path)!r} holds several arrays (.npz), not one; save the one of the images")  # noqa: TRY004
    return found


def check_images(path: Path, pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array that does not hold bytes of the given shape."""
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(
            f"{str(path)!r} must hold bytes of shape {shape}, got {pixels.dtype} {pixels.shape}; download it again"
        )


def read_labels(
    path: Path, classes: int | Sequence[str] | None
) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    """Labels from 0, and the classes' names."""
    return check_labels(path, np.array(read_array(path)), classes)


def check_labels(
    path: Path, array: np.ndarray, classes: int | Sequence[str] | None
) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    """Labels from 0, and the classes' names, of an array that was read from a file."""
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array):
        raise ValueError(
            f"{str(path)!r} must hold one integer per image, got {array.dtype} {array.shape}; download it again"
        )
    if classes is None:
        classes = int(array.max()) + 1
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    if array.min() < 0 or array.max() >= len(names):
        raise ValueError(
            f"{str(path)!r} holds labels from {array.min()} to {array.max()}, outside the {len(names)} classes; "
            f"is this the set that belongs to the probe's training set?"
        )
    return torch.from_numpy(array.astype(np.int64)), names


def same_labels(folder: Path, labels: Mapping[str, Int64[Tensor, " _"]]) -> None:
    """Raise an error if arrays do not hold the same images in the same order, judged by their labels."""
    keys = {name: tuple(column.tolist()) for name, column in labels.items()}
    if not keys:
        return
    usual = max(set(keys.values()), key=list(keys.values()).count)
    odd = {name: key for name, key in keys.items() if key != usual}
    if odd:
        told = [
            f"{name} has {len(key)} images" if len(key) != len(usual) else f"{name} has other labels"
            for name, key in odd.items()
        ]
        raise ValueError(
            f"{str(folder)!r}: {', '.join(told)}, the others {len(usual)}; it is half downloaded or half unpacked, or "
            f"in another order, get those again"
        )


def same_names(folder: Path, cells: Mapping[Path, FolderImages], *, partial: bool = False) -> None:
    """Refuse folders that do not hold the same images in every condition, by class and name; what differs is named."""
    held = {place: _names(place, images) for place, images in cells.items()}
    everything = next(iter(held.values()))
    if any(names != everything for names in held.values()):
        told = {place.relative_to(folder).as_posix(): Counter(names) for place, names in held.items()}
        _name_the_odd(folder, told)
    if not everything:
        raise FileNotFoundError(
            f"{str(folder)!r} has class folders, but no image in any of them ({', '.join(SUFFIXES)})"
        )
    present = {name.split("/")[0] for name in everything}
    classes = next(iter(cells.values())).classes
    empty = [name for name in classes if name not in present]
    if empty and not partial:
        raise ValueError(
            f"{str(folder)!r} has no image of {len(empty)} of {len(classes)} classes ({', '.join(empty[:3])}) in "
            f"any condition; it is half unpacked (in Python, partial=True takes a subset of your own)"
        )


def _names(place: Path, images: FolderImages) -> list[str]:
    return [file.relative_to(place).with_suffix("").as_posix() for file in images.files]


def _name_the_odd(folder: Path, members: Mapping[str, Counter[str]]) -> None:
    """What each condition lacks or has besides what most of them hold."""
    spread = Counter(name for names in members.values() for name in names)
    usual = {name for name, count in spread.items() if count > len(members) / 2}
    odd = []
    for cell, names in members.items():
        for words, listed in (
            ("lacks", usual - names.keys()),
            ("alone has", names.keys() - usual),
            ("has twice", {name for name, count in names.items() if count > 1}),
        ):
            if listed:
                odd.append(f"{cell} {words} {len(listed)} ({', '.join(sorted(listed)[:3])})")
    told = "; ".join(odd[:5]) or "the order of the files differs"
    raise ValueError(
        f"{str(folder)!r} does not hold the same images in every condition: {told}; it is half unpacked, or files were "
        f"moved, get those again"
    )


def list_classes(
    place: Path, names: Sequence[str], name: str, image_shape: tuple[int, int, int]
) -> FolderImages:
    """The images of ``place/<class>/``, labelled by the position of the class in ``names``."""
    images: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(names):
        if not (place / wnid).is_dir():
            continue
        # by stem: the same order in a condition whose files have another suffix
        members = sorted(
            list_images(place / wnid).files, key=lambda file: (file.with_suffix(""), file.suffix)
        )
        images += members
        labels += [label] * len(members)
    return FolderImages(
        name, tuple(images), torch.tensor(labels, dtype=torch.long), tuple(names), image_shape
    )
