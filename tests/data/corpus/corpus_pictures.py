"""Pixels of every mode, depth and format; sizes and channels."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from corpus_building import CASES, HEIGHT, WIDTH, Checks, Exact, Folder, Refused, case
from PIL import Image

from lipcomp.data import Preprocessing

LEVEL = 1 / 255 + 1e-6
GREY = np.linspace(0, 255, HEIGHT * WIDTH).round().astype(np.uint8).reshape(HEIGHT, WIDTH)
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
COLOUR = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
WHITE_BEHIND = (COLOUR * (ALPHA / 255)[..., None] + 255 * (1 - ALPHA / 255)[..., None]) / 255


def pixels_of(
    name: str,
    write: Callable[[Path], object],
    truth: np.ndarray,
    *,
    channels: int | None = None,
    tolerance: float = 1e-6,
) -> None:
    """A case of one image file with its true pixels."""

    def build(f: Folder) -> Checks:
        path = f.make(name)
        write(path)
        f.pixels[name] = truth
        yield Exact({name: None}, channels=channels or (1 if truth.ndim == 2 else 3), tolerance=tolerance)

    CASES[f"pixels_{re.sub('[^a-z0-9]+', '_', name)}"] = build


def refused_of(name: str, write: Callable[[Path], object], reason: str) -> None:
    """A case of one image file that must not be read, beside a good one."""

    def build(f: Folder) -> Checks:
        write(f.make(name))
        yield Refused(f"cannot be read.*{reason}")
        yield Refused("none of the 1 images", options={"skip_unreadable": True})
        f.put("good.png")
        yield Refused(f"cannot be read.*{reason}")
        yield Exact(
            {"good.png": None}, options={"skip_unreadable": True}, note="1 of 2 images cannot be read"
        )

    CASES[f"refused_{re.sub('[^a-z0-9]+', '_', name)}"] = build


def saved(array: np.ndarray, mode: str | None = None, **options: Any) -> Callable[[Path], None]:
    return lambda path: (
        Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    ).save(path, **options)


def tiff(
    array: np.ndarray, *, bits: int, photometric: int = 1, sample_format: int = 1, order: str = "<"
) -> Callable[[Path], None]:
    """A one-strip grey TIFF written byte by byte: Pillow does not write all kinds."""
    rows = array.astype(array.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        rows = b"".join(_packed(row) for row in array)
    tags = [
        (256, 4, array.shape[1]),
        (257, 4, array.shape[0]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
    ]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, array.shape[0]), (279, 4, len(rows)), (339, 3, sample_format)]
    body = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1)
        + struct.pack(f"{order}{'I' if kind == 4 else 'HH'}", *_cell(kind, v))
        for tag, kind, v in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(rows))
    content = head + rows + struct.pack(f"{order}H", len(tags)) + body + bytes(4)
    return lambda path: path.write_bytes(content) and None


def _planar(path: Path) -> None:
    """A TIFF of colours with 16 bits that says its red, green and blue lie one after the other."""
    cv2.imwrite(str(path), np.dstack([DEEP] * 3))
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] == 284:
            struct.pack_into("<H", content, entry + 8, 2)
    path.write_bytes(content)


def _bands(count: int, extra: int) -> Callable[[Path], None]:
    """A TIFF of red, green, blue and more channels that nothing explains."""

    def write(path: Path) -> None:
        saved(np.dstack([COLOUR, ALPHA]))(path)
        content = bytearray(path.read_bytes())
        start = struct.unpack_from("<I", content, 4)[0]
        for i in range(struct.unpack_from("<H", content, start)[0]):
            entry = start + 2 + 12 * i
            tag = struct.unpack_from("<H", content, entry)[0]
            if tag == 277:
                struct.pack_into("<H", content, entry + 8, count)
            if tag == 338:
                struct.pack_into("<IHH", content, entry + 4, extra, 0, 0)
            if tag == 258 and count == 5:
                struct.pack_into("<II", content, entry + 4, 5, len(content))
        path.write_bytes(bytes(content) + struct.pack("<5H", *[8] * 5))

    return write


def _cell(kind: int, value: int) -> tuple[int, ...]:
    return (value,) if kind == 4 else (value, 0)


def _packed(row: np.ndarray) -> bytes:
    text = "".join(f"{value:012b}" for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def png(bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> Callable[[Path], None]:
    """A PNG of given raw rows (each with its filter byte)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *(chunk(*c) for c in chunks),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts)) and None


