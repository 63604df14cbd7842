"""The images of a run, looked at before anything is written: enough classes, every file readable."""

from collections.abc import Callable
from pathlib import Path

from lipcomp.commands import progress
from lipcomp.data import SETS, ImageSet, PhotoViews, Preprocessing, load_set
from lipcomp.data.folders import FolderImages, unreadable
from lipcomp.data.opening import splits_of
from train.parallel import Ranks
from train.recipe import Recipe
from train.settings import Settings

DECODED = (
    50_000  # folders up to this size are decoded once before training; larger ones have their headers read
)
NAMED = 5


def training_set(
    recipe: Recipe, root: Path | None, skip_unreadable: bool, report: Callable[[str], None]
) -> ImageSet:
    """Load a recipe's training images.

    Raises
    ------
    FileNotFoundError
        If they are not there.
    ValueError
        If the concurrent linear head has nothing to tell apart, or images cannot be read (the message counts and names
        them) and ``skip_unreadable`` is not set.
    """
    images = _load(recipe, "pretrain", root)
    needs_classes = recipe.probe is not None or recipe.objective.family == "supervised"
    if needs_classes and len(images.labels.unique()) < 2:
        what = f"one class ({images.classes[0]!r})" if images.classes else "no labels"
        raise ValueError(
            f"the data {recipe.data!r} has {what}, so the concurrent linear head has nothing to tell apart; give a "
            f"folder with one folder a class, or train without it: --set probe=None"
        )
    if isinstance(images, FolderImages):
        with progress(len(images), "looking at the images") as advance:
            broken = unreadable(images, advance, whole=len(images) <= DECODED)
        if broken:
            names = ", ".join(str(file) for file in list(broken)[:NAMED])
            more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
            found = (
                f"{len(broken)} of the {len(images)} images of {recipe.data!r} cannot be read: {names}{more}"
            )
            if not skip_unreadable:
                raise ValueError(f"{found}; replace or remove them, or leave them out with --skip-unreadable")
            report(f"warning: {found}; left out")
            images = images.without(list(broken))
    return images


def held_out_set(recipe: Recipe, root: Path | None, images: ImageSet) -> ImageSet | None:
    """Labelled images that are not trained on, or None where there are none."""
    if len(images.labels.unique()) < 2:
        return None
    there = splits_of(recipe.data)
    split = next((split for split in ("val", "test") if split in there), None)
    if split is None:
        return None
    held_out = _load(recipe, split, root)
    return held_out if held_out.classes == images.classes else None


def _load(recipe: Recipe, split: str, root: Path | None) -> ImageSet:
    """A split of the recipe's data. Small photographs are enlarged, as its crops enlarge them."""
    shape = recipe.encoder.image_shape
    photographs = isinstance(recipe.views, PhotoViews) and recipe.data not in SETS
    way = Preprocessing.default(*shape[1:], enlarge=True) if photographs else None
    return load_set(recipe.data, split, root=root, image_shape=shape, preprocessing=way)


def check_split(recipe: Recipe, images: ImageSet, ranks: Ranks, settings: Settings) -> None:
    """Refuse a batch that the images do not fill, or that does not divide over ranks and parts."""
    batch, parts = recipe.batch_size, ranks.size * settings.accumulate
    if batch > len(images):
        raise ValueError(
            f"batch_size {batch} is larger than the {len(images)} images of {images.name}; set batch_size to at "
            f"most that"
        )
    if batch < 2 * parts or batch % parts:
        raise ValueError(
            f"batch_size {batch} does not divide into {ranks.size} rank(s) x {settings.accumulate} part(s) of at "
            f"least 2 images each; set batch_size to a multiple of {parts}, at least {2 * parts}"
        )
