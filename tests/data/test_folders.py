"""Random trees of class folders: labels are torchvision's, whatever the names, the nesting and the empty folders."""

import errno
import os
import random
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.datasets import ImageFolder

from lipcomp.data import Preprocessing, load_set, load_splits
from lipcomp.data._folders import load_folder, unreadable
from lipcomp.data._opening import check_splits
from lipcomp.data._pictures import read_picture

LETTERS = "abcABC019_- é東.#,"


def name_of(rng):
    name = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 6))).strip(" .")
    return f"x{name}"  # no split's name, not hidden


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_those_of_torchvisions_image_folder(seed, tmp_path):
    rng = random.Random(seed)
    names = {name_of(rng) for _ in range(rng.randint(2, 9))}
    number = 0
    for split in ("train", "test"):
        for name in names:
            for _ in range(rng.randint(1, 3)):
                inner = "/".join(name_of(rng) for _ in range(rng.choice([0, 0, 1, 2])))
                file = (
                    tmp_path
                    / split
                    / name
                    / inner
                    / f"{name_of(rng)}{number}{rng.choice(['.png', '.PNG', '.bmp'])}"
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (number % 256, number // 256, 77)).save(file)
                number += 1
    for split in ("train", "test"):
        theirs = ImageFolder(tmp_path / split)
        ours = load_set(str(tmp_path), split, image_shape=(3, 4, 4))
        assert ours.classes == tuple(theirs.classes)
        expected = dict(theirs.samples)
        assert {str(f): k for f, k in zip(ours.files, ours.labels.tolist(), strict=True)} == expected
        shades = {path: Image.open(path).getpixel((0, 0))[0] for path in expected}
        found = (ours.batch(torch.arange(len(ours)))[:, 0, 0, 0] * 255).round().int().tolist()
        assert found == [shades[str(f)] for f in ours.files]


def test_one_unreadable_file_among_many_is_left_out_named_and_counted(tmp_path):
    for i in range(20):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 9)).save(tmp_path / str(i % 2) / f"{i:02}.png")
    (tmp_path / "0" / "04.png").write_bytes(b"half an image")
    looked = []
    images = load_folder(tmp_path, skip_unreadable=True, advance=lambda: looked.append(1))
    assert (len(images), len(looked)) == (19, 20)
    assert images.notes[-1].startswith("1 of 20 images cannot be read and are left out: ")
    assert "04.png" in images.notes[-1]
    shades = (images.batch(torch.arange(19))[:, 0, 0, 0] * 255).round().int().tolist()
    assert shades == [*range(0, 4, 2), *range(6, 20, 2), *range(1, 20, 2)]
    assert images.labels.tolist() == [0] * 9 + [1] * 10
    assert unreadable(images) == {}
    whole = load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"04\.png' cannot be read.*skip_unreadable=True"):
        whole.batch(torch.arange(20))
    assert images.content_hash() != whole.content_hash()


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_an_image_is_not_left_out_because_memory_or_open_files_ran_out(tmp_path, monkeypatch, error):
    grid(tmp_path, "a/0.png", 0)
    images = load_folder(tmp_path)
    monkeypatch.setattr(Image, "open", Mock(side_effect=error))
    with pytest.raises(type(error)):
        unreadable(images)


def test_images_of_other_sizes_are_refused_or_enlarged_alike(tmp_path):
    Image.new("RGB", (5, 5), (200, 0, 9)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png' is 5 x 5, smaller than the 8 x 8"):
        load_folder(tmp_path, image_shape=(3, 8, 8)).batch(torch.tensor([0]))
    large = load_folder(
        tmp_path, image_shape=(3, 8, 8), preprocessing=Preprocessing.default(8, 8, enlarge=True)
    )
    assert torch.allclose(large.batch(torch.tensor([0]))[0, 0], torch.tensor(200 / 255))
    with pytest.raises(ValueError, match=r"gives pictures of \(9, 9\).*image_shape is \(3, 8, 8\)"):
        load_folder(tmp_path, image_shape=(3, 8, 8), preprocessing=Preprocessing(crop=(9, 9)))


def test_a_name_that_is_not_utf8_is_refused_by_its_bytes(tmp_path):
    place = os.fsencode(tmp_path / "test" / "a")
    os.makedirs(place)  # noqa: PTH103  (bytes)
    Image.new("L", (8, 8)).save(tmp_path / "test" / "a" / "b.png")
    Path(os.fsdecode(place + b"/caf\xe9.png")).write_bytes((tmp_path / "test" / "a" / "b.png").read_bytes())
    with pytest.raises(ValueError, match=r"caf\\xe9\.png' is not UTF-8.*convmv"):
        load_set(str(tmp_path), "test")


def test_links_that_lead_to_each_other_are_no_folders(tmp_path):
    grid(tmp_path, "test/a/0.png", 0)
    for one, other in (("x", "y"), ("y", "x"), ("x.png", "y.png"), ("y.png", "x.png")):
        (tmp_path / "test" / "a" / one).symlink_to(tmp_path / "test" / "a" / other)
    (tmp_path / "test" / "b").symlink_to(tmp_path / "test" / "b")
    images = load_set(str(tmp_path), "test", skip_unreadable=True)
    assert [images.file_of(i) for i in range(len(images))] == ["test/a/0.png"]
    assert "a/x.png" in images.notes[-1]  # as any broken link


def test_two_folders_of_one_name_are_refused_without_a_training_split_too(tmp_path):
    grid(tmp_path, "cafe\u0301/0.png", 0)
    grid(tmp_path, "caf\u00e9/1.png", 1)
    with pytest.raises(ValueError, match="there are two classes 'caf\u00e9'"):
        load_set(str(tmp_path), "test")


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_camera_notes_that_cannot_be_read_leave_the_picture_upright(suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n      4\nzz")
    more = {"pnginfo": notes} if suffix == ".png" else {"lossless": True, "exif": b"Exif\0\0garbage"}
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **more)
    assert np.array_equal(np.asarray(read_picture(tmp_path / f"a{suffix}")), pixels)


def grid(folder, name, seed):
    """A picture of noise, unlike all others."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_table_of_splits_without_labels_splits(labelled, tmp_path):
    told = ["file_name,split"]
    for i in range(6):
        name = f"{('ant', 'bee')[i % 2]}/{i}.png" if labelled else f"{i}.png"
        grid(tmp_path, name, i)
        told.append(f"{name},{'train' if i < 4 else 'test'}")
    (tmp_path / "metadata.csv").write_text("\n".join(told))
    test = load_set(tmp_path, "test")
    assert [file.stem for file in test.files] == ["4", "5"]
    assert test.classes == (("ant", "bee") if labelled else ())
    assert test.labels.tolist() == ([0, 1] if labelled else [-1, -1])
    assert len(load_set(tmp_path, "train").files) == 4


def test_test_images_that_are_copies_of_training_images_are_refused_or_told(tmp_path):
    for i in range(20):
        grid(tmp_path / "train" / f"{i % 2}", f"{i}.png", i)
        grid(tmp_path / "test" / f"{i % 2}", f"other_{i}.png", i if i < 3 else 100 + i)
    train, test = load_set(tmp_path, "train"), load_set(tmp_path, "test")
    (note,) = check_splits(train, test)
    assert note == "3 of 20 images of " + test.name + " that were compared are training images, byte by byte"
    for i in range(3, 10):
        grid(tmp_path / "test" / f"{i % 2}", f"other_{i}.png", i)
    with pytest.raises(ValueError, match="share images; a probe is never scored"):
        load_splits(tmp_path)
