"""Folders of images: ``root/<split>/<class>/*`` (ImageNet style), ``root/<class>/*``, or loose images in ``root``.

Images are decoded when asked for, brought to the wanted shape as an evaluation does (resize so that the centre crop
takes 0.875 of the short side above 64 pixels, the whole image up to that; bilinear with antialias) and scaled to
[0, 1]. Grey and colour are converted into each other. An image smaller than the wanted size is an error: blowing it
up would change what is measured.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as V

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}


@dataclass(frozen=True)
class FolderImages:
    """Images on disk, decoded in batches."""

    name: str
    files: tuple[Path, ...] = field(repr=False)
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Count of images."""
        return len(self.files)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]."""
        chosen = [self.files[i] for i in indices.tolist()]
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(lambda file: read_image(file, self.image_shape), chosen)))

    def content_hash(self) -> str:
        """A hash over file names, sizes and the wanted shape, 16 hex digits."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for file in self.files:
            digest.update(f"{file.name}:{file.stat().st_size};".encode())
        return digest.hexdigest()[:16]


def load_folder(
    root: Path, split: str = "test", *, image_shape: tuple[int, int, int] | None = None
) -> FolderImages:
    """Find the images of a folder.

    Parameters
    ----------
    root
        The folder. ``root/train`` and ``root/test`` (or ``root/val``) are used if they are there, else ``root``.
    split
        "train" or "test".
    image_shape
        (channels, height, width) to bring them to; the first image's own shape if not given.

    Raises
    ------
    FileNotFoundError
        If the folder is missing or holds no image.
    ValueError
        If an image cannot be read or is too small (when it is read).
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data folder {str(root)!r} does not exist; give the folder that holds the images"
        )
    folder = next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), root)
    labels: list[int] = []
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMG_EXTENSIONS]
    if files:  # loose images: one class
        classes: tuple[str, ...] = (folder.name,)
        labels = [0] * len(files)
    else:
        classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        for label, name in enumerate(classes):
            members = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMG_EXTENSIONS)
            files += members
            labels += [label] * len(members)
    if not files:
        raise FileNotFoundError(
            f"data folder {str(folder)!r} holds no image ({', '.join(IMG_EXTENSIONS)}), neither loose nor in one "
            f"folder a class; check the path"
        )
    if image_shape is None:
        with _open(files[0]) as first:
            image_shape = (1 if first.mode in ("1", "L", "I", "I;16") else 3, first.height, first.width)
    return FolderImages(f"{root.name}/{split}", tuple(files), torch.tensor(labels), classes, image_shape)


def read_image(file: Path, image_shape: tuple[int, int, int]) -> Float[Tensor, "channels height width"]:
    """Decode one image and bring it to a shape, pixels in [0, 1]."""
    channels, height, width = image_shape
    with _open(file) as source:
        try:
            image = source.convert("L" if channels == 1 else "RGB")
        except OSError as error:
            raise _unreadable(file, error) from error
    if image.height < height or image.width < width:
        raise ValueError(
            f"image {str(file)!r} is {image.width} x {image.height}, smaller than the {width} x {height} that the "
            f"encoder takes; enlarge the images yourself if that is what you want to measure"
        )
    pixels = V.to_dtype(V.pil_to_tensor(image), torch.float32, scale=True)
    if (image.height, image.width) == (height, width):
        return pixels
    crop_fraction = 0.875 if min(height, width) > 64 else 1.0
    scale = max(height / image.height, width / image.width) / crop_fraction
    size = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
    return V.center_crop(V.resize(pixels, size, antialias=True), [height, width]).clamp(0, 1)


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"image {str(file)!r} cannot be read ({error}); remove or replace it")
