"""The images of a run: found and looked at before anything is written; their order; a recipe fitted to them.

Where randomness comes from: a generator for every (seed, stream, step). A run has five streams (weights, order, views,
noise, layers). None depends on what another took, so two runs of one seed share what they share whatever else they
draw, and a run goes on at any step without a generator's state.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from lipcomp._commands import progress
from lipcomp.data import Preprocessing, batches, load_set
from lipcomp.data._datasets import DatasetImages
from lipcomp.data._folders import FolderImages, unreadable
from lipcomp.data._known import SETS
from lipcomp.data._loading import apply
from lipcomp.data._opening import Items, brought_to, splits_of
from lipcomp.data._pictures import UnreadableImageError
from lipcomp.data._sets import ImageSet, TensorImages
from lipcomp.data._shards import Shards, find_shards
from lipcomp.data._views import DigitViews, PhotoViews, Views
from lipcomp.jacobian._precision import in_float32
from train.parallel import Ranks
from train.recipe import Recipe
from train.settings import Settings

Report = Callable[[str], None]
DECODED = 50_000  # of larger folders headers alone are read before training, unless some may be skipped
NAMED = 5
MEASURED = 2000  # images that the mean and std of new data are taken from
SMALL = 64  # pixels: images up to this side are taken whole, and neither blurred nor solarised
ANY_FOLDER = "imagenet"  # data of a recipe for your own folder: its statistics are kept


def stream(seed: int, name: str, step: int = 0, device: torch.device | str = "cpu") -> Generator:
    """The generator of one step of one stream of random numbers (weights, order, views, noise)."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def seed_globals(seed: int, rank: int = 0, step: int = 0) -> None:
    """Seed what a network or views of your own may draw from in a step: torch's generator, Python's and NumPy's.

    Torch's differs on every rank, so that dropout does. The others are alike: all ranks must skip the same layers.
    """
    torch.manual_seed(stream(seed, f"layers/{rank}", step).initial_seed())
    alike = stream(seed, "layers", step).initial_seed()
    random.seed(alike)
    np.random.seed(alike % 2**32)  # noqa: NPY002  (networks draw from it)


@contextmanager
def global_generators(device: torch.device) -> Iterator[None]:
    """Leave the generators that :func:`seed_globals` seeds, and the default type, as they were found."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), in_float32():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def draw(views: Views, images: int, generator: Generator) -> Tensor:
    """``views.draw``, which may be yours."""
    numbers = views.draw(images, generator)
    if not isinstance(numbers, Tensor) or len(numbers) != images:
        raise ValueError(
            f"{type(views).__name__}.draw must return a tensor with {images} rows, one per image; it returned "
            f"{tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__}"
        )
    return numbers


def check_views(views: Views, images: ImageSet, device: torch.device) -> None:
    """Refuse views of your own that no run could repeat; their ``apply`` may draw from torch's, NumPy's and Python's.

    Raises
    ------
    ValueError
        If ``draw`` takes numbers from another generator than the one it is given, or ``apply`` from one of its own.
    """
    kind = type(views).__name__
    few = images.batch(torch.arange(min(8, len(images)))).to(device)
    drawn, made = [], []
    for seed in (0, 1):
        seed_globals(seed)
        drawn.append(draw(views, len(few), Generator().manual_seed(0)))
        seed_globals(0)
        made.append(apply(views, few, drawn[0]))
    if not torch.equal(*drawn):
        raise ValueError(
            f"{kind}.draw must take all its random numbers from the generator that it is given, or no run could be "
            f"repeated or continued"
        )
    if not all(
        torch.allclose(one, other, atol=1e-3, equal_nan=True) for one, other in zip(*made, strict=True)
    ):
        raise ValueError(
            f"{kind}.apply makes other views of the same images, numbers and seeds, so no run could be repeated or "
            f"continued; use the numbers that draw returned, or torch's, NumPy's or Python's own generator"
        )


def order(images: int, recipe: Recipe, seed: int, first: int = 0) -> Iterator[Tensor]:
    """The indices of every step from ``first`` on: permutations, one per epoch, end to end, cut into batches."""
    epoch, within = divmod(first * recipe.batch_size, images)
    waiting = torch.randperm(images, generator=stream(seed, "order", epoch))[within:]
    while True:
        while len(waiting) < recipe.batch_size:
            epoch += 1
            waiting = torch.cat([waiting, torch.randperm(images, generator=stream(seed, "order", epoch))])
        yield waiting[: recipe.batch_size]
        waiting = waiting[recipe.batch_size :]


# The sets.


def training_set(recipe: Recipe, settings: Settings, report: Report, data: Any = None) -> ImageSet:
    """A recipe's training images, or those given (an image set or any dataset), checked.

    Raises
    ------
    FileNotFoundError
        If they are not there.
    ValueError
        If the linear head has nothing to learn, or images cannot be read (the message counts and names
        them) and ``skip_unreadable`` is not set.
    """
    images = _load(recipe, "pretrain", settings, data, report)
    _tell_notes(images, report)
    needs_classes = recipe.probe is not None or recipe.objective.family == "supervised"
    if needs_classes and len(images.labels.unique()) < 2:
        what = f"one class ({images.classes[0]!r})" if images.classes else "no labels"
        supervised = recipe.objective.family == "supervised"
        learner = "a classifier" if supervised else "the linear head"
        raise ValueError(
            f"the data {recipe.data!r} has {what}, so {learner} has nothing to learn; give a folder with one folder per"
            " class" + ("" if supervised else ", or train without it: --set probe=None")
        )
    if isinstance(images, FolderImages):
        images = _readable(images, settings, report)
    return images if recipe.images is None else _some(images, recipe.images)


def data_hash(recipe: Recipe, settings: Settings) -> str | None:
    """The identity of a recipe's training images without a look at each; None if they are not there (any more)."""
    try:
        images = _load(recipe, "pretrain", settings)
        if isinstance(images, FolderImages) and settings.skip_unreadable:
            images = _readable(images, settings, lambda line: None)
        return (images if recipe.images is None else _some(images, recipe.images)).content_hash()
    except (OSError, ValueError):
        return None


