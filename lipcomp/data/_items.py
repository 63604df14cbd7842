"""Items of datasets: their image as pictures, their label as the index of a class."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lipcomp.data._labels import in_order, shorten
from lipcomp.data._layout import check_distinct
from lipcomp.data._listing import normal
from lipcomp.data._pictures import as_picture

_IMAGES = ("image", "img", "jpg", "png")
_MADE = ("pixel_values",)  # of the image, by a processor
_MOST = 100_000  # classes, of which few are seen in a small part of a set
_ONE_OF_EACH = 10  # images that may well be one of each class, as numbered
LABELS = ("label", "labels", "fine_label", "class", "cls", "target")


def planes_of(image: Any) -> list[Image.Image]:
    """An item's image as one picture (mode L, RGB or F), or as three of mode F for colours that are floats.

    Raises
    ------
    ValueError
        If nothing says what its numbers mean.
    """
    if isinstance(image, Image.Image):
        return [as_picture(image)]
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(  # noqa: TRY004
            f"an image must be one of Pillow's, an array or a tensor, got {type(image).__name__}; open files with "
            f"PIL.Image.open, a column of Hugging Face with cast_column('image', datasets.Image())"
        )
    try:
        array = (
            np.asarray((image.float() if image.is_floating_point() else image).detach().cpu())
            if isinstance(image, Tensor)
            else image
        )
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"the tensor holds no pixels ({error})") from error
    channels_first = isinstance(image, Tensor) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
    if (
        array.ndim == 3
        and channels_first
        and array.shape[0] in (1, 3, *([4] if isinstance(image, Tensor) else []))
    ):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {tuple(image.shape)} is no image of 1, 3 or 4 channels")
    array = np.ascontiguousarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype in (np.uint8, np.uint16):
        if array.dtype == np.uint16 and array.ndim == 3:
            array = (array >> 8).astype(np.uint8)
        return [as_picture(Image.fromarray(array))]
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"numbers of type {array.dtype} do not define which value is white; give bytes, or floats in [0, 1]"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"floats must lie in [0, 1], these go from {array.min():g} to {array.max():g}; divide bytes by 255, and "
            f"leave out a normalisation: the encoder holds its own mean and std"
        )
    bytes_ = (array * 255).round().astype(np.uint8)
    if np.abs(bytes_ / np.float32(255) - array).max() < 1e-6:  # torchvision's ToTensor of bytes
        return [as_picture(Image.fromarray(bytes_))]
    if array.ndim == 2:
        return [Image.fromarray(array)]
    if array.shape[2] == 4:
        raise ValueError("floats with four channels; composite the image on a background first")
    return [Image.fromarray(np.ascontiguousarray(array[..., c])) for c in range(3)]


def item_of(dataset: Any, index: int, name: str) -> Any:
    """An item of a dataset; whatever its code raises names the item."""
    try:
        return dataset[index]
    except Exception as error:
        raise ValueError(f"item {index} of {name} cannot be read: {type(error).__name__}: {error}") from error


def parts_of(item: Any, image_key: str | None, label_key: str | None) -> tuple[Any, Any]:
    """(image, label or None) of an item."""
    if isinstance(item, Mapping):
        key = (
            image_key
            or one_of(item, _IMAGES, "images", "image_key")
            or next(filter(item.__contains__, _MADE), None)
        )
        if key is None or key not in item:
            raise ValueError(
                f"an item has the keys {', '.join(map(str, item))}; name the image's with image_key="
            )
        return item[key], item.get(label_key or next((key for key in LABELS if key in item), None))
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    return (item[0] if isinstance(item, tuple | list) and item else item), None


def label_column(dataset: Any) -> str | None:
    """The column of labels of a Hugging Face dataset."""
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list | tuple):
        return None
    found = one_of(columns, LABELS, "labels", "label_key")
    # by its transform
    return found if found and found in item_of(dataset, 0, type(dataset).__name__) else None


def one_of(there: Collection[Any], usual: Sequence[str], what: str, option: str) -> str | None:
    """The one usual name among the names that are there; None if there is none."""
    found = [name for name in usual if name in there]
    if len(found) > 1:
        raise ValueError(
            f"items have several {what} ({', '.join(found)}); name one: from_dataset(dataset, {option}={found[0]!r})"
        )
    return found[0] if found else None


def labels_of(name: str, dataset: Any, image_key: str | None, label_key: str | None) -> list[Any]:
    """All labels; without reading the images if the dataset has a list of them."""
    label_key = label_key or label_column(dataset)
    if label_key and hasattr(dataset, "column_names"):
        return _none_missing(name, dataset[label_key])
    told: Any = getattr(dataset, "targets", getattr(dataset, "labels", getattr(dataset, "_labels", None)))
    plain = getattr(dataset, "target_transform", None) is None and isinstance(
        told, Sequence | np.ndarray | Tensor
    )
    if plain and getattr(told, "ndim", 1) == 1 and len(told) == len(dataset):
        return _none_missing(name, told)
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):  # torch's Subset
        whole = labels_of(name, dataset.dataset, image_key, label_key)
        return [whole[i] for i in dataset.indices]
    if type(dataset) is ConcatDataset:
        return [label for part in dataset.datasets for label in labels_of(name, part, image_key, label_key)]
    labels, parts = [], 0
    for i in range(len(dataset)):
        item = item_of(dataset, i, name)
        if isinstance(item, Mapping):
            label_key = label_key or one_of(item, LABELS, "labels", "label_key")
        elif isinstance(item, tuple | list):
            parts = max(parts, len(item))
        labels.append(parts_of(item, image_key, label_key)[1])
    if parts > 2 and len(labels) > 2 and len({str(label) for label in labels}) == len(labels):
        raise ValueError(
            f"items of {name} have {parts} parts, and the second differs for every image ({labels[0]}, {labels[1]} "
            f"...) as a file or an index does; give items of (image, label), or pass labels="
        )
    counted = all(_is_number(label, i) for i, label in enumerate(labels))
    if counted and len(labels) > _ONE_OF_EACH and len(getattr(dataset, "classes", None) or ()) != len(labels):
        raise ValueError(
            f"the second part of each item of {name} is its index, so that no two images have one class; give items of "
            f"(image, label), or pass labels=, or labelled=False where none are needed"
        )
    return _none_missing(name, labels)


def _none_missing(name: str, labels: Iterable[Any]) -> list[Any]:
    labels = list(labels)
    missing = [i for i, label in enumerate(labels) if label is None]
    if missing:
        what = "no labels" if len(missing) == len(labels) else f"no label for item {missing[0]}"
        raise ValueError(
            f"{name} gives {what}; pass labels=, label_key=, or labelled=False where none are needed, to "
            f"lipcomp.data.from_dataset"
        )
    return labels


def _is_number(label: Any, number: int) -> bool:
    """Whether a label is this whole number, of Python, NumPy or torch."""
    try:
        return not isinstance(label, str) and plain_label(label) == number
    except ValueError:
        return False


def unformatted(dataset: Any) -> Any:
    """A Hugging Face dataset, or parts of one, as it stores its items.

    Its formats (``with_format("torch")``) turn pictures into arrays: of a palette's indices, for one.
    """
    if isinstance(dataset, Subset):
        return Subset(unformatted(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset(map(unformatted, dataset.datasets))
    told = getattr(dataset, "format", None)
    kinds = getattr(dataset, "features", None)
    pictures = isinstance(kinds, Mapping) and any(type(kind).__name__ == "Image" for kind in kinds.values())
    if isinstance(told, Mapping) and pictures and told.get("type") not in (None, "custom"):
        return dataset.with_format(None)
    return dataset


def plain_label(label: Any) -> int | str:
    """A label as a whole number or a word."""
    if isinstance(label, str):
        return normal(label)
    try:
        number = int(label)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = None
    if number is None or number != label:
        raise ValueError(f"a label must be one whole number or word, got {label!r}; one class per image")
    return number


def whole_numbers(name: str, labels: Any, n: int) -> Tensor:
    """Labels that the caller gives, one whole number per image."""
    try:
        found = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels).tolist())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"labels of {name} must be one integer per image ({n}), got {type(labels).__name__} ({error}); number the "
            f"classes from 0 and give their names as classes="
        ) from error
    if found.shape != (n,) or found.is_floating_point() or found.is_complex():
        raise ValueError(
            f"labels of {name} must be one integer per image ({n}), got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found.long()


def names_of(dataset: Any, label_key: str | None, labels: Sequence[Any]) -> tuple[str, ...]:
    """Names of the classes: the dataset's, or its words in order, or the numbers."""
    label_key = label_key or label_column(dataset)
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and getattr(features.get(label_key), "names", None):
        return tuple(features[label_key].names)
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        return names_of(dataset.dataset, label_key, labels)
    if isinstance(dataset, ConcatDataset):
        every = [names_of(part, label_key, labels) for part in dataset.datasets]
        parts = {names for names in every if not is_plain(names)}
        if len(parts) > 1:
            raise ValueError(
                f"the parts of a ConcatDataset number their classes differently ({'; '.join(map(shorten, parts))}), so "
                f"that a number means several classes; join their files, or give each the same classes"
            )
        if parts and has_target_transform(dataset):
            raise ValueError(
                f"a part of a ConcatDataset changes its labels by a target_transform, so that its numbers may mean "
                f"other classes than those of the others ({shorten(parts.pop())}); take it away, or pass labels="
            )
        if parts:
            return parts.pop()
    if any(isinstance(label, str) for label in labels):
        return in_order({str(label) for label in labels})
    told = _told_names(dataset)
    if told and getattr(dataset, "target_transform", None) is None:
        return tuple(normal(str(name)) for name in told)
    if max(labels) >= max(_MOST, 10 * len(labels)):
        raise ValueError(
            f"{len(labels)} labels go up to {max(labels)}; number the classes from 0, or make the labels words"
        )
    return tuple(str(i) for i in range(int(max(labels)) + 1))


