"""What sets on disk share: mapped arrays, labels that fit, class folders, counts that agree."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from lipcomp.data.folders import FolderImages


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
        """SHA-256 over pixels and labels, 16 hex digits."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        for start in range(0, len(self.pixels), 1024):
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1024]).data)
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def read_array(path: Path) -> np.ndarray:
    """Map an array of numbers; a missing or half downloaded file is named."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(path)!r} is missing; download the whole set again") from error
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); it is damaged or half downloaded, download it again"
        ) from error


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
    array = np.array(read_array(path))
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not len(array):
        raise ValueError(
            f"{str(path)!r} must hold one whole number an image, got {array.dtype} {array.shape}; download it again"
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


def same_count(folder: Path, counts: Mapping[str, int]) -> None:
    """Refuse a set whose conditions hold different counts of images, naming the odd ones."""
    usual = max(set(counts.values()), key=list(counts.values()).count)
    odd = {name: count for name, count in counts.items() if count != usual}
    if odd:
        raise ValueError(
            f"{str(folder)!r}: {', '.join(f'{n} has {c} images' for n, c in odd.items())}, the others {usual}; "
            f"it is half downloaded or half unpacked, get those again"
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
        members = sorted(f for f in (place / wnid).iterdir() if f.suffix.lower() in IMG_EXTENSIONS)
        images += members
        labels += [label] * len(members)
    return FolderImages(name, tuple(images), torch.tensor(labels), tuple(names), image_shape)
