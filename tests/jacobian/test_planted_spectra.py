"""What sigma_max promises, on spectra chosen to break it; the figures of lipcomp.jacobian._lanczos' first page."""

import pytest
import torch

from lipcomp.jacobian import spectral_norm
from lipcomp.jacobian._lanczos import Lanczos, half_residuals, miss_bound, ritz_triplets

DIM = 128
STARTS = 200
TAIL = torch.linspace(0.9, 0.01, DIM, dtype=torch.float64)


def pair(gap):
    return torch.cat([torch.tensor([1, 1 - gap], dtype=torch.float64), 0.8 * TAIL[: DIM - 2]])


def eight(scale):
    return torch.cat([1 - 0.01 * torch.linspace(0, 1, 8, dtype=torch.float64), scale * TAIL[: DIM - 8]])


# name: singular values, largest share of starts off by more than rtol, largest error of all
SPECTRA = {
    "flat": (torch.ones(DIM, dtype=torch.float64), 0.0, 1e-12),
    "rank one": (torch.eye(DIM, dtype=torch.float64)[0], 0.0, 1e-12),
    "trained": (torch.cat([torch.tensor([1.0, 0.8]), 0.78 * TAIL[: DIM - 2]]), 0.0, 1e-6),
    "slow decay": (0.97 ** torch.arange(DIM, dtype=torch.float64), 0.0, 1e-6),
    "eight within 1%": (eight(0.9), 0.015, 0.01),
    "eight, far from the rest": (eight(0.5), 0.015, 0.01),
    "two, 3e-4 apart": (pair(3e-4), 0.015, 3.01e-4),
    "two, 1e-3 apart": (pair(1e-3), 0.015, 1.01e-3),
    "two, 3e-3 apart": (pair(3e-3), 0.015, 3.01e-3),
    "two, 1e-2 apart": (pair(1e-2), 0.015, 1.01e-2),
}


def measured(values, *, null):
    """Random starts on a diagonal map, times an orthogonal one; with a null direction more outputs than values."""
    generator = torch.Generator().manual_seed(3)
    values = values.double()
    mix = torch.linalg.qr(torch.randn(DIM + null, DIM + null, generator=generator, dtype=torch.float64)).Q
    matrix = mix[:, :DIM] * values
    images = torch.rand(STARTS, DIM, generator=generator, dtype=torch.float64)
    start = torch.randn(STARTS, DIM + null, generator=generator, dtype=torch.float64)
    found = Lanczos(lambda x: x @ matrix.T, images, start, k=1, rtol=1e-4).run(100)
    return found, matrix


@pytest.mark.parametrize("null", [0, 1])
@pytest.mark.parametrize("name", SPECTRA)
def test_planted_spectra_hold_what_is_promised(name, null):
    values, share, largest = SPECTRA[name]
    found, matrix = measured(values, null=null)
    done = found.converged
    assert float(done.double().mean()) > 0.9
    sigma = found.values[done, 0]
    error = 1 - sigma / values.max()
    assert float(error.min()) > -1e-12  # a lower bound, always
    assert float(error.max()) <= largest
    assert float((error > 1e-4).double().mean()) <= share
    nearest = (sigma[:, None] - values.double()).abs().amin(1)
    assert (nearest <= 1e-4 * sigma).all()  # rule 1: *a* singular value
    u, v = found.left[done, 0], found.right[done, 0]
    torch.testing.assert_close(u @ matrix, sigma[:, None] * v, rtol=0, atol=1e-10 * float(values.max()))
    residual = (v @ matrix.T - sigma[:, None] * u).norm(dim=1) / sigma
    if "eight" not in name:  # among many near values the residual need not fall with every product
        assert (residual <= found.residual[done].clamp(min=1e-10) * 1.01).double().mean() > 0.95