def _told_names(dataset: Any) -> Sequence[Any]:
    """Names of the classes in the order of their numbers, by any of the usual attributes; none if it has none."""
    told, index = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    if isinstance(told, Mapping):  # number -> name, or name -> number
        index = (
            told if all(isinstance(key, str) for key in told) else {name: key for key, name in told.items()}
        )
        told = None
    told = told.tolist() if isinstance(told, np.ndarray) else told
    if isinstance(told, list | tuple):
        # synonyms, of which two classes may have one
        if told and all(isinstance(name, tuple | list) for name in told):
            return getattr(dataset, "wnids", None) or [", ".join(map(str, name)) for name in told]
        _check_index(told, index)
        return told
    if isinstance(index, Mapping) and sorted(map(str, index.values())) == sorted(map(str, range(len(index)))):
        return sorted(index, key=index.__getitem__)
    return ()


def _check_index(classes: Sequence[Any], index: Any) -> None:
    """Refuse names of classes whose order is another than that of the dataset's own index of them."""
    for number, name in enumerate(classes):
        told = index.get(name, number) if isinstance(index, Mapping) and isinstance(name, str) else number
        if told != number and classes.count(name) == 1:  # of a name that is there twice, it tells one
            raise ValueError(
                f"the dataset's classes say that class {number} is {name!r}, its class_to_idx says {told}; "
                f"correct one of them"
            )


