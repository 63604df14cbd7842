"""Batches of views, prepared ahead so that the training step need not wait.

A set in memory is indexed, brought to the device, augmented there; small images on disk are read into memory once
(:func:`in_memory`). Other images on disk are decoded and cropped by a pool of
threads some batches ahead (Pillow and PyTorch release the interpreter's lock), each crop from the file's own
resolution, so that a random crop sees the pixels that a resized image would have lost; what follows the crop is done in
batches on the device.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from lipcomp.data._datasets import DatasetImages
from lipcomp.data._folders import FolderImages, cut_crops, read_crops
from lipcomp.data._pictures import upright_size
from lipcomp.data._sets import ImageSet, TensorImages, batches
from lipcomp.data._shards import Shards
from lipcomp.data._views import PhotoViews, Views

T = TypeVar("T")
IN_MEMORY = 2**30  # bytes of pixels that are held at most


@dataclass(frozen=True)
class ViewBatch:
    """Two views of some images, and their labels, on the device."""

    step: int
    views: tuple[Tensor, Tensor]
    labels: Tensor


def in_memory(images: ImageSet, views: Views, advance: Callable[[int], object] = lambda n: None) -> ImageSet:
    """The same images with their pixels held as bytes, where that changes no view; else the set itself.

    That is so for a folder or dataset of at most 1 GiB whose pixels are whole bytes after its preprocessing. Where
    random crops are cut from a picture's own pixels, every picture must have the set's size too.
    ``advance(n)`` is called as images are read.
    """
    small = len(images) * math.prod(images.image_shape) <= IN_MEMORY
    if not small or not isinstance(images, FolderImages | DatasetImages):
        return images
    if _cuts_pictures(images, views):
        if isinstance(images, DatasetImages):  # its first item is larger
            return images
        for file in images.files:
            if upright_size(file) != images.image_shape[1:]:
                return images
    held = []
    for batch in batches(images, batch_size=256):
        levels = batch * 255
        if (levels - levels.round()).abs().max() > 1e-3:
            return images
        held.append(levels.round().byte())
        advance(len(batch))
    return TensorImages(images.name, torch.cat(held), images.labels, images.classes)


def view_batches(
    images: ImageSet,
    views: Views,
    plan: Iterable[tuple[int, Tensor, Tensor]],
    device: torch.device,
    *,
    workers: int = 0,
    ahead: int = 2,
) -> Iterator[ViewBatch]:
    """Go through a plan of (step, indices, numbers), see :class:`lipcomp.data.Views` for the numbers.

    Parameters
    ----------
    images, views
        What is augmented, and how.
    plan
        The steps in order; it is read at most ``ahead`` batches before its batches are taken.
    device
        Where the views are made.
    workers
        Threads that decode images on disk; 0 for one per core.
    ahead
        Batches that are decoded in advance.
    """
    cut = _cuts_pictures(images, views)
    if isinstance(images, FolderImages) or cut:
        with ThreadPoolExecutor(workers or None) as pool:
            read = _crops(images, views, pool) if cut else _whole(images, pool)  # type: ignore[arg-type]
            fetched = ((step, indices, numbers, read(indices, numbers)) for step, indices, numbers in plan)
            here = isinstance(images, DatasetImages) and not isinstance(images.dataset, Shards)
            for step, indices, numbers, parts in fetched if here else prefetch(fetched, ahead):
                if device.type == "cuda":  # page-locked memory is copied while the device computes
                    parts = [part.pin_memory() for part in parts]
                parts = [part.to(device, non_blocking=True) for part in parts]
                if cut:
                    made = tuple(views.finish(parts[i], numbers, i) for i in (0, 1))  # type: ignore[attr-defined]
                else:
                    made = apply(views, parts[0], numbers)
                yield ViewBatch(step, made, images.labels[indices].to(device))
        return
    if isinstance(images, TensorImages):
        images = images.to(device)
    for step, indices, numbers in plan:
        made = apply(views, images.batch(indices).to(device), numbers)
        yield ViewBatch(step, made, images.labels[indices].to(device))


def _cuts_pictures(images: ImageSet, views: Views) -> bool:
    """Whether random crops are cut from pictures' own pixels: by PhotoViews, unless a class of yours changes them."""
    of_pictures = isinstance(images, FolderImages) or getattr(images, "whole", False)
    return of_pictures and isinstance(views, PhotoViews) and type(views).apply is PhotoViews.apply


def apply(views: Views, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """``views.apply``, which may be yours.

    Raises
    ------
    ValueError
        If it does not return two batches of images like the one that it is given.
    """
    made = views.apply(images, numbers)
    found = [_kind(view) for view in (made if isinstance(made, tuple | list) else (made,))]
    if found != [_kind(images)] * 2:
        raise ValueError(
            f"{type(views).__name__}.apply must return two batches of images like the one that it is given, "
            f"{_kind(images)}; it returned {', '.join(found)}"
        )
    first, second = made
    return first, second


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _crops(
    images: FolderImages | DatasetImages, views: PhotoViews, pool: ThreadPoolExecutor
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def job(i: int, rows: list[Tensor]) -> Future[list[Tensor]]:
        if isinstance(images, FolderImages):
            return pool.submit(read_crops, images.files[i], images, views, rows)
        # read in the caller's thread
        planes = None if isinstance(images.dataset, Shards) else images.planes(i)
        return pool.submit(_item_crops, images, i, planes, views, rows)

    def read(indices: Tensor, numbers: Tensor) -> list[Tensor]:
        halves = [half.split(1) for half in numbers.chunk(2, 1)]
        jobs = [job(i, rows) for i, *rows in zip(indices.tolist(), *halves, strict=True)]
        return [torch.cat(view) for view in zip(*(job.result() for job in jobs), strict=True)]

    return read


def _item_crops(
    images: DatasetImages, index: int, planes: list[Image.Image] | None, views: PhotoViews, rows: list[Tensor]
) -> list[Tensor]:
    planes = images.planes(index) if planes is None else planes
    try:
        return cut_crops(planes, images.image_shape, images.convert_channels, views, rows)
    except ValueError as error:
        raise ValueError(f"item {index} of {images.name} {error}") from error


def _whole(images: FolderImages, pool: ThreadPoolExecutor) -> Callable[[Tensor, Tensor], list[Tensor]]:
    return lambda indices, numbers: [images.batch(indices, pool)]


def prefetch(items: Iterable[T], ahead: int) -> Iterator[T]:
    """Go through ``items`` with a thread that computes some of them in advance. Its errors are raised here."""
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=max(1, ahead))
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
