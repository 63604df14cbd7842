"""Images in folders, decoded when a batch asks for them; layouts are found by :mod:`lipcomp.data._layout`.

Each picture is decoded as :mod:`lipcomp.data._pictures` says and brought to the wanted shape by a
:class:`~lipcomp.data._preprocessing.Preprocessing`. A grey picture among colour ones gets three equal channels, as
every pipeline does it; a set that is grey as a whole, or colours for a network of one channel, are converted on request
only: it is then another set of data than the network is for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from lipcomp._identity import digest
from lipcomp._identity_files import hash_files
from lipcomp.data._crops import crop_picture
from lipcomp.data._labels import shorten
from lipcomp.data._layout import find_split
from lipcomp.data._pictures import UnreadableImageError, check_header, read_picture, with_channels
from lipcomp.data._preprocessing import Preprocessing, to_shape
from lipcomp.data._sets import as_indices
from lipcomp.data._views import PhotoViews

Shape = tuple[int, int, int]
_LOOKED_AT = 16  # pictures that decide whether a set is grey


@dataclass(frozen=True)
class FolderImages:
    """Images on disk, decoded in batches."""

    name: str  # of the folder and the split, for people
    files: tuple[Path, ...] = field(repr=False)  # the image files, in order
    # class of every image, an index into ``classes``; -1 where there are no labels (``classes`` is empty then)
    labels: Int64[Tensor, " n"] = field(repr=False)
    classes: tuple[str, ...]
    image_shape: Shape  # (channels, height, width) of every image
    # how pictures are brought to that shape (default: :meth:`Preprocessing.default`)
    preprocessing: Preprocessing = None  # type: ignore[assignment]  # filled in below
    convert_channels: bool = False  # whether colour may become grey
    root: Path | None = None
    notes: tuple[str, ...] = ()  # what was left out, one sentence each
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preprocessing is None:
            object.__setattr__(self, "preprocessing", Preprocessing.default(*self.image_shape[1:]))
        if self.preprocessing.size not in (None, self.image_shape[1:]):
            raise ValueError(
                f"the preprocessing gives pictures of {self.preprocessing.size} (height, width), but image_shape is "
                f"{self.image_shape}; change preprocessing= or image_shape="
            )

    def __len__(self) -> int:
        """Count of images."""
        return len(self.files)

    def batch(
        self, indices: Int64[Tensor, " batch"], pool: Executor | None = None
    ) -> Float[Tensor, "batch channels height width"]:
        """The images at ``indices``, pixels in [0, 1]; decoded by ``pool``, or by threads of the call's own.

        Once the set's identity is known, a file that has another content than it had then is refused.
        """
        indices = as_indices(indices, len(self))
        chosen = [self.files[i] for i in indices.tolist()]
        if pool is None:
            with ThreadPoolExecutor() as own:
                return self.batch(indices, own)
        pixels = torch.stack(list(pool.map(self.read, chosen)))
        if "marks" in self._seen:
            self.unchanged(indices)
        return pixels

    def read(self, file: Path) -> Float[Tensor, "channels height width"]:
        """Decode one of the files and bring it to the set's shape, pixels in [0, 1]."""
        picture = read_picture(file, self.preprocessing.background)
        try:
            return to_shape([picture], self.image_shape, self.preprocessing, self.convert_channels)
        except ValueError as error:
            raise ValueError(f"image {str(file)!r} {error}") from error

    def file_of(self, index: int) -> str:
        """The file of an image, relative to the data folder."""
        file = self.files[index]
        return (file.relative_to(self.root) if self.root else file).as_posix()

    def content_hash(self, advance: Callable[[int], object] | None = None) -> str:
        """A hash of the files' bytes in order, labels, class names and preprocessing, 32 hex digits.

        Not of the folder's name, files' names or times. ``advance(n)`` is called as files are hashed; unchanged files
        are not read again (:func:`lipcomp._identity_files.hash_files`).

        Raises
        ------
        ValueError
            If a file changes meanwhile.
        """
        if "hash" not in self._seen:
            marks = _marks(self.files)
            contents = hash_files(self.files, advance)
            told = ("name", "files", "root", "notes", "_seen")
            rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in told}
            self._seen.update(marks=marks, contents=contents)
            self.unchanged()
            self._seen["hash"] = digest(type(self).__name__, "".join(contents), rest)
        return str(self._seen["hash"])

    def __identity__(self) -> str:
        return self.content_hash()

    def unchanged(self, indices: Int64[Tensor, " m"] | None = None) -> None:
        """Check that the files are those that :meth:`content_hash` saw (it is called here if it was not yet).

        Only files whose size or times differ are read again; only those at ``indices`` are looked at, if given.

        Raises
        ------
        ValueError
            If one changed: what was measured belongs to no folder that exists.
        """
        if "marks" not in self._seen:
            self.content_hash()
        chosen = np.arange(len(self)) if indices is None else indices.unique().numpy()
        marks = _marks([self.files[i] for i in chosen])
        differ = (self._seen["marks"][chosen] != marks).any(1)
        touched = chosen[differ].tolist()
        there = chosen[differ & (marks[:, 0] >= 0)].tolist()
        contents = dict(zip(there, hash_files([self.files[i] for i in there]), strict=True))
        changed = [self.files[i] for i in touched if contents.get(i) != self._seen["contents"][i]]
        if changed:
            raise ValueError(
                f"{len(changed)} of the {len(self)} images of {self.name} changed or vanished while they were "
                f"measured: {shorten(changed)}; run the same again when the folder is complete"
            )
        self._seen["marks"][chosen] = marks

    def without(self, files: Sequence[Path]) -> "FolderImages":
        """The set less some of its files."""
        dropped = set(files)
        return self.subset(torch.tensor([i for i, file in enumerate(self.files) if file not in dropped]))

    def subset(self, indices: Int64[Tensor, " m"]) -> "FolderImages":
        """Some of its images, in that order; only their files are read for its identity."""
        indices = as_indices(indices, len(self))
        files = tuple(self.files[i] for i in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices], _seen={})


