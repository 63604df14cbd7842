"""Conditions: the images that a classifier is run on, clean, corrupted, shifted or read from disk, with an identity.

A condition's identity covers the images (by content), which of them, and what is done to them on the way; its
settings are what records say about it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp._identity import digest
from lipcomp.data._sets import ImageSet, check_unchanged
from lipcomp.robustness._protocols import literature
from lipcomp.robustness._sets import CorruptionSet
from lipcomp.robustness.corruptions import corrupt, corruption_names
from lipcomp.robustness.corruptions._corrupt import (
    SEVERITIES,
    check_corruptible,
    check_severity,
    find_corruption,
    resave_jpeg,
)
from lipcomp.robustness.corruptions._weather import Textures, read_frost

CORRUPTIONS_VERSION = 3  # of what lipcomp.robustness.corruptions makes from the same settings
CHANGED = {"pixelate": 4, "shear": 4, "rotate": 4}  # the same of one corruption that changed alone


@dataclass(frozen=True)
class Condition:
    """Images to classify, and how they are changed on the way."""

    images: ImageSet = field(repr=False)  # the set
    indices: Int64[Tensor, " n"] = field(repr=False)  # which of its images
    settings: dict[str, Any]  # what distinguishes this condition from others, for records
    # applied as ``transform(batch, indices)``, or None
    transform: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """How many images."""
        return len(self.indices)

    def labels(self) -> Int64[Tensor, " n"]:
        """The classes of the chosen images."""
        return self.images.labels[self.indices]

    def batch(
        self, places: Int64[Tensor, " batch"], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "batch channels height width"]:
        """The images at some places of the condition, as the classifier gets them."""
        ids = self.indices[places]
        # of the set whose identity was taken: a file that changed since is refused
        pixels = self.chosen.batch(ids if self.chosen is self.images else places).to(device)
        if self.transform is not None:
            pixels = self.transform(pixels, ids)
        return pixels.to(dtype)

    @cached_property
    def chosen(self) -> ImageSet:
        """The set of these images alone, or the whole set where it has no parts."""
        return _chosen(self.images, self.indices)[0]

    @cached_property
    def identity(self) -> str:
        """A hash of the images, and of what is done to them."""
        identity = images_identity(self.images, self.indices)
        if self.transform is None:
            return digest("condition", identity)
        changed = {k: v for k, v in self.settings.items() if k != "data"}
        version = CHANGED.get(changed.get("corruption", ""), CORRUPTIONS_VERSION)
        return digest("condition", identity, self.indices, changed, version)  # draws go by the index

    def first(self, n: int) -> "Condition":
        """The condition of its first n images."""
        return Condition(self.images, self.indices[:n], self.settings, self.transform)


def images_identity(images: ImageSet, indices: Int64[Tensor, " n"]) -> str:
    """A hash of the chosen images: their content, labels, class names and preprocessing, in order."""
    return _chosen(images, indices)[1]


def check_chosen(images: ImageSet, indices: Int64[Tensor, " n"]) -> None:
    """Check that the chosen images are what they were when their identity was taken.

    Raises
    ------
    ValueError
        If a file changed meanwhile.
    """
    check_unchanged(_chosen(images, indices)[0])


def _chosen(images: ImageSet, indices: Tensor) -> tuple[ImageSet, str]:
    """The set of the chosen images, and its identity; taken once. Files that were not chosen are not read."""
    key = (id(images), indices.numpy().tobytes())
    known = _CHOSEN.get(key)
    if known is None or known[0] is not images:
        subset = images
        part = getattr(images, "subset", None)
        if part is not None:
            subset = part(indices)
            identity = digest("images", subset.content_hash())
        else:
            identity = digest("images", images.content_hash(), indices)
        if len(_CHOSEN) > 1000:
            _CHOSEN.clear()
        known = _CHOSEN[key] = (images, subset, identity)
    return known[1], known[2]


_CHOSEN: dict[tuple[int, bytes], tuple[ImageSet, ImageSet, str]] = {}


def clean_condition(images: ImageSet, indices: Int64[Tensor, " n"] | None = None) -> Condition:
    """The images as they are."""
    return Condition(images, _all(images, indices), {"data": images.name})


def generated_conditions(
    images: ImageSet,
    indices: Int64[Tensor, " n"] | None = None,
    *,
    table: str,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    jpeg: int | None = None,
    frost: str | None = None,
) -> list[Condition]:
    """Our own corruptions of a set: one condition for each corruption and severity.

    Parameters
    ----------
    images, indices
        The set, and which of its images.
    table, names, severities, seed
        As :func:`~lipcomp.robustness.corruptions.corrupt` takes them; the names of the literature if not given.
    jpeg
        Save every corrupted image as JPEG of this quality and read it again.
    frost
        Folder of the published frost photographs; generated textures if not given.

    Raises
    ------
    ValueError
        If table, a corruption or a severity does not exist, or the table does not fit the images.
    """
    names = literature(corruption_names(table)) if names is None else names
    for name in names:
        find_corruption(name, table)
    for severity in severities:
        check_severity(severity)
    check_corruptible(images.image_shape, table)
    photographs = None if frost is None else read_frost(frost)

    def condition(name: str, severity: int) -> Condition:
        told = {
            "corruption": name,
            "severity": severity,
            "table": table,
            "corruption_seed": seed,
            "jpeg": jpeg,
        }
        if name == "frost":
            told["frost"] = "textures" if photographs is None else digest(photographs)
        textures = photographs if name == "frost" else None
        change = partial(
            _corrupted, name=name, severity=severity, table=table, seed=seed, jpeg=jpeg, textures=textures
        )
        return Condition(images, _all(images, indices), {"data": images.name, **told}, change)

    return [condition(name, severity) for name in names for severity in severities]


def _corrupted(
    batch: Tensor,
    indices: Tensor,
    *,
    name: str,
    severity: int,
    table: str,
    seed: int,
    jpeg: int | None,
    textures: Textures | None,
) -> Tensor:
    made = corrupt(batch, name, severity, table=table, seed=seed, indices=indices, frost_textures=textures)
    return made if jpeg is None else resave_jpeg(made, jpeg)


def disk_conditions(corrupted: CorruptionSet, limit: int | None = None, seed: int = 0) -> list[Condition]:
    """The conditions of a corrupted set on disk; at most ``limit`` images, drawn by ``seed``, the same in each."""
    conditions = []
    for name in corrupted.corruptions:
        for severity in corrupted.severities(name):
            images = corrupted.images(name, severity)
            indices = torch.arange(len(images))
            if limit is not None and limit < len(images):
                generator = torch.Generator().manual_seed(seed)
                indices = torch.randperm(len(images), generator=generator)[:limit].sort().values
            settings = {"data": corrupted.name, "corruption": name, "severity": severity, "table": "disk"}
            settings["layout"] = corrupted.kind
            conditions.append(Condition(images, indices, settings))
    return conditions


def _all(images: ImageSet, indices: Tensor | None) -> Tensor:
    return torch.arange(len(images)) if indices is None else indices
