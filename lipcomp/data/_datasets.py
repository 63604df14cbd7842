"""Image sets from torchvision's and Hugging Face's datasets, and from any object with ``len`` and ``[i]``.

An item is (image, label), or a mapping with an image and a label. An image is one of Pillow's; an array (height, width)
or (height, width, channels) or a tensor (channels, height, width) of bytes; or floats in [0, 1]. Items are read when a
batch asks for them, in the caller's thread. A dataset must give the same item each time: augment with views, not here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from lipcomp._arguments import checked
from lipcomp._identity import digest
from lipcomp.data._items import (
    item_of,
    label_column,
    labels_of,
    names_of,
    numbers_of,
    parts_of,
    plain_label,
    planes_of,
    unformatted,
    whole_numbers,
)
from lipcomp.data._preprocessing import Preprocessing, to_shape
from lipcomp.data._sets import as_indices
from lipcomp.data._shards import Shards

READINGS = 5  # of a few items, which shows a flip by chance in all but 1 of 4,000 sets


@dataclass(frozen=True)
class DatasetImages:
    """A map-style dataset as an image set; made by :func:`from_dataset`.

    Attributes are those of :class:`~lipcomp.data._folders.FolderImages`, with ``dataset`` in place of the files and in
    ``numbers`` the index of the class that each label of the dataset means (None: labels are not the dataset's own).
    ``whole``: random crops are cut from an item's own pixels, not from those that the preprocessing leaves.
    """

    name: str
    dataset: Any = field(repr=False)
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocessing: Preprocessing | None = None
    convert_channels: bool = False
    image_key: str | None = None
    label_key: str | None = None
    numbers: Mapping[Any, int] | None = field(default=None, repr=False)
    whole: bool = False
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Count of images."""
        return len(self.labels)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1].

        Raises
        ------
        ValueError
            If an item cannot be brought to the set's shape, or has another label than it had.
        """
        return torch.stack([self._pixels(i) for i in as_indices(indices, len(self)).tolist()])

    def _pixels(self, index: int) -> Float[Tensor, "channels height width"]:
        planes = self.planes(index)
        try:
            pixels = to_shape(planes, self.image_shape, self.preprocessing, self.convert_channels)
        except ValueError as error:
            raise ValueError(f"item {index} of {self.name} {error}") from error
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"item {index} of {self.name} has the shape {tuple(pixels.shape)}, not {self.image_shape}; give a "
                f"preprocessing that brings all to one size"
            )
        return pixels

    def planes(self, index: int) -> list[Image.Image]:
        """An item's image as it is, see :func:`~lipcomp.data._items.planes_of`."""
        image, label = parts_of(item_of(self.dataset, index, self.name), self.image_key, self.label_key)
        if self.numbers is not None and label is not None:
            number = self.numbers.get(plain_label(label))
            if number != int(self.labels[index]):
                raise ValueError(
                    f"item {index} of {self.name} has the label {label!r}, its dataset's table of labels says "
                    f"{self.classes[int(self.labels[index])]!r}; pass labels= that hold"
                )
        try:
            planes = planes_of(image)
        except ValueError as error:
            raise ValueError(f"item {index} of {self.name} cannot be read: {error}") from error
        mark = int(_hash_of(planes)[:16], 16)
        if self.marks[index] not in (0, mark):
            raise _changing(index, self.name)
        self.marks[index] = mark
        return planes

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of shards."""
        return tuple(self.dataset.notes) if isinstance(self.dataset, Shards) else ()

    @property
    def marks(self) -> np.ndarray:
        """64 bits of the hash of every item that was read, 0 of the others."""
        found: np.ndarray = self._seen.setdefault("marks", np.zeros(len(self), np.uint64))
        return found

    def subset(self, indices: Int64[Tensor, " m"]) -> "DatasetImages":
        """Some of its items, in that order; only they are read for its identity."""
        indices = as_indices(indices, len(self))
        dataset = Subset(self.dataset, indices.tolist())
        return replace(self, dataset=dataset, labels=self.labels[indices], _seen={})

    def file_of(self, index: int) -> str:
        """The item's file if the dataset knows it, else the dataset's name and the index."""
        samples = getattr(self.dataset, "samples", None)
        if isinstance(samples, Sequence) and len(samples) == len(self):
            return str(samples[index][0])
        return f"{self.name}[{index}]"

    def content_hash(self, advance: Callable[[int], object] | None = None) -> str:
        """A hash of all pictures, labels, class names and the preprocessing, 32 hex digits; reads every item once."""
        if "hash" not in self._seen:
            own = getattr(self.dataset, "content_hash", None)
            contents = own() if own else [self._item_hash(i, advance) for i in range(len(self))]
            self._seen["hash"] = digest(
                contents,
                self.labels,
                self.classes,
                self.image_shape,
                self.preprocessing,
                self.convert_channels,
                *(["whole"] if self.whole else []),
            )
        return self._seen["hash"]

    def __identity__(self) -> str:
        return self.content_hash()

    def _item_hash(self, index: int, advance: Callable[[int], object] | None) -> str:
        found = _hash_of(self.planes(index))
        if advance:
            advance(1)
        return found


@checked
def from_dataset(
    dataset: Any,
    *,
    name: str | None = None,
    labels: Sequence[int] | np.ndarray | Tensor | None = None,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    convert_channels: bool = False,
    image_key: str | None = None,
    label_key: str | None = None,
) -> DatasetImages:
    """Use a dataset of (image, label) as an image set.

    Parameters
    ----------
    dataset
        A torchvision or PyTorch map-style ``Dataset``, a Hugging Face ``Dataset``, or a sequence of items.
    name
        Name for records (default: its class and split).
    labels
        Class of each item; by default the dataset's (``targets``, ``labels``, a column), or read item by item.
    classes
        Names of the classes; by default the dataset's, or the numbers.
    labelled
        False for a dataset without labels.
    image_shape
        (channels, height, width) to convert the images to; that of the first image if not given.
    preprocessing
        How to convert them (default: not at all if every image has that shape, else :meth:`Preprocessing.default`).
    convert_channels
        Whether to convert grey images to three channels, and colour images to grey.
    image_key, label_key
        Keys of an item that is a mapping, by default the usual ones (image, img; label, labels ...).

    Raises
    ------
    ValueError
        If items change from one reading to the next, or have no labels; or cannot be read as images of [0, 1].

    Examples
    --------
    >>> import torch
    >>> from lipcomp.data import from_dataset
    >>> pixels = torch.arange(4 * 12, dtype=torch.uint8).view(4, 3, 2, 2)
    >>> images = from_dataset([(x, i % 2) for i, x in enumerate(pixels)], classes=("cat", "dog"))
    >>> images.image_shape, images.labels.tolist()
    ((3, 2, 2), [0, 1, 0, 1])
    """
    name = name or _name(dataset)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name} must have a length and items by index (map-style); turn an iterable one into a list of items"
        )
    if not len(dataset):
        raise ValueError(f"{name} holds no image")
    dataset = unformatted(dataset)
    label_key = label_key or label_column(dataset)
    first = _steady(name, dataset, image_key, label_key)
    numbers = None
    if labels is not None:
        labels = whole_numbers(name, labels, len(dataset))
        names = tuple(classes) if classes is not None else names_of(dataset, label_key, labels.tolist())
    elif not labelled:
        names, labels = (), [-1] * len(dataset)
    else:
        own = [plain_label(label) for label in labels_of(name, dataset, image_key, label_key)]
        numbers, names = numbers_of(name, own, names_of(dataset, label_key, own), classes)
        labels = [numbers[label] for label in own]
    found = torch.as_tensor(labels)
    if names and not 0 <= int(found.min()) <= int(found.max()) < len(names):
        raise ValueError(
            f"{name} has labels from {int(found.min())} to {int(found.max())}, but {len(names)} class names; number "
            f"the classes from 0, or give classes="
        )
    channels = 3 if len(first) == 3 or first[0].mode == "RGB" else 1
    height, width = first[0].height, first[0].width
    if image_shape is None:
        image_shape = (channels, *((preprocessing and preprocessing.size) or (height, width)))
    if channels == 1 and image_shape[0] == 3 and not convert_channels:
        raise ValueError(
            f"the images of {name} are grey, the encoder takes 3 channels; give the data that it is for, or allow "
            f"three equal channels with convert_channels=True"
        )
    if preprocessing is None and image_shape[1:] != (height, width):
        preprocessing = Preprocessing.default(*image_shape[1:])
    return DatasetImages(
        name,
        dataset,
        found.long(),
        names,
        image_shape,
        preprocessing,
        convert_channels,
        image_key,
        label_key,
        numbers,
    )


def _name(dataset: Any) -> str:
    split = getattr(dataset, "split", None)
    return type(dataset).__name__ + (f"/{split}" if split is not None and not callable(split) else "")


def _steady(name: str, dataset: Any, image_key: str | None, label_key: str | None) -> list[Image.Image]:
    """The first image, after a look whether items stay the same."""
    first: list[Image.Image] = []
    brightest = 0.0
    for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        items = [item_of(dataset, index, name) for _ in range(READINGS)]
        try:
            read = [planes_of(parts_of(item, image_key, label_key)[0]) for item in items]
        except ValueError as error:
            raise ValueError(f"item {index} of {name}: {error}") from error
        if len({_hash_of(planes) for planes in read}) > 1:
            raise _changing(index, name)
        first = first or read[0]
        brightest = max(brightest, *(float(np.asarray(plane).max()) for plane in read[0]))
    if first[0].mode != "F" and brightest == 1:
        raise ValueError(
            f"bytes of {name} are 0 and 1, which is black and almost black; multiply them by 255, or give bool arrays"
        )
    return first


def _hash_of(planes: list[Image.Image]) -> str:
    return digest(*((plane.mode, np.asarray(plane)) for plane in planes))


def _changing(index: int, name: str) -> ValueError:
    return ValueError(
        f"item {index} of {name} is another image each time it is read; leave out its random transform (views augment "
        f"while training)"
    )
