"""JPEG, encoded and decoded on a batch: what libjpeg does to pixels, without its bit stream.

Entropy coding loses nothing, so only the steps that round are done, in libjpeg's own integers: RGB to YCbCr, chroma
halved in both directions (4:2:0), the 8 x 8 cosine transform in 13-bit constants ("islow"), quantisation, and back,
with the triangle filter for chroma ("fancy upsampling"). The result equals Pillow's pixel for pixel.

A one-dimensional transform of libjpeg is a matrix of whole numbers followed by one rounding shift, so each is a matrix
product, exact in double precision. From 96 pixels on Pillow itself is faster, and does it.
"""

import io
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import CACHED, LARGEST, Bytes, Images, by_pillow

Plane = Float[Tensor, "_ _ _"]  # images, rows, columns
BITS, PASS = 13, 2
# Annex K of the standard: quantisation at quality 50, for brightness and for chroma.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def jpeg_compression(images: Images | Bytes, draws: Draws | None, quality: int) -> Images | Bytes:
    """Encode and decode as JPEG; colour with chroma at half the resolution, as Pillow does by default."""
    if max(images.shape[2:]) > LARGEST:
        return by_pillow(images, lambda picture: _recoded(picture, quality))
    device = images.device
    pixels = (images.cpu() if device.type == "mps" else images).float().mul(255).round_()  # no float64 there
    few = max(1, CACHED // pixels[0].numel())  # what stays in the processor's cache is several times as fast
    decoded = torch.empty_like(pixels)
    for part, out in zip(pixels.split(few), decoded.split(few), strict=True):
        if part.shape[1] == 1:
            out.copy_(_code(part[:, 0], quality, _LUMA)[:, None])
        else:
            out.copy_(_to_rgb(*_subsampled(_to_ycc(part), quality)))
    return decoded.div_(255).to(images.dtype).to(device)


def _recoded(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    # by the decoder alone: of our own file, Pillow need not read the markers
    return Image.frombytes(picture.mode, picture.size, buffer.getvalue(), "jpeg", picture.mode, "")


def _subsampled(planes: tuple[Plane, Plane, Plane], quality: int) -> tuple[Plane, Plane, Plane]:
    luma, *chroma = planes
    height, width = luma.shape[1:]
    halved = torch.cat([_halve(plane) for plane in chroma])
    small = _code(halved, quality, _CHROMA)[:, : (height + 1) // 2, : (width + 1) // 2]
    blue, red = _double(small)[:, :height, :width].chunk(2)
    return _code(luma, quality, _LUMA), blue, red


def _to_ycc(rgb: Float[Tensor, "n 3 height width"]) -> tuple[Plane, Plane, Plane]:
    """16-bit fixed point, rounded; the chroma's half is one less, so that 0.5 cannot come to 256."""
    r, g, b = rgb.unbind(1)
    middle = (128 << 16) + 32767  # every sum below 2^24, where single precision is exact
    weights = ((19595, 38470, 7471, 32768), (-11059, -21709, 32768, middle), (32768, -27439, -5329, middle))
    y, cb, cr = (
        (r * red).add_(g, alpha=green).add_(b, alpha=blue).add_(half).mul_(2**-16).floor_()
        for red, green, blue, half in weights
    )
    return y, cb, cr


def _to_rgb(y: Plane, cb: Plane, cr: Plane) -> Float[Tensor, "n 3 height width"]:
    cb, cr = cb - 128, cr - 128
    green = (cb * -22554).add_(cr, alpha=-46802)
    rgb = torch.stack([cr.mul_(91881), green, cb.mul_(116130)], 1)
    return rgb.add_(32768).mul_(2**-16).floor_().add_(y[:, None]).clamp_(0, 255)


def _halve(plane: Plane) -> Plane:
    """Means of 2 x 2 pixels; halves are rounded down and up in turn. The last column repeats up to a block's end."""
    height, width = plane.shape[1:]
    padded = functional.pad(plane[:, None], (0, -width % 16, 0, height % 2), mode="replicate")[:, 0]
    rows = padded[:, ::2] + padded[:, 1::2]
    bias = 1 + torch.arange(rows.shape[2] // 2, device=plane.device) % 2
    return (rows[..., ::2] + rows[..., 1::2]).add_(bias).mul_(0.25).floor_()


def _double(plane: Plane) -> Plane:
    """Twice the size by the weights 3 : 1 in both directions, each rounded as libjpeg rounds it."""
    before, after = (torch.cat(t, 1) for t in ((plane[:, :1], plane[:, :-1]), (plane[:, 1:], plane[:, -1:])))
    rows = torch.stack([before.add_(plane, alpha=3), after.add_(plane, alpha=3)], 2).flatten(1, 2)
    left, right = (
        torch.cat(t, 2) for t in ((rows[..., :1], rows[..., :-1]), (rows[..., 1:], rows[..., -1:]))
    )
    pairs = torch.stack([left.add_(rows, alpha=3).add_(8), right.add_(rows, alpha=3).add_(7)], 3)
    return pairs.mul_(1 / 16).floor_().flatten(2)


def _code(plane: Plane, quality: int, table: tuple[tuple[int, ...], ...]) -> Plane:
    """The transform of every 8 x 8 block, quantised, and back; sides are filled up by repeating the border."""
    n, height, width = plane.shape
    padded = functional.pad(plane[:, None], (0, -width % 8, 0, -height % 8), mode="replicate")[:, 0]
    high, wide = padded.shape[1:]
    forward = _transform().to(plane.device)
    steps = _quantisation(quality, table).to(plane.device)
    rows = _shift(padded.sub(128).view(-1, 8) @ forward.T.float(), BITS - PASS)  # all below 2^24
    coefficients = _shift(forward @ rows.double().view(n * high // 8, 8, wide), BITS + PASS)
    blocks = coefficients.view(-1, 8, wide // 8, 8)
    # eight times the coefficient, rounded with halves away from zero; the reciprocal errs far less than 1e-6
    signs = blocks.sign()
    blocks = blocks.abs_().mul_(0.125 / steps).add_(0.5 + 1e-6).floor_().mul_(steps).mul_(signs)
    columns = _shift(forward.T @ blocks.view(-1, 8, wide), BITS - PASS)
    decoded = _shift(columns.reshape(-1, 8) @ forward, BITS + PASS + 3)
    return decoded.float().add_(128).clamp_(0, 255).view(n, high, wide)[:, :height, :width]


def _shift(values: Tensor, bits: int) -> Tensor:
    """(value + half) >> bits, in place."""
    return values.add_(2.0 ** (bits - 1)).mul_(2.0**-bits).floor_()


@lru_cache(maxsize=32)
def _quantisation(quality: int, table: tuple[tuple[int, ...], ...]) -> Float[Tensor, "8 1 8"]:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (np.array(table) * scale + 50) // 100
    return torch.from_numpy(steps.clip(1, 255)).double()[:, None]


@lru_cache(maxsize=1)
def _transform() -> Float[Tensor, "8 8"]:
    """The whole-number matrix of libjpeg's one-dimensional transform, times 2^13 (Loeffler et al. 1989)."""
    d = np.eye(8, dtype=np.int64)
    total, gap = d[:4] + d[:3:-1], d[:4] - d[:3:-1]
    even, odd = total[:2] + total[:1:-1], total[:2] - total[:1:-1]
    turn = 4433 * (odd[0] + odd[1])
    out = np.zeros((8, 8), dtype=np.int64)
    out[0], out[4] = (even[0] + even[1]) << BITS, (even[0] - even[1]) << BITS
    out[2], out[6] = turn + 6270 * odd[0], turn - 15137 * odd[1]
    g7, g6, g5, g4 = gap
    both = 9633 * (g4 + g6 + g5 + g7)
    outer, inner = -7373 * (g4 + g7), -20995 * (g5 + g6)
    first, second = both - 16069 * (g4 + g6), both - 3196 * (g5 + g7)
    out[7], out[5] = 2446 * g4 + outer + first, 16819 * g5 + inner + second
    out[3], out[1] = 25172 * g6 + inner + first, 12299 * g7 + outer + second
    return torch.from_numpy(out).double()
