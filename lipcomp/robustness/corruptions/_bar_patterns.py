"""Patterns of ImageNet-C-bar and CIFAR-10-C-bar: waves, coloured noise, sparkles, lines, cut-outs (Mintun et al. 2021).

These corruptions were chosen to be unlike ImageNet-C's. Each takes one image, (height, width, 3) floats in 0..255, the
image's own draws and a *level* that stands in the published lists of severities, and draws in the published order.
"""

import math

import numpy as np
from jaxtyping import Float

from lipcomp.robustness.corruptions._draws import Draws

Pixels = Float[np.ndarray, "height width 3"]
GREY = 128.0
PERLIN = 256


def number(draws: Draws, low: float | int = 0.0, high: float | int = 1.0) -> float:
    """One uniform number."""
    return float(draws.uniform(low=low, high=high))


def grid(image: Pixels) -> tuple[np.ndarray, np.ndarray, float]:
    """Row and column of every pixel, and the side that lengths are parts of."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(float)
    return y, x, float(max(image.shape[:2]))


def single_frequency_greyscale(image: Pixels, draws: Draws, level: float) -> Pixels:
    """One plane wave, added to all channels."""
    y, x, _ = grid(image)
    first = number(draws, -np.pi, np.pi)
    frequencies = np.array([first, number(draws, -abs(first), abs(first))])[draws.permutation(2)]
    phase = number(draws, 0, 2 * np.pi)
    wave = np.sin(x * frequencies[0] + y * frequencies[1] + phase)
    return image + 19.6 * level * wave[..., None]


def cocentric_sine_waves(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Saw-toothed rings about a point, their radius a sine of the angle."""
    y, x, side = grid(image)
    x0, y0 = draws.uniform(2, low=0, high=side)[0].double().tolist()
    frequency, amplitude = number(draws, 0, 10), number(draws, 0, side / 10)
    width = number(draws, 0, side / 10)
    radius = np.hypot(x - x0, y - y0) + np.sin(np.arctan2(x - x0, y - y0) * frequency) * amplitude
    return image + 12.8 * level * ((radius % width) / width - 0.5)[..., None]


