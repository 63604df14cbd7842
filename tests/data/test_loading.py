"""Loading: the views of a set in memory and on disk, crops from a file's own pixels, errors of a thread."""

import tarfile
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lipcomp.data import from_dataset, load_set
from lipcomp.data._crops import crop_and_resize
from lipcomp.data._folders import unreadable
from lipcomp.data._loading import in_memory, prefetch, view_batches
from lipcomp.data._sets import TensorImages
from lipcomp.data._views import DigitViews, PhotoViews

CPU = torch.device("cpu")


def plan(views, steps, generator):
    for step in range(steps):
        yield step, torch.arange(4 * step, 4 * step + 4), views.draw(4, generator)


@pytest.fixture
def folder(tmp_path):
    """Eight colour images of different sizes in two classes."""
    rng = np.random.default_rng(0)
    for i in range(8):
        (tmp_path / "train" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + i, 50 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / str(i % 2) / f"{i}.png")
    return tmp_path


def test_a_set_in_memory_gives_its_views_in_the_plans_order(generator):
    images = TensorImages(
        "some",
        (torch.rand(8, 1, 28, 28, generator=generator) * 255).byte(),
        torch.arange(8),
        tuple("01234567"),
    )
    views = DigitViews()
    steps = list(plan(views, 2, torch.Generator().manual_seed(1)))
    for batch, (step, indices, numbers) in zip(view_batches(images, views, steps, CPU), steps, strict=True):
        assert batch.step == step
        assert torch.equal(batch.labels, indices)
        for ours, expected in zip(batch.views, views.apply(images.batch(indices), numbers), strict=True):
            assert torch.equal(ours, expected)


def written(root, pixels):
    """A folder with these pictures in two classes."""
    for i, each in enumerate(pixels):
        (root / "train" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(root / "train" / str(i % 2) / f"{i}.png")
    return root


@pytest.mark.parametrize("views", [PhotoViews(), DigitViews()])
def test_small_pictures_of_one_size_are_held_in_memory_and_give_the_same_views(views, tmp_path):
    colour = isinstance(views, PhotoViews)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 20, 24, 3)[: 4 if colour else 3], dtype=np.uint8)
    images = load_set(str(written(tmp_path, pixels)), "train")
    held = in_memory(images, views)
    assert isinstance(held, TensorImages)
    assert torch.equal(held.labels, images.labels)
    steps = list(plan(views, 2, torch.Generator().manual_seed(1)))
    for ours, theirs in zip(
        view_batches(held, views, steps, CPU), view_batches(images, views, steps, CPU), strict=True
    ):
        assert torch.equal(ours.labels, theirs.labels)
        for a, b in zip(ours.views, theirs.views, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


@dataclass(frozen=True)
class Halved(PhotoViews):
    """Views of one's own, made from those of the paper; on disk they were the paper's."""

    def apply(self, images, numbers):
        return images / 2, images


def test_a_class_that_changes_photo_views_changes_those_of_files_too(folder):
    images = load_set(str(folder), "train", image_shape=(3, 16, 16))
    indices, views = torch.arange(2), Halved()
    (batch,) = view_batches(images, views, [(0, indices, views.draw(2, torch.Generator()))], CPU)
    assert torch.equal(batch.views[0], images.batch(indices) / 2)


def test_pictures_that_would_give_other_views_stay_on_disk(folder, tmp_path):
    sizes = load_set(str(folder), "train", image_shape=(3, 16, 16))
    assert in_memory(sizes, PhotoViews()) is sizes  # crops come from each picture's own pixels
    shape = (3, 20, 24)
    turned = load_set(str(written(tmp_path / "turned", np.zeros((2, *shape[1:], 3), np.uint8))), "train")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored as 20 x 24, seen as 24 x 20
    Image.open(turned.files[0]).save(turned.files[0], exif=exif)
    assert in_memory(turned, PhotoViews()) is turned
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 9, 9), dtype=np.uint16)
    sixteen = load_set(str(written(tmp_path / "deep", deep)), "train")
    assert in_memory(sixteen, DigitViews()) is sixteen


@pytest.mark.parametrize("of", ["files", "pictures", "floats", "shards"])
def test_crops_come_from_the_own_pixels_of_files_and_of_larger_items(folder, of):
    """Each image by hand: the box in the file's own size, then the rest of the augmentation."""
    views = PhotoViews()
    files = images = load_set(str(folder), "train", image_shape=(3, 16, 16))
    exact = 0.7 if of == "floats" else 1  # not bytes
    if of == "shards":
        with tarfile.open(folder / "set.tar", "w") as tar:
            for i, file in enumerate(files.files):
                tar.add(file, f"{i}.png")
        images = replace(load_set(str(folder / "set.tar"), image_shape=(3, 16, 16)), whole=True)
    elif of != "files":
        items = [Image.open(file) for file in files.files]
        if of == "floats":
            items = [torch.from_numpy(np.array(item)).permute(2, 0, 1) / 255 * exact for item in items]
        images = from_dataset([*zip(items, files.labels.tolist(), strict=True)], image_shape=(3, 16, 16))
        images = replace(images, whole=True)
        assert in_memory(images, views) is images
        grey = replace(images, image_shape=(1, 16, 16))
        with pytest.raises(ValueError, match=r"item 0 of list .* (colour|3 channels)"):
            list(view_batches(grey, views, plan(views, 1, torch.Generator()), CPU))
    steps = list(plan(views, 2, torch.Generator().manual_seed(1)))
    for batch, (_, indices, numbers) in zip(
        view_batches(images, views, steps, CPU, workers=3), steps, strict=True
    ):
        for view in (0, 1):
            crops = []
            for i, row in zip(indices.tolist(), numbers[:, 18 * view : 18 * view + 18], strict=True):
                array = np.array(Image.open(files.files[i]))
                pixels = torch.from_numpy(array).permute(2, 0, 1)[None] / 255 * exact
                box = views.boxes(row[None], *pixels.shape[2:])
                crops.append(crop_and_resize(pixels, box, (16, 16), views.mirrored(row[None])))
            expected = views.finish(torch.cat(crops), numbers, view)
            torch.testing.assert_close(batch.views[view], expected, atol=1e-6, rtol=0)


def test_broken_files_are_found_and_left_out(folder):
    images = load_set(str(folder), "train", image_shape=(3, 16, 16))
    broken = images.files[3]
    broken.write_bytes(broken.read_bytes()[:100])
    counted = []
    found = unreadable(images, lambda: counted.append(1))
    assert list(found) == [broken]
    assert "cannot be read" in found[broken]
    assert len(counted) == 8
    rest = images.without([broken])
    assert len(rest) == len(rest.labels) == 7
    assert broken not in rest.files
    with pytest.raises(ValueError, match="cannot be read"):
        list(view_batches(images, PhotoViews(), plan(PhotoViews(), 2, torch.Generator()), CPU))


def test_prefetching_keeps_the_order_raises_the_threads_error_and_ends_its_thread():
    def items():
        yield from range(5)
        raise KeyError("five")

    fetched = prefetch(items(), 2)
    assert [next(fetched) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="five"):
        next(fetched)
    before = threading.active_count()
    endless = prefetch(iter(int, 1), 2)
    next(endless)
    assert threading.active_count() == before + 1
    endless.close()
    assert threading.active_count() == before