def has_target_transform(dataset: Any) -> bool:
    """Whether labels are changed on the way, in the dataset or in one that it is made of."""
    parts = [getattr(dataset, "dataset", None), *(getattr(dataset, "datasets", None) or ())]
    own = getattr(dataset, "target_transform", None) is not None
    return own or any(has_target_transform(part) for part in parts if part is not None)


def is_plain(names: Sequence[str]) -> bool:
    """Whether class names are only the numbers from 0."""
    return all(name == str(i) for i, name in enumerate(names))


def numbers_of(
    name: str, own: Sequence[int | str], names: tuple[str, ...], classes: Sequence[str] | None
) -> tuple[dict[int | str, int], tuple[str, ...]]:
    """The index of each label's class among the classes, which are matched by name if they are given."""
    lowest = min((label for label in own if isinstance(label, int)), default=0)
    if lowest < 0:
        raise ValueError(
            f"{name} has the label {lowest}; number the classes from 0, or pass labelled=False, where none are needed, "
            f"to lipcomp.data.from_dataset"
        )
    worded = any(isinstance(label, str) for label in own)  # a number among words is a word
    words = {label: str(label) if worded or label >= len(names) else names[label] for label in set(own)}  # type: ignore[operator,index]
    wanted = names if classes is None else tuple(classes)
    check_distinct(wanted)
    plain = not worded and is_plain(names)
    strange = next((word for word in words.values() if word not in wanted), None)
    if strange is None:
        return {label: wanted.index(word) for label, word in words.items()}, wanted
    if plain and not any(word in wanted for word in words.values()) and max(own) < len(wanted):  # type: ignore[operator]
        return {label: label for label in words}, wanted  # type: ignore[misc]
    raise ValueError(
        f"class {strange!r} of {name} is not among the classes {', '.join(wanted[:10])}; classes are matched by name"
    )
