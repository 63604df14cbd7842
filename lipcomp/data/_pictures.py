"""Decode an image file to a picture of bytes (modes L and RGB) or of numbers in [0, 1] (mode F).

==========================  ==========================================================================================
stored as                   becomes
==========================  ==========================================================================================
1, 2, 4, 8 bits, palette    bytes; a palette's colours
16 bits, grey               value / 65535 (12-bit TIFF: / 4095), not rounded to bytes; colour: the high bytes
float                       as it is if all of it lies in [0, 1]; NaN, infinity and other ranges are refused
32-bit or signed integers   refused: nothing says which value is white
more or unknown channels    refused
alpha, transparent colours  composited on a background
CMYK, YCbCr                 Pillow's conversion to RGB; Lab is refused
EXIF and TIFF orientation   turned upright
several frames or pages     refused (the main picture of an MPO is taken)
==========================  ==========================================================================================

A TIFF whose zero is white is inverted at every depth. (Pillow does so up to 8 bits only.)
"""

import re
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

from lipcomp._messages import is_of_machine

WHITE = (255, 255, 255)
# Tags of TIFF and EXIF.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANES, _EXTRA, _FORMAT = 258, 262, 274, 277, 284, 338, 339
# What a file may be, whatever it is called. Pillow would read others too, EPS by running Ghostscript.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP") + (
    ("AVIF",) if features.check("avif") else ()
)
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(ValueError):
    """A file that is not an image, is damaged, or whose numbers have no defined meaning."""


