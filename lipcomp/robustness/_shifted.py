"""Shifted sets: images with classes of their own, and the map from a model's classes to them."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lipcomp.data._folders import FolderImages
from lipcomp.data._pictures import read_picture
from lipcomp.data._preprocessing import Preprocessing, to_shape
from lipcomp.data._sets import ImageSet

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ClassMap = tuple[tuple[int, ...], ...]


def project(
    logits: Float[Tensor, "n classes"], class_map: ClassMap | None
) -> Float[Tensor, "n shift_classes"]:
    """A score for each of the shift's classes: the largest logit among the model's classes that mean it.

    Raises
    ------
    ValueError
        If the map names a class that the model does not have.
    """
    if class_map is None:
        return logits
    highest = max(max(members) for members in class_map)
    if highest >= logits.shape[1] or min(min(members) for members in class_map) < 0:
        raise ValueError(
            f"the class map names class {highest}, but the model has {logits.shape[1]} classes; is the probe "
            f"trained on the classes this shift belongs to?"
        )
    if all(len(members) == 1 for members in class_map):
        return logits[:, [members[0] for members in class_map]]
    return torch.stack([logits[:, list(members)].amax(1) for members in class_map], 1)


def answers(scores: Float[Tensor, "n classes"], some: bool = True) -> Int64[Tensor, " n"]:
    """The class with the largest score; of only some of the classes -1 where all are alike, as without a neighbour."""
    found = scores.argmax(1).cpu()
    if not some or scores.shape[1] < 2:
        return found
    least, most = scores.double().cpu().aminmax(dim=1)
    return found.masked_fill(most - least <= 1e-12 * most.abs(), -1)


@dataclass(frozen=True)
class Shift:
    """A shifted set and how a model's classes map to its own."""

    name: str
    images: ImageSet = field(repr=False)  # its labels count the shift's classes
    class_map: ClassMap | None = field(repr=False)  # the model's classes of each; None if they are the same
    model_classes: int  # how many classes a model for it has

    def right(self, logits: Float[Tensor, "n classes"]) -> Bool[np.ndarray, " n"]:
        """Which images are right, given the logits of all of them in order."""
        if len(logits) != len(self.images):
            raise ValueError(
                f"logits must hold a row for each of {len(self.images)} images, got {len(logits)}"
            )
        predicted = answers(project(logits, self.class_map), self.class_map is not None)
        return (predicted == self.images.labels).numpy()

    def clean_subset(self, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
        """Indices of a clean set's images that belong to the shift's classes: what its clean accuracy is taken on."""
        if self.class_map is None:
            return torch.arange(len(labels))
        wanted = torch.tensor(sorted(c for members in self.class_map for c in members))
        return torch.isin(labels, wanted).nonzero().squeeze(1)

    def right_clean(
        self, logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]
    ) -> Bool[np.ndarray, " m"]:
        """Which of the clean images of :meth:`clean_subset` are right among the shift's classes."""
        chosen = self.clean_subset(labels)
        if self.class_map is None:
            return (logits.argmax(1).cpu() == labels).numpy()
        own = {c: k for k, members in enumerate(self.class_map) for c in members}
        target = torch.tensor([own[c] for c in labels[chosen].tolist()])
        predicted = answers(project(logits[chosen.to(logits.device)], self.class_map))
        return (predicted == target).numpy()


@dataclass(frozen=True)
class ManyLabels(Shift):
    """A shift whose images may have several right classes, of all the model's: any of them counts."""

    # the model's classes that are right for each image
    accepted: tuple[frozenset[int], ...] = field(default=(), repr=False)

    def right(self, logits: Float[Tensor, "n classes"]) -> Bool[np.ndarray, " n"]:
        """Which images are right: the largest of all logits is one of the accepted."""
        if logits.shape != (len(self.images), self.model_classes):
            raise ValueError(
                f"logits must be ({len(self.images)}, {self.model_classes}), got {tuple(logits.shape)}"
            )
        predicted = logits.argmax(1).tolist()
        return np.array([answer in own for answer, own in zip(predicted, self.accepted, strict=True)])