def plasma_noise(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Coloured clouds of sines within sines, mixed in."""
    y, x, side = grid(image)
    time, rounds = number(draws, 0, 6 * np.pi), int(draws.integers(4, 7, 1))
    sharpness, scale = number(draws, 0.5, 1), number(draws, 0.075, 0.2) * side
    x, y = x / scale, y / scale
    stretch, turn, size, shift = 1.0, 1.0, 1.0, 0.0
    for _ in range(rounds):
        down = np.cos(y * stretch - shift + time / turn) / size
        right = np.sin(x * stretch - shift + time / turn) / size
        x, y = x + down - 0.3 * right, y + right + 0.3 * down
        stretch, turn, size, shift = (
            1.93 * stretch,
            1.15 * turn,
            (2.25 - sharpness) * size,
            shift * time * turn,
        )
    noise = np.stack([np.sin(x - time), np.sin((x + y + np.sin(time)) / 2), np.sin(y + time)], -1)
    return (1 - 6.4 * level / 255) * image + 6.4 * level * noise


def perlin_noise(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Turbulence of Perlin's gradient noise in five octaves, mixed in."""
    y, x, side = grid(image)
    inner = draws.nested()
    gradients = inner.integers(0, 2 * PERLIN, 2 * PERLIN + 2, 2)[0].numpy() / PERLIN - 1.0
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients = np.divide(gradients, lengths, out=gradients, where=lengths > 0)
    order = np.arange(PERLIN)
    for i, j in zip(range(PERLIN - 1, -1, -1), inner.integers(0, PERLIN, PERLIN)[0].tolist(), strict=True):
        order[[i, j]] = order[[j, i]]
    order, gradients = np.tile(order, 2), np.tile(gradients[:PERLIN], (2, 1))
    step = 32 * side / 224
    turbulence = sum(
        np.abs(_perlin(f * y / step, f * x / step, order, gradients)) / f for f in (1, 2, 4, 8, 16)
    )
    mixed = np.clip(0.5 * turbulence + 0.5, 0, 1)[..., None]
    return (1 - 0.05 * level) * image + 255 * 0.05 * level * mixed


def _perlin(x: np.ndarray, y: np.ndarray, order: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    dx, dy = x - x0, y - y0

    def corner(right: int, down: int) -> np.ndarray:
        own = gradients[order[order[(x0 + right) % PERLIN] + (y0 + down) % PERLIN]]
        return (dx - right) * own[..., 0] + (dy - down) * own[..., 1]

    across, along = (t**2 * (3 - 2 * t) for t in (dx, dy))
    upper = corner(0, 0) + across * (corner(1, 0) - corner(0, 0))
    lower = corner(0, 1) + across * (corner(1, 1) - corner(0, 1))
    return 1.5 * (upper + along * (lower - upper))


def _coloured_noise(draws: Draws, shape: tuple[int, ...], blue: bool) -> np.ndarray:
    """Noise with the amplitude of each frequency f |f| (blue) or 1 / (|f|^2 + 1), of spread 1."""
    height, width = shape
    phases = draws.uniform(height, width // 2, low=0, high=2 * np.pi)[0].double().numpy()
    turned = phases[::-1, ::-1]
    if width % 2:
        half = draws.uniform(height // 2, 1, low=0, high=2 * np.pi)[0].double().numpy()
        middle = np.zeros((height % 2, 1))
        phases = np.concatenate([phases, np.concatenate([half, middle, half[::-1]]), turned], 1)
    else:
        phases = np.concatenate([phases, turned], 1)
    radius = np.hypot(np.arange(height)[:, None] - height / 2, np.arange(width) - width / 2)
    spectrum = (radius if blue else 1 / (radius**2 + 1)) * np.exp(1j * phases)
    noise = np.fft.ifft2(np.roll(spectrum, (height // 2, width // 2), (0, 1))).real
    return noise / noise.std()


def brownish_noise(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Noise of low frequencies, for each channel by itself."""
    inner = draws.nested()
    noise = np.stack([_coloured_noise(inner, image.shape[:2], blue=False) for _ in range(3)], -1)
    return image + 6.4 * level * noise


def blue_noise_sample(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Only pixels where noise of high frequencies passes a threshold are kept."""
    noise = _coloured_noise(draws.nested(), image.shape[:2], blue=True)
    return image * (noise > 0.3 * level - 2.5)[..., None]


def checkerboard_cutout(image: Pixels, draws: Draws, level: float) -> Pixels:
    """A share of the black squares of a turned board become grey."""
    y, x, side = grid(image)
    angle = number(draws, 0, 2 * np.pi)
    square = max(number(draws, 0.1, 0.25) * side, 1)
    cells = int(4 * side // square)
    chosen = draws.nested().uniform(cells, cells)[0].double().numpy() < level / 10
    u = (np.cos(angle) * y + np.sin(angle) * x) / square
    v = (-np.sin(angle) * y + np.cos(angle) * x) / square
    cut = ((u % 2).astype(int) == (v % 2).astype(int)) & chosen[u.astype(int), v.astype(int)]
    return np.where(cut[..., None], GREY, image)


def _star(
    image: Pixels, centre: list[float], radius: float, rays: int, power: float, draws: Draws
) -> Float[np.ndarray, "height width 1"]:
    """How bright a star shines at each pixel: rays of random lengths about a centre (row, column)."""
    y, x, _ = grid(image)
    down, right = y - centre[0], x - centre[1]
    lengths = np.maximum(1, radius + 0.25 * radius * draws.normal(rays)[0].double().numpy())
    turn = (np.arctan2(right, down) + np.pi) / (2 * np.pi) * rays
    ray = turn.astype(int)
    part = turn - ray
    reach = lengths[ray % rays] + part * (lengths[(ray + 1) % rays] - lengths[ray % rays])
    glow = (reach**2 / (down**2 + right**2 + 1e-4)) ** power
    return np.clip((1 - (part - 0.5) ** 2) * glow, 0, 1)[..., None]


def sparkles(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Five white stars."""
    side = max(image.shape[:2])
    centres = draws.uniform(5, 2, low=0, high=side)[0].double().tolist()
    inner = draws.nested()
    for centre, rays in zip(centres, draws.integers(50, 200, 5)[0].tolist(), strict=True):
        image = image + _star(image, centre, 0.01 * level * side, rays, 1.0, inner) * (255 - image)
    return image


def inverse_sparkles(image: Pixels, draws: Draws, level: float) -> Pixels:
    """The image is seen through one star, white around it."""
    side = max(image.shape[:2])
    centre = (draws.uniform(2, low=0.25, high=0.75)[0].double() * side).tolist()
    inner = draws.nested()
    rays = int(draws.integers(50, 200, 1))
    return 255 + _star(image, centre, 0.25 * side, rays, 0.13 * level, inner) * (image - 255)


def lines(image: Pixels, draws: Draws, level: float) -> Pixels:
    """Grey lines across, near one direction, smoothed at their edges."""
    height, width = image.shape[:2]
    side = max(height, width)
    angle, spread = number(draws, 0, 2 * np.pi), number(draws, 0.1, 1)
    inner, image = draws.nested(), image.copy()
    for _ in range(int(level / 10 * side)):
        x, y = side * number(inner), side * number(inner)
        direction = angle + 2 * np.pi * spread * (number(inner) - 0.5)
        down, right = np.sin(direction) * side, np.cos(direction) * side
        covered = _smooth_line(int(x - right), int(y - down), int(x + right), int(y + down))
        inside = {p: c for p, c in covered.items() if 0 <= p[0] < height and 0 <= p[1] < width}
        rows, columns = np.array(list(inside), int).reshape(-1, 2).T
        share = np.array(list(inside.values())).reshape(-1, 1)
        image[rows, columns] = np.floor((1 - share) * image[rows, columns] + share * GREY)
    return image


def _smooth_line(row: int, column: int, last_row: int, last_column: int) -> dict[tuple[int, int], float]:
    """Pixels of a line and how much of each it covers: Bresenham's walk, with the error as distance (Zingl 2012)."""
    across, down = abs(last_column - column), abs(last_row - row)
    right, below = (1 if last_column > column else -1), (1 if last_row > row else -1)
    error, size = across - down, math.hypot(across, down) or 1.0
    covered = {}
    while True:
        covered[row, column] = 1 - abs(error - across + down) / size
        before, here = error, column
        if 2 * before >= -across:
            if column == last_column:
                return covered
            if before + down < size:
                covered[row + below, column] = 1 - abs(before + down) / size
            error, column = error - down, column + right
        if 2 * before <= down:
            if row == last_row:
                return covered
            if across - before < size:
                covered[row, here + right] = 1 - abs(across - before) / size
            error, row = error + across, row + below
