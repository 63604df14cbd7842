"""The interface of image sets: pixels in [0, 1] by ``batch(indices)``, labels as one tensor, a hash of its content."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lipcomp._identity import digest


@runtime_checkable
class ImageSet(Protocol):
    """Images with labels; pixels come in batches, as floats in [0, 1]."""

    @property
    def name(self) -> str:
        """Name of the set, for records."""

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Class of every image, an index into ``classes``; -1 without labels (``classes`` is empty then)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""

    def __len__(self) -> int:
        """Count of images."""

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]."""

    def content_hash(self) -> str:
        """A hash of what the set holds and of how it is preprocessed, for caches and records; not of its name."""


@dataclass(frozen=True)
class TensorImages:
    """A set held in memory as bytes."""

    name: str
    pixels: UInt8[Tensor, "n channels height width"] = field(repr=False)
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        """Count of images."""
        return len(self.labels)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]."""
        return self.pixels[as_indices(indices, len(self)).to(self.pixels.device)].float().div_(255)

    def to(self, device: torch.device) -> "TensorImages":
        """The same set with its pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))

    def content_hash(self) -> str:
        """A hash of pixels, labels and class names, 32 hex digits."""
        return digest(self.pixels, self.labels, self.classes)

    def __identity__(self) -> str:
        return self.content_hash()


def batches(
    images: ImageSet, *, batch_size: int = 512, indices: Tensor | None = None
) -> Iterator[Float[Tensor, "batch channels height width"]]:
    """Iterate once over a set (or the given indices), in order.

    Parameters
    ----------
    images
        The set.
    batch_size
        Images per batch.
    indices
        Indices of the images; all if not given.

    Raises
    ------
    ValueError
        If the batch size is not positive, or an index is not one of the images.

    Examples
    --------
    >>> import torch, lipcomp
    >>> images = lipcomp.load_set([(x, 0) for x in torch.rand(5, 1, 8, 8)])
    >>> [len(batch) for batch in lipcomp.data.batches(images, batch_size=2)]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = torch.arange(len(images)) if indices is None else as_indices(indices, len(images))
    for part in order.split(batch_size) if len(order) else ():
        yield images.batch(part)


def as_indices(indices: Any, n: int) -> Int64[Tensor, " m"]:
    """Indices of images of a set of ``n``, as a tensor.

    Raises
    ------
    ValueError
        If they are not whole numbers from 0 to n - 1 in a row; a mask is not.
    """
    if not isinstance(indices, Tensor):
        indices = torch.as_tensor(np.array(indices))
    if indices.dtype == torch.bool:
        raise ValueError("indices must be whole numbers, got a mask; pass mask.nonzero().squeeze(1)")
    if indices.dim() != 1 or indices.is_floating_point() or indices.is_complex():
        raise ValueError(
            f"indices must be whole numbers in one row, got {indices.dtype} of shape {tuple(indices.shape)}"
        )
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < n:
        raise ValueError(
            f"indices must lie between 0 and {n - 1}, got {int(indices.min())} to {int(indices.max())}"
        )
    return indices.long()


def file_of(images: ImageSet, index: int) -> str:
    """What to call an image in tables and pictures: its file, relative to the data folder, or set[index]."""
    own = getattr(images, "file_of", None)
    return str(own(index)) if own is not None else f"{images.name}[{index}]"


def check_unchanged(images: ImageSet) -> None:
    """Check that files of a set are still those that its ``content_hash`` saw; sets in memory do not change.

    Raises
    ------
    ValueError
        If a file changed: see :meth:`lipcomp.data._folders.FolderImages.unchanged`.
    """
    unchanged = getattr(images, "unchanged", None)
    if unchanged is not None:
        unchanged()
