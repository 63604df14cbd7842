"""Starts that like images share: the values of the Jacobian's rows, in fewer steps, where images are alike."""

import pytest
import torch

from lipcomp.jacobian import spectral_norm
from lipcomp.jacobian._lanczos import Part
from lipcomp.jacobian._products import Linearisation
from lipcomp.jacobian._sharing import FACTOR, FEWEST, SharedStart, pilot_count

DIM, PIXELS = 48, 64


def slow_spectrum(generator, *, decay=0.97):
    """A matrix whose singular values fall slowly, so that Lanczos takes many steps."""
    left = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(PIXELS, DIM, generator=generator, dtype=torch.float64))[0]
    return left * decay ** torch.arange(DIM) @ right.T


@pytest.fixture
def like(generator):
    matrix, bend = slow_spectrum(generator), 0.02 * slow_spectrum(generator)
    return lambda x: x @ matrix.T + torch.tanh(3 * x @ bend.T)


@pytest.fixture
def mixed(generator):
    """Images of kinds: the first eight pixels tell which of eight matrices acts."""
    matrices = torch.stack([slow_spectrum(generator) for _ in range(8)])
    return lambda x: torch.einsum(
        "nc,cdp,np->nd", torch.softmax(60 * x[:, :8], 1), matrices, x[:, : matrices.shape[2]]
    )


def pictures(count, generator, kinds=None):
    images = torch.rand(count, PIXELS, generator=generator, dtype=torch.float64)
    if kinds is not None:
        images[:, :8] = torch.nn.functional.one_hot(kinds, 8)
    return images


def test_like_images_take_fewer_steps_to_the_same_values(like, generator):
    images, done = pictures(60, generator), []
    truth = spectral_norm(like, images, method="rows").sigma
    shared = spectral_norm(like, images, batch_size=16, advance=done.append)
    alone = spectral_norm(like, images, batch_size=16, share=False)
    for found in (shared, alone):
        torch.testing.assert_close(found.sigma, truth, rtol=1e-4, atol=0)
        assert (found.sigma <= truth * (1 + 1e-12)).all()
        assert found.converged.all()
    assert sum(done) == 60
    saved = alone.iterations.double().mean() - shared.iterations.double().mean()
    assert saved > 1
    pushed = torch.func.vmap(lambda x, v: torch.func.jvp(lambda y: like(y[None])[0], (x,), (v,))[1])(
        images, shared.right
    )
    torch.testing.assert_close(pushed, shared.sigma[:, None] * shared.left, rtol=0.03, atol=0.03)


def test_vectors_are_returned_only_where_they_are_asked_for(like, generator):
    found = spectral_norm(like, pictures(30, generator), vectors=False)
    assert found.left is None
    assert found.right is None
    assert found.sigma.isfinite().all()


def test_images_of_many_kinds_share_nothing(mixed, generator):
    images = pictures(48, generator, torch.arange(48) % 8)
    together = spectral_norm(mixed, images)
    apart = spectral_norm(mixed, images, share=False)
    truth = spectral_norm(mixed, images, method="rows").sigma
    torch.testing.assert_close(together.sigma, truth, rtol=1e-4, atol=0)
    assert abs(together.iterations.double().mean() - apart.iterations.double().mean()) < 0.5


def test_few_unlike_images_are_found_all_the_same(mixed, generator):
    """Nine in ten are of one kind; the others, whose largest direction is elsewhere, lose nothing."""
    kinds = torch.where(torch.arange(240) % 10 == 3, 1 + torch.arange(240) % 7, 0)
    images = pictures(240, generator, kinds)
    truth = spectral_norm(mixed, images, method="rows").sigma
    torch.testing.assert_close(spectral_norm(mixed, images).sigma, truth, rtol=1e-4, atol=0)


def test_excluded_images_do_not_disturb_the_others(like, generator):
    images = pictures(40, generator)

    def fn(x):
        return torch.where(x[:, :1] > 0.9, torch.nan, like(x))

    found = spectral_norm(fn, images)
    out = images[:, 0] > 0.9
    assert out.any()
    assert torch.equal(found.sigma.isnan(), out)
    assert found.excluded["non-finite output"] == int(out.sum())
    truth = spectral_norm(like, images, method="rows").sigma
    torch.testing.assert_close(found.sigma[~out], truth[~out], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("images", "pilots"), [(1, 0), (23, 0), (24, 8), (100, 25), (10_000, 64)])
def test_how_many_pilots(images, pilots):
    assert pilot_count(images) == pilots


def pilots(left, steps):
    n, dim = left.shape
    at = Linearisation(lambda x: x @ torch.ones(3, dim), torch.ones(n, 3))
    part = Part.empty(at, torch.ones(n, 3), 1, {})
    part.left, part.steps = left[:, None], torch.full((n,), steps)
    part.converged = torch.ones(n, dtype=torch.bool)
    return part


def test_doubt_counts_the_unlike(generator):
    direction = torch.zeros(40).index_fill(0, torch.tensor(3), 1.0)
    signs = torch.tensor([1.0, -1.0]).repeat(10)[:, None]  # a singular vector has no sign
    shared = SharedStart.of([pilots(direction * signs, 12)])
    assert abs(float(shared.direction @ direction.double())) == pytest.approx(1)
    assert shared.doubt == pytest.approx(0.5 / 21 * FACTOR)
    left = direction.repeat(20, 1)
    left[5] = torch.zeros(40).index_fill(0, torch.tensor(7), 1.0)
    assert SharedStart.of([pilots(left, 12)]).doubt == pytest.approx(1.5 / 21 * FACTOR)
    start = shared.starts(torch.randn(4, 40, generator=generator))
    assert (start.norm(dim=1) - 2**0.5).abs().max() < 1e-5
    assert (start @ shared.direction.float() - 1).abs().max() < 1e-5


def test_where_sharing_has_no_use(generator):
    direction = torch.zeros(40).index_fill(0, torch.tensor(3), 1.0).repeat(20, 1)
    assert SharedStart.of([pilots(direction, 4)]) is None  # they converge at once
    assert SharedStart.of([pilots(direction[: FEWEST - 1], 12)]) is None
    random = torch.nn.functional.normalize(torch.randn(20, 40, generator=generator), dim=1)
    assert SharedStart.of([pilots(random, 12)]) is None
    assert SharedStart.of([pilots(direction[:, :31], 12)]) is None  # few dimensions


def test_the_factor_of_a_shared_start_is_the_theorys():
    """sqrt(1 + EPS^2) / (EPS sqrt(1 - LIKE)) with EPS = 1 and LIKE = 1/4; and the formula holds in the worst case."""
    assert pytest.approx((8 / 3) ** 0.5) == FACTOR
    generator = torch.Generator().manual_seed(0)
    dim, draws = 64, 200_000
    random = torch.nn.functional.normalize(torch.randn(draws, dim, generator=generator), dim=1)
    direction = torch.eye(dim)[0]
    shared = torch.nn.functional.normalize(SharedStart(direction, 0.1).starts(random), dim=1)
    # an unlike image's weight on the pilots' direction
    for like, small in ((0.0, 0.01), (0.0, 0.03), (0.2, 0.03)):
        aim = torch.zeros(dim)
        aim[0], aim[1] = like**0.5, (1 - like) ** 0.5
        missed = float(((shared @ aim).abs() < small).double().mean())
        alone = float(((random @ aim).abs() < small).double().mean())
        assert missed <= alone * FACTOR
