"""Sets of corrupted images on disk, as small trees in their real layouts; what is damaged or missing is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipcomp.data._sets import TensorImages
from lipcomp.measure._conditions import disk_conditions, generated_conditions
from lipcomp.robustness._sets import MappedImages, open_corruption_set

RNG = np.random.default_rng(0)


@pytest.fixture
def cifar_c(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    labels = RNG.integers(0, 10, 8).astype(np.uint8)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for name in ("fog", "snow"):
        np.save(folder / f"{name}.npy", RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    return folder


def test_cifar_c_is_five_blocks_of_a_mapped_array(cifar_c):
    found = open_corruption_set(cifar_c, classes=10)
    assert found.corruptions == ("fog", "snow")
    assert found.severities("fog") == (1, 2, 3, 4, 5)
    images = found.images("fog", 3)
    assert isinstance(images, MappedImages)
    assert isinstance(images.pixels, np.memmap)
    assert images.image_shape == (3, 32, 32)
    everything = np.load(cifar_c / "fog.npy")
    expected = torch.from_numpy(everything[[17, 22]]).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(images.batch(torch.tensor([1, 6])), expected)
    assert images.labels.tolist() == np.load(cifar_c / "labels.npy")[:8].tolist()
    assert images.content_hash() != found.images("fog", 4).content_hash()
    with pytest.raises(ValueError, match="severity 6 of fog"):
        found.images("fog", 6)
    with pytest.raises(ValueError, match="'frost' is not in CIFAR-10-C, only: fog, snow"):
        found.images("frost", 1)


def test_a_damaged_cifar_c_is_named_before_the_work(cifar_c):
    with pytest.raises(ValueError, match="outside the 5 classes"):
        open_corruption_set(cifar_c, classes=5)
    with pytest.raises(FileNotFoundError, match="lacks frost"):
        open_corruption_set(cifar_c, corruptions=["frost"])
    whole = (cifar_c / "fog.npy").read_bytes()
    (cifar_c / "fog.npy").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"fog\.npy' cannot be read.*half downloaded"):
        open_corruption_set(cifar_c)
    np.save(cifar_c / "fog.npy", np.zeros((39, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"bytes of shape \(40, 32, 32, 3\), got uint8 \(39"):
        open_corruption_set(cifar_c)
    np.save(cifar_c / "fog.npy", np.zeros((40, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="got float32"):
        open_corruption_set(cifar_c)
    (cifar_c / "fog.npy").write_bytes(whole)
    np.save(cifar_c / "labels.npy", np.arange(39) % 10)
    with pytest.raises(ValueError, match="repeat the same labels"):
        open_corruption_set(cifar_c)


def test_stray_and_doubled_arrays(cifar_c):
    (cifar_c / "._fog.npy").write_bytes(b"what a Mac leaves behind")
    assert open_corruption_set(cifar_c).corruptions == ("fog", "snow")
    np.save(cifar_c / "snow.npy", np.load(cifar_c / "fog.npy"))
    with pytest.raises(ValueError, match="fog and snow hold the same images"):
        open_corruption_set(cifar_c)


def test_mnist_c(tmp_path):
    for name in ("fog", "identity"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "test_images.npy", RNG.integers(0, 256, (6, 28, 28, 1), dtype=np.uint8))
        np.save(tmp_path / name / "test_labels.npy", np.arange(6))
    found = open_corruption_set(tmp_path, classes=10)
    assert found.kind == "mnist"
    assert found.corruptions == ("fog",)  # identity is none
    assert found.severities("fog") == (None,)
    assert found.images("fog").batch(torch.arange(2)).shape == (2, 1, 28, 28)
    assert found.clean.content_hash() != found.images("fog").content_hash()
    np.save(tmp_path / "fog" / "test_labels.npy", np.arange(6)[::-1])
    with pytest.raises(ValueError, match="has other labels, the others 6"):
        open_corruption_set(tmp_path)
    np.save(tmp_path / "fog" / "test_images.npy", np.zeros((5, 28, 28, 1), np.uint8))
    np.save(tmp_path / "fog" / "test_labels.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"has 5 images|has 6 images"):
        open_corruption_set(tmp_path)
    (tmp_path / "fog" / "test_images.npy").rename(tmp_path / "moved.npy")
    with pytest.raises(FileNotFoundError, match=r"test_images\.npy is missing of fog"):
        open_corruption_set(tmp_path)


@pytest.fixture
def imagenet_c(tmp_path, photo):
    """Two corruptions, five severities, two classes of two images."""
    for severity in "12345":
        for wnid in ("n01", "n02"):
            for i in range(2):
                photo(tmp_path / "noise" / "iso_noise" / severity / wnid / f"{i}.JPEG", 40 * int(severity))
                photo(tmp_path / "fog" / severity / wnid / f"{i}.JPEG", 31 * int(severity))
    return tmp_path


def test_folders_that_are_no_condition_are_told(imagenet_c, photo):
    assert open_corruption_set(imagenet_c).images("fog", 1).notes == ()
    photo(imagenet_c / "snow" / "severity_1" / "n01" / "0.JPEG", 3)
    photo(imagenet_c / "noise" / "shot" / "mild" / "n01" / "0.JPEG", 3)
    photo(imagenet_c / "fog" / "6" / "n01" / "0.JPEG", 3)
    (imagenet_c / "documents").mkdir()
    (note,) = open_corruption_set(imagenet_c).images("fog", 1).notes
    assert note == "folders that are no corruption with severities 1 to 5: snow, noise/shot, fog/6"


def test_imagenet_c_and_3dcc_folders(imagenet_c):
    found = open_corruption_set(imagenet_c, classes=("n02", "n01"), image_shape=(3, 32, 32))
    assert found.corruptions == ("fog", "iso_noise")
    cell = found.images("iso_noise", 2)
    assert cell.labels.tolist() == [0, 0, 1, 1]
    assert cell.files[0].parent.name == "n02"
    assert abs(float(cell.batch(torch.tensor([0]))[0, 0].mean()) * 255 - 80) < 3
    with pytest.raises(ValueError, match=r"outside the classes: n02; .* links to these 1 alone"):
        open_corruption_set(imagenet_c, classes=("n01",))
    words = open_corruption_set(imagenet_c, classes=("tench", "goldfish"), image_shape=(3, 32, 32))
    assert words.images("fog", 1).classes == ("n01", "n02")  # WordNet ids are in ImageNet's order
    # in another: by the alphabet
    with pytest.raises(ValueError, match="or the probe's classes as WordNet ids"):
        open_corruption_set(imagenet_c, classes=("goldfish", "tench"))
    with pytest.raises(ValueError, match="2 class folders, not 3"):
        open_corruption_set(imagenet_c, classes=("tench", "goldfish", "shark"))
    with pytest.raises(ValueError, match="2 class folders, not 1000"):
        open_corruption_set(imagenet_c, classes=1000)


def test_class_folders_are_matched_by_name_never_by_position(tmp_path, photo):
    """Of eleven numbered classes "10" is the third folder and the last class; a class of another name has no place."""
    for severity in "12345":
        for name in map(str, range(11)):
            photo(tmp_path / "fog" / severity / name / "0.png", 20 * int(name) + int(severity))
    numbers = tuple(map(str, range(11)))
    cell = open_corruption_set(tmp_path, classes=numbers, image_shape=(3, 32, 32)).images("fog", 1)
    assert (
        [f.parent.name for f in cell.files]
        == [cell.classes[i] for i in cell.labels.tolist()]
        == list(numbers)
    )
    for severity in "12345":
        (tmp_path / "fog" / severity / "3").rename(tmp_path / "fog" / severity / "three")
    with pytest.raises(ValueError, match=r"outside the classes: three; the classes are 0, 1"):
        open_corruption_set(tmp_path, classes=numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "fog/4/n01/0.JPEG").unlink(), r"fog/4 lacks 1 \(n01/0\)"),
        (
            lambda at: (at / "fog/4/n01/0.JPEG").rename(at / "fog/3/n01/x.JPEG"),
            r"fog/3 alone has 1 \(n01/x\); fog/4 lacks 1 \(n01/0\)",
        ),
        (
            lambda at: shutil.copy(at / "fog/4/n01/0.JPEG", at / "fog/4/n01/0.png"),
            r"fog/4 has twice 1 \(n01/0\)",
        ),
        (lambda at: shutil.copytree(at / "fog", at / "weather" / "fog"), "fog comes twice"),
        (
            lambda at: shutil.copytree(at / "fog", at / "mist"),
            "fog and mist hold the same images",
        ),
        (
            lambda at: (shutil.rmtree(at / "fog/4"), (at / "fog/4").symlink_to(at / "fog/3")),
            "fog/3 and fog/4 hold the same images",
        ),
        (lambda at: shutil.rmtree(at / "fog" / "3"), r"3' is missing; unpack the archive of fog"),
        (lambda at: [f.unlink() for f in at.rglob("*.JPEG")], "no image in any of them"),
    ],
)
def test_conditions_that_hold_other_images_are_named(imagenet_c, change, message):
    (imagenet_c / "fog/4/n01/._0.JPEG").write_bytes(b"what a Mac leaves behind")
    open_corruption_set(imagenet_c, image_shape=(3, 32, 32))
    change(imagenet_c)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_corruption_set(imagenet_c, image_shape=(3, 32, 32))


def test_class_folders_hold_what_class_folders_of_other_data_hold(imagenet_c, photo):
    """Images of every suffix and below, in one order whatever the suffix; what systems leave behind is no class."""
    for place in imagenet_c.glob("*/**/n0*"):
        kind = ".png" if "fog" in place.parts else ".JPEG"
        for name in ("0.b", "more/1"):
            photo((place / name).with_name(Path(name).name + kind), int(place.parent.name))
        (place / "1.JPEG").rename(place / "1.jfif")
        (place / "folder.JPEG").mkdir(exist_ok=True)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (imagenet_c / "fog" / "1" / name).mkdir()
        (imagenet_c / name / "fog" / "1" / "n01").mkdir(parents=True)  # as a Mac's archives mirror the set
    found = open_corruption_set(imagenet_c, classes=("n01", "n02"), image_shape=(3, 32, 32))
    cells = found.images("fog", 1), found.images("iso_noise", 5)
    names = [[file.name.split(".")[:-1] for file in cell.files] for cell in cells]
    assert names[0] == names[1] == 2 * [["0"], ["0", "b"], ["1"], ["1"]]
    assert cells[0].labels.tolist() == cells[1].labels.tolist() == [0] * 4 + [1] * 4


def test_a_class_without_images_anywhere_is_named(imagenet_c):
    with pytest.raises(ValueError, match=r"no image of 1 of 3 classes \(n03\)"):
        open_corruption_set(imagenet_c, classes=("n01", "n02", "n03"))
    found = open_corruption_set(
        imagenet_c, classes=("n01", "n02", "n03"), image_shape=(3, 32, 32), partial=True
    )
    assert len(found.images("fog", 1)) == 4


def test_c_bar_severities_are_named_by_their_levels(tmp_path, photo):
    for level in (1, 2, 4, 9, 10):
        photo(tmp_path / "inverse_sparkles" / f"{level:.2f}" / "n01" / "a.JPEG", 20 * level)
    found = open_corruption_set(tmp_path, image_shape=(3, 32, 32))
    assert found.severities("inverse_sparkles") == (1, 2, 3, 4, 5)
    mean = float(found.images("inverse_sparkles", 5).batch(torch.tensor([0]))[0, 0].mean())
    assert mean * 255 == pytest.approx(200, abs=3)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path, photo):
    for severity in "12345":
        for name in ("2", "10", "9"):
            photo(tmp_path / "fog" / severity / name / "a.JPEG", 20 * int(severity) + int(name))
    found = open_corruption_set(tmp_path, classes=3, image_shape=(3, 32, 32)).images("fog", 1)
    assert [file.parent.name for file in found.files] == ["2", "9", "10"]


def test_no_set_says_where_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*zenodo"):
        open_corruption_set(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no corrupted set.*zenodo"):
        open_corruption_set(tmp_path)


def test_conditions_of_a_set_on_disk_hold_the_same_images(cifar_c):
    conditions = disk_conditions(open_corruption_set(cifar_c, classes=10), limit=5, seed=1)
    assert len(conditions) == 10
    assert all(torch.equal(c.indices, conditions[0].indices) for c in conditions)
    assert len({c.identity for c in conditions}) == 10


def test_generated_conditions_are_checked_first():
    images = TensorImages("t", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long(), ("a",))
    assert len(generated_conditions(images, table="cifar")) == 75  # fifteen corruptions, as the literature
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        generated_conditions(images, table="cifar", names=["fogg"])
    with pytest.raises(ValueError, match="severity must be"):
        generated_conditions(images, table="cifar", severities=[9])
    with pytest.raises(ValueError, match="3 channels"):
        generated_conditions(images, table="mnist")
    small = replace(images, pixels=images.pixels[..., :8, :8])
    with pytest.raises(ValueError, match="at least 16 pixels high and wide, got 8 x 8"):
        generated_conditions(small, table="cifar")
