"""Corrupted sets on disk, in their published layouts, memory-mapped or decoded batch by batch.

=============  ===============================================================================================
kind           layout
=============  ===============================================================================================
CIFAR-10-C,    ``<corruption>.npy`` (50000, 32, 32, 3) uint8, five severities of 10,000 in order, and
CIFAR-100-C    ``labels.npy`` (50000,)
MNIST-C        ``<corruption>/test_images.npy`` (10000, 28, 28, 1) uint8 and ``<corruption>/test_labels.npy``;
               one setting a corruption (its severity is None)
ImageNet-C,    ``<corruption>/<1..5>/<class>/*.JPEG``; corruptions may lie in groups (``noise/gaussian_noise``)
ImageNet-3DCC  as the published archives unpack
ImageNet-C-bar the same, but severities are named by their published levels (``sparkles/1.00``)
=============  ===============================================================================================

MNIST-C's ``identity`` is no corruption: it is the set's ``clean`` digits.

>>> from lipcomp.robustness._sets import open_corruption_set
>>> cifar = open_corruption_set("CIFAR-10-C", classes=10)  # doctest: +SKIP
>>> cifar.images("fog", 3).batch(torch.arange(4)).shape  # doctest: +SKIP
torch.Size([4, 3, 32, 32])

Everything is checked when the set is opened, before the long work starts: sizes, labels, and that every condition holds
the same images: by name where images have one (a file that is missing, or lies in another severity, is named), by label
and position in arrays. A corruption that comes twice, under two names or in two places, is named too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lipcomp.data._folders import FolderImages
from lipcomp.data._labels import in_order, shorten
from lipcomp.data._listing import has_images, visible_folders
from lipcomp.data._pictures import read_picture
from lipcomp.data._sets import ImageSet
from lipcomp.robustness._arrays import (
    MappedImages,
    check_images,
    list_classes,
    read_array,
    read_labels,
    same_labels,
    same_names,
)
from lipcomp.robustness._protocols import IDENTITY
from lipcomp.robustness._shifted import is_alphabetical

SEVERITIES = ("1", "2", "3", "4", "5")
COMPARED = 8  # images compared to find out whether two conditions are the same
WHERE = {
    "cifar": "CIFAR-10-C and CIFAR-100-C are at https://zenodo.org/record/2535967 and https://zenodo.org/record/3555552",
    "mnist": "MNIST-C is at https://zenodo.org/record/3239543 (mnist_c.zip)",
    "imagenet": "ImageNet-C is at https://zenodo.org/record/2235448, ImageNet-3DCC at https://3dcommoncorruptions.epfl.ch",
}


@dataclass(frozen=True)
class CorruptionSet:
    """A corrupted set on disk: one :class:`~lipcomp.data.ImageSet` for each corruption and severity."""

    name: str  # of its folder
    kind: str  # "cifar", "mnist" or "imagenet": the layout
    # the image sets, by corruption, then by severity (1 to 5, or None where there is one setting)
    cells: Mapping[str, Mapping[int | None, ImageSet]] = field(repr=False)
    # the uncorrupted images, where the set holds them
    clean: ImageSet | None = field(default=None, repr=False)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names, in alphabetical order."""
        return tuple(self.cells)

    def severities(self, corruption: str) -> tuple[int | None, ...]:
        """The severities of a corruption."""
        return tuple(self._corruption(corruption))

    def images(self, corruption: str, severity: int | None = None) -> ImageSet:
        """The images of one condition."""
        cell = self._corruption(corruption)
        if severity not in cell:
            raise ValueError(
                f"severity {severity} of {corruption} is not in {self.name}, only: {', '.join(map(str, cell))}"
            )
        return cell[severity]

    def _corruption(self, corruption: str) -> Mapping[int | None, ImageSet]:
        if corruption not in self.cells:
            raise ValueError(
                f"corruption {corruption!r} is not in {self.name}, only: {', '.join(self.cells)}"
            )
        return self.cells[corruption]