def _marks(files: Sequence[Path]) -> np.ndarray:
    """Size, inode and times of each file; -1 where there is none."""

    def mark(file: Path) -> tuple[int, ...]:
        try:
            stat = os.stat(file)  # noqa: PTH116
        except OSError:
            return (-1,) * 4
        return stat.st_size, stat.st_ino % 2**63, stat.st_mtime_ns, stat.st_ctime_ns

    return np.array([mark(file) for file in files], np.int64).reshape(len(files), 4)


def load_folder(
    root: Path,
    split: str = "test",
    *,
    image_shape: Shape | None = None,
    preprocessing: Preprocessing | None = None,
    convert_channels: bool = False,
    skip_unreadable: bool = False,
    advance: Callable[[], object] = lambda: None,
    **labelling: Any,
) -> FolderImages:
    """Find the images of a folder; see :func:`lipcomp.data.load_set` for the arguments.

    ``advance()`` is called for every file that ``skip_unreadable`` has looked at; ``labelling`` is of
    :func:`~lipcomp.data._layout.find_split`.
    """
    found = find_split(root, split, **labelling)
    index = {name: number for number, name in enumerate(found.classes)}
    numbers = [-1] * len(found.files) if found.names is None else [index[name] for name in found.names]
    if image_shape is None:
        image_shape = _own_shape(found.files, preprocessing)
    images = FolderImages(
        f"{root.resolve().name}/{split}",
        tuple(found.files),
        torch.tensor(numbers),
        found.classes,
        image_shape,
        preprocessing or Preprocessing.default(*image_shape[1:]),
        convert_channels,
        root,
        tuple(found.notes),
    )
    if skip_unreadable:
        broken = list(unreadable(images, advance))
        if len(broken) == len(images):
            raise ValueError(
                f"none of the {len(images)} images of {images.name} can be read: {shorten(broken)}"
            )
        if broken:
            names = shorten([file.relative_to(root).as_posix() for file in broken])
            note = f"{len(broken)} of {len(images)} images cannot be read and are left out: {names}"
            images = replace(images.without(broken), notes=(*images.notes, note))
    _check_channels(images)
    return images


