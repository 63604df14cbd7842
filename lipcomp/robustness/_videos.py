"""Frames and sequences: accuracy that must hold for neighbours, predictions that must not flicker.

ImageNet-Vid-Robust and YTBB-Robust hold frames of videos. An *anchor* frame has labels, and its neighbours within
+-10 frames look alike to people; pm-k accuracy counts an anchor only if it and all its neighbours within +-k are
right.

==============  ====================================================================================
set             layout of its folder
==============  ====================================================================================
vid-robust      ``val/<video>/<frame>.JPEG``; ``metadata/pmsets.json`` {anchor: [neighbours]},
                ``metadata/labels.json`` {frame: [classes]}; the map from ImageNet to the 30 classes
                comes with this package
ytbb-robust     ``<video>_<time>/frame-<i>.jpg``; ``metadata/`` with ``anchor_labels.json``,
                ``pmk_labels.json``, ``ytbb_class_index.json``, ``rev_class_idx_map.json`` and
                ``ytbb_robustness_test_anchors_full.csv``, as the testbed publishes them
imagenet-p      ``<perturbation>/<class>/*.mp4`` (decoded with OpenCV, if that is installed);
                perturbations may lie in groups (``weather/snow``) as the published archives unpack
cifar10-p       ``<perturbation>.npy`` (sequences, frames, 32, 32, 3) uint8
==============  ====================================================================================
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipcomp._messages import needed
from lipcomp.data._listing import visible_folders
from lipcomp.data._sets import ImageSet
from lipcomp.robustness._arrays import read_array
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._shifted import (
    ClassMap,
    Shift,
    WebImages,
    answers,
    as_published,
    project,
    read_json,
)

WHERE = "https://github.com/modestyachts/imagenet-testbed and https://zenodo.org/record/3245127"
PERTURBATIONS = "https://github.com/hendrycks/robustness"
# YTBB labels of neighbours that the published evaluation leaves out.
_UNLIKE = {
    "dissimilar",
    "problematic",
    "incorrect",
    "dont know",
    "deformation",
    "background-change",
    "occlusion-increased",
    "blur-increase",
    "bad-anchor",
}
_EXCHANGED = {22: 23, 23: 22}  # of a video's own label, as the published evaluation does


@dataclass(frozen=True)
class FrameSet:
    """Frames of videos, which of them are anchors, and what is right for an anchor."""

    name: str
    # every frame that is needed, once; their labels are unused (an anchor may have several)
    images: ImageSet = field(repr=False)
    # for each anchor: its index, and {distance in frames: index} of its neighbours
    anchors: tuple[tuple[int, dict[int, int]], ...] = field(repr=False)
    # for each anchor the classes that count as right
    accepted: tuple[frozenset[int], ...] = field(repr=False)
    class_map: ClassMap = field(repr=False)  # ImageNet's classes of each of the set's classes

    def held(self, logits: Float[Tensor, "frames classes"], k: int = 10) -> Bool[np.ndarray, " anchors"]:
        """Which anchors are right together with every frame within +-k."""
        if len(logits) != len(self.images):
            raise ValueError(
                f"logits must hold a row for each of {len(self.images)} frames, got {len(logits)}"
            )
        if k < 0:
            raise ValueError(f"k must be 0 or more frames, got {k}")
        predicted = answers(project(logits, self.class_map)).tolist()
        return np.array(
            [
                all(
                    predicted[frame] in accepted
                    for frame in (anchor, *(other for distance, other in near.items() if abs(distance) <= k))
                )
                for (anchor, near), accepted in zip(self.anchors, self.accepted, strict=True)
            ]
        )

    def pm_k(self, logits: Float[Tensor, "frames classes"], k: int = 10) -> Estimate:
        """Accuracy where an anchor counts only if every frame within +-k is right too; k = 0 is plain accuracy."""
        return proportion(self.held(logits, k))

    def as_shift(self) -> Shift:
        """The frames and their class map as a shift, for the clean accuracy on the set's classes."""
        return Shift(self.name, self.images, self.class_map, 1000)