def open_corruption_set(
    folder: Path | str,
    *,
    classes: int | Sequence[str] | None = None,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    partial: bool = False,
) -> CorruptionSet:
    """Open a corrupted set, whichever layout it has, and check it.

    Parameters
    ----------
    folder
        The set's own folder.
    classes
        How many classes there are, or for folders of images their names in the order of the labels (ImageNet's
        WordNet ids); if not given the labels' maximum, or the folders found.
    image_shape
        What folders of images are brought to; arrays stay as they are.
    corruptions
        Take these only.
    severities
        Take these only of folders that are named 1 to 5; the others need not be there.
    partial
        Accept a set of images from some of the classes only (a subset of your own).

    Raises
    ------
    FileNotFoundError
        If there is no such set, or a file of it is missing.
    ValueError
        If a file is damaged or half downloaded, conditions hold different images, a corruption comes twice, a class
        has no image anywhere, or labels lie outside the classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"corrupted set {str(folder)!r} does not exist. {'; '.join(WHERE.values())}")
    if (folder / "labels.npy").is_file():
        return _open_cifar(folder, classes, corruptions)
    if any(folder.glob("*/test_images.npy")):
        return _open_mnist(folder, classes, corruptions)
    found = _corruption_folders(folder)
    if found:
        return _open_imagenet(folder, found, classes, image_shape, corruptions, severities, partial)
    raise FileNotFoundError(
        f"{str(folder)!r} holds no corrupted set: neither labels.npy with <corruption>.npy (CIFAR-C), nor "
        f"<corruption>/test_images.npy (MNIST-C), nor <corruption>/<1..5>/<class>/ (ImageNet-C). "
        f"{'; '.join(WHERE.values())}"
    )


def choose(found: Sequence[str], wanted: Sequence[str] | None, folder: Path) -> list[str]:
    """The corruptions to take: all found, or those wanted, each of which must be there."""
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{str(folder)!r} lacks {', '.join(missing)}; it has {', '.join(sorted(found))}"
        )
    return sorted(found) if wanted is None else list(wanted)


def _open_cifar(
    folder: Path, classes: int | Sequence[str] | None, wanted: Sequence[str] | None
) -> CorruptionSet:
    labels, names = read_labels(folder / "labels.npy", classes)
    total = len(labels)
    if total % 5 or (labels.view(5, -1) != labels[: total // 5]).any():
        raise ValueError(
            f"{str(folder / 'labels.npy')!r} must repeat the same labels for five severities, got {total} labels"
        )
    n = total // 5
    files = [path.stem for path in folder.glob("[!.]*.npy") if path.stem != "labels"]
    cells: dict[str, dict[int | None, ImageSet]] = {}
    for name in choose(files, wanted, folder):
        path = folder / f"{name}.npy"
        pixels = read_array(path)
        check_images(path, pixels, (total, *pixels.shape[1:3], 3))
        cells[name] = {
            s: MappedImages(f"{folder.name}/{name}/{s}", pixels[(s - 1) * n : s * n], labels[:n], names)
            for s in range(1, 6)
        }
    if not cells:
        raise FileNotFoundError(f"{str(folder)!r} holds labels but no <corruption>.npy. {WHERE['cifar']}")
    _check_twice(folder, cells)
    return CorruptionSet(folder.name, "cifar", cells)


def _open_mnist(
    folder: Path, classes: int | Sequence[str] | None, wanted: Sequence[str] | None
) -> CorruptionSet:
    found = [path.parent.name for path in folder.glob("[!.]*/test_images.npy")]
    lost = [
        path.parent.name for path in folder.glob("[!.]*/test_labels.npy") if path.parent.name not in found
    ]
    if lost and wanted is None:
        raise FileNotFoundError(
            f"{str(folder)!r}: test_images.npy is missing of {', '.join(lost)}; get it again, or remove its folder"
        )
    cells: dict[str, dict[int | None, ImageSet]] = {}
    digits = {}
    for name in choose(found, wanted, folder):
        labels, names = read_labels(folder / name / "test_labels.npy", classes)
        path = folder / name / "test_images.npy"
        pixels = read_array(path)
        check_images(path, pixels, (len(labels), *pixels.shape[1:3], 1))
        digits[name] = MappedImages(f"{folder.name}/{name}", pixels, labels, names)
    same_labels(folder, {name: images.labels for name, images in digits.items()})
    clean = digits.pop(IDENTITY, None)
    cells = {name: {None: images} for name, images in digits.items()}
    if not cells:
        raise FileNotFoundError(f"{str(folder)!r} holds no corruption, only {IDENTITY}. {WHERE['mnist']}")
    _check_twice(folder, cells)
    return CorruptionSet(folder.name, "mnist", cells, clean)


def _check_twice(folder: Path, cells: Mapping[str, Mapping[int | None, ImageSet]]) -> None:
    """Refuse two corruptions, or severities of one, whose first images are all the same."""
    seen: dict[bytes, tuple[str, int | None]] = {}
    for name, cell in cells.items():
        for severity, images in cell.items():
            if not len(images):
                continue
            other, level = seen.setdefault(_first(images), (name, severity))
            if (other, level) != (name, severity):
                both = (other, name) if level == severity else (f"{other}/{level}", f"{name}/{severity}")
                raise ValueError(
                    f"{str(folder)!r}: {' and '.join(both)} hold the same images; one is a copy, remove or get it again"
                )


def _first(images: ImageSet) -> bytes:
    """The first images as they are stored."""
    if isinstance(images, FolderImages):
        return b"".join(read_picture(file).tobytes() for file in images.files[:COMPARED])
    return images.batch(torch.arange(min(COMPARED, len(images)))).numpy().tobytes()


def _severity_folders(place: Path) -> list[Path]:
    """The folders of the five severities, mildest first: 1 .. 5, or their levels with two decimals; else none."""
    inside = [entry for entry in place.iterdir() if entry.is_dir()] if place.is_dir() else []
    numbered = [entry for entry in inside if entry.name in SEVERITIES]
    levels = [entry for entry in inside if re.fullmatch(r"\d+\.\d\d", entry.name)]
    return sorted(numbered or levels, key=lambda entry: float(entry.name))


def _left_out(folder: Path, found: Sequence[Path]) -> tuple[str, ...]:
    """A note on folders with images that are no condition: other names of severities, a sixth one."""
    groups = {place.parent for place in found} - {folder}
    others = [
        place
        for above in (folder, *groups)
        for place in visible_folders(above)
        if place not in groups and place not in found
    ]
    for place in found:
        inside = _severity_folders(place)
        others += [entry for entry in visible_folders(place) if inside and entry not in inside]
    names = [place.relative_to(folder).as_posix() for place in others if has_images(place)]
    return (f"folders that are no corruption with severities 1 to 5: {shorten(names)}",) if names else ()


def _corruption_folders(folder: Path) -> dict[str, Path]:
    """Folders that hold severities, one or two levels down."""
    found: dict[str, Path] = {}
    above = visible_folders(folder)
    for place in sorted([*above, *(inside for group in above for inside in visible_folders(group))]):
        if place.parent in found.values() or not _severity_folders(place):
            continue  # classes that are called 1 to 5 are no severities
        if place.name in found:
            raise ValueError(
                f"{str(folder)!r}: corruption {place.name} comes twice, in {str(found[place.name])!r} and "
                f"{str(place)!r}; remove one"
            )
        found[place.name] = place
    return found


def _class_names(
    folder: Path, corruptions: Sequence[Path], classes: int | Sequence[str] | None
) -> tuple[str, ...]:
    """The names of the class folders in the order of the labels.

    They are those of the classes. WordNet ids may stand for classes of other names, which ImageNet has in their order;
    names in alphabetical order are in another.
    """
    severities = [place for corruption in corruptions for place in _severity_folders(corruption)]
    present = {entry.name for place in severities for entry in visible_folders(place)}
    names = () if classes is None or isinstance(classes, int) else tuple(classes)
    count = classes if isinstance(classes, int) else len(names)
    unknown = sorted(present - set(names))
    ids = not present & set(names) and all(re.fullmatch(r"n\d+", name) for name in present)
    if names and not unknown:
        return names
    if names and (not ids or is_alphabetical(names)):
        remedy = "give the folders these names, or the probe's classes as WordNet ids"
        if {*names} <= present:
            remedy = f"give a folder of links to these {len(names)} alone, in every corruption and severity"
        raise ValueError(
            f"{str(folder)!r} has class folders outside the classes: {', '.join(unknown[:5])}; the classes are "
            f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}: {remedy}"
        )
    if count and len(present) != count:
        raise ValueError(
            f"{str(folder)!r} has {len(present)} class folders, not {count}; it is half unpacked, or give the "
            f"classes' names in the order of the labels"
        )
    return in_order(present)


def _open_imagenet(
    folder: Path,
    found: Mapping[str, Path],
    classes: int | Sequence[str] | None,
    image_shape: tuple[int, int, int],
    wanted: Sequence[str] | None,
    levels: Sequence[int],
    partial: bool,
) -> CorruptionSet:
    chosen = choose(list(found), wanted, folder)
    names = _class_names(folder, [found[corruption] for corruption in chosen], classes)
    notes = _left_out(folder, list(found.values()))
    cells: dict[str, dict[int | None, ImageSet]] = {}
    members: dict[Path, FolderImages] = {}
    for corruption in chosen:
        cells[corruption] = {}
        places = _severity_folders(found[corruption])
        numbered = all(place.name in SEVERITIES for place in places)
        by_level = {int(p.name) if numbered else k: p for k, p in enumerate(places, 1)}
        lost = [s for s in (levels if numbered else (1, 2, 3, 4, 5)) if s not in by_level]
        if lost:
            raise FileNotFoundError(
                f"{str(found[corruption] / str(lost[0]))!r} is missing; unpack the archive of {corruption} again"
                + (", or take those that are there with severities=" if numbered else "")
            )
        for severity, place in by_level.items():
            if severity not in levels:
                continue
            cell = list_classes(place, names, f"{folder.name}/{corruption}/{place.name}", image_shape)
            cell = replace(cell, notes=notes)
            cells[corruption][severity] = members[place] = cell
    same_names(folder, members, partial=partial)
    _check_twice(folder, cells)
    return CorruptionSet(folder.name, "imagenet", cells)