def _some(images: ImageSet, count: int) -> ImageSet:
    """That many images, chosen at random (seed 0)."""
    if count > len(images):
        raise ValueError(f"images={count} is more than the {len(images)} images of {images.name}")
    chosen = torch.randperm(len(images), generator=Generator().manual_seed(0))[:count].sort().values
    if isinstance(images, FolderImages | DatasetImages):
        return images.subset(chosen)
    if isinstance(images, TensorImages):
        return replace(images, pixels=images.pixels[chosen], labels=images.labels[chosen])
    raise ValueError(f"images={count} cannot be taken of {type(images).__name__}; give a smaller one instead")


def _readable(images: FolderImages, settings: Settings, report: Report) -> FolderImages:
    with progress(len(images), "looking at the images") as advance:
        broken = unreadable(images, advance, whole=settings.skip_unreadable or len(images) <= DECODED)
    if not broken:
        return images
    names = ", ".join(str(file) for file in list(broken)[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    found = f"{len(broken)} of the {len(images)} images of {images.name} cannot be read: {names}{more}"
    if not settings.skip_unreadable or len(broken) == len(images):
        raise ValueError(f"{found}; replace or remove them, or leave them out with --skip-unreadable")
    report(f"warning: {found}; left out")
    return images.without(list(broken))


def held_out_set(
    recipe: Recipe,
    settings: Settings,
    images: ImageSet,
    report: Report = lambda line: None,
    data: Any = None,
) -> ImageSet | None:
    """Labelled images of the recipe's data, or of that given, that are not trained on; None where there are none.

    Raises
    ------
    ValueError
        If some cannot be read, or brought to the recipe's shape: better now than at the first evaluation.
    """
    if len(images.labels.unique()) < 2:
        return None
    source = recipe.data if data is None else data
    there = splits_of(source) if isinstance(source, Mapping) or _is_place(source) else ()
    split = next((split for split in ("val", "test") if split in there), None)
    if split is None:
        return None
    held_out = _load(recipe, split, settings, data)
    if held_out.classes != images.classes:
        return None
    _tell_notes(held_out, report)
    if isinstance(held_out, FolderImages):
        held_out = _readable(held_out, settings, report)
    held_out.batch(torch.arange(min(8, len(held_out))))
    return held_out


def _tell_notes(images: ImageSet, report: Report) -> None:
    """Report what was left out of shards."""
    for note in images.notes if isinstance(images, DatasetImages) else ():
        report(f"warning: {note}")


def _is_place(data: Any) -> bool:
    """Whether data is named, so that another split of it can be loaded."""
    return isinstance(data, str) and (data in SETS or Path(data).is_dir() or ":" in data)


def _load(
    recipe: Recipe, split: str, settings: Settings, data: Any = None, report: Report = lambda line: None
) -> ImageSet:
    """A split of the recipe's data, or of data that is given, at the recipe's size."""
    shape = recipe.encoder.image_shape
    data = recipe.data if data is None else data
    data = str(data) if isinstance(data, Path) else data
    if isinstance(data, str):
        return _of_whole_items(_sized(data, split, settings, shape, report))
    return _of_whole_items(load_set(data, split, root=settings.data_root, image_shape=shape))


def _of_whole_items(images: ImageSet) -> ImageSet:
    """Random crops of a dataset's larger items are cut from their own pixels, where no preprocessing was asked for."""
    if not isinstance(images, DatasetImages) or isinstance(images.dataset, Items):
        return images
    size, first = images.image_shape[1:], images.planes(0)[0]
    plain = [Preprocessing.default(*size, enlarge=enlarge) for enlarge in (False, True)]
    return replace(images, whole=images.preprocessing in plain and (first.height, first.width) != size)


def _sized(
    data: str,
    split: str,
    settings: Settings,
    shape: tuple[int, int, int],
    report: Report = lambda line: None,
) -> ImageSet:
    """Images of a known set or a folder at a size, larger ones reduced and smaller ones enlarged."""
    way = Preprocessing.default(*shape[1:], enlarge=True)
    if data in SETS:
        own = load_set(data, split, root=settings.data_root)
        height, width = own.image_shape[1:]
        if (height, width) == shape[1:]:
            return brought_to(own, shape)
        report(f"{data}: images of {width} x {height} are resized to {shape[2]} x {shape[1]}")
        return brought_to(own, shape, way)
    return load_set(
        data,
        split,
        root=settings.data_root,
        image_shape=shape,
        preprocessing=way,
        skip_unreadable=_skips(data, settings),
    )


def first_look(data: str, settings: Settings) -> ImageSet:
    """The training images as they are, for their shape."""
    return load_set(data, "pretrain", root=settings.data_root, skip_unreadable=_skips(data, settings))


def _skips(data: str, settings: Settings) -> bool:
    """Whether pictures of shards that cannot be read are left out where they are listed, not by :func:`_readable`."""
    return settings.skip_unreadable and data not in SETS and bool(find_shards(Path(data)))


def check_split(recipe: Recipe, images: ImageSet, ranks: Ranks, settings: Settings) -> None:
    """Refuse a batch that the images do not fill, or that does not divide over ranks and parts."""
    batch, parts = recipe.batch_size, ranks.size * settings.accumulate
    if batch > len(images):
        raise ValueError(
            f"batch_size {batch} is larger than the {len(images)} images of {images.name}; set batch_size to at "
            f"most that (--batch-size)"
        )
    if batch < 2 * parts or batch % parts:
        raise ValueError(
            f"batch_size {batch} does not divide into {ranks.size} rank(s) x {settings.accumulate} part(s) of at "
            f"least 2 images each; set batch_size to a multiple of {parts}, at least {2 * parts}"
        )


# A recipe for other data.


def fit(recipe: Recipe, images: ImageSet, data: str | None = None) -> Recipe:
    """The recipe for other images: their shape, their mean and std, and views that fit them.

    The recipe's own views are kept, but lipcomp's for another number of channels are replaced (:func:`views_for`).
    Without labels there is no concurrent head. Colour stays colour.
    """
    mean, std = mean_and_std(images)
    others = DigitViews if images.image_shape[0] == 3 else PhotoViews
    return replace(
        recipe,
        data=data or images.name,
        encoder=replace(recipe.encoder, image_shape=images.image_shape, mean=mean, std=std),
        views=views_for(images.image_shape) if type(recipe.views) is others else recipe.views,
        probe=recipe.probe if len(images.classes) > 0 else None,
    )


def fit_to_data(
    recipe: Recipe, data: str, settings: Settings, report: Report, image_size: int | None = None
) -> Recipe:
    """:func:`fit` to a set or folder by its name; a recipe that is made for any folder keeps its statistics.

    Raises
    ------
    ValueError
        If nothing says to what size the images of a folder are brought.
    """
    shape = recipe.encoder.image_shape
    if recipe.data == ANY_FOLDER and image_size in (None, shape[1]):
        return replace(recipe, data=data)
    found = first_look(data, settings)
    own = found.image_shape
    size = (image_size, image_size) if image_size else own[1:]
    pictures = isinstance(found, FolderImages) or isinstance(getattr(found, "dataset", None), Shards)
    if image_size is None and pictures and max(own[1:]) > SMALL:
        if min(shape[1:]) <= SMALL:
            raise ValueError(
                f"the images of {data!r} are large ({own[2]} x {own[1]} the first); say to what size they are brought: "
                f"--image-size 224"
            )
        size = shape[1:]
    images = _sized(data, "pretrain", settings, (own[0], *size))
    fitted = fit(recipe, images, data)
    encoder = fitted.encoder
    report(
        f"fitted to {data}: {len(images)} {'grey' if own[0] == 1 else 'colour'} images, {size[1]} x {size[0]}, mean "
        f"{encoder.mean}, std {encoder.std}, views {fitted.views}"
    )
    return fitted


def mean_and_std(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of at most 2,000 images chosen at random (seed 0), to 4 digits.

    Files that cannot be read are left out: training counts them, and refuses them or leaves them out.
    """
    try:
        return _measured(images)
    except UnreadableImageError:
        if not isinstance(images, FolderImages):
            raise
        broken = list(unreadable(images))
        if len(broken) == len(images):
            raise
        return _measured(images.without(broken))


def _measured(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    chosen = torch.randperm(len(images), generator=Generator().manual_seed(0))[:MEASURED]
    total = squares = torch.zeros(images.image_shape[0], dtype=torch.float64)
    count = 0
    for batch in batches(images, batch_size=256, indices=chosen.sort().values):
        total = total + batch.double().sum((0, 2, 3))
        squares = squares + batch.double().square().sum((0, 2, 3))
        count += batch.numel() // batch.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


def views_for(image_shape: tuple[int, int, int]) -> Views:
    """The augmentation for images of that shape: colour jitter and crops for colour, affine maps for grey."""
    if image_shape[0] != 3:
        return DigitViews()
    return PhotoViews(blur=(0.0, 0.0), solarise=(0.0, 0.0)) if max(image_shape[1:]) <= SMALL else PhotoViews()
