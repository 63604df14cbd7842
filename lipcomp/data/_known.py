"""Sets known by name: digits that come with packages, and what torchvision reads from disk. Nothing is downloaded."""

import gzip
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lipcomp._messages import is_of_machine
from lipcomp.data._digits import load_mnist5k, load_mnist5k_8x8, load_uci_digits
from lipcomp.data._sets import ImageSet, TensorImages

Opener = Callable[[str, Path | str | None, int], ImageSet]  # of a split, below root, by a seed


def _digits(name: str, load: Callable[[str, int], tuple[Tensor, Tensor]]) -> Opener:
    """Digits that come with a package."""
    return lambda split, root, seed: TensorImages(f"{name}/{split}", *load(split, seed), DIGITS)


# What torchvision's own class reads below root, and where it comes from.
ON_DISK = {
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py",
        "the 'python version' of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": (
        "CIFAR100",
        "cifar-100-python",
        "the 'python version' of https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "mnist": ("MNIST", "MNIST/raw", "the four files of https://ossci-datasets.s3.amazonaws.com/mnist"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", "https://github.com/zalandoresearch/fashion-mnist"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers"),
    "stl10": ("STL10", "stl10_binary", "https://cs.stanford.edu/~acoates/stl10"),
}


def _torchvisions(name: str) -> Opener:
    """A set that torchvision reads from disk; nothing is downloaded."""
    kind, place, origin = ON_DISK[name]

    def load(split: str, root: Path | str | None, seed: int) -> ImageSet:
        import torchvision.datasets

        if root is None:
            raise ValueError(f"{name} is read from disk: give the folder that holds it (root=...)")
        told = {"split": split} if kind in ("SVHN", "STL10") else {"train": split == "train"}
        try:
            with _unpacked(Path(root), kind) as folder:
                source = getattr(torchvision.datasets, kind)(folder, download=False, **told)
        except Exception as error:  # readers of damaged archives raise nearly anything
            if is_of_machine(error):
                raise
            raise FileNotFoundError(
                f"{name} is not complete below {root}: {place} is missing or damaged ({error}). Unpack {origin} there"
            ) from error
        pixels = torch.as_tensor(source.data)
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        elif pixels.shape[3] == 3:
            pixels = pixels.permute(0, 3, 1, 2)
        labels = torch.as_tensor(getattr(source, "targets", getattr(source, "labels", None))).long()
        classes = tuple(getattr(source, "classes", DIGITS))
        return TensorImages(f"{name}/{split}", pixels.contiguous(), labels, classes)

    return load


@contextmanager
def _unpacked(root: Path, kind: str) -> Iterator[Path]:
    """The folder for torchvision; published ``*-ubyte`` files, gzipped or not, may lie in ``root`` itself."""
    places = root, root / "raw", root / kind / "raw"
    published = [file for place in places for end in ("", ".gz") for file in place.glob(f"*-ubyte{end}")]
    if kind not in ("MNIST", "FashionMNIST") or not published or any(places[-1].glob("*-ubyte")):
        yield root
        return
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / kind / "raw"
        raw.mkdir(parents=True)
        for file in published:
            content = file.read_bytes()
            if file.suffix == ".gz":
                content = gzip.decompress(content)
            (raw / file.name.removesuffix(".gz")).write_bytes(content)
        yield Path(temporary)


DIGITS = tuple("0123456789")
SETS: dict[str, tuple[Opener, Sequence[str]]] = {
    "mnist5k": (_digits("mnist5k", load_mnist5k), ("train", "test")),
    "mnist5k_8x8": (_digits("mnist5k_8x8", load_mnist5k_8x8), ("test",)),
    "uci_digits": (_digits("uci_digits", lambda split, seed: load_uci_digits()), ("test",)),
    **{name: (_torchvisions(name), ("train", "test")) for name in ON_DISK},
}
