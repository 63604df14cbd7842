"""Natural distribution shifts: the same classes, images from elsewhere.

================  =====================================================================  ========  ==================
name              layout of its folder                                                   images    classes
================  =====================================================================  ========  ==================
cifar10.1         ``cifar10.1_v6_data.npy`` and ``cifar10.1_v6_labels.npy``              2,000     CIFAR-10's
cifar10.1-v4      the same with ``v4``                                                   2,021     CIFAR-10's
cifar10.2         ``cifar102_test.npz`` with ``images`` and ``labels``                   2,000     CIFAR-10's
imagenet-v2       ``<0..999>/*.jpeg``: matched frequency; the others are                 10,000    ImageNet's
                  imagenet-v2-threshold0.7 and imagenet-v2-top-images
imagenet-a        ``<wnid>/*.jpg``                                                       7,500     200 of ImageNet's
imagenet-r        ``<wnid>/*.jpg``                                                       30,000    200 of ImageNet's
imagenet-sketch   ``<wnid>/*.JPEG``                                                      50,889    ImageNet's
objectnet         ``images/<folder>/*.png`` and ``mappings/*.json``                      18,514    113 of its own
imagenet-styled   ``<wnid>/*.png``: the val folder of Stylized ImageNet                  50,000    ImageNet's
imagenet-d        ``{background,texture,material}/<class>/*``                            4,835     several an image
imagenet-hard     ``images/*`` and ``labels.json`` {file: [classes]}                     10,980    several an image
uci_digits        comes with scikit-learn                                                1,797     digits
================  =====================================================================  ========  ==================

A shift has classes of its own, and a map: for each the model's classes that mean it. A model's logits are projected
by the maximum over each list, so with 200 of ImageNet's classes the other 800 do not compete, as published.
ObjectNet's map is read from the files it is published with; its one-pixel red frame and one pixel more are cut off.
ImageNet-D's and ImageNet-Hard's images have several right classes each, and all 1000 compete, as published.
ImageNet-Hard is published as a table of images (Hugging Face, taesiri/imagenet-hard): save each image under its number,
and its list of labels in ``labels.json``.

>>> from lipcomp.robustness._shifts import load_shift
>>> shift = load_shift("imagenet-a", "imagenet-a")  # doctest: +SKIP
>>> shift.right(logits)  # which images a 1000-class model gets right  # doctest: +SKIP
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from lipcomp._messages import nearest
from lipcomp.data import load_set
from lipcomp.data._listing import visible_folders
from lipcomp.robustness._arrays import (
    MappedImages,
    check_images,
    check_labels,
    list_classes,
    read_array,
    read_labels,
)
from lipcomp.robustness._shifted import (
    CIFAR10,
    ManyLabels,
    Shift,
    WebImages,
    as_published,
    class_table,
    imagenet_wnids,
    read_json,
)

LARGE = (3, 224, 224)
# Its three sets have one layout, and accuracies points apart; the name of the folder tells which it is.
IMAGENET_V2 = {
    "imagenet-v2": "matched-frequency",
    "imagenet-v2-threshold0.7": "threshold0.7",
    "imagenet-v2-top-images": "top-images",
}


@dataclass(frozen=True)
class Request:
    """What :func:`load_shift` was asked for, once its folder is known to exist."""

    name: str
    folder: Path
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    partial: bool


def load_shift(
    name: str,
    root: Path | str | None = None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    classes: Sequence[str] | None = None,
    partial: bool = False,
) -> Shift:
    """Open a natural shift and check it.

    Parameters
    ----------
    name
        A name of the module's table.
    root
        The set's own folder.
    image_shape
        What folders are brought to: (3, 224, 224) if not given.
    classes
        WordNet ids of the model's classes in label order, if they are not ImageNet's 1000.
    partial
        Accept a count of images other than the published one (a subset of your own).

    Raises
    ------
    FileNotFoundError
        If the set is not there; the message says where to get it.
    ValueError
        If there is no such shift, a file is damaged, the count is wrong, or labels or maps do not fit.
    """
    if name not in SHIFTS:
        raise ValueError(f"shift {name!r} is unknown{nearest(name, SHIFTS)} Known: {', '.join(SHIFTS)}")
    entry = SHIFTS[name]
    if entry.source is None:
        if root is not None:
            raise ValueError(
                f"shift {name} comes with a package, so {str(root)!r} would be ignored for {name}; leave it out"
            )
        folder = Path()
    elif root is None or not Path(root).is_dir():
        lost = "no folder was given" if root is None else f"its folder {str(root)!r} does not exist"
        raise FileNotFoundError(
            f"shift {name}: {lost}. Get it from {entry.source}, unpack it, and give "
            f"the folder that holds {entry.layout}"
        )
    else:
        folder = Path(root)
    for other, words in IMAGENET_V2.items():
        if name in IMAGENET_V2 and other != name and words in folder.resolve().name:
            raise ValueError(f"{str(folder)!r} is the shift {other}, not {name}; name it so")
    own = None if classes is None else tuple(classes)
    if own is not None and entry.subset is None:
        raise ValueError(f"shift {name} is for its own classes, not for those of a model; leave classes out")
    if own is not None and len({*own}) != len(own):
        raise ValueError("classes must name every class once, got some twice")
    shift = entry.load(Request(name, folder, image_shape or LARGE, own, partial))
    whole = own is None or {*imagenet_wnids(entry.subset or "imagenet")} <= {*own}
    if not partial and whole and len(shift.images) != entry.count:
        raise ValueError(
            f"shift {name} below {str(folder)!r} holds {len(shift.images)} images, published are {entry.count}; it is "
            f"half downloaded or half unpacked (in Python, partial=True takes a subset of your own)"
        )
    return shift


def _cifar101(version: str) -> "Loader":
    def load(wanted: Request) -> Shift:
        name, folder = wanted.name, wanted.folder
        labels, names = read_labels(folder / f"cifar10.1_{version}_labels.npy", CIFAR10)
        path = folder / f"cifar10.1_{version}_data.npy"
        pixels = read_array(path)
        check_images(path, pixels, (len(labels), 32, 32, 3))
        return Shift(name, MappedImages(name, pixels, labels, names), None, 10)

    return load


def _cifar102(wanted: Request) -> Shift:
    name, path = wanted.name, wanted.folder / "cifar102_test.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; get it from {SHIFTS[name].source}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels, raw = archive["images"], archive["labels"]
    except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); it is damaged or half downloaded, download it again"
        ) from error
    labels, names = check_labels(path, raw, CIFAR10)
    check_images(path, pixels, (len(labels), 32, 32, 3))
    return Shift(name, MappedImages(name, pixels, labels, names), None, 10)


def _imagenet(subset: str, *, numbered: bool = False) -> "Loader":
    def load(wanted: Request) -> Shift:
        name, folder, shape = wanted.name, wanted.folder, wanted.image_shape
        wnids = imagenet_wnids(subset)
        model = wanted.classes or imagenet_wnids()
        position = {wnid: k for k, wnid in enumerate(model)}
        own = [wnid for wnid in wnids if wnid in position]
        if not own:
            raise ValueError(
                f"none of the model's {len(model)} classes is in {name}; give them as WordNet ids"
            )
        folder_of = {wnid: str(k) if numbered else wnid for k, wnid in enumerate(wnids)}
        lost = [folder_of[wnid] for wnid in own if not (folder / folder_of[wnid]).is_dir()]
        if len(lost) == len(own) or (lost and not wanted.partial):
            raise ValueError(
                f"{str(folder)!r} lacks {len(lost)} of {name}'s {len(own)} class folders ({', '.join(lost[:3])} ...); "
                f"it is half unpacked, or not the folder that holds {SHIFTS[name].layout}"
            )
        listed = list_classes(folder, [folder_of[wnid] for wnid in own], name, shape)
        images = WebImages(name, listed.files, listed.labels, tuple(own), shape)
        class_map = None if tuple(own) == model else tuple((position[wnid],) for wnid in own)
        return Shift(name, images, class_map, len(model))

    return load


def _objectnet(wanted: Request) -> Shift:
    name, folder, shape = wanted.name, wanted.folder, wanted.image_shape
    meaning = read_json(folder / "mappings" / "objectnet_to_imagenet_1k.json")
    label_of = read_json(folder / "mappings" / "folder_to_objectnet_label.json")
    line_of = read_json(folder / "mappings" / "pytorch_to_imagenet_2012_id.json")
    lines_file = folder / "mappings" / "imagenet_to_label_2012_v2"
    if not lines_file.is_file():
        raise FileNotFoundError(f"{str(lines_file)!r} is missing; it comes with ObjectNet's archive")
    lines = lines_file.read_text().splitlines()
    with as_published(f"ObjectNet's mappings below {str(folder)!r}"):
        class_of = {lines[int(line)].strip(): int(index) for index, line in line_of.items()}
        folder_of = {label: place for place, label in label_of.items()}
        members = {
            folder_of[label]: tuple(class_of[text] for text in imagenet.split("; "))
            for label, imagenet in meaning.items()
        }
    lost = [place for place in members if not (folder / "images" / place).is_dir()]
    if len(lost) == len(members) or (lost and not wanted.partial):
        raise ValueError(
            f"{str(folder / 'images')!r} lacks {len(lost)} class folders ({', '.join(lost[:3])} ...)"
        )
    own = sorted(members)
    listed = list_classes(folder / "images", own, name, shape)
    images = WebImages(name, listed.files, listed.labels, tuple(own), shape, frame=2)
    return Shift(name, images, tuple(members[place] for place in own), 1000)


def _imagenet_d(wanted: Request) -> Shift:
    name, folder, meaning = wanted.name, wanted.folder, class_table("imagenet_d_classes")
    _all_of_imagenet(wanted)
    kinds = [kind for kind in ("background", "material", "texture") if (folder / kind).is_dir()]
    if not kinds or (len(kinds) < 3 and not wanted.partial):
        raise ValueError(
            f"{str(folder)!r} must hold {SHIFTS[name].layout}, it has {', '.join(kinds) or 'none'}"
        )
    unknown = sorted({e.name for kind in kinds for e in visible_folders(folder / kind)} - {*meaning})
    if unknown:
        raise ValueError(f"{str(folder)!r} has folders that are no class of {name}: {', '.join(unknown[:5])}")
    parts = [list_classes(folder / kind, list(meaning), name, wanted.image_shape) for kind in kinds]
    found = [file for part in parts for file in part.files]
    of = [part.classes[k] for part in parts for k in part.labels.tolist()]
    accepted = tuple(frozenset(meaning[name]) for name in of)
    return _many_labels(wanted, found, accepted)


def _imagenet_hard(wanted: Request) -> Shift:
    _all_of_imagenet(wanted)
    labels = read_json(wanted.folder / "labels.json", "write the table's labels into it, {file: [classes]}")
    found = [wanted.folder / "images" / name for name in labels]
    lost = [file.name for file in found if not file.is_file()]
    if lost or not found:
        raise FileNotFoundError(
            f"{str(wanted.folder / 'images')!r} lacks {len(lost)} of the {len(found)} images of labels.json "
            f"({', '.join(lost[:3])})"
        )
    listed = {name: own if isinstance(own, list) else [own] for name, own in labels.items()}
    odd = [name for name, own in listed.items() if not own or any(type(k) is not int for k in own)]
    if odd:
        raise ValueError(
            f"{str(wanted.folder / 'labels.json')!r} must hold a class number or a list of them for each image, got "
            f"{labels[odd[0]]!r} for {odd[0]}"
        )
    return _many_labels(wanted, found, tuple(frozenset(own) for own in listed.values()))


def _all_of_imagenet(wanted: Request) -> None:
    if wanted.classes is not None and wanted.classes != imagenet_wnids():
        raise ValueError(
            f"{wanted.name} needs a model of ImageNet's 1000 classes in their order, got {len(wanted.classes)} classes"
        )


def _many_labels(wanted: Request, found: list[Path], accepted: tuple[frozenset[int], ...]) -> ManyLabels:
    if any(not own or max(own) > 999 or min(own) < 0 for own in accepted):
        raise ValueError(f"{wanted.name}: an image has no label, or one that is no ImageNet class")
    labels = torch.tensor([min(own) for own in accepted], dtype=torch.long)
    images = WebImages(wanted.name, tuple(found), labels, imagenet_wnids(), wanted.image_shape)
    return ManyLabels(wanted.name, images, None, 1000, accepted)


def _digits(wanted: Request) -> Shift:
    return Shift(wanted.name, load_set("uci_digits"), None, 10)


Loader = Callable[[Request], Shift]


@dataclass(frozen=True)
class _Entry:
    load: Loader
    count: int
    layout: str
    source: str | None
    subset: str | None = None  # of ImageNet's classes


def _folders(subset: str, count: int, layout: str, source: str, *, numbered: bool = False) -> _Entry:
    """A set of one folder per class of ImageNet, or of a subset of them."""
    return _Entry(_imagenet(subset, numbered=numbered), count, layout, source, subset)


SHIFTS: dict[str, _Entry] = {
    "cifar10.1": _Entry(
        _cifar101("v6"), 2000, "cifar10.1_v6_data.npy", "https://github.com/modestyachts/CIFAR-10.1"
    ),
    "cifar10.1-v4": _Entry(
        _cifar101("v4"), 2021, "cifar10.1_v4_data.npy", "https://github.com/modestyachts/CIFAR-10.1"
    ),
    "cifar10.2": _Entry(_cifar102, 2000, "cifar102_test.npz", "https://github.com/modestyachts/cifar-10.2"),
    **{
        name: _folders(
            "imagenet", 10000, "the folders 0 .. 999", f"https://github.com/modestyachts/ImageNetV2 ({words})",
            numbered=True,
        )
        for name, words in IMAGENET_V2.items()
    },
    "imagenet-a": _folders(
        "imagenet_a", 7500, "n01498041 ...", "https://github.com/hendrycks/natural-adv-examples"
    ),
    "imagenet-r": _folders("imagenet_r", 30000, "n01443537 ...", "https://github.com/hendrycks/imagenet-r"),
    "imagenet-sketch": _folders(
        "imagenet", 50889, "n01440764 ...", "https://github.com/HaohanWang/ImageNet-Sketch"
    ),
    "imagenet-styled": _folders(
        "imagenet", 50000, "n01440764 ...", "https://github.com/rgeirhos/Stylized-ImageNet"
    ),
    "imagenet-d": _Entry(
        _imagenet_d, 4835, "background/, material/ and texture/", "https://github.com/chenshuang-zhang/imagenet_d",
        "imagenet",
    ),
    "imagenet-hard": _Entry(
        _imagenet_hard, 10980, "images/ and labels.json", "https://huggingface.co/datasets/taesiri/imagenet-hard",
        "imagenet",
    ),
    "objectnet": _Entry(_objectnet, 18514, "images/ and mappings/", "https://objectnet.dev"),
    "uci_digits": _Entry(_digits, 1797, "", None),
}  # fmt: skip
