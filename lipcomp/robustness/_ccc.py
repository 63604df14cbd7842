"""CCC: ImageNet's validation images under two corruptions that change without end (Press et al. 2023).

Layout, as published: a folder ``baseline_<0|20|40>_transition+speed_<1000|2000|5000>_seed_<43|44|45>`` of archives
``serial_<00000 ...>.tar``, each with ``<key>.input.jpg`` (224 x 224) and ``<key>.output.cls``. The images are a stream:
their order is the order of time. The published number is the mean accuracy over the stream's first 7,500,000 images; a
network that adapts is also judged by whether it falls over time, so the accuracy of each block is given too.

Archives are read in place; nothing is unpacked.

>>> stream = open_ccc("baseline_20_transition+speed_1000_seed_44", limit=50_000)  # doctest: +SKIP
>>> stream.batch(torch.arange(64)).shape  # doctest: +SKIP
torch.Size([64, 3, 224, 224])
"""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from lipcomp.data._pictures import FORMATS
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._shifted import imagenet_wnids

PUBLISHED = 7_500_000


@dataclass(frozen=True)
class Stream:
    """Images inside archives, in the order of time."""

    name: str  # of the folder
    # for each image its archive, offset and length in bytes
    places: tuple[tuple[Path, int, int], ...] = field(repr=False)
    # labels, classes, image_shape: as every image set has them
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Count of images."""
        return len(self.places)

    def _bytes(self, index: int) -> bytes:
        archive, offset, size = self.places[index]
        with archive.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]."""
        images = []
        for index in indices.tolist():
            try:
                with Image.open(io.BytesIO(self._bytes(index)), formats=FORMATS) as source:
                    pixels = torch.from_numpy(np.array(source.convert("RGB"))).permute(2, 0, 1)
            except (OSError, SyntaxError) as error:
                raise ValueError(
                    f"image {index} of {self.name}, in {str(self.places[index][0])!r}, cannot be read ({error}); the "
                    f"archive is damaged, get it again"
                ) from error
            if tuple(pixels.shape) != self.image_shape:
                raise ValueError(
                    f"{self.name}: image {index} is {tuple(pixels.shape)}, the encoder takes {self.image_shape}"
                )
            images.append(pixels.float().div_(255))
        return torch.stack(images)

    def content_hash(self) -> str:
        """A hash of the images' bytes in order, and the labels, 32 hex digits."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for index in range(len(self)):
            digest.update(self._bytes(index))
        return digest.hexdigest()[:32]


def open_ccc(
    folder: Path | str, *, limit: int | None = None, image_shape: tuple[int, int, int] = (3, 224, 224)
) -> Stream:
    """Index a stream's archives, in order, up to ``limit`` images (the published 7,500,000 if not given).

    Raises
    ------
    FileNotFoundError
        If the folder holds no archive.
    ValueError
        If an archive is damaged or holds labels outside ImageNet's classes, or one before the last is missing.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
    folder, wanted = Path(folder), limit or PUBLISHED
    archives = sorted(folder.glob("serial_" + "[0-9]" * 5 + ".tar")) if folder.is_dir() else []
    if not archives:
        raise FileNotFoundError(
            f"{str(folder)!r} holds no serial_<number>.tar; CCC is made or streamed by https://github.com/oripress/CCC"
        )
    numbers = [int(path.stem.removeprefix("serial_")) for path in archives]
    lost = sorted({*range(numbers[-1])} - {*numbers})
    if lost:
        raise ValueError(
            f"{str(folder)!r} lacks serial_{lost[0]:05d}.tar; the stream is in order, get it again"
        )
    places: list[tuple[Path, int, int]] = []
    labels: list[int] = []
    for archive in archives:
        if len(places) >= wanted:
            break
        try:
            with tarfile.open(archive, "r:") as content:  # images are read in place, so not of a .gz
                members = {member.name: member for member in content if member.isfile()}
                for name, member in members.items():
                    if not name.endswith(".input.jpg") or Path(name).name.startswith("."):
                        continue
                    label = content.extractfile(members[name.removesuffix(".input.jpg") + ".output.cls"])
                    assert label is not None
                    places.append((archive, member.offset_data, member.size))
                    labels.append(int(label.read()))
        except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
            raise ValueError(
                f"{str(archive)!r} cannot be read ({error!r}); it is damaged, get it again"
            ) from error
    kept, wnids = torch.tensor(labels[:wanted], dtype=torch.long), imagenet_wnids()
    if not len(kept) or kept.min() < 0 or kept.max() >= len(wnids):
        held = f"labels from {kept.min()} to {kept.max()}" if len(kept) else "no <key>.input.jpg"
        raise ValueError(
            f"the archives of {str(folder)!r} hold {held}, not images of ImageNet's {len(wnids)} classes; get "
            f"them again"
        )
    return Stream(folder.name, tuple(places[:wanted]), kept, wnids, image_shape)


def accuracy_over_time(right: Bool[np.ndarray, " n"], block: int = 50_000) -> Sequence[Estimate]:
    """Accuracy of each block of the stream, in order; the last may be smaller."""
    return [proportion(right[start : start + block]) for start in range(0, len(right), block)]
