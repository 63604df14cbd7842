"""Run a classifier over many conditions; each condition is kept as soon as it is done.

A condition is a set of images, perhaps corrupted on the way. What is kept of it, in a file named by the hash of
everything it depends on, is small: for each image the predicted class, whether it is right, and the confidence.
An evaluation that was interrupted therefore goes on at the condition it was in, and a changed probe, set, seed or
severity never meets an old result.

>>> from lipcomp.robustness.evaluate import answer, generated_conditions
>>> for condition in generated_conditions(images, table="mnist"):  # doctest: +SKIP
...     print(condition.settings, answer(probe.on(encoder), condition, cache="cells").right.mean())
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lipcomp.data import ImageSet
from lipcomp.robustness.corruptions import (
    SEVERITIES,
    check_severity,
    corrupt,
    corruption_names,
    find_corruption,
)
from lipcomp.robustness.features import evaluation_mode, fingerprint, load_array, save_array
from lipcomp.robustness.sets import CorruptionSet

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Condition:
    """Images to classify, and how they are changed on the way.

    Attributes
    ----------
    images, indices
        The set, and which of its images.
    settings
        What tells this condition from the others, for records and for the cache.
    transform
        Applied as ``transform(batch, indices)``, or None.
    """

    images: ImageSet = field(repr=False)
    indices: Int64[Tensor, " n"] = field(repr=False)
    settings: dict[str, Any]
    transform: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, repr=False)

    def labels(self) -> Int64[Tensor, " n"]:
        """The classes of the chosen images."""
        return self.images.labels[self.indices]


@dataclass(frozen=True)
class Answers:
    """For each image of a condition: the predicted class, whether it is right, the softmax's largest value."""

    predicted: Int64[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]


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
) -> list[Condition]:
    """Our own corruptions of a set: one condition for each corruption and severity.

    Raises
    ------
    ValueError
        If table, a corruption or a severity does not exist, or the table does not fit the images.
    """
    names = corruption_names(table) if names is None else names
    for name in names:
        find_corruption(name, table)
    for severity in severities:
        check_severity(severity)
    if table == "mnist" and images.image_shape[0] != 1:
        raise ValueError(
            f'table "mnist" corrupts grey digits; {images.name} has {images.image_shape[0]} channels'
        )
    return [
        Condition(
            images,
            _all(images, indices),
            {
                "data": images.name,
                "corruption": name,
                "severity": severity,
                "table": table,
                "corruption_seed": seed,
            },
            partial(_corrupted, name=name, severity=severity, table=table, seed=seed),
        )
        for name in names
        for severity in severities
    ]


def _corrupted(batch: Tensor, indices: Tensor, *, name: str, severity: int, table: str, seed: int) -> Tensor:
    return corrupt(batch, name, severity, table, seed, indices)


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
            conditions.append(Condition(images, indices, settings))
    return conditions


def answer(
    classifier: nn.Module,
    condition: Condition,
    *,
    batch_size: int = 256,
    cache: Path | str | None = None,
    identity: str | None = None,
    advance: Advance = lambda n: None,
) -> Answers:
    """Classify the images of a condition, or read what an earlier run kept.

    Parameters
    ----------
    classifier
        Pixels in [0, 1] -> logits; run in evaluation mode and left as it was.
    condition
        What to classify.
    batch_size
        Images at a time.
    cache
        The folder in which conditions are kept; none if not given.
    identity
        The classifier's :func:`~lipcomp.robustness.features.fingerprint`, if known.
    advance
        Told how many images are done.
    """
    path = _place(classifier, condition, cache, identity, "answers")
    stored = None if path is None else load_array(path)
    if stored is None or stored.shape != (3, len(condition.indices)):
        rows = []
        for logits, labels in _stream(classifier, condition, batch_size, advance):
            confidence, predicted = torch.softmax(logits.cpu().double(), 1).max(
                1
            )  # no float64 on some devices
            rows.append(torch.stack([predicted.double(), (predicted == labels).double(), confidence]))
        stored = torch.cat(rows, 1).numpy()
        if path is not None:
            save_array(path, stored)
    else:
        advance(len(condition.indices))
    return Answers(stored[0].astype(np.int64), stored[1].astype(bool), stored[2])


def all_logits(
    classifier: nn.Module,
    condition: Condition,
    *,
    batch_size: int = 256,
    cache: Path | str | None = None,
    identity: str | None = None,
    advance: Advance = lambda n: None,
) -> Float[Tensor, "n classes"]:
    """The logits of a condition, on the CPU; kept as :func:`answer` keeps its results."""
    path = _place(classifier, condition, cache, identity, "logits")
    stored = None if path is None else load_array(path)
    if stored is None or len(stored) != len(condition.indices):
        stored = torch.cat([x.cpu() for x, _ in _stream(classifier, condition, batch_size, advance)]).numpy()
        if path is not None:
            save_array(path, stored)
    else:
        advance(len(condition.indices))
    return torch.from_numpy(stored)


def _stream(classifier: nn.Module, condition: Condition, batch_size: int, advance: Advance) -> Any:
    device = next((p.device for p in (*classifier.parameters(), *classifier.buffers())), torch.device("cpu"))
    with evaluation_mode(classifier):
        for part in condition.indices.split(batch_size):
            batch = condition.images.batch(part).to(device)
            if condition.transform is not None:
                batch = condition.transform(batch, part)
            yield classifier(batch), condition.images.labels[part]
            advance(len(part))


def _place(
    classifier: nn.Module, condition: Condition, cache: Path | str | None, identity: str | None, kind: str
) -> Path | None:
    return None if cache is None else cell(cache, identity or fingerprint(classifier), condition, kind)


def cell(cache: Path | str, identity: str, condition: Condition, kind: str) -> Path:
    """Where a result of a condition is kept: named by the classifier, the images and the settings."""
    key = hashlib.sha256(identity.encode())
    key.update(condition.images.content_hash().encode())
    key.update(condition.indices.numpy().tobytes())
    key.update(json.dumps(condition.settings, sort_keys=True).encode())
    return Path(cache) / f"{kind}-{key.hexdigest()[:24]}.npy"


def _all(images: ImageSet, indices: Tensor | None) -> Tensor:
    return torch.arange(len(images)) if indices is None else indices
