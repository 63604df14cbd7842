"""CRC-32C (Castagnoli), as TensorFlow's files carry it, at the speed of numpy.

A CRC with start value 0 is linear over GF(2), and leading zero bytes do not change it. So the data, padded in
front to a rectangle, is worked on row by row in parallel, and the rows' values are joined by the linear map that
appending one row's length of zeros makes: crc(a b) = shift(crc(a)) xor crc(b).
"""

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8


def _table() -> NDArray[np.uint32]:
    value: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        value = ((value >> 1) ^ np.where(value & 1, np.uint32(POLYNOMIAL), np.uint32(0))).astype(np.uint32)
    return value


TABLE = _table()


def crc32c(data: bytes | bytearray) -> int:
    """The checksum; "123456789" gives 0xE3069283."""
    length = len(data)
    # The usual start value of all ones is a message of its own in front: what four 0xFF do to four zero bytes.
    start = np.frombuffer(b"\xff\xff\xff\xff", np.uint8)
    body = np.frombuffer(data, np.uint8)
    if length < 4:
        return _plain(bytes(body))
    return (_linear(body) ^ _shift(_linear(start), length - 4)) ^ 0xFFFFFFFF


def unmask(masked: int) -> int:
    """TensorFlow stores checksums rotated and shifted, so that a checksum of checksums stays meaningful."""
    rotated = (masked - MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def mask(crc: int) -> int:
    """The inverse of :func:`unmask`."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def _plain(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = int(TABLE[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _linear(body: NDArray[np.uint8]) -> int:
    """The checksum with start value 0 and no final complement."""
    width = max(1, min(4096, int(len(body) ** 0.5)))
    rows = -(-len(body) // width)
    padded = np.zeros(rows * width, np.uint8)
    padded[len(padded) - len(body) :] = body
    columns = np.ascontiguousarray(padded.reshape(rows, width).T)
    crc = np.zeros(rows, np.uint32)
    for column in columns:
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    tables = _shift_tables(width)
    total = 0
    for part in crc.tolist():
        total = (
            tables[0][total & 0xFF]
            ^ tables[1][(total >> 8) & 0xFF]
            ^ tables[2][(total >> 16) & 0xFF]
            ^ tables[3][total >> 24]
            ^ part
        )
    return total


def _shift_tables(width: int) -> list[list[int]]:
    """For each byte of a checksum, what ``width`` zero bytes behind make of its 256 values."""
    crc = (np.arange(256, dtype=np.uint32)[None, :] << np.array([[0], [8], [16], [24]], np.uint32)).astype(
        np.uint32
    )
    for _ in range(width):
        crc = TABLE[crc & 0xFF] ^ (crc >> np.uint32(8))
    return [[int(value) for value in row] for row in crc]


def _shift(crc: int, zeros: int) -> int:
    """The checksum after so many zero bytes: by squaring the map of one."""
    columns = [int(value) for value in _bits_after_one_zero()]
    while zeros:
        if zeros & 1:
            crc = _apply(columns, crc)
        columns = [_apply(columns, column) for column in columns]
        zeros >>= 1
    return crc


def _bits_after_one_zero() -> NDArray[np.uint32]:
    bits = (np.uint32(1) << np.arange(32, dtype=np.uint32)).astype(np.uint32)
    return TABLE[bits & 0xFF] ^ (bits >> np.uint32(8))


def _apply(columns: list[int], crc: int) -> int:
    value, bit = 0, 0
    while crc:
        if crc & 1:
            value ^= columns[bit]
        crc >>= 1
        bit += 1
    return value
