"""Ellipsoids of pixels and uncertain units (theory (5.4)): above every choice of slopes, and near the largest."""

import math
import resource
import sys

import pytest
import torch
from torch import nn

from lipcomp.bound import certified_bound
from lipcomp.bound._ellipsoids import Units, norm_bound, row_bounds
from lipcomp.bound._local import Ball, Track, direction_bound
from lipcomp.bound._noise import Noise, block_norm, gram_norm_above, norm_above, row_norms
from lipcomp.jacobian import spectral_norm

PIXELS = 6


def uncertain(generator) -> list[Noise]:
    """Five units that see pixels, four merely of bounded rows, six that see all of these."""
    found: list[Noise] = []
    for count, known in ((5, True), (4, False), (6, True)):
        start = PIXELS + sum(len(noise) for noise in found)
        rows = torch.randn(count, start, generator=generator).double() / start**0.5
        halfwidth = torch.rand(count, generator=generator).double() if known else None
        largest = 0.2 * torch.ones(count).double()
        if halfwidth is not None:
            largest = halfwidth * row_norms(rows.mT, found, PIXELS)
        found.append(Noise(list(found), start, PIXELS, largest, rows if known else None, halfwidth))
    return found


def possible(rows, noises, generator):
    """J + G T with slopes at their limits, and rows of the others at theirs."""
    inner = torch.eye(PIXELS, dtype=torch.float64)
    for noise in noises:
        if noise.rows is None:
            own = torch.randn(len(noise), PIXELS, generator=generator).double()
            own = own / own.norm(dim=1, keepdim=True) * noise.largest[:, None]
        else:
            sign = torch.randint(0, 2, (len(noise),), generator=generator) * 2.0 - 1
            own = (sign * noise.halfwidth)[:, None] * (noise.rows @ inner)
        inner = torch.cat([inner, own])
    return rows @ inner


def test_no_choice_of_slopes_is_above_the_bounds(generator):
    noises = uncertain(generator)
    units = Units.of(noises, PIXELS)
    rows = torch.randn(7, PIXELS + 15, generator=generator).double()
    blocks = row_norms(rows.mT, noises, PIXELS)
    each, whole = row_bounds(rows.mT, units, blocks), norm_bound(rows, units)
    largest, norm = torch.zeros(7).double(), 0.0
    for _ in range(3000):
        found = possible(rows, noises, generator)
        largest = torch.maximum(largest, found.norm(dim=1))
        norm = max(norm, float(torch.linalg.matrix_norm(found, 2)))
    assert (largest <= each).all()
    assert norm <= whole
    assert (each < blocks).all()  # and they are of use
    assert (each < 1.5 * largest).all()
    assert whole < min(1.4 * norm, block_norm(rows, noises, PIXELS))


def test_more_rows_than_columns_have_the_norm_of_fewer(generator):
    """As those of a feature map: 3,200 rows took 40 seconds, and ten times as many a thousand times as long."""
    noises = uncertain(generator)
    units = Units.of(noises, PIXELS)
    rows = torch.randn(7, PIXELS + 15, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(500, 7, generator=generator).double()).Q
    many, few = norm_bound(turn @ rows, units), norm_bound(rows, units)
    norm = max(float(torch.linalg.matrix_norm(possible(rows, noises, generator), 2)) for _ in range(300))
    assert norm <= many <= 1.1 * few


def test_a_row_that_sees_the_last_units_alone(generator):
    """The first weights of the units before them follow from what those take, not from the row."""
    noises = uncertain(generator)
    row = torch.zeros(1, PIXELS + 15).double()
    row[0, 0], row[0, -6:] = 0.1, 100
    blocks = row_norms(row.mT, noises, PIXELS)
    bound = row_bounds(row.mT, Units.of(noises, PIXELS), blocks)
    largest = max(float(possible(row, noises, generator).norm()) for _ in range(500))
    assert largest <= float(bound) < min(1.5 * largest, 0.9 * float(blocks))