def _sample(files: Sequence[Path]) -> Iterator[Image.Image]:
    """Some pictures spread over a set, as far as they can be read; what cannot is said when it is asked for."""
    for file in files[:: max(1, len(files) // _LOOKED_AT)]:
        with suppress(UnreadableImageError):
            yield read_picture(file)


def _own_shape(files: Sequence[Path], preprocessing: Preprocessing | None) -> Shape:
    """The size of the first picture that can be read, and three channels if any is in colour."""
    pictures = list(_sample(files))
    if not pictures:
        read_picture(files[0])
    height, width = (preprocessing and preprocessing.size) or (pictures[0].height, pictures[0].width)
    return 3 if any(picture.mode == "RGB" for picture in pictures) else 1, height, width


def _check_channels(images: FolderImages) -> None:
    """Refuse a set of grey pictures for a network of colours, and colours for a network of one channel."""
    channels, grey = images.image_shape[0], False
    for picture in () if images.convert_channels and channels in (1, 3) else _sample(images.files):
        try:
            with_channels(picture, channels, images.convert_channels)
        except ValueError as error:
            raise ValueError(f"an image of {images.name} {error}") from error
        grey = picture.mode != "RGB"
        if channels == 3 and not grey:
            return
    if channels == 3 and grey:
        raise ValueError(
            f"the images of {images.name} are grey, the encoder takes 3 channels; give the data that it is for, or "
            f"allow three equal channels with convert_channels=True"
        )


def read_crops(
    file: Path,
    images: FolderImages,
    views: PhotoViews,
    numbers: Sequence[Float[Tensor, "1 18"]],
) -> list[Float[Tensor, "1 channels height width"]]:
    """Decode one image once and cut a random crop for each view from its own pixels."""
    try:
        planes = [read_picture(file, images.preprocessing.background)]
        return cut_crops(planes, images.image_shape, images.convert_channels, views, numbers)
    except UnreadableImageError:
        raise
    except ValueError as error:
        raise ValueError(f"image {str(file)!r} {error}") from error


def cut_crops(
    planes: Sequence[Image.Image],
    image_shape: tuple[int, int, int],
    convert_channels: bool,
    views: PhotoViews,
    numbers: Sequence[Float[Tensor, "1 18"]],
) -> list[Float[Tensor, "1 channels height width"]]:
    """A random crop for each view from the own pixels of a picture, or of three grey ones that are its colours."""
    channels, *size = image_shape
    if len(planes) not in (1, channels):
        raise ValueError(f"has {len(planes)} channels, the encoder takes {channels}")
    picture = with_channels(planes[0], channels, convert_channels) if len(planes) == 1 else planes[0]
    if len(planes) > 1:
        pixels = np.stack([np.asarray(plane) for plane in (*planes, planes[0])], 2)
    elif picture.mode == "RGB":  # written out as RGBX, as Pillow holds it: half the time of a conversion
        pixels = np.frombuffer(picture.tobytes("raw", "RGBX"), np.uint8)
    else:
        pixels = np.asarray(picture)
    pixels = pixels.reshape(picture.height, picture.width, -1)
    scale = 1 / 255 if pixels.dtype == np.uint8 else 1.0
    found = []
    both = torch.cat(list(numbers))
    boxes = views.boxes(both, picture.height, picture.width).tolist()
    for box, mirrored in zip(boxes, views.mirrored(both).tolist(), strict=True):
        crop = crop_picture(pixels, box, size, mirrored, scale)
        found.append(crop[..., :channels].expand(-1, -1, channels).permute(2, 0, 1).unsqueeze(0))
    return found


def unreadable(
    images: FolderImages, advance: Callable[[], object] = lambda: None, *, whole: bool = True
) -> dict[Path, str]:
    """The files of a folder that cannot be read, with the reason; ``advance()`` is called for every file.

    ``whole`` decodes them; without, only their headers are read.
    """

    def check(file: Path) -> str | None:
        try:
            read_picture(file) if whole else check_header(file)
        except UnreadableImageError as error:
            return str(error)
        finally:
            advance()
        return None

    with ThreadPoolExecutor() as pool:
        reasons = pool.map(check, images.files)
        return {file: reason for file, reason in zip(images.files, reasons, strict=True) if reason}
