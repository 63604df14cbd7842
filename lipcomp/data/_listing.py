"""Find the image files of a folder. Hidden and system files are skipped, other formats are counted."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import features
from torchvision.datasets.folder import IMG_EXTENSIONS

SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".pnm", ".pbm", *((".avif",) if features.check("avif") else ()))
# Images that are not read: animations, and formats that Pillow has no decoder for.
_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".exr", ".hdr", ".orf", ".raf", ".rw2")
_OTHER = (
    ".gif", ".apng", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jxl",
    ".mpo", ".qoi", ".svg", ".psd", ".ico", ".icns", ".tga", ".pcx", ".dib", ".pfm", ".dds", ".sgi",
    ".rgb", ".rgba", ".bw", ".ras", ".xbm", ".xpm", ".fit", ".fits", ".dcm", ".nii",
)  # fmt: skip
SKIPPED = frozenset((*_OTHER, *_RAW)).difference(SUFFIXES)
# Files that hold many images, which only code knows how to read.
PACKED = (
    ".tar",
    ".tgz",
    ".gz",
    ".zip",
    ".parquet",
    ".arrow",
    ".npy",
    ".npz",
    ".pt",
    ".h5",
    ".hdf5",
    ".mdb",
    ".tfrecord",
    ".bin",
)
TINY_IMAGENET = "val_annotations.txt"  # of its val split, without a head
# tables of labels as in Hugging Face's imagefolder
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet", TINY_IMAGENET)
UNPACK = (
    "unpack it into files of images, or name a function that returns its images as a dataset "
    "(as datasets.load_from_disk does): FILE.py:FUNCTION"
)
_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")


@dataclass
class Listing:
    """What lies in a folder and below: image files in order, tables of labels, and how many images of other formats."""

    files: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def is_visible(name: str) -> bool:
    """Neither hidden (``.ipynb_checkpoints``, ``._cat.jpg``) nor an operating system's own."""
    return not name.startswith(".") and name.lower() not in _SYSTEM


def packed_files(folder: Path) -> list[str]:
    """Names of the files in a folder that hold many images, or say (as Hugging Face's) which folders do."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if (entry.suffix.lower() in PACKED or entry.name == "dataset_dict.json") and is_visible(entry.name)
    )


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, links followed, by name."""
    with os.scandir(folder) as entries:
        return sorted(_path(e) for e in entries if is_visible(e.name) and _is(e.is_dir))


def _path(entry: os.DirEntry[str]) -> Path:
    """The path of an entry, whose name records and tables can hold."""
    if not entry.name.isascii():
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of {os.fsencode(entry.path)!r} is not UTF-8, so no record could hold it; rename it, "
                "for example with: convmv -r -f latin1 -t utf8 --notest FOLDER"
            ) from None
    return Path(entry.path)


def list_images(folder: Path, *, below: bool = True) -> Listing:
    """Find the images of a folder, with all folders below it or only its own; links are followed, never twice.

    Files come in the order of their paths (as ``sorted`` gives it), a broken link as a file that cannot be read.
    """
    found = Listing()
    _walk(folder, below, found, _above(folder))
    found.files.sort()
    return found


def has_images(folder: Path) -> bool:
    """Whether a folder holds an image, at any depth; stops at the first."""
    return _walk(folder, True, None, _above(folder))


def _above(folder: Path) -> frozenset[tuple[int, int]]:
    """The folders that hold a folder; a link to one of them would list a class's neighbours as its own."""
    return frozenset((stat.st_dev, stat.st_ino) for stat in (p.stat() for p in folder.absolute().parents))


def _walk(folder: Path, below: bool, found: Listing | None, above: frozenset[tuple[int, int]]) -> bool:
    """List into ``found``, or without it stop at the first image; whether there is one."""
    stat = folder.stat()
    key = stat.st_dev, stat.st_ino
    if key in above:  # a link to a folder above itself
        return False
    inside, some = [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_visible(entry.name):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path for each of a million is slow)
            if suffix in SUFFIXES and (_is(entry.is_file) or _is_broken_link(entry)):
                some = True
                if found is None:
                    return True
                found.files.append(_path(entry))
            elif entry.name in METADATA and found is not None:
                found.tables.append(_path(entry))
            elif suffix in SKIPPED and found is not None:
                found.skipped[suffix] += 1
            elif below and _is(entry.is_dir):
                inside.append(_path(entry))
    for place in inside:
        some = _walk(place, below, found, above | {key}) or some
        if some and found is None:
            return True
    return some


def _is(kind: Callable[[], bool]) -> bool:
    """A file or a folder; links that lead to each other are neither."""
    with suppress(OSError):
        return kind()
    return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def normal(name: str) -> str:
    """A name with its accents in one form: macOS and Linux write them differently."""
    return unicodedata.normalize("NFC", name)