def test_many_rows_take_no_square_matrix_and_none_without_memory(generator):
    """20,000 rows of one ellipsoid, in a convolution at 224 x 224 even more, took 3 GiB for their furthest points."""
    noises = uncertain(generator)
    rows = torch.randn(20000, PIXELS + 15, generator=generator).double()
    blocks, units = row_norms(rows.mT, noises, PIXELS), Units.of(noises, PIXELS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert row_bounds(rows.mT, units, blocks).mean() < 0.9 * blocks.mean()
    kib = 1024 if sys.platform == "darwin" else 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / kib < 2**20
    assert torch.equal(row_bounds(rows.mT, units, blocks, memory=2.0**20), blocks)


def test_rows_that_see_nothing_but_bounded_units(generator):
    """|w_i| <= tau_i alone: a row g of gains is at most sum |g_i| tau_i, whatever pixels it sees."""
    noise = Noise([], PIXELS, PIXELS, torch.tensor([0.5, 0.25], dtype=torch.float64))
    rows = torch.zeros(1, PIXELS + 2, dtype=torch.float64)
    rows[0, PIXELS:] = torch.tensor([2.0, 4.0])
    known = torch.tensor([9.0], dtype=torch.float64)
    torch.testing.assert_close(
        row_bounds(rows.mT, Units.of([noise], PIXELS), known), known * 2 / 9, rtol=1e-2, atol=0
    )


def test_ellipsoids_of_places_tighten_the_certificate(generator, monkeypatch):
    """Each place of a convolution has its own; without them the ranges are those of blocks."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5),
    ).double().eval()  # fmt: skip
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double()
        parameter.data *= 0.1 if parameter.dim() == 1 else (2 / parameter[0].numel()) ** 0.5
    images = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    together = float(certified_bound(network, images, radius=0.08, method="local").bound)
    assert float(spectral_norm(network, images).sigma) <= together
    monkeypatch.setattr("lipcomp.bound._ellipsoids.WORK", 0)
    none = float(certified_bound(network, images, radius=0.08, method="local").bound)
    assert together < 0.92 * none


def test_a_direction_turned_as_far_as_it_may_is_no_faster_than_the_bound():
    """(5.5) for the Jacobian u vT that is fastest where mu has turned away from u by all of its angle."""
    for angle in (0.05, 0.3, 0.8):
        cosine, sine = math.cos(angle), math.sin(angle)
        mu, across = torch.eye(2, dtype=torch.float64)
        u = cosine * across + mu  # sin / s^2 of it along mu, with s^2 = sin
        v = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
        track = Track(mu, v[:, None] * u, turn=(1.0, math.tan(angle)))
        turned = cosine * mu - sine * across
        speed = float(torch.linalg.matrix_norm(u[:, None] * v - turned[:, None] * (turned @ u) * v, 2))
        bound = direction_bound(track, Ball(1.0, 3, 1e9, 100, True))
        assert speed <= bound < 1.0001 * speed


@pytest.mark.parametrize("size", [20, 300, 301, 420])
def test_the_norm_of_a_matrix_is_bounded_from_above_and_nearly_met(size, generator):
    """Up to 300 by eigenvalues, above by a power iteration that a Cholesky factorisation proves."""
    matrix = torch.randn(size, size + 5, generator=generator).double()
    matrix[0] += 3.0  # one direction is longest by far
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= norm_above(matrix) <= 1.0006 * true
    assert true <= norm_above(matrix.mT) <= 1.0006 * true
    assert norm_above(torch.zeros_like(matrix)) == 0


@pytest.mark.parametrize("more", [0.005, 0.05, 0.3, 1.5])
def test_a_norm_is_proved_where_the_guess_does_not_see_its_vector(more):
    """The largest direction is orthogonal to the start of the power iteration."""
    gram = torch.eye(301, dtype=torch.float64)
    hidden = torch.tensor([1.1, -1.0], dtype=torch.float64) / 2.21**0.5
    gram[:2, :2] += more * hidden[:, None] * hidden
    assert gram_norm_above(gram) >= (1 + more) ** 0.5
