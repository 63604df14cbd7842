"""Random numbers that belong to an image, not to a batch.

Every number is a function of (seed, corruption, severity, the image's id, which draw of the corruption it is) and of
nothing else: the same image gets the same corruption alone, in any batch and in any order. The five are mixed to one
word by SplitMix64's finaliser, which seeds a Mersenne Twister; numbers are drawn on the CPU and carried to the
images' device, so devices differ by the rounding of the arithmetic that follows and no more.

Cost: one microsecond an image and draw beyond the numbers themselves.
"""

import copy
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit moves every output bit."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


class Draws:
    """The random numbers of a batch of images.

    Parameters
    ----------
    seed
        Seed of the whole corrupted set.
    stream
        What the numbers are for; the corruption's name and severity.
    indices
        The images' ids in their set.
    device
        Where the numbers go.

    Notes
    -----
    A corruption draws in the order of the published code (height before width before channel), so that a test can
    give it the published code's own numbers.
    """

    def __init__(self, seed: int, stream: str, indices: Int64[Tensor, " n"], device: torch.device) -> None:
        head = hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8]
        ids = indices.cpu().numpy().astype(np.uint64)
        self._keys = _mix(_mix(ids) ^ np.frombuffer(head, np.uint64)[0])
        self._calls = 0
        self.device = device

    def _fill(self, shape: tuple[int, ...], method: str, *arguments: float | int) -> Tensor:
        out = torch.empty(len(self._keys), *shape)
        generator = torch.Generator()
        seeds = _mix(self._keys + np.uint64(self._calls)).tolist()
        self._calls += 1
        for row, seed in zip(out.unbind(0), seeds, strict=True):
            generator.manual_seed(seed)
            getattr(row, method)(*arguments, generator=generator)
        return out.to(self.device)

    def split(self, size: int) -> Iterator["Draws"]:
        """The draws of ``size`` images at a time, in order; each has the numbers it would have had together."""
        for start in range(0, len(self._keys), size):
            part = copy.copy(self)
            part._keys = self._keys[start : start + size]
            yield part

    def nested(self) -> "Draws":
        """Where the published code seeds a second generator from the first; here the same generator continues."""
        return self

    def permutation(self, count: int) -> np.ndarray:
        """A random order of 0 .. count - 1, for the draws of a single image."""
        return self.uniform(count)[0].argsort().cpu().numpy()

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal numbers, ``shape`` for each image."""
        return self._fill(shape, "normal_")

    def uniform(self, *shape: int, low: float | int = 0.0, high: float | int = 1.0) -> Float[Tensor, "n ..."]:
        """Uniform numbers in [low, high), ``shape`` for each image."""
        return self._fill(shape, "uniform_", low, high)

    def integers(self, low: int, high: int, *shape: int) -> Int64[Tensor, "n ..."]:
        """Uniform whole numbers in [low, high), ``shape`` for each image (high - low up to 2^24)."""
        return (self.uniform(*shape) * (high - low)).long().clamp(max=high - low - 1) + low
