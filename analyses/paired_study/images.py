"""The images of a study: what probes are fitted on, what is measured on, and the corrupted copies, made once.

The corrupted test images are the same for every model: they are made once, as bytes, and kept in the study's folder
as one memory-mapped array (corruption, severity, image, channel, row, column).
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.checkpoints.native import atomic_file
from lipcomp.commands import progress
from lipcomp.data import ImageSet, load_set
from lipcomp.jobs import run_jobs
from lipcomp.robustness.corruptions import SEVERITIES, corrupt, corruption_names

CACHE_BYTES = 2**30  # of corrupted images at most, unless their number is given

# Natural shifts that come with the default data: set name -> the quantity its accuracy is recorded under.
SHIFTS = {"mnist5k": {"uci_digits": "accuracy.shift", "mnist5k_8x8": "accuracy.resolution"}}


@dataclass(frozen=True)
class StudyImages:
    """Train, test and shifted images, and the corrupted test images."""

    train: ImageSet
    test: ImageSet
    shifts: dict[str, ImageSet]
    table: str
    corruptions: tuple[str, ...]
    corrupted: np.ndarray = field(repr=False)

    def corrupted_batch(self, corruption: int, severity: int) -> Float[Tensor, "n channels height width"]:
        """The first test images under one corruption and severity (numbers from 0), pixels in [0, 1]."""
        return torch.from_numpy(np.array(self.corrupted[corruption, severity])).float().div_(255)


def severity_table(image_shape: tuple[int, int, int]) -> str:
    """Whose corruptions fit images of that shape."""
    channels, height, width = image_shape
    if channels == 1:
        return "mnist"
    return "cifar10" if min(height, width) <= 64 else "imagenet"


def prepare_images(
    folder: Path,
    data: str,
    image_shape: tuple[int, int, int],
    *,
    data_root: Path | None = None,
    corrupted_images: int | None = None,
    workers: int = 1,
) -> StudyImages:
    """Load a study's images, and make the corrupted ones unless they are there.

    Raises
    ------
    ValueError
        If the images do not have the shape that the models take.
    """
    train = load_set(data, "train", root=data_root, image_shape=image_shape)
    test = load_set(data, "test", root=data_root, image_shape=image_shape)
    if test.image_shape != image_shape:
        raise ValueError(
            f"--data {data}: its images have shape {test.image_shape}, the models take {image_shape}"
        )
    shifts = {quantity: load_set(name) for name, quantity in SHIFTS.get(data, {}).items()}
    table = severity_table(image_shape)
    names = corruption_names(table)
    fitting = max(16, CACHE_BYTES // (len(names) * len(SEVERITIES) * math.prod(image_shape)))
    count = min(corrupted_images or min(1000, fitting), len(test))
    identity = hashlib.sha256(f"{test.content_hash()}/{table}/{names}/{count}".encode()).hexdigest()[:16]
    file = folder / "cache" / f"corrupted-{identity}.npy"
    if not file.exists():
        _make_corrupted(file, test.batch(torch.arange(count)), table, names, workers)
    return StudyImages(train, test, shifts, table, names, np.load(file, mmap_mode="r"))


def _make_corrupted(file: Path, images: Tensor, table: str, names: tuple[str, ...], workers: int) -> None:
    shape = (len(names), len(SEVERITIES), *images.shape)
    places = [(i, j) for i in range(len(names)) for j in range(len(SEVERITIES))]
    jobs = [(images, names[i], SEVERITIES[j], table) for i, j in places]
    with atomic_file(file) as temporary, progress(len(jobs), "corrupted images") as advance:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for outcome in run_jobs(_corrupt, jobs, workers=workers):
            array[places[outcome.number]] = outcome.result()
            advance()
        array.flush()


def _corrupt(images: Tensor, name: str, severity: int, table: str) -> np.ndarray:
    result = corrupt(images, name, severity, table=table, seed=0, indices=torch.arange(len(images)))
    return (result * 255).round().to(torch.uint8).numpy()