def rows_of(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)


def opencv(array: np.ndarray) -> Callable[[Path], bool]:
    return lambda path: cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


DEEP_COLOUR = (COLOUR.astype(np.uint16) << 8) + 200
pixels_of("grey8.png", saved(GREY), GREY / 255)
pixels_of("grey8_three.png", saved(GREY), GREY / 255)
pixels_of("grey16.png", saved(DEEP), DEEP / 65535)
pixels_of("grey16.tif", saved(DEEP), DEEP / 65535)
pixels_of("grey16_big_endian.tif", tiff(DEEP, bits=16, order=">"), DEEP / 65535)
pixels_of("grey16_zero_is_white.tif", tiff(DEEP, bits=16, photometric=0), 1 - DEEP / 65535)
pixels_of("grey8_zero_is_white.tif", tiff(GREY, bits=8, photometric=0), 1 - GREY / 255)
pixels_of("grey12.tif", tiff(DEEP >> 4, bits=12), (DEEP >> 4) / 4095)
pixels_of(
    "grey16.pgm", lambda p: p.write_bytes(b"P5 7 6 65535\n" + DEEP.astype(">u2").tobytes()), DEEP / 65535
)
pixels_of(
    "grey10.pgm",
    lambda p: p.write_bytes(b"P5 7 6 1023\n" + (DEEP >> 6).astype(">u2").tobytes()),
    (DEEP >> 6) / 1023,
    tolerance=1 / 65535,
)
pixels_of(
    "grey_of_100.pgm",
    lambda p: p.write_bytes(b"P5 7 6 100\n" + (GREY // 3).tobytes()),
    (GREY // 3) / 100,
    tolerance=LEVEL,
)
pixels_of("grey4.png", png(4, 0, b"".join(b"\0" + bytes([0x0F, 0x5A, 0xC3, 0x70]) for _ in range(HEIGHT))),
          np.tile(np.array([0, 15, 5, 10, 12, 3, 7]) / 15, (HEIGHT, 1)))  # fmt: skip
pixels_of("bits.png", saved(GREY > 99), (GREY > 99) * 1.0)
pixels_of("bits.tif", saved(GREY > 99), (GREY > 99) * 1.0)
pixels_of("float.tif", saved(np.float32(DEEP / 65535)), DEEP / 65535)
pixels_of("float_zero_is_white.tif", tiff(np.float32(DEEP / 65535), bits=32, photometric=0, sample_format=3),
          1 - DEEP / 65535)  # fmt: skip
pixels_of("colour.png", saved(COLOUR), COLOUR / 255)
pixels_of("colour.bmp", saved(COLOUR), COLOUR / 255)
pixels_of("colour.ppm", saved(COLOUR), COLOUR / 255)
pixels_of("colour.tif", saved(COLOUR, compression="tiff_lzw"), COLOUR / 255)
pixels_of("colour.webp", saved(COLOUR, lossless=True), COLOUR / 255)
pixels_of("colour16.png", opencv(DEEP_COLOUR), DEEP_COLOUR / 65535, tolerance=LEVEL)
pixels_of("colour16.tif", opencv(DEEP_COLOUR), DEEP_COLOUR / 65535, tolerance=LEVEL)
pixels_of("alpha.png", saved(np.dstack([COLOUR, ALPHA])), WHITE_BEHIND, tolerance=LEVEL)
pixels_of("alpha.tif", saved(np.dstack([COLOUR, ALPHA])), WHITE_BEHIND, tolerance=LEVEL)
pixels_of(
    "alpha.webp", saved(np.dstack([COLOUR, ALPHA]), lossless=True, exact=True), WHITE_BEHIND, tolerance=LEVEL
)
pixels_of(
    "grey_alpha.png",
    saved(np.dstack([GREY, ALPHA])),
    (GREY * (ALPHA / 255) + 255 - ALPHA) / 255,
    tolerance=LEVEL,
)
_DEEP_ALPHA = np.dstack([DEEP_COLOUR, ALPHA.astype(np.uint16) * 257])
pixels_of("colour16_alpha.png", png(16, 6, rows_of(_DEEP_ALPHA.astype(">u2"))),
          DEEP_COLOUR / 65535 * (ALPHA / 255)[..., None] + 1 - (ALPHA / 255)[..., None], tolerance=LEVEL)  # fmt: skip
_GREY_ALPHA16 = np.dstack([DEEP, ALPHA.astype(np.uint16) * 257]).astype(">u2")
pixels_of("grey16_alpha.png", png(16, 4, rows_of(_GREY_ALPHA16)), DEEP / 65535 * (ALPHA / 255) + 1 - ALPHA / 255,
          tolerance=LEVEL)  # fmt: skip
_INDEX = (GREY // 64).astype(np.uint8)
_PALETTE = np.array([[250, 0, 10], [0, 200, 30], [7, 77, 177], [99, 98, 97]], np.uint8)
pixels_of("palette.png", png(8, 3, rows_of(_INDEX), (b"PLTE", _PALETTE.tobytes())), _PALETTE[_INDEX] / 255)
_CHUNKS = ((b"PLTE", _PALETTE.tobytes()), (b"tRNS", bytes([0, 255, 128])))
pixels_of("palette_alpha.png", png(8, 3, rows_of(_INDEX), *_CHUNKS),
          _PALETTE[_INDEX] / 255 * (np.array([0, 255, 128, 255])[_INDEX] / 255)[..., None]
          + 1 - (np.array([0, 255, 128, 255])[_INDEX] / 255)[..., None], tolerance=LEVEL)  # fmt: skip
pixels_of("grey_palette.png", saved(GREY // 16 * 16, "P"), GREY // 16 * 16 / 255, channels=1)
pixels_of("colour_key.png", png(8, 2, rows_of(COLOUR), (b"tRNS", struct.pack(">HHH", *COLOUR[2, 3].tolist()))),
          np.where((COLOUR[2, 3] == COLOUR).all(2, keepdims=True), 255, COLOUR) / 255)  # fmt: skip
pixels_of("grey_key.png", png(8, 0, rows_of(GREY), (b"tRNS", struct.pack(">H", int(GREY[2, 3])))),
          np.where(GREY[2, 3] == GREY, 255, GREY) / 255)  # fmt: skip
for _bits, _rows in ((4, bytes([0x0F, 0x5A, 0xC3, 0x70])), (2, bytes([0b00110110, 0b11000100]))):
    _grey = (
        np.unpackbits(np.frombuffer(_rows, np.uint8)).reshape(-1, _bits)[:7].dot(1 << np.arange(_bits)[::-1])
    )
    pixels_of(
        f"grey{_bits}_key.png",
        png(
            _bits,
            0,
            b"".join(b"\0" + _rows for _ in range(HEIGHT)),
            (b"tRNS", struct.pack(">H", int(_grey[2]))),
        ),
        np.tile(np.where(_grey == _grey[2], 1.0, _grey / (2**_bits - 1)), (HEIGHT, 1)),
    )
pixels_of("grey16_key.png", png(16, 0, rows_of(DEEP.astype(">u2")), (b"tRNS", struct.pack(">H", int(DEEP[2, 3])))),
          np.where(DEEP[2, 3] == DEEP, 65535, DEEP) / 65535)  # fmt: skip
pixels_of("cmyk.tif", saved(COLOUR, "CMYK"), COLOUR / 255)


@case
def lossy_files(f: Folder) -> Checks:
    """JPEG of every colour layout, against OpenCV."""
    smooth = cv2.resize(COLOUR, (WIDTH, HEIGHT)) // 4 + 90
    for name, options in (
        ("444", {"subsampling": 0}),
        ("420", {"subsampling": 2}),
        ("progressive", {"progressive": True}),
    ):
        f.save(f"{name}.jpg", Image.fromarray(smooth), quality=98, **options)
        f.pixels[f"{name}.jpg"] = cv2.imread(str(f.root / f"{name}.jpg"))[..., ::-1] / 255
    f.save("cmyk.jpg", Image.fromarray(smooth).convert("CMYK"), quality=98)
    f.pixels["cmyk.jpg"] = cv2.imread(str(f.root / "cmyk.jpg"))[..., ::-1] / 255
    yield Exact(dict.fromkeys(("444.jpg", "420.jpg", "progressive.jpg", "cmyk.jpg")), tolerance=LEVEL)


@case
def orientations(f: Folder) -> Checks:
    """All eight EXIF orientations of JPEG, PNG, TIFF and WebP; OpenCV turns JPEG, arithmetic the others."""
    square = np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    turned = {
        1: square, 2: square[:, ::-1], 3: square[::-1, ::-1], 4: square[::-1], 5: square.transpose(1, 0, 2),
        6: np.rot90(square, -1), 7: square[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(square),
    }  # fmt: skip
    for orientation, truth in turned.items():
        exif = Image.Exif()
        exif[274] = orientation
        for suffix in ("png", "tif", "webp", "jpg"):
            name = f"{orientation}.{suffix}"
            f.save(
                name,
                Image.fromarray(square),
                truth / 255,
                exif=exif,
                **{"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {}),
            )
            if suffix == "jpg":
                f.pixels[name] = cv2.imread(str(f.root / name))[..., ::-1] / 255
    names = [f"{o}.{s}" for o in turned for s in ("png", "tif", "webp", "jpg")]
    yield Exact(dict.fromkeys(names), options={"image_shape": (3, 6, 6)}, tolerance=LEVEL)


@case
def pictures_on_their_side(f: Folder) -> Checks:
    """Orientations that swap the sides, of files that Pillow maps into memory and of compressed ones."""
    lying = COLOUR.transpose(1, 0, 2)
    stored = {5: COLOUR, 6: np.rot90(lying), 7: lying[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(lying, -1)}
    for orientation, pixels in stored.items():
        for compression in ("raw", "tiff_lzw"):
            options = {"tiffinfo": {274: orientation}, "compression": compression}
            image = Image.fromarray(np.ascontiguousarray(pixels))
            f.save(f"{orientation}_{compression}.tif", image, lying / 255, **options)
    yield Exact(dict.fromkeys(f.pixels), options={"image_shape": (3, WIDTH, HEIGHT)})


@case
def picture_of_two_frames_from_a_camera(f: Folder) -> Checks:
    first, second = Image.fromarray(COLOUR), Image.new("RGB", (WIDTH, HEIGHT))
    f.save("0.jpg", first, format="MPO", save_all=True, append_images=[second], quality=98, subsampling=0)
    f.pixels["0.jpg"] = cv2.imread(str(f.root / "0.jpg"))[..., ::-1] / 255
    yield Exact({"0.jpg": None}, tolerance=LEVEL)


def _frames(**options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(COLOUR).save(
        path, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], **options
    )


def _cut(path: Path) -> None:
    Image.fromarray(np.tile(COLOUR, (20, 20, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _bomb(path: Path) -> None:
    png(8, 0, b"")(path)
    head = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + path.read_bytes()[33:])


SIGNED = (DEEP.astype(np.int32) - 30000).astype(np.int16)
HOLED = np.where(GREY[1, 1] == GREY, np.nan, GREY / 255).astype(np.float32)
ENDLESS = np.where(GREY[1, 1] == GREY, np.inf, GREY / 255).astype(np.float32)
refused_of("whole32.tif", tiff(DEEP.astype(np.uint32), bits=32), "value for white is unknown")
refused_of(
    "signed32.tif", tiff(DEEP.astype(np.int32), bits=32, sample_format=2), "value for white is unknown"
)
refused_of(
    "key16.png",
    png(16, 2, rows_of(COLOUR.astype(">u2") * 257), (b"tRNS", bytes(6))),
    "16 bits is transparent",
)
refused_of("signed8.tif", tiff((GREY // 2).astype(np.int8), bits=8, sample_format=2), "with a sign")
refused_of("signed16.tif", tiff(SIGNED, bits=16, sample_format=2), "with a sign")
refused_of("float255.tif", saved(GREY.astype(np.float32)), r"from 0 to 255.*\[0, 1\]")
refused_of("negative.tif", saved(GREY.astype(np.float32) / 255 - 0.5), "from -0.5 to 0.5")
refused_of("nan.tif", saved(HOLED), "NaN")
refused_of("infinite.tif", saved(ENDLESS), "infinity")
refused_of("lab.tif", lambda path: Image.fromarray(COLOUR, "LAB").save(path), "mode LAB")
refused_of("five_channels.tif", _bands(5, 2), "5 channels")
refused_of("unknown_channel.tif", _bands(4, 1), "4 channels, some of unknown meaning")
refused_of("planar16.tif", _planar, "one after the other .planar.")
refused_of("pages.tif", _frames(), "2 frames or pages")
refused_of("animated.png", _frames(), "2 frames or pages")
refused_of("animated.webp", _frames(), "2 frames or pages")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
# Pillow runs Ghostscript on it
refused_of("postscript.jpg", lambda path: path.write_bytes(EPS), "cannot identify")
refused_of("cut.jpg", _cut, "truncated|broken")
refused_of("cut.png", _cut, "truncated|broken")
refused_of("cut.tif", _cut, "")
refused_of("cut.webp", _cut, "")
refused_of("empty.png", lambda path: path.write_bytes(b""), "cannot identify")
refused_of("text.jpg", lambda path: path.write_text("<html>404</html>"), "cannot identify")
refused_of("huge.png", _bomb, "exceeds limit|pixels")


@case
def grey_among_colours(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    f.save("2.png", Image.fromarray(GREY), np.dstack([GREY] * 3) / 255)
    f.save("3.png", Image.fromarray(DEEP), np.dstack([DEEP] * 3) / 65535)
    yield Exact(dict.fromkeys(("0.png", "1.png", "2.png", "3.png")))


@case
def grey_for_colour(f: Folder) -> Checks:
    for i in range(3):
        f.save(f"{i}.png", Image.fromarray(GREY), np.dstack([GREY] * 3) / 255)
    names = dict.fromkeys(f"{i}.png" for i in range(3))
    yield Refused("are grey, the encoder takes 3 channels.*convert_channels=True")
    yield Exact(names, options={"convert_channels": True})
    yield Exact(names, channels=1)
    yield Refused("takes 4", channels=4)


@case
def colour_for_grey(f: Folder) -> Checks:
    luma = (COLOUR @ np.array([0.299, 0.587, 0.114])) / 255
    f.save("0.png", Image.fromarray(COLOUR), luma)
    yield Refused("in colour, the encoder takes 1 channel.*convert_channels=True", channels=1)
    yield Exact({"0.png": None}, channels=1, options={"convert_channels": True}, tolerance=LEVEL)
    yield Refused("takes 2", channels=2, options={"convert_channels": True})


@case
def grey_stored_as_colour(f: Folder) -> Checks:
    f.save("0.png", Image.fromarray(np.dstack([GREY] * 3)), GREY / 255)
    yield Exact({"0.png": None}, channels=1)
    f.pixels["0.png"] = np.dstack([GREY] * 3) / 255
    yield Exact({"0.png": None})


@case
def another_size(f: Folder) -> Checks:
    f.put("0.png")
    yield Refused("not .3, 9, 9.; give one with a crop", options={"image_shape": (3, 9, 9)})
    yield Refused("smaller than the 9 x 9", options={"image_shape": (3, 9, 9), "preprocessing": None})
    doubled = Preprocessing((2 * HEIGHT, 2 * WIDTH), squash=True, interpolation="nearest")
    f.pixels["0.png"] = f.pixels["0.png"].repeat(2, 0).repeat(2, 1)
    yield Exact(
        {"0.png": None}, options={"image_shape": (3, 2 * HEIGHT, 2 * WIDTH), "preprocessing": doubled}
    )