def load_vid_robust(folder: Path | str, *, image_shape: tuple[int, int, int] = (3, 224, 224)) -> FrameSet:
    """ImageNet-Vid-Robust.

    Raises
    ------
    FileNotFoundError
        If the folder, its metadata or a frame is missing.
    ValueError
        If the metadata are damaged or name a class that does not exist.
    """
    folder = _existing(folder, "vid-robust")
    pmsets, labels = (read_json(folder / "metadata" / f"{name}.json") for name in ("pmsets", "labels"))
    table = (files("lipcomp.robustness") / "tables" / "imagenet_vid_classes.json").read_text()
    class_map = _class_map(json.loads(table))
    with as_published(f"the metadata below {str(folder)!r}"):
        near = {
            anchor: {_frame_number(other) - _frame_number(anchor): other for other in others}
            for anchor, others in pmsets.items()
        }
    unlabelled = [anchor for anchor in near if anchor not in labels]
    if unlabelled:
        raise ValueError(f"labels.json lacks {len(unlabelled)} anchors of pmsets.json ({unlabelled[0]} ...)")
    with as_published(f"the metadata below {str(folder)!r}"):
        accepted = {anchor: frozenset(np.atleast_1d(labels[anchor]).tolist()) for anchor in near}
    return _frame_set("vid-robust", folder, near, accepted, class_map, image_shape)


def load_ytbb_robust(folder: Path | str, *, image_shape: tuple[int, int, int] = (3, 224, 224)) -> FrameSet:
    """YTBB-Robust, with the reviewed anchors and neighbours only, as published.

    Raises
    ------
    FileNotFoundError
        If the folder, its metadata or a frame is missing.
    ValueError
        If the metadata are damaged or name a class that does not exist.
    """
    folder = _existing(folder, "ytbb-robust")
    meta = folder / "metadata"
    classes, index = (read_json(meta / f"{name}.json") for name in ("rev_class_idx_map", "ytbb_class_index"))
    tags_of, pairs = (_annotations(meta / f"{name}.json") for name in ("anchor_labels", "pmk_labels"))
    rows = _first_rows(meta / "ytbb_robustness_test_anchors_full.csv")
    with as_published(f"the metadata below {str(folder)!r}"):
        class_map = _class_map(classes)
        number = {name: int(k) for k, name in index.items()}
        first = {f"{row['ytid']}_{row['time_ms']}": _EXCHANGED.get(k := int(row["label"]), k) for row in rows}
        anchors = {
            _key(name): tags
            for name, tags in tags_of.items()
            if "good" in tags and not tags & {"bad", "unsure"}
        }
        spoiled = {_key(name.split(",")[0]) for name, tags in pairs.items() if "bad-anchor" in tags}
        near: dict[str, dict[int, str]] = {name: {} for name in anchors if name not in spoiled}
        for name, tags in pairs.items():
            anchor, other = (_key(part) for part in name.split(","))
            if anchor in near and "similar" in tags and not tags & _UNLIKE:
                near[anchor][_frame_number(other) - _frame_number(anchor)] = other
        accepted = {
            anchor: frozenset(
                {number[t] for t in anchors[anchor] if t in number} | {first[anchor.split("/")[0]]}
            )
            for anchor in near
        }
    return _frame_set("ytbb-robust", folder, near, accepted, class_map, image_shape)


def _annotations(path: Path) -> dict[str, set[str]]:
    """{key: names of its labels}; of several annotations of a key the last counts."""
    content = read_json(path)
    try:
        names: list[str] = content["labels"]
        return {row["key"]: {names[k] for k in row["labels"]} for row in content["annotations"]}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} is not an annotation file (missing {error}); get it again"
        ) from error