def read_picture(file: Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Decode an image file.

    Raises
    ------
    UnreadableImageError
        If that is not possible without guessing; the message names the file and the reason.
    """
    return decode(file, file, background)


def decode(source: Path | BytesIO, name: Path | str, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """:func:`read_picture` of a file or of an open one, which messages call ``name``."""
    try:
        with Image.open(source, formats=FORMATS) as opened:
            return as_picture(opened, background)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _unreadable(name, error) from error


def check_header(file: Path) -> None:
    """Open a file without decoding it; raises :class:`UnreadableImageError` if it is no image."""
    try:
        Image.open(file, formats=FORMATS).close()
    except Exception as error:
        raise _unreadable(file, error) from error


def upright_size(file: Path) -> tuple[int, int] | None:
    """(height, width) of a picture that is stored upright, None of another; raises as :func:`check_header`."""
    try:
        with Image.open(file, formats=FORMATS) as source:
            return None if _is_turned(source) else (source.height, source.width)
    except Exception as error:
        raise _unreadable(file, error) from error


def as_picture(source: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Turn any of Pillow's images into one of mode L, RGB or F, upright.

    Raises
    ------
    ValueError
        If its mode has no certain meaning, or it is a file of several frames of which none was chosen (``seek``).
    """
    frames = getattr(source, "n_frames", 1)
    if frames > 1 and source.format != "MPO" and source.tell() == 0:
        raise ValueError(f"it holds {frames} frames or pages; save each one as a separate file")
    tags = getattr(source, "tag_v2", {})
    _check_tiff(tags)
    _load(source)
    image = ImageOps.exif_transpose(source) if _is_turned(source) else source
    if image.mode in _DEEP:
        return _from_deep(image, tags, background)
    if image.mode == "I" and source.format in ("PNG", "PPM"):
        return Image.fromarray((np.asarray(image) / 65535).astype(np.float32))
    if image.mode == "F":
        return _from_float(np.array(image), inverted=tags.get(_PHOTOMETRIC) == 0)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _composited(image, background)
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("RGB", "P", "CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    what = "whole numbers of 32 bits" if image.mode == "I" else f"pixels of mode {image.mode}"
    raise ValueError(f"it holds {what}, whose value for white is unknown; save it with 8 or 16 bits")


def _is_turned(source: Image.Image) -> bool:
    """Whether the picture lies on its side; notes of a camera that cannot be read say that it does not."""
    try:
        return source.getexif().get(_ORIENTATION, 1) != 1
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return False


def _load(source: Image.Image) -> None:
    """Decode, with what Pillow gets wrong put right.

    It maps an uncompressed file into memory by the size that the picture has when turned upright, which scrambles a
    TIFF on its side; and the transparent grey of a PNG of 2 or 4 bits stays as it is stored, though the pixels do not.
    """
    stored = next((part[3] for part in getattr(source, "tile", ())), None)
    name, source.filename = getattr(source, "filename", ""), ""  # type: ignore[attr-defined]  # no map without it
    try:
        source.load()
    finally:
        source.filename = name  # type: ignore[attr-defined]
    if stored == "RGB;16B" and "transparency" in source.info:
        raise ValueError(
            "a colour of 16 bits is transparent, and only the high bytes of colours are read; save it with alpha"
        )
    if source.format == "PNG" and stored in ("L;2", "L;4") and "transparency" in source.info:
        source.info["transparency"] *= 85 if stored == "L;2" else 17


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Refuse what Pillow reads as if it were something else: signed bytes, deep planes, and channels that it drops."""
    if 2 in tags.get(_FORMAT, ()):
        raise ValueError(
            "it holds numbers with a sign, whose value for white is unknown; save it with 8 or 16 bits"
        )
    if tags.get(_SAMPLES, 1) > 4 or (tags.get(_PHOTOMETRIC) == 2 and 0 in tags.get(_EXTRA, ())):
        raise ValueError(
            f"it holds {tags[_SAMPLES]} channels, some of unknown meaning; save red, green and blue"
        )
    apart = tags.get(_PLANES) == 2 and tags.get(_SAMPLES, 1) > 1
    if apart and (tags.get(_SAMPLES) == 2 or max(tags.get(_BITS, (1,))) > 8):
        raise ValueError(
            "its channels lie one after the other (planar); save it with those of a pixel together"
        )


def _from_deep(image: Image.Image, tags: Mapping[int, Any], background: tuple[int, int, int]) -> Image.Image:
    values = np.asarray(image).astype(np.float32) / (2 ** min(tags.get(_BITS, (16,))) - 1)
    if tags.get(_PHOTOMETRIC) == 0:
        values = 1 - values
    if "transparency" in image.info:
        key = int(image.info["transparency"])
        values[np.asarray(image) == key] = sum(background) / 3 / 255
    return Image.fromarray(values)


def _from_float(values: np.ndarray, inverted: bool) -> Image.Image:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        raise ValueError(
            f"its numbers go from {low:g} to {high:g}, but floats must lie in [0, 1]; scale them, or save 16 bits"
        )
    return Image.fromarray(1 - values if inverted else values)


def _composited(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    behind = Image.new("RGBA", image.size, (*background, 255))
    flat = Image.alpha_composite(behind, rgba).convert("RGB")
    return flat.convert("L") if image.mode in ("LA", "La", "L", "1") and is_grey(flat) else flat


def is_grey(picture: Image.Image) -> bool:
    """Whether a picture has no colour, whatever its mode."""
    if picture.mode != "RGB":
        return True
    pixels = np.asarray(picture)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())


def with_channels(picture: Image.Image, channels: int, convert: bool) -> Image.Image:
    """Bring a picture to one channel or three; colour becomes grey (ITU-R 601 luma) only if ``convert``.

    Raises
    ------
    ValueError
        If colour would be lost, or another number of channels is asked for.
    """
    if channels == 3:
        return picture if picture.mode in ("RGB", "F") else picture.convert("RGB")
    if channels != 1:
        raise ValueError(
            f"has 1 or 3 channels, the encoder takes {channels}; no picture can be converted to that"
        )
    if picture.mode != "RGB":
        return picture
    if not convert and not is_grey(picture):
        raise ValueError(
            "is in colour, the encoder takes 1 channel; allow grey values with convert_channels=True"
        )
    return picture.convert("L")


def _unreadable(file: Path | str, error: Exception) -> UnreadableImageError:
    if is_of_machine(error):
        raise error  # the file may be whole, and must not be left out
    # how Pillow calls an open file
    reason = re.sub(r"<_io\.\w+ .*?>", "", str(error).replace(repr(str(file)), ""))
    reason = reason.strip() or type(error).__name__
    return UnreadableImageError(
        f"image {str(file)!r} cannot be read ({reason}); replace it (of your own folder or shards, leave such out "
        f"with skip_unreadable=True)"
    )
