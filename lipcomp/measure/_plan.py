"""The plan of a measurement, as frozen values: encoders, images, probe, quantities and machine.

A plan says everything that the engine needs and holds nothing that is open or loaded, so it can be compared, written
down, and sent to a worker on another machine. Every default is named here once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lipcomp._arguments import checked
from lipcomp._functions import load_function
from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._native import Checkpoint, own_backbone
from lipcomp.checkpoints._own import build_own, load_own
from lipcomp.data import Preprocessing, load_set
from lipcomp.data._sets import ImageSet
from lipcomp.encoders import register_backbone

Precision = Literal["float32", "float64", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
ProbeKind = Literal["linear", "knn", "augmented"]


@checked
@dataclass(frozen=True)
class Source:
    """The source of an encoder, and how to read a file of another library.

    Parameters
    ----------
    path
        A checkpoint file or folder; None with a ``factory`` that needs no weights.
    name
        Name of the encoder in a study ("c_simclr-seed0"), ``subject.run`` in records.
    factory
        "FILE.py:FUNCTION" or "MODULE:FUNCTION" that builds your own network; for a checkpoint that was trained with
        ``--backbone``, that function.
    baseline
        "random" is the architecture of ``path`` with random weights; "pixels" uses the pixels as features. Both are
        references for the numbers of trained encoders.
    seed
        Seed of the random baseline.
    options
        Of :func:`lipcomp.load_encoder`: ``arch``, ``format``, ``head``, ``branch``, ``mean``, ``std``,
        ``image_size``, as far as they were given.

    Raises
    ------
    ValueError
        By :func:`lipcomp.measure.run`, if the file cannot be read safely, or an option does not fit it.

    Examples
    --------
    >>> from lipcomp.measure import Source
    >>> Source("resnet50.pth", options={"arch": "resnet50"}).name is None
    True
    """

    path: Path | str | None
    name: str | None = None
    factory: str | None = None
    baseline: Literal["random", "pixels"] | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Checkpoint:
        """The encoder, in evaluation mode on the CPU.

        Raises
        ------
        ValueError
            If the file cannot be read safely, or an option does not fit it.
        """
        if self.factory is not None and (self.path is None or not (own := own_backbone(self.path))):
            unread = ("arch", "format", "head", *(("branch",) if self.path is None else ()))
            if idle := [f"{name}=" for name in unread if self.options.get(name)]:
                raise ValueError(
                    f"{', '.join(idle)} would be ignored with factory=, which builds the network; leave it out"
                )
            return load_own(build_own(self.factory), self.path, **self.options, name=self.factory)
        if self.path is None:
            raise ValueError("path must name a checkpoint, or factory a function that builds the network")
        if self.factory is not None:
            register_backbone(own, load_function(self.factory))
        checkpoint = load_encoder(self.path, **self.options)
        if self.baseline is not None:
            from lipcomp.measure._baselines import baseline

            checkpoint = baseline(checkpoint, self.baseline, self.seed)
        return checkpoint


@checked
@dataclass(frozen=True)
class Images:
    """The images to measure on: a known set or a folder, its split, and how many.

    Parameters
    ----------
    data
        A name of :data:`lipcomp.data.SETS` or the path of a folder of images.
    split
        "test", "train" or "val".
    root
        The dataset directory of a set that is read from disk, such as CIFAR.
    limit
        Use this many images, drawn at random by ``seed``; None takes all.
    seed
        Seed of this draw.
    options
        Further options of :func:`lipcomp.load_set`, such as ``preprocessing`` or ``labels``; and ``override``, what
        :meth:`lipcomp.data.Preprocessing.overridden` changes of the model's own preprocessing.

    Raises
    ------
    ValueError
        By :func:`lipcomp.measure.run`, if there is no such set, folder or split, or the limit is below 1.

    Examples
    --------
    >>> from lipcomp.measure import Images
    >>> Images("mnist5k", limit=100).split
    'test'
    """

    data: str
    split: str = "test"
    root: str | None = None
    limit: int | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, checkpoint: Checkpoint) -> tuple[ImageSet, Tensor]:
        """The set as the encoder takes it, and the indices to use, in order.

        Raises
        ------
        ValueError
            If the limit is not positive, or the images do not have the shape that the encoder takes.
        """
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {self.limit}")
        images = self.open(checkpoint)
        return images, self.choose(len(images))

    def open(self, checkpoint: Checkpoint, split: str | None = None) -> ImageSet:
        """The whole split as the encoder takes it."""
        shape = checkpoint.image_shape
        images = load_set(
            self.data,
            split or self.split,
            root=self.root,
            image_shape=shape,
            **fitting(self.options, checkpoint),
        )
        if images.image_shape != shape:
            raise ValueError(
                f"data {self.data!r}: its images have shape {images.image_shape}, the encoder takes {shape}; give "
                f"images of that shape, or a folder, whose images are converted"
            )
        return images

    def choose(self, n: int) -> Tensor:
        """The indices of the images to use among n, in order."""
        if self.limit is None or self.limit >= n:
            return torch.arange(n)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(n, generator=generator)[: self.limit].sort().values


def fitting(options: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The options of the data; the model's own preprocessing where none was given."""
    given = dict(options)
    own = getattr(checkpoint, "preprocessing", None)
    pipeline = getattr(own, "pipeline", None)  # how the library that wrote the weights prepares images
    if pipeline is not None and "preprocessing" not in given:
        given["preprocessing"] = pipeline
    if override := given.pop("override", None):
        base = given.get("preprocessing") or Preprocessing.default(*checkpoint.image_shape[1:])
        given["preprocessing"] = base.overridden(**override)
    return given


