"""One call for every corruption: find it in its table, check the images, draw each image's own numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lipcomp._arguments import checked
from lipcomp._messages import nearest
from lipcomp.jacobian._precision import in_float32
from lipcomp.robustness.corruptions import _jpeg as jpeg
from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import LARGEST
from lipcomp.robustness.corruptions._tables import BYTEWISE, TABLES, Corruption
from lipcomp.robustness.corruptions._weather import Textures

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 16
TOGETHER = 1 << 19  # numbers of the images that are corrupted at a time on a CPU: what its cache holds


def corruption_names(table: str = "mnist") -> tuple[str, ...]:
    """The corruptions of a table, in the published order.

    Parameters
    ----------
    table
        As for :func:`corrupt`.

    Examples
    --------
    >>> from lipcomp.robustness.corruptions import corruption_names
    >>> corruption_names("mnist")[:3]
    ('shot_noise', 'impulse_noise', 'glass_blur')
    """
    return tuple(_table(table))


@checked
def corrupt(
    images: Float[Tensor, "batch channels height width"] | UInt8[Tensor, "batch channels height width"],
    name: str,
    severity: int,
    *,
    table: str | None = None,
    seed: int = 0,
    indices: Int64[Tensor, " ids"] | np.ndarray | Sequence[int] | None = None,
    frost_textures: Textures | None = None,
    to_bytes: bool = True,
) -> Float[Tensor, "batch channels height width"] | UInt8[Tensor, "batch channels height width"]:
    """Corrupt a batch.

    Parameters
    ----------
    images
        Pixels in [0, 1] from 8-bit images, or these images themselves as bytes (torch.uint8).
    name
        The corruption; :func:`corruption_names` lists a table's.
    severity
        1 to 5.
    table
        Table of severities: "imagenet", "cifar" (both sets), "tiny" (64 x 64), "mnist" (grey digits), "imagenet-bar" or
        "cifar-bar"; chosen by the images (:func:`table_for`) if not given.
    seed
        Seed of the whole corrupted set.
    indices
        The images' ids in their set: the corruption of an image does not depend on its batch. 0, 1, ... if not given.
    frost_textures
        Images of frost, (3, height, width) in [0, 1], for the corruption "frost", such as the photographs of
        the published code. Generated ones if not given.
    to_bytes
        Truncate the result to 256 levels, as in the published sets. Bytes always are.

    Returns
    -------
    The corrupted images, in the type and on the device of ``images``.

    Raises
    ------
    ValueError
        If table, name or severity does not exist, or the images are not valid.

    Examples
    --------
    >>> import torch, lipcomp
    >>> images = torch.rand(8, 1, 28, 28)
    >>> noisy = lipcomp.corrupt(images, "shot_noise", 5, table="mnist")
    >>> alone = lipcomp.corrupt(images[3:4], "shot_noise", 5, table="mnist", indices=torch.tensor([3]))
    >>> torch.equal(alone, noisy[3:4])  # an image is corrupted in the same way in whatever batch it comes
    True
    """
    check_severity(severity)
    in_bytes = images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not (in_bytes or images.is_floating_point()):
        raise ValueError(
            "images must be floats or bytes (torch.uint8) of shape (batch, 1 or 3, height, width), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    table = table_for(images.shape[1:]) if table is None else table
    corruption = find_corruption(name, table)
    check_corruptible(images.shape[1:], table)
    if indices is None:
        indices = torch.arange(len(images))
    if not isinstance(indices, Tensor):
        indices = torch.as_tensor(np.array(indices))
    if indices.shape != (len(images),) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(
            f"indices must hold one whole number per image ({len(images)}), got {indices.dtype} of shape "
            f"{tuple(indices.shape)}"
        )
    if not len(images):
        return images.clone()
    if not in_bytes:
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must hold pixels in [0, 1], got values from {low:.4g} to {high:.4g}")
    draws = Draws(seed, f"{table}/{name}/{severity}", indices, images.device)
    extra = {"textures": frost_textures} if name == "frost" else {}
    settings = corruption.settings[severity - 1]
    on_cpu = images.device.type == "cpu"
    few = max(1, TOGETHER // images[0].numel()) if on_cpu else len(images)
    with torch.no_grad(), in_float32():
        if in_bytes and on_cpu and corruption.transform in BYTEWISE and max(images.shape[2:]) > LARGEST:
            return corruption.transform(images, draws, *settings)
        results = torch.empty_like(images)
        for part, drawn, out in zip(images.split(few), draws.split(few), results.split(few), strict=True):
            pixels = (part / 255 if in_bytes else part.float()).contiguous()  # sums have one order
            result = corruption.transform(pixels, drawn, *settings, **extra)
            if (result.shape, result.dtype) != (pixels.shape, pixels.dtype) or not result.sum().isfinite():
                raise ValueError(
                    f"corruption {name!r} must return finite pixels of shape {tuple(pixels.shape)} and {pixels.dtype}, "
                    f"got {tuple(result.shape)} and {result.dtype}, or numbers that are not finite"
                )
            result = result.clamp(0, 1)
            if in_bytes:
                result.mul_(255).add_(1e-3)  # truncated by the copy
            elif to_bytes:
                result.mul_(255).add_(1e-3).floor_().div_(255)
            out.copy_(result)
    return results


def resave_jpeg(
    images: Float[Tensor, "batch channels height width"], quality: int = 85
) -> Float[Tensor, "batch channels height width"]:
    """Images as they come back from a JPEG file; the published ImageNet-C was saved so, at quality 85.

    Raises
    ------
    ValueError
        If the quality is not between 1 and 95.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"quality must lie between 1 and 95, got {quality}; the published ImageNet-C has 85")
    return jpeg.jpeg_compression(images, None, quality)


def table_for(image_shape: Sequence[int]) -> str:
    """The table made for images of a shape (channels, height, width).

    Grey images: "mnist". Colour: "cifar" up to 48 pixels, "tiny" up to 112, "imagenet" above.
    """
    channels, side = image_shape[0], max(image_shape[1:])
    if channels == 1:
        return "mnist"
    return "cifar" if side <= 48 else "tiny" if side <= 112 else "imagenet"


def find_corruption(name: str, table: str) -> Corruption:
    """The entry of a table, or a ValueError that names the nearest."""
    known = _table(table)
    if name not in known:
        hint = nearest(name, known)
        raise ValueError(f"corruption {name!r} is not in table {table!r}{hint} It has: {', '.join(known)}")
    return known[name]


def check_severity(severity: int | float) -> None:
    """Refuse a severity that does not exist."""
    if isinstance(severity, float) or severity not in SEVERITIES:
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")


def _table(table: str) -> dict[str, Corruption]:
    if table not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    return TABLES[table]


def check_corruptible(shape: Sequence[int], table: str) -> None:
    """Refuse images (channels, height, width) that a table's corruptions are not made for."""
    channels, *size = shape
    if table == "mnist" and channels != 1:
        raise ValueError(
            f'table "mnist" corrupts grey digits, got images with {channels} channels; take another table'
        )
    if table.endswith("-bar") and channels != 3:
        raise ValueError(
            f"table {table!r} corrupts colour images, got images with {channels} channel; take another table"
        )
    if min(size) < SMALLEST_SIDE:
        raise ValueError(
            f"corruptions need images at least {SMALLEST_SIDE} pixels high and wide, got {size[0]} x {size[1]}; "
            f"give larger images (and an encoder of them), or measure without corruptions"
        )
