"""Weather: fog, frost, snow. Spatter is in a separate file."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lipcomp.robustness.corruptions._blur import blur_along
from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import LUMA, Images, Real, separable, zoom_matrix

CACHED = 1 << 19  # numbers


def fog(images: Images, draws: Draws, density: Real, decay: Real, map_size: int | None = None) -> Images:
    """A fractal cloud of weight ``density`` over the image, dimmed so that the brightest pixel keeps its place."""
    height, width = images.shape[-2:]
    side = map_size or 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(draws, len(images), side, decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * cloud) * (brightest / (brightest + density))


def plasma(draws: Draws, n: int, side: int, decay: Real) -> Float[Tensor, "n side side"]:
    """Diamond-square heights on a torus, each map scaled to [0, 1]; ``side`` is a power of two."""
    few = max(1, CACHED // side**2)
    if n > few:  # maps that stay in the processor's cache are made twice as fast
        sizes = [min(few, n - start) for start in range(0, n, few)]
        return torch.cat([plasma(d, k, side, decay) for d, k in zip(draws.split(few), sizes, strict=True)])
    heights = torch.zeros(n, side, side, device=draws.device)
    step, wibble = side, 100.0

    def wobble(total: Tensor) -> Tensor:
        noise = draws.uniform(*total.shape[1:], low=-wibble, high=wibble)
        return torch.add(total / 4, noise, alpha=wibble)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        square = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = centres = wobble(square + square.roll(-1, 2))
        heights[:, ::step, half::step] = wobble(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        heights[:, half::step, ::step] = wobble(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wibble = half, wibble / decay
    low, high = (bound[:, None, None] for bound in torch.aminmax(heights.view(n, -1), dim=1))
    return (heights - low) / (high - low)


def snow(
    images: Images,
    draws: Draws,
    mean: Real,
    spread: Real,
    size: Real,
    threshold: Real,
    radius: int,
    sigma: Real,
    weight: Real,
) -> Images:
    """Falling flakes: enlarged noise above a threshold, blurred along its fall, twice; the image whitened beneath."""
    height, width = images.shape[-2:]
    noise = (draws.normal(height, width) * spread + mean)[:, None]
    rows, columns = (zoom_matrix(side, size, side).to(images.device) for side in (height, width))
    flakes = separable(noise, rows, columns)
    flakes = torch.where(flakes < threshold, 0.0, flakes)
    flakes = (flakes.clamp(0, 1) * 255 + 1e-4).floor_().div_(255)
    flakes = blur_along(flakes, draws.uniform(low=-135, high=-45), radius, sigma)
    flakes = (flakes * 255 + 1e-3).floor_().div_(255)  # ImageMagick cuts
    grey = images
    if images.shape[1] == 3:
        grey = (images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    whitened = torch.lerp(torch.maximum(images, grey * 1.5 + 0.5), images, weight)
    return whitened + flakes + flakes.rot90(2, (2, 3))


Textures = Sequence[Float[Tensor, "3 _ _"]]  # of any sizes


def frost(
    images: Images, draws: Draws, keep: Real, weight: Real, scale: Real, textures: Textures | None = None
) -> Images:
    """A cut of a frost texture over the image: keep x + weight frost.

    The published code cuts from five photographs of frosted windows, reduced to ``scale``. They are not ours to ship:
    give them as ``textures`` (:func:`read_frost`), or the generated ones of :func:`frost_textures` are used.
    """
    height, width = images.shape[-2:]
    bank = _reduced_bank(scale, height, width)
    if textures is not None:
        bank = tuple(_reduce(texture, scale, height, width) for texture in textures)
    which = draws.integers(0, len(bank), 1)[:, 0].tolist()
    corners = draws.uniform(2).tolist()
    over = torch.empty(len(images), 3, height, width)
    for out, number, (down, right) in zip(over, which, corners, strict=True):
        texture = bank[number]
        top = int(down * (texture.shape[1] - height))
        left = int(right * (texture.shape[2] - width))
        out.copy_(texture[:, top : top + height, left : left + width])
    if images.shape[1] == 1:
        over = (over * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return torch.add(images * keep, over.to(images.device), alpha=weight)


def _reduce(texture: Tensor, scale: Real, height: int, width: int) -> Tensor:
    """A texture at ``scale``, as ``cv2.resize(fx=scale, fy=scale)`` reduces it; larger if it does not cover the image.

    OpenCV samples at exactly 1 / scale pixels, whatever the rounded size, linearly, and rounds to 8 bits.
    """
    factor = max(
        scale, *((side + 1) / has for side, has in zip((height, width), texture.shape[1:], strict=True))
    )
    if factor == 1:
        return texture
    for axis in (1, 2):
        has = texture.shape[axis]
        pixel = torch.arange(round(has * factor), dtype=torch.float64)
        where = ((pixel + 0.5) / factor - 0.5).clamp(0, has - 1)
        low = where.long()
        share = (where - low).float()
        lower = texture.index_select(axis, low)
        upper = texture.index_select(axis, (low + 1).clamp(max=has - 1))
        texture = torch.lerp(lower, upper, share[:, None] if axis == 1 else share)
    return (texture * 255).round_().div_(255)


@lru_cache(maxsize=8)
def _reduced_bank(scale: Real, height: int, width: int) -> tuple[Tensor, ...]:
    return tuple(_reduce(texture, scale, height, width) for texture in frost_textures())


def read_frost(folder: Path | str) -> tuple[Float[Tensor, "3 _ _"], ...]:
    """The photographs frost1 .. frost5 of a folder (of the published six the last is never drawn), pixels in [0, 1].

    Raises
    ------
    FileNotFoundError
        If one of the five is missing.
    """
    found = []
    for number in range(1, 6):
        files = sorted(Path(folder).glob(f"frost{number}.*"))
        if not files:
            raise FileNotFoundError(
                f"frost photographs: {str(folder)!r} has no frost{number}.png or .jpg; give the folder "
                f"ImageNet-C/create_c of https://github.com/hendrycks/robustness, or none for generated textures"
            )
        with Image.open(files[0]) as photograph:
            pixels = np.array(photograph.convert("RGB"))
        found.append(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255))
    return tuple(found)


# Mean and spread of the five photographs of the published code, in grey; the textures take them one by one.
_PHOTOGRAPHS = ((0.51, 0.07), (0.81, 0.09), (0.81, 0.09), (0.60, 0.11), (0.48, 0.17))
_TINT = (-0.05, 0.0, 0.05)


@lru_cache(maxsize=1)
def frost_textures(side: int = 640) -> tuple[Float[Tensor, "3 side side"], ...]:
    """Five generated textures: needles of ice as creases of fractal noise, bluish.

    Power spectra fall as frequency^-1.9, and means and spreads are those of the five photographs; shapes are not.
    """
    rng = np.random.default_rng(0)
    down, across = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]

    def fractal(stretch: Real) -> np.ndarray:
        """Noise of amplitude frequency^-0.95, drawn out by ``stretch`` along a random direction."""
        turn = rng.uniform(0, np.pi)
        along = (across * np.cos(turn) + down * np.sin(turn)) * stretch
        radius = np.hypot(along, (down * np.cos(turn) - across * np.sin(turn)) / stretch)
        radius[0, 0] = np.inf
        values = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * radius**-0.95).real
        return values / values.std()

    textures = []
    for mean, spread in _PHOTOGRAPHS:
        needles = np.maximum(-np.abs(fractal(2.0)), -np.abs(fractal(2.0)))
        height = fractal(1.0) + needles / needles.std()
        grey = mean + spread * (height - height.mean()) / height.std()
        tinted = grey + np.array(_TINT)[:, None, None]
        textures.append(torch.from_numpy(tinted.clip(0, 1)).float())
    return tuple(textures)
