"""What identifies an image set: everything that changes a number, nothing else; and folders that change are noticed."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp._identity import digest
from lipcomp.data import Preprocessing, from_dataset, load_set
from lipcomp.data._sets import TensorImages, check_unchanged

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPCOMP_CACHE", str(tmp_path / "cache"))


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(("cat/0.bmp", "cat/1.bmp", "dog/0.bmp", "dog/1.bmp")):
        write(tmp_path / "photos" / "test" / name, i)
    return tmp_path / "photos"


def identity(root, **options):
    return load_set(str(root), **{"image_shape": SHAPE, **options}).content_hash()


def swap(one, other):
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])


CHANGES = {
    "one byte of a file": lambda root: (root / "test/cat/0.bmp").write_bytes(
        (root / "test/cat/0.bmp").read_bytes()[:-1] + b"\x07"
    ),
    "other images of equal names and sizes": lambda root: write(root / "test/cat/0.bmp", 99),
    "two images of one class swapped": lambda root: swap(root / "test/cat/0.bmp", root / "test/cat/1.bmp"),
    "two images of two classes swapped": lambda root: swap(root / "test/cat/0.bmp", root / "test/dog/0.bmp"),
    "an image moved to another class": lambda root: (root / "test/cat/1.bmp").rename(root / "test/dog/2.bmp"),
    "a class renamed": lambda root: (root / "test/cat").rename(root / "test/bat"),
    "an image added": lambda root: write(root / "test/cat/2.bmp", 7),
    "an image removed": lambda root: (root / "test/cat/1.bmp").unlink(),
    "another class in the training split": lambda root: [
        write(root / "train" / name / "0.bmp", 1) for name in ("ant", "cat", "dog")
    ],
}
OPTIONS = {
    "size": {"image_shape": (3, 7, 8)},
    "channels": {"image_shape": (1, 8, 8), "convert_channels": True},
    "interpolation": {"preprocessing": Preprocessing(8, (8, 8), "bicubic")},
    "antialias": {"preprocessing": Preprocessing(8, (8, 8), antialias=False)},
    "crop": {"preprocessing": Preprocessing(9, (8, 8))},
    "squash": {"preprocessing": Preprocessing((8, 8), (8, 8), squash=True)},
    "background": {"preprocessing": replace(Preprocessing.default(8, 8), background=(0, 0, 0))},
    "classes": {"classes": ("dog", "cat")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_folder_changes_its_identity(change, root):
    before = identity(root)
    CHANGES[change](root)
    assert identity(root) != before


@pytest.mark.parametrize("option", OPTIONS)
def test_what_changes_pixels_or_labels_changes_the_identity(option, root):
    assert identity(root, **OPTIONS[option]) != identity(root)


def test_a_copied_renamed_or_touched_folder_is_the_same(root, tmp_path):
    before = identity(root)
    shutil.copytree(root, tmp_path / "copy")
    os.utime(root / "test/cat/0.bmp", (1, 1))
    (root / "test/cat/1.bmp").rename(root / "test/cat/9.bmp")  # the order stays
    (root / "notes.txt").write_text("none")
    assert identity(root) == before
    root.rename(tmp_path / "renamed")
    assert identity(tmp_path / "renamed") == before
    assert identity(tmp_path / "copy") == before
    assert len(before) == 32


def test_a_folder_that_changes_while_it_is_measured_is_named(root):
    images = load_set(str(root), image_shape=SHAPE)
    before = images.content_hash()
    os.utime(root / "test/cat/0.bmp", (1, 1))
    images.unchanged()  # touched, not changed
    swap(root / "test/cat/1.bmp", root / "test/dog/1.bmp")
    with pytest.raises(ValueError, match=r"2 of the 4 images of photos/test changed .*1\.bmp"):
        check_unchanged(images)
    swap(root / "test/cat/1.bmp", root / "test/dog/1.bmp")
    check_unchanged(images)
    (root / "test/cat/1.bmp").unlink()
    with pytest.raises(ValueError, match="1 of the 4"):
        images.unchanged()
    assert images.content_hash() == before  # what was measured, not what is there
    check_unchanged(
        TensorImages("t", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1).long(), ("a",))
    )


def test_sets_in_memory_are_known_by_pixels_labels_and_class_names():
    pixels, labels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([0, 1])
    images = TensorImages("a", pixels, labels, ("x", "y"))
    assert TensorImages("b", pixels, labels, ("x", "y")).content_hash() == images.content_hash()
    others = (
        replace(images, pixels=pixels + 1),
        replace(images, pixels=pixels.view(2, 3, 4, 1)),
        replace(images, labels=1 - labels),
        replace(images, classes=("y", "x")),
    )
    assert len({images.content_hash(), *(other.content_hash() for other in others)}) == 5
    assert digest(images) == digest(replace(images, name="c"))


def test_datasets_are_known_by_their_pictures():
    pixels = torch.randint(
        0, 256, (3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    items = [(x, i % 2) for i, x in enumerate(pixels)]
    images = from_dataset(items)
    assert from_dataset(tuple(items), name="other").content_hash() == images.content_hash()
    assert from_dataset(items[::-1]).content_hash() != images.content_hash()
    assert from_dataset(items, labels=[1, 1, 0]).content_hash() != images.content_hash()
    assert from_dataset(items, classes=("a", "b")).content_hash() != images.content_hash()
    large = Preprocessing((8, 8), squash=True)
    assert from_dataset(items, preprocessing=large).content_hash() != images.content_hash()


def test_the_second_look_at_a_folder_reads_no_file(root, monkeypatch):
    # files changed just now are not remembered otherwise
    monkeypatch.setattr("lipcomp._identity_files._RACY", -1)
    before = identity(root)
    monkeypatch.setattr(
        "lipcomp._identity_files._hash_file", lambda path: pytest.fail(f"{path} is read again")
    )
    assert identity(root) == before


def test_only_what_a_batch_asks_for_is_decoded(root, monkeypatch):
    read = []
    from lipcomp.data import _folders as folders

    real = folders.read_picture
    monkeypatch.setattr(folders, "read_picture", lambda file, *a: (read.append(file.name), real(file, *a))[1])
    images = load_set(str(root), image_shape=SHAPE)
    assert len(read) == 1  # whether the set is in colour
    images.content_hash()
    images.batch(torch.tensor([2]))
    assert read[1:] == ["0.bmp"]


def test_a_part_is_known_by_its_own_images_alone(root, monkeypatch):
    whole = load_set(str(root), image_shape=SHAPE)
    read = []
    monkeypatch.setattr(
        "lipcomp.data._folders.hash_files",
        lambda files, advance=None: read.extend(files) or ["x"] * len(files),
    )
    part = whole.subset(torch.tensor([3, 0]))
    part.content_hash()
    assert read == [whole.files[3], whole.files[0]]
    assert part.labels.tolist() == [1, 0]

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    items = Counted((torch.full((3, 4, 4), i, dtype=torch.uint8), i % 2) for i in range(9))
    images = from_dataset(items)
    read.clear()
    part = images.subset(torch.tensor([7, 2]))
    assert part.content_hash() == from_dataset([items[7], items[2]]).content_hash()
    assert set(read) == {7, 2}
    assert (part.batch(torch.tensor([1])) * 255).round().unique().tolist() == [2]
