"""Degenerate spectra, exclusions, Frobenius norm, mean value check: against what is known exactly."""

import pytest
import torch
from torch.nn import functional as F

from lipcomp.encoders._heads import mean_direction
from lipcomp.jacobian import frobenius_norm, spectral_norm
from lipcomp.jacobian._dense import jacobian
from lipcomp.jacobian._mean_value import mean_value_check


@pytest.mark.parametrize("values", [[1.0] * 20, [2.0, 2.0, 2.0] + [1.0] * 17, [3.0] + [0.0] * 19, [0.0] * 20])
def test_equal_and_zero_singular_values(values, generator):
    matrix = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    scale = torch.tensor(values, dtype=torch.float64)
    fn = lambda x: (x @ matrix) * scale  # noqa: E731
    found = spectral_norm(fn, torch.rand(3, 20, generator=generator, dtype=torch.float64), k=3)
    torch.testing.assert_close(found.values, scale[:3].expand(3, 3), rtol=0, atol=1e-6 * max(values))
    assert found.converged.all()
    vectors = found.left_vectors
    if min(values[:3]) > 0:
        torch.testing.assert_close(
            vectors @ vectors.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("share", [True, False])
def test_no_image_is_judged_by_its_neighbours(share, generator):
    """A map that is not normalised may give a vector of norm one beside tiny ones: none of them is left out."""
    images = torch.rand(4, 20, generator=generator)
    images[0] = F.normalize(images[0], dim=0)
    images[1:] *= 1e-6
    found = spectral_norm(lambda x: x, images, share=share, method="lanczos")
    torch.testing.assert_close(found.sigma, torch.ones(4))
    assert sum(found.excluded.values()) == 0
    mean_directions = lambda x: mean_direction(x * 1e-14)  # noqa: E731
    for scale in (1.0, 1e-3):
        sigma = spectral_norm(mean_directions, images[:1] * scale, method="lanczos").sigma
        torch.testing.assert_close(sigma * scale, torch.ones(1), rtol=1e-4, atol=0)
    images[2] = 0
    assert spectral_norm(mean_directions, images[2:3], method="rows").excluded["zero-norm embedding"] == 1


def test_too_few_iterations_are_told_and_stay_below(generator):
    matrix = torch.randn(64, 80, generator=generator)
    found = spectral_norm(lambda x: x @ matrix.T, torch.rand(5, 80, generator=generator), max_iterations=3)
    assert not found.converged.any()
    assert (found.iterations == 3).all()
    assert (found.sigma <= torch.linalg.matrix_norm(matrix, 2) * (1 + 1e-5)).all()


def test_a_softmax_that_is_sure_of_noise_gives_no_directions(generator):
    weight = 100 * torch.randn(12, 4, generator=generator)
    images = 1e-3 * torch.rand(3, 12, generator=generator)
    p = (images @ weight).softmax(1)
    jacobian = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ weight.T
    found = spectral_norm(lambda x: (x @ weight).softmax(1), images)
    torch.testing.assert_close(found.sigma, torch.linalg.matrix_norm(jacobian, 2))


def test_images_without_direction_or_number_are_counted_out():
    def fn(x):
        h = F.normalize(x.flatten(1) @ torch.eye(20), dim=1)
        return h * torch.where(x[:, :1] > 0.9, torch.nan, 1.0)

    images = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) * 0.8
    images[1], images[4, 0] = 0.0, 1.0
    for method in ("lanczos", "rows"):
        found = spectral_norm(fn, images, method=method)
        assert found.excluded == {
            "non-finite output": 1,
            "zero-norm embedding": 1,
            "non-finite derivative": 0,
        }
        assert found.sigma.isnan().nonzero().flatten().tolist() == [1, 4]
        assert found.witness not in (1, 4)
    norm = frobenius_norm(fn, images)
    assert norm.squared.isnan().nonzero().flatten().tolist() == [1, 4]


def test_images_without_a_derivative_are_counted_out(generator):
    images = torch.rand(3, 20, generator=generator)
    images[1, 5] = 0.0
    for method in ("lanczos", "rows"):
        found = spectral_norm(torch.sqrt, images, method=method)
        assert found.excluded["non-finite derivative"] == 1
        assert found.sigma.isnan().tolist() == [False, True, False]
        truth = 0.5 / images[[0, 2]].amin(1).sqrt()
        torch.testing.assert_close(found.sigma[[0, 2]], truth, rtol=1e-4, atol=0)


def test_the_frobenius_norm_and_its_standard_error(generator):
    matrix = torch.randn(40, 60, generator=generator)
    fn = lambda x: torch.tanh(x @ matrix.T)  # noqa: E731
    images = torch.rand(300, 60, generator=generator)
    truth = jacobian(fn, images).double().square().sum((1, 2))
    exact = frobenius_norm(fn, images, probes=40)
    assert exact.exact
    torch.testing.assert_close(exact.squared, truth, rtol=1e-5, atol=0)
    found = frobenius_norm(fn, images, probes=24, generator=generator)
    scores = (found.squared - truth) / found.standard_error
    assert abs(float(scores.mean())) < 0.25  # 300 images: standard error of the mean score 0.06
    assert 0.85 < float(scores.std()) < 1.3
    again = [frobenius_norm(fn, images, probes=24, batch_size=size).squared for size in (7, 300)]
    torch.testing.assert_close(*again, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="at least 2"):
        frobenius_norm(fn, images, probes=1)


@pytest.mark.parametrize("probes", [2, 16])
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_the_frobenius_interval_covers_what_it_says(rank, probes, generator):
    """95% at rank one, more elsewhere; estimate ± 2 standard errors covered 57% to 67% at two probes."""
    matrix = torch.randn(40, rank, generator=generator) @ torch.randn(rank, 60, generator=generator)
    images = torch.rand(3000, 60, generator=generator)
    found = frobenius_norm(lambda x: x @ matrix.T, images, probes=probes, batch_size=3000)
    low, high = found.interval()
    truth = matrix.double().square().sum()
    covered = float(((low <= truth) & (truth <= high)).double().mean())
    assert covered > 0.95 - 3 * 0.004  # three standard errors
    if rank == 1:
        assert covered < 0.97


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_the_frobenius_norm_has_no_over_or_underflow(factor, generator):
    matrix = torch.randn(20, 30, generator=generator)
    images = torch.rand(2, 30, generator=generator)
    for probes, rtol in ((20, 1e-5), (8, 1.5)):
        found = frobenius_norm(lambda x: (x @ matrix.T) * factor, images, probes=probes)
        torch.testing.assert_close(found.norm / factor, matrix.norm().double().expand(2), rtol=rtol, atol=0)
        assert found.squared.isfinite().all()
        assert (found.squared > 0).all()
    assert frobenius_norm(lambda x: 0 * (x @ matrix.T), images, probes=8).standard_error.eq(0).all()


def test_a_chord_never_exceeds_sigma_on_its_segment(generator):
    weight, more = torch.randn(30, 8, generator=generator), torch.randn(14, 30, generator=generator)
    fn = lambda x: F.normalize(torch.relu(x @ weight.T) @ more.T, dim=1)  # noqa: E731
    first, second = torch.rand(40, 8, generator=generator), torch.rand(40, 8, generator=generator)
    second[0] = first[0]
    check = mean_value_check(fn, first, second)
    assert check.holds.all()
    assert check.ratio[0] == 0
    assert ((check.position[1:] >= 0) & (check.position[1:] <= 1)).all()

    step = lambda x: fn(x) + (x[:, :1] > 0.5)  # noqa: E731
    assert not mean_value_check(step, first, second).holds.all()
