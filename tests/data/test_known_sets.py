"""Sets that torchvision reads, on small files in their published layout."""

import struct

import numpy as np
import pytest
import torch

from lipcomp.data import load_set

RNG = np.random.default_rng(0)


def idx(array):
    """LeCun's file format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_and_fashion_mnist_as_torchvision_reads_them(tmp_path):
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True)
        for prefix, n in (("train", 5), ("t10k", 3)):
            pixels = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
            (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8)))
        images = load_set(name, "test", root=tmp_path)
        assert images.labels.tolist() == [0, 1, 2]
        assert torch.equal(images.batch(torch.arange(3))[:, 0], torch.from_numpy(pixels) / 255)
        assert len(load_set(name, "train", root=tmp_path)) == 5
        assert len(images.classes) == 10


def test_svhn_and_stl10_as_torchvision_reads_them(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import STL10, SVHN

    pixels = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [3], [4]])})
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    images = load_set("svhn", root=tmp_path)
    assert images.labels.tolist() == [1, 0, 3, 4]
    assert torch.equal(images.batch(torch.arange(4)), torch.from_numpy(pixels).permute(3, 2, 0, 1) / 255)

    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    columns = RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)  # column-major, as published
    (folder / "test_X.bin").write_bytes(columns.tobytes())
    (folder / "test_y.bin").write_bytes(bytes([1, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    images = load_set("stl10", root=tmp_path)
    assert images.labels.tolist() == [0, 9]
    assert images.classes[9] == "c9"
    assert torch.equal(images.batch(torch.arange(2)), torch.from_numpy(columns).transpose(2, 3) / 255)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "svhn", "stl10", "cifar10"])
def test_sets_that_are_not_there_are_explained(name, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"{name} is not complete below .* missing or damaged.*Unpack"
    ):
        load_set(name, root=tmp_path)