@dataclass(frozen=True)
class WebImages(FolderImages):
    """Images as published evaluations read these sets: a frame cut off, then resized whatever their size."""

    frame: int = 0

    def __post_init__(self) -> None:
        if self.preprocessing is None:  # 256 for 224, as published
            height, width = self.image_shape[1:]
            how = Preprocessing(round(max(height, width) / 0.875), (height, width))
            object.__setattr__(self, "preprocessing", how)
        super().__post_init__()

    def read(self, file: Path) -> Float[Tensor, "channels height width"]:
        """Decode one of the files as they do, pixels in [0, 1]."""
        picture = read_picture(file, self.preprocessing.background)
        f = self.frame
        if min(picture.size) <= 2 * f:
            raise ValueError(
                f"image {str(file)!r} is {picture.width} x {picture.height} pixels, of which a frame of {f} is cut "
                f"off; get it again"
            )
        picture = picture.crop((f, f, picture.width - f, picture.height - f))
        return to_shape([picture], self.image_shape, self.preprocessing, convert_channels=True)


def imagenet_wnids(subset: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids of ImageNet's classes in label order, or of "imagenet_a" or "imagenet_r" (200 each)."""
    table = files("lipcomp.robustness") / "tables" / f"{subset}_wnids.txt"
    return tuple(table.read_text().split())


def is_alphabetical(names: Sequence[str]) -> bool:
    """Whether names are in alphabetical order, in which ImageNet's classes are only by their ids or numbers.

    Names may hold more than these: n01440764_tench, class_000, 000.tench.
    """
    found = [re.search(r"\d+", name) for name in names]
    counts = [int(number[0]) if number else -1 for number in found]
    numbered = counts == [first + k for first in counts[:1] for k in range(len(names))]
    known = numbered or all(re.match(r"n\d{8}(?!\d)", name) for name in names)
    return len(names) > 1 and not known and list(names) == sorted(names)


def check_imagenet_order(what: str, names: Sequence[str]) -> None:
    """Refuse a thousand classes that cannot be ImageNet's in their order, in which published maps count them.

    Raises
    ------
    ValueError
        If they are WordNet ids, numbers or words in another order.
    """
    wnids = imagenet_wnids()
    if len(names) != len(wnids) or tuple(names) == wnids:
        return
    if {*names} & {*wnids} or is_alphabetical(names):
        raise ValueError(
            f"{what} counts ImageNet's classes in the order of their WordNet ids, and the classes here, "
            f"{', '.join(names[:3])} ..., are in another; name the class folders of the training set by WordNet ids"
        )


def check_cifar_order(what: str, names: Sequence[str]) -> None:
    """Refuse ten classes of which one has a name of CIFAR-10's at another place: published arrays number them.

    Raises
    ------
    ValueError
        Naming the class.
    """
    moved = [name for k, name in enumerate(names) if name in CIFAR10 and CIFAR10.index(name) != k]
    if len(names) == len(CIFAR10) and moved:
        raise ValueError(
            f"{what} numbers CIFAR-10's classes {', '.join(CIFAR10)}; of the classes here {moved[0]} is number "
            f"{tuple(names).index(moved[0])}, not {CIFAR10.index(moved[0])}: give the training set's classes that order"
        )


def class_table(name: str) -> dict[str, list[int]]:
    """A table of the package: {class: ImageNet's classes that mean it}, in alphabetical order."""
    return dict(
        sorted(json.loads((files("lipcomp.robustness") / "tables" / f"{name}.json").read_text()).items())
    )


@contextmanager
def as_published(what: str) -> Iterator[None]:
    """Published tables and maps that do not fit each other, or hold another kind of thing, are named."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{what} do not fit each other ({error!r}); unpack them again") from error


def read_json(path: Path, source: str = "it comes with the set's archive") -> dict[str, Any]:
    """A JSON object of a published map; a missing or damaged file is named."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; {source}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error}); unpack it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold an object, got a {type(content).__name__}")  # noqa: TRY004
    return content