def _first_rows(path: Path) -> list[dict[str, str]]:
    """The table of the videos' own labels."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; get it from {WHERE}")
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def _key(path: str) -> str:
    """``<video>/<file>`` of a path."""
    return "/".join(Path(path).parts[-2:])


def _frame_number(name: str) -> int:
    return int(Path(name).stem.removeprefix("frame-"))


def _existing(folder: Path | str, name: str, where: str = WHERE) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: its folder {str(folder)!r} does not exist. Get it from {where}")
    return folder


def _class_map(content: dict[str, Any]) -> ClassMap:
    if sorted(map(int, content)) != list(range(len(content))) or not all(content.values()):
        raise ValueError(f"a class map must have classes 0 .. {len(content) - 1}, got {', '.join(content)}")
    return tuple(tuple(map(int, content[str(k)])) for k in range(len(content)))


def _frame_set(
    name: str,
    folder: Path,
    near: dict[str, dict[int, str]],
    accepted: dict[str, frozenset[int]],
    class_map: ClassMap,
    image_shape: tuple[int, int, int],
) -> FrameSet:
    frames = sorted({*near, *(frame for others in near.values() for frame in others.values())})
    lost = [frame for frame in frames if not (folder / frame).is_file()]
    if lost or not frames:
        raise FileNotFoundError(
            f"{name}: {len(lost)} of {len(frames)} frames are missing in {str(folder)!r} ({', '.join(lost[:2])} ...); "
            f"it is half unpacked"
        )
    known = set(range(len(class_map)))
    beyond = [anchor for anchor, classes in accepted.items() if not classes or not classes <= known]
    if beyond:
        raise ValueError(
            f"{name}: {beyond[0]} has classes {sorted(accepted[beyond[0]])}, outside the {len(class_map)}"
        )
    position = {frame: k for k, frame in enumerate(frames)}
    images = WebImages(
        name,
        tuple(folder / frame for frame in frames),
        torch.zeros(len(frames), dtype=torch.long),
        tuple(str(k) for k in range(len(class_map))),
        image_shape,
    )
    anchors = tuple(
        (position[anchor], {distance: position[other] for distance, other in others.items()})
        for anchor, others in near.items()
    )
    return FrameSet(name, images, anchors, tuple(accepted[anchor] for anchor in near), class_map)


def open_perturbations(folder: Path | str) -> dict[str, Path]:
    """The perturbation sequences below a folder: {perturbation: its file or folder}, for :func:`sequences`.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    folder = _existing(folder, "perturbation set", PERTURBATIONS)
    arrays = {path.stem: path for path in sorted(folder.glob("[!.]*.npy")) if path.stem != "labels"}
    above = visible_folders(folder)
    inside = [*above, *(place for group in above for place in visible_folders(group))]
    videos = {path.name: path for path in sorted(inside) if any(path.glob("*/[!.]*.mp4"))}
    if not (arrays or videos):
        raise FileNotFoundError(
            f"{str(folder)!r} holds neither <perturbation>.npy (CIFAR-10-P) nor <perturbation>/<class>/*.mp4 "
            f"(ImageNet-P); both are at {PERTURBATIONS}"
        )
    if videos:
        _decoder()
    return videos | arrays


def _decoder() -> Any:
    with needed("decoding ImageNet-P's MP4 files", "opencv-python-headless"):
        import cv2
    return cv2


def sequences(place: Path) -> Iterator[Float[Tensor, "frames channels height width"]]:
    """The sequences of one perturbation, pixels in [0, 1], one after the other."""
    if place.suffix == ".npy":
        array = read_array(place)
        if array.ndim != 5 or array.dtype != np.uint8 or array.shape[-1] != 3 or len(array) < 1:
            raise ValueError(
                f"{str(place)!r} must hold bytes (sequences, frames, height, width, 3), got {array.dtype} {array.shape}"
            )
        for sequence in array:
            yield torch.from_numpy(np.array(sequence)).permute(0, 3, 1, 2).float().div_(255)
        return
    cv2 = _decoder()
    for path in sorted(place.glob("*/[!.]*.mp4")):
        capture = cv2.VideoCapture(str(path))
        frames = []
        while True:
            there, frame = capture.read()
            if not there:
                break
            frames.append(torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1))
        capture.release()
        if not frames:
            raise ValueError(f"video {str(path)!r} cannot be read; get it again")
        yield torch.stack(frames).float().div_(255)
