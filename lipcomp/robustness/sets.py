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
=============  ===============================================================================================

>>> from lipcomp.robustness.sets import open_corruption_set
>>> cifar = open_corruption_set("CIFAR-10-C", classes=10)  # doctest: +SKIP
>>> cifar.images("fog", 3).batch(torch.arange(4)).shape  # doctest: +SKIP
torch.Size([4, 3, 32, 32])

Everything is checked when the set is opened, before the long work starts: sizes, labels, and that every condition
has the same images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lipcomp.data import ImageSet
from lipcomp.robustness.arrays import (
    MappedImages,
    check_images,
    list_classes,
    read_array,
    read_labels,
    same_count,
)

SEVERITIES = ("1", "2", "3", "4", "5")
WHERE = {
    "cifar": "CIFAR-10-C and CIFAR-100-C are at https://zenodo.org/record/2535967 and https://zenodo.org/record/3555552",
    "mnist": "MNIST-C is at https://zenodo.org/record/3239543 (mnist_c.zip)",
    "imagenet": "ImageNet-C is at https://zenodo.org/record/2235448, ImageNet-3DCC at https://3dcommoncorruptions.epfl.ch",
}


@dataclass(frozen=True)
class CorruptionSet:
    """A corrupted set on disk: one :class:`~lipcomp.data.ImageSet` for each corruption and severity.

    Attributes
    ----------
    name
        Of its folder.
    kind
        "cifar", "mnist" or "imagenet": the layout.
    cells
        The image sets, by corruption, then by severity (1 to 5, or None where there is one setting).
    """

    name: str
    kind: str
    cells: Mapping[str, Mapping[int | None, ImageSet]] = field(repr=False)

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

    Raises
    ------
    FileNotFoundError
        If there is no such set, or a file of it is missing.
    ValueError
        If a file is damaged or half downloaded, counts differ, or labels lie outside the classes.
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
        return _open_imagenet(folder, found, classes, image_shape, corruptions)
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
    files = [path.stem for path in folder.glob("*.npy") if path.stem != "labels"]
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
    return CorruptionSet(folder.name, "cifar", cells)


def _open_mnist(
    folder: Path, classes: int | Sequence[str] | None, wanted: Sequence[str] | None
) -> CorruptionSet:
    found = [path.parent.name for path in folder.glob("*/test_images.npy")]
    cells: dict[str, dict[int | None, ImageSet]] = {}
    counts = {}
    for name in choose(found, wanted, folder):
        labels, names = read_labels(folder / name / "test_labels.npy", classes)
        path = folder / name / "test_images.npy"
        pixels = read_array(path)
        check_images(path, pixels, (len(labels), *pixels.shape[1:3], 1))
        cells[name] = {None: MappedImages(f"{folder.name}/{name}", pixels, labels, names)}
        counts[name] = len(labels)
    same_count(folder, counts)
    return CorruptionSet(folder.name, "mnist", cells)


def _corruption_folders(folder: Path) -> dict[str, Path]:
    """Folders that hold severities, one or two levels down."""
    inside = [*folder.glob("*/1"), *folder.glob("*/*/1")]
    return {path.parent.name: path.parent for path in inside if path.is_dir()}


def _open_imagenet(
    folder: Path,
    found: Mapping[str, Path],
    classes: int | Sequence[str] | None,
    image_shape: tuple[int, int, int],
    wanted: Sequence[str] | None,
) -> CorruptionSet:
    names: tuple[str, ...] = ()
    if classes is not None and not isinstance(classes, int):
        names = tuple(classes)
    cells: dict[str, dict[int | None, ImageSet]] = {}
    counts = {}
    for corruption in choose(list(found), wanted, folder):
        cells[corruption] = {}
        for severity in SEVERITIES:
            place = found[corruption] / severity
            if not place.is_dir():
                raise FileNotFoundError(
                    f"{str(place)!r} is missing; unpack the archive of {corruption} again"
                )
            present = sorted(entry.name for entry in place.iterdir() if entry.is_dir())
            names = names or tuple(present)
            unknown = sorted(set(present) - set(names))
            if unknown:
                raise ValueError(
                    f"{str(place)!r} has class folders outside the classes: {', '.join(unknown[:5])}; give the "
                    f"probe's classes as WordNet ids"
                )
            cell = list_classes(place, names, f"{folder.name}/{corruption}/{severity}", image_shape)
            cells[corruption][int(severity)] = cell
            counts[f"{corruption}/{severity}"] = len(cell)
    if isinstance(classes, int) and len(names) != classes:
        raise ValueError(
            f"{str(folder)!r} has {len(names)} class folders, not {classes}; it is half unpacked, or give the "
            f"classes' names in the order of the labels"
        )
    same_count(folder, counts)
    return CorruptionSet(folder.name, "imagenet", cells)