@dataclass(frozen=True)
class Probe:
    """The probe that predicts classes from pooled features."""

    # "linear" (L-BFGS, convex), "knn", or "augmented" (the paper's SGD on augmented images)
    kind: ProbeKind = "linear"
    neighbours: int = 20  # of kNN
    temperature: float = 0.07  # of kNN
    seed: int = 0  # of the held-out part that chooses the penalty, and of the augmented training
    # how often the linear probe is fitted again, each time on a bootstrap sample of the training images: the spread
    # of its accuracies is the probe's share in the error of an accuracy (theory (7.7))
    refits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ProbeKind):
            raise ValueError(f"probe must be one of {', '.join(get_args(ProbeKind))}, got {self.kind!r}")
        if self.neighbours < 1 or self.temperature <= 0:
            raise ValueError(
                f"neighbours and temperature must be positive, got {self.neighbours} and {self.temperature}"
            )

    def settings(self) -> dict[str, Any]:
        """What of it can change a number, for records and identities."""
        if self.kind == "knn":
            return {"probe": "knn", "k": self.neighbours, "temperature": self.temperature}
        return {"probe": self.kind, "probe_seed": self.seed}


LINEAR = Probe()


@checked
@dataclass(frozen=True)
class Plan:
    """A complete description of what to measure, and how.

    Parameters
    ----------
    sources
        The encoders.
    images
        The images that quantities are measured on.
    quantities
        The quantities to measure, in order: classes of :mod:`lipcomp.measure`.
    probe
        For quantities that need class scores; fitted on the training split of the same data.
    device, precision
        Device and precision of the networks. Sigma, searches and certificates take float32 or float64.
    batch_size
        Images per batch; None takes as many as fit in memory. It changes results only by rounding.
    seed
        Seed of all draws.

    Raises
    ------
    ValueError
        If precision, batch size, seed or a quantity's limit is out of range, or a quantity is no object such as
        ``Sigma()``.

    Examples
    --------
    >>> from lipcomp.measure import Images, Pairs, Plan, Sigma, Source
    >>> plan = Plan(
    ...     sources=(Source("simclr.safetensors"), Source("c-simclr.safetensors")),
    ...     images=Images("mnist5k", limit=200),
    ...     quantities=(Sigma(), Pairs("all")),
    ... )
    >>> len(plan.sources)
    2
    """

    sources: tuple[Source, ...]
    images: Images
    quantities: tuple[Any, ...]
    probe: Probe = LINEAR
    device: str = "auto"
    precision: Precision = "float32"
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {self.precision!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        for quantity in self.quantities:
            if isinstance(quantity, type) or not hasattr(quantity, "units"):
                raise ValueError(
                    f"quantities must be objects of lipcomp.measure's classes, such as Sigma(), got {quantity!r}"
                )
            if (limit := getattr(quantity, "limit", None)) is not None and limit < 1:
                raise ValueError(f"limit of {type(quantity).__name__} must be at least 1 image, got {limit}")

    def of(self, source: Source) -> "Plan":
        """The same plan for one of its encoders."""
        return replace(self, sources=(source,))
