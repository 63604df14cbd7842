"""Folders of images: ``root/<split>/<class>/*`` (ImageNet style), ``root/<class>/*``, or loose images in ``root``.

Images are decoded when asked for, brought to the wanted shape as an evaluation does (resize so that the centre crop
takes 0.875 of the short side above 64 pixels, the whole image up to that; bilinear with antialias) and scaled to
[0, 1]. Grey and colour are converted into each other. An image smaller than the wanted size is an error: blowing it
up would change what is measured. (A training crop is enlarged, as the paper's is.)
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as V

from lipcomp.data.crops import crop_and_resize
from lipcomp.data.views import PhotoViews

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

    def batch(
        self, indices: Int64[Tensor, " batch"], pool: Executor | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]; decoded by ``pool``, or by threads of the call's own."""
        chosen = [self.files[i] for i in indices.tolist()]
        if pool is None:
            with ThreadPoolExecutor() as own:
                return self.batch(indices, own)
        return torch.stack(list(pool.map(lambda file: read_image(file, self.image_shape), chosen)))

    def content_hash(self) -> str:
        """A hash over file names, sizes and the wanted shape, 16 hex digits."""
        digest = hashlib.sha256(repr(self.image_shape).encode())
        for file in self.files:
            digest.update(f"{file.name}:{file.stat().st_size};".encode())
        return digest.hexdigest()[:16]

    def without(self, files: Sequence[Path]) -> "FolderImages":
        """The set less some of its files."""
        dropped = set(files)
        kept = [i for i, file in enumerate(self.files) if file not in dropped]
        return replace(self, files=tuple(self.files[i] for i in kept), labels=self.labels[kept])


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
    folder = split_folder(root, split) or root
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


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, if the root has one."""
    return next((root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def read_image(file: Path, image_shape: tuple[int, int, int]) -> Float[Tensor, "channels height width"]:
    """Decode one image and bring it to a shape, pixels in [0, 1]."""
    channels, height, width = image_shape
    pixels = _decode(file, channels)
    if pixels.shape[1] < height or pixels.shape[2] < width:
        raise ValueError(
            f"image {str(file)!r} is {pixels.shape[2]} x {pixels.shape[1]}, smaller than the {width} x {height} that "
            f"the encoder takes; enlarge the images yourself if that is what you want to measure"
        )
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    crop_fraction = 0.875 if min(height, width) > 64 else 1.0
    scale = max(height / pixels.shape[1], width / pixels.shape[2]) / crop_fraction
    size = [max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale))]
    return V.center_crop(V.resize(pixels, size, antialias=True), [height, width]).clamp(0, 1)


def read_crops(
    file: Path, image_shape: tuple[int, int, int], views: PhotoViews, numbers: Sequence[Float[Tensor, "1 18"]]
) -> list[Float[Tensor, "1 channels height width"]]:
    """Decode one image once and cut a random crop for each view from its own pixels."""
    pixels = _decode(file, image_shape[0]).unsqueeze(0)
    high, wide = pixels.shape[2:]
    return [
        crop_and_resize(pixels, views.boxes(u, high, wide), image_shape[1:], views.mirrored(u))
        for u in numbers
    ]


def unreadable(
    images: FolderImages, advance: Callable[[], None] = lambda: None, *, whole: bool = True
) -> dict[Path, str]:
    """The files of a folder that cannot be read, with the reason; ``advance()`` is called for every file.

    ``whole`` decodes them; without, only their headers are read.
    """

    def check(file: Path) -> str | None:
        try:
            if whole:
                _decode(file, images.image_shape[0])
            else:
                _open(file).close()
        except ValueError as error:
            return str(error)
        finally:
            advance()
        return None

    with ThreadPoolExecutor() as pool:
        reasons = pool.map(check, images.files)
        return {file: reason for file, reason in zip(images.files, reasons, strict=True) if reason}


def _decode(file: Path, channels: int) -> Float[Tensor, "channels height width"]:
    with _open(file) as source:
        try:
            image = source.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(file, error) from error
    return V.to_dtype(V.pil_to_tensor(image), torch.float32, scale=True)


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"image {str(file)!r} cannot be read ({error}); remove or replace it")