def test_a_null_direction_does_not_hide_the_residual(generator):
    """A normalised linear map: from Cholesky pivots a residual of exactly 0 came back with errors of 1e-2."""
    weight = torch.randn(30, 40, generator=generator, dtype=torch.float64)
    images = torch.rand(200, 40, generator=generator, dtype=torch.float64)
    fn = lambda x: torch.nn.functional.normalize(x @ weight.T, dim=1)  # noqa: E731
    truth = spectral_norm(fn, images, method="rows").sigma
    found = spectral_norm(fn, images, method="lanczos", share=False)
    assert found.converged.all()
    assert float((1 - found.sigma / truth).abs().max()) < 1e-4


def golub_kahan(matrix, start, steps):
    """Vectors, diagonal and subdiagonal, the plain way."""
    q, p, diagonal, below = [start / start.norm()], [], [], []
    for _ in range(steps):
        new = matrix.T @ q[-1]
        for vector in p + p:
            new = new - vector * (vector @ new)
        diagonal.append(new.norm())
        p.append(new / new.norm())
        new = matrix @ p[-1]
        for vector in q + q:
            new = new - vector * (vector @ new)
        below.append(new.norm())
        q.append(new / new.norm())
    return torch.stack(q), torch.stack(p), torch.stack(diagonal)[None], torch.stack(below)[None]


def test_residuals_are_those_of_the_vectors(generator):
    matrix = torch.randn(9, 14, generator=generator, dtype=torch.float64)
    q, p, diagonal, below = golub_kahan(matrix, torch.randn(9, generator=generator, dtype=torch.float64), 5)
    left, values, right = (part[0] for part in ritz_triplets(diagonal, below))
    u, v = q[:5].T @ left, p.T @ right
    residual = below[0, -1] * right[-1].abs()
    small = 2e-13 * float(values.max())
    torch.testing.assert_close(residual, (matrix @ v - u * values).norm(dim=0), rtol=1e-9, atol=small)
    half_values, half = (part[0] for part in half_residuals(diagonal, below[:, :4]))
    right_space = p[:4].T
    left, values, vh = torch.linalg.svd(matrix @ right_space, full_matrices=False)
    difference = (matrix.T @ left - right_space @ vh.T * values).norm(dim=0)
    torch.testing.assert_close(half, difference, rtol=1e-9, atol=small)
    torch.testing.assert_close(half_values, values, rtol=1e-9, atol=small)


def test_the_miss_bound_bounds_how_often_a_value_is_missed(generator):
    """5 steps, one value 10% above the rest: how often the weight of its vector is small enough to hide."""
    values = torch.cat([torch.tensor([1.1]), torch.linspace(1, 0.1, 29)]).double()
    starts = torch.randn(800, 30, generator=generator, dtype=torch.float64)
    parts = [golub_kahan(torch.diag(values), start, 5)[2:] for start in starts]
    diagonal, below = (torch.cat(part) for part in zip(*parts, strict=True))
    sigma = ritz_triplets(diagonal, below)[1][:, 0]
    bound = miss_bound(diagonal, below, sigma, 30, 0.01, several=False)
    missed = sigma < 1.1 / 1.01
    assert float(missed.double().mean()) > 0.2  # 5 steps are too few, so that there is something to bound
    for level in (0.3, 0.6, 0.9):  # stopping there, and having missed it
        assert float(((bound <= level) & missed).double().mean()) <= level / 2


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dim", [14, 30])
def test_where_only_rounding_is_left_no_value_grows(rank, dim):
    """Of rank one, what a cancellation left was not orthogonal any more: 113 times too much, "converged"."""
    generator = torch.Generator().manual_seed(rank * 100 + dim)
    left, right, mix = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (dim, 40, 40)
    )
    spectrum = torch.zeros(dim, dtype=torch.float64)
    spectrum[:rank] = torch.tensor([1.0, 0.5, 0.2])[:rank]
    mix = mix * torch.logspace(0, -3, 40, dtype=torch.float64)
    first, second = mix.float(), torch.linalg.solve(mix, right[:, :dim] @ (left * spectrum).T).float()
    images = torch.rand(200, 40, generator=generator)
    found = spectral_norm(lambda x: x @ first @ second, images, method="lanczos", share=False)
    assert found.converged.all()
    torch.testing.assert_close(found.sigma, torch.ones(200), rtol=1e-5, atol=0)
